"""The command `mgenb merge`. What is slow to load is imported inside, so that --help is quick."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgenb.cli.options import Jobs, Scheduler

if TYPE_CHECKING:
    from mgenb.data import Split
    from mgenb.mega.methods import Found, Task
    from mgenb.store import State

Checkpoint = Annotated[Path, typer.Argument(help="A state_dict: .safetensors, or a torch file.")]
Method = Annotated[str, typer.Option(help="How to merge: mega, average, rebasin, line and others, or all.")]
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
    run and the best one on validation images is saved. A genetic algorithm that was interrupted goes on where it was
    when the same command is given again.
    Example: mgenb merge a.safetensors b.safetensors --arch resnet56 --dataset cifar10 --method rebasin-bn
    """
    from mgenb import data, devices, mega, nets, store, training
    from mgenb.errors import MgenbError, choose
    from mgenb.executor import each, workers
    from mgenb.mega import methods

    choose("architecture", arch, nets.ARCHITECTURES)
    names = list(methods.METHODS) if method == "all" else [choose("method", method, [*methods.METHODS, "all"])]
    for file in (first, second):
        if not file.is_file():
            raise MgenbError(f"{file} is not a file; right is a trained network's state_dict")
    store.refuse_taken(out)
    source, val = "samples" if samples else "auto", val_limit or None
    images = data.load(dataset, source=source, seed=seed, val_limit=val).to(devices.device(device))
    net = training.fresh(arch, images, seed)
    states = methods.read_pair((first, second), net)
    task = methods.Task(net, *states, images.train.at_most(train_limit or "all", seed), images.val, budget, seed, size)
    told = {"arch": arch, "data": images.describe(), "budget": budget, "size": size, "seed": seed}
    told |= {"train_limit": train_limit, "parents": [store.file_hash(file) for file in (first, second)]}
    asked = {**told, "versions": [nets.VERSIONS[arch], mega.VERSION]}
    kept = {name: store.unfinished(f"merge-{name}", asked) for name in names}
    with workers(jobs, scheduler) as executor:
        done = sorted(each(partial(_merged, task, kept), names, executor, "method"))
    found = {names[number]: result for number, result in done}
    parents = {str(file): methods.Found((state,), 0, 1) for file, state in zip((first, second), states, strict=True)}
    _show(task, {**found, **parents}, images.test.unseal(f"mgenb merge {method}"))
    _save(out, found, told)
    for file in kept.values():
        file.unlink(missing_ok=True)


def _merged(task: "Task", kept: Mapping[str, Path], name: str) -> "Found":
    """Return what a method finds, with one thread: with more of them sums have another order."""
    from mgenb.devices import one_thread
    from mgenb.mega.methods import METHODS

    with one_thread():
        return METHODS[name](replace(task, keep=kept[name]))


def _show(task: "Task", found: Mapping[str, "Found"], test: "Split") -> None:
    """Print a table: accuracies in percent with 95 % intervals, what each cost, and where it lies."""
    import pandas as pd

    from mgenb import stats
    from mgenb.mega import methods

    def accuracy(split: "Split", states: tuple["State", ...]) -> str:
        right = methods.correct(task.net, split, states)
        return str(stats.proportion(int(right.sum()), len(right)).times(100))

    rows = {}
    for name, one in found.items():
        place, alone = one.provenance(task), len(one.states) == 1
        rows[name] = {
            "validation (%)": accuracy(task.val, one.states),
            "test (%)": accuracy(test, one.states),
            "evaluations": one.evaluations,
            "alpha": f"{place.alpha:.2f}" if alone else "",
            "provenance": place.label() if alone else "two networks",
        }
    print(f"validation: {len(task.val)} training images; if the two networks were trained on them, validation accuracy")
    print("is too high and selection prefers what overfits; test accuracy stays fair")
    print(pd.DataFrame(rows).T.rename_axis("model").to_string())


def _save(out: Path, found: Mapping[str, "Found"], told: Mapping[str, Any]) -> None:
    """Write the merged model that is best on validation images; an ensemble is none."""
    from mgenb import store

    single = {name: one for name, one in found.items() if len(one.states) == 1}
    if not single:
        print("an ensemble is two networks: there is no merged model to save")
        return
    best = max(single, key=lambda name: single[name].fitness)
    store.save_weights(out, single[best].states[0], {**told, "method": best})
    print(f"{best} is in {out}")
