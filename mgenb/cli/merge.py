"""The command `mgenb merge`. What is slow to load is imported inside, so that --help is quick."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgenb.cli.options import Jobs, Scheduler
from mgenb.errors import MgenbError, choose

if TYPE_CHECKING:
    from mgenb.data import Dataset
    from mgenb.mega.methods import Result, Task

Checkpoint = Annotated[Path, typer.Argument(help="A state_dict: .safetensors, or a torch file.")]
Method = Annotated[str, typer.Option(help="How to merge: mega, average, rebasin, line and others, or all.")]
TRAINED_ON = (
    "validation: {} training images of {}; if the two networks were trained on them, validation accuracy\n"
    "is too high and selection prefers what overfits; test accuracy stays fair"
)
Out = Annotated[Path, typer.Option(help="File for the merged model; never an existing one.")]


def merge(
    first: Checkpoint,
    second: Checkpoint,
    arch: Annotated[str, typer.Option(help="Their architecture, such as resnet56.")],
    dataset: Annotated[str, typer.Option(help="The data they were trained on, by name, or a folder or .zip.")],
    method: Method = "mega",
    out: Out = Path("merged.safetensors"),
    budget: Annotated[int, typer.Option(help="How many networks may be evaluated on validation images.")] = 400,
    size: Annotated[int, typer.Option(help="Individuals of MeGA's population.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of data split and search.")] = 0,
    train_limit: Annotated[int, typer.Option(help="Most images for fresh BatchNorm statistics; 0 for all.")] = 2000,
    val_limit: Annotated[int, typer.Option(help="Images to judge with; 0 for all.")] = 0,
    samples: Annotated[bool, typer.Option("--samples", help="Use the images shipped with mgenb.")] = False,
    device: Annotated[str, typer.Option(help="Where to evaluate: auto, cpu or cuda.")] = "auto",
    jobs: Jobs = None,
    scheduler: Scheduler = None,
) -> None:
    """Merge two trained networks, and compare the result with both.

    Chosen by validation images; the test images are looked at once, at the end. With --method all every method is
    run that can take the networks, and the best merge on validation images is saved. A genetic algorithm that was
    interrupted goes on where it was when the same command is given again.
    Example: mgenb merge a.safetensors b.safetensors --arch resnet56 --dataset cifar10 --method rebasin-bn
    """
    from mgenb import data, devices, mega, nets, store, training
    from mgenb.executor import workers
    from mgenb.mega import methods

    names = list(methods.METHODS) if method == "all" else [choose("method", method, [*methods.METHODS, "all"])]
    store.refuse_taken(out)
    source, val = "samples" if samples else "auto", val_limit or None
    images = data.load(dataset, source=source, seed=seed, val_limit=val).to(devices.device(device))
    net = training.fresh(arch, images, seed)
    states = methods.read_pair((first, second), net)
    task = methods.Task(net, *states, images.train.at_most(train_limit or "all", seed), images.val, budget, seed, size)
    settings = {"arch": arch, "data": images.describe(), "budget": budget, "size": size, "seed": seed}
    parents = [store.file_hash(file) for file in (first, second)]
    settings |= {"train_limit": train_limit, "parents": parents, "versions": [nets.VERSIONS[arch], mega.VERSION]}
    kept = {name: store.unfinished(f"merge-{name}", settings) for name in names}
    with workers(jobs, scheduler) as executor:
        results = _taken(methods.found(task, kept, executor))
    print(_chosen_by(images))
    test = images.test.unseal(f"mgenb merge {method}")
    print(methods.compare(task, (str(first), str(second)), results, test).to_string())
    _save(out, task, results, settings)
    for file in kept.values():
        file.unlink(missing_ok=True)


def _chosen_by(images: "Dataset") -> str:
    """Return by which images was chosen, and what that is worth."""
    whose = ", the samples shipped with mgenb" if images.variant == "sample" else ""
    return TRAINED_ON.format(len(images.val), images.name + whose)


def _taken(found: "Mapping[str, Result | str]") -> "dict[str, Result]":
    """Return what the methods found that could take the networks, and say of the others why they are left out.

    Raises MgenbError where none could.
    """
    refused = {name: why for name, why in found.items() if isinstance(why, str)}
    if len(refused) == len(found):
        raise MgenbError(next(iter(refused.values())))
    print("".join(f"{name} is left out: {why}\n" for name, why in refused.items()), end="")
    return {name: result for name, result in found.items() if not isinstance(result, str)}


def _save(out: Path, task: "Task", results: Mapping[str, "Result"], settings: Mapping[str, Any]) -> None:
    """Write the best merge on validation images, else the best single network, and say which it is."""
    from mgenb import store
    from mgenb.mega import methods

    ranked = sorted(results, key=lambda name: -results[name].fitness)  # the first of equals stays first
    merged = [name for name in ranked if methods.merges(name, results[name], task)]
    single = [name for name in ranked if len(results[name].states) == 1]
    if not single:
        print("an ensemble is two networks: there is no merged model to save")
        return
    kept = (merged or single)[0]
    store.save_new(out, results[kept].states[0], {**settings, "method": kept})
    best = "" if ranked[0] in merged else f"; best on validation is {ranked[0]}, which is no merge"
    print(f"{kept} is in {out}{best}")
