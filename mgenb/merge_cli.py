"""The command `mgenb merge`. What is slow to load is imported inside, so that --help is quick."""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mgenb.data import Split
    from mgenb.merging import Found, Method, Task

Checkpoint = Annotated[Path, typer.Argument(help="A state_dict: .safetensors, or a torch file.")]


def merge(
    first: Checkpoint,
    second: Checkpoint,
    arch: Annotated[str, typer.Option(help="Their architecture, such as resnet56.")],
    dataset: Annotated[str, typer.Option(help="The data they were trained on, by name, or a folder or .zip.")],
    method: Annotated[
        str, typer.Option(help="How to merge: mega, average, rebasin, line and others, or all.")
    ] = "mega",
    out: Annotated[Path, typer.Option(help="File for the merged model; never an existing one.")] = Path(
        "merged.safetensors"
    ),
    budget: Annotated[int, typer.Option(help="How many networks may be evaluated on validation images.")] = 400,
    size: Annotated[int, typer.Option(help="Individuals of MeGA's population.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of data split and search.")] = 0,
    train_limit: Annotated[int, typer.Option(help="Most images for fresh BatchNorm statistics; 0 for all.")] = 2000,
    val_limit: Annotated[int, typer.Option(help="Images to judge with; 0 for all.")] = 0,
    samples: Annotated[bool, typer.Option("--samples", help="Use the images shipped with mgenb.")] = False,
    device: Annotated[str, typer.Option(help="Where to evaluate: auto, cpu or cuda.")] = "auto",
) -> None:
    """Merge two trained networks, and compare the result with both.

    Chosen by validation images; the test images are looked at once, at the end. With --method all every method is
    run and the best one on validation images is saved. A genetic algorithm that was interrupted goes on where it was
    when the same command is given again.
    Example: mgenb merge a.safetensors b.safetensors --arch resnet56 --dataset cifar10 --method rebasin-bn
    """
    import pandas as pd

    from mgenb import data, mega, merging, nets, population, store, training
    from mgenb.errors import MgenbError, choose

    for file in (first, second):
        if not file.is_file():
            raise MgenbError(f"{file} is not a file; right is a trained network's state_dict")
    names = list(merging.METHODS) if method == "all" else [choose("method", method, [*merging.METHODS, "all"])]
    if out.suffix != ".safetensors" or out.exists() or out.with_suffix(".json").exists():
        raise MgenbError(f"{out} exists or does not end in .safetensors; right is a new name like merged.safetensors")
    choose("architecture", arch, nets.ARCHITECTURES)
    source = "samples" if samples else "auto"
    images = data.load(dataset, source=source, seed=seed, val_limit=val_limit or None).to(population.device(device))
    train = images.train.take(train_limit, seed) if 0 < train_limit < len(images.train) else images.train
    print(
        f"validation: {len(images.val)} of {images.name}'s training images; if the two networks were trained on them,"
    )
    print("validation accuracy is too high and selection prefers what overfits; test accuracy stays fair")
    net = training.fresh(arch, images, seed)
    states = merging.read_pair((first, second), net)
    task = merging.Task(net, *states, train, images.val, budget, seed, size)
    parents = [store.file_hash(file) for file in (first, second)]
    settings = [arch, nets.VERSIONS[arch], budget, size, seed, train_limit]
    asked = {"parents": parents, "data": images.describe(), "settings": settings, "version": mega.VERSION}
    kept = {name: store.unfinished(f"merge-{name}", asked) for name in names}
    found = {name: _timed(merging.METHODS[name], replace(task, keep=kept[name])) for name in names}
    test = images.test.unseal(f"mgenb merge {method}")
    for file, state in zip((first, second), states, strict=True):
        fitness = merging.correct(net, images.val, (state,)).double().mean().item()
        found[str(file)] = merging.Found((state,), fitness, 1), 0.0
    rows = {name: _row(task, test, *one) for name, one in found.items()}
    print(pd.DataFrame(rows).T.rename_axis("model").to_string())
    single = {name: found[name][0] for name in names if len(found[name][0].states) == 1}
    if not single:
        print("an ensemble is two networks: there is no merged model to save")
        return
    best = max(single, key=lambda name: single[name].fitness)
    told = {"arch": arch, "dataset": images.name, "method": best, "seed": seed, "budget": budget, "parents": parents}
    store.save_weights(out, single[best].states[0], told)
    for file in kept.values():
        file.unlink(missing_ok=True)
    print(f"{best} is in {out}")


def _timed(method: "Method", task: "Task") -> tuple["Found", float]:
    began = perf_counter()
    return method(task), perf_counter() - began


def _row(task: "Task", test: "Split", found: "Found", seconds: float) -> dict[str, str]:
    """Return a row of the table: accuracies in percent with 95 % intervals, what it cost, and where it lies."""
    from mgenb import merging, stats

    def accuracy(split: "Split") -> str:
        right = merging.correct(task.net, split, found.states)
        return str(stats.proportion(int(right.sum()), len(right)).times(100))

    place = found.provenance(task)
    alone = len(found.states) == 1
    return {
        "validation (%)": accuracy(task.val),
        "test (%)": accuracy(test),
        "evaluations": str(found.evaluations),
        "seconds": f"{seconds:.1f}",
        "alpha": f"{place.alpha:.2f}" if alone else "",
        "provenance": place.label() if alone else "two networks",
    }
