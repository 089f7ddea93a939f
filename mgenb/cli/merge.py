"""The command `mgenb merge`. What is slow to load is imported inside, so that --help is quick."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgenb.cli.options import Jobs, Scheduler
from mgenb.errors import MgenbError, choose

if TYPE_CHECKING:
    from torch import nn

    from mgenb.data import Dataset
    from mgenb.mega.methods import Result, Task
    from mgenb.nets.checkpoints import Checkpoint

File = Annotated[Path, typer.Argument(help="A checkpoint: safetensors, an index of its shards, or a torch file.")]
Method = Annotated[str, typer.Option(help="How to merge: mega, average, rebasin, line and others, or all.")]
TRAINED_ON = (
    "validation: {} training images of {}; if the two networks were trained on them, validation accuracy\n"
    "is too high and selection prefers what overfits; test accuracy stays fair"
)
FAR = 0.1  # share of images by which a network that is read as it was trained is seldom worse than its like
DOUBT = "is it for these images, in this order of classes, and are they scaled as it was trained (--scale)?"
Out = Annotated[
    Path | None, typer.Option(help="File for the merged model; never an existing one. [default: merged, as the first]")
]


def merge(
    first: File,
    second: File,
    arch: Annotated[str, typer.Option(help="Ours, torchvision's or timm's name, or package.module:function.")],
    dataset: Annotated[str, typer.Option(help="The data they were trained on, by name, or a folder or .zip.")],
    method: Method = "mega",
    out: Out = None,
    scale: Annotated[str, typer.Option(help="How the images are scaled: 0-1, 0-255 or normalised.")] = "",
    mean: Annotated[str, typer.Option(help="Or their mean in [0, 1], one number or one for each channel: a,b,c.")] = "",
    std: Annotated[str, typer.Option(help="And their standard deviation.")] = "",
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

    What is saved has format, keys and number types of the first, and loads where it did; a JSON beside it tells more.
    Chosen by validation images; the test images are looked at once, at the end. With --method all every method is
    run that can take the networks, and the best merge on validation images is saved. A genetic algorithm that was
    interrupted goes on where it was when the same command is given again.
    Example: mgenb merge a.safetensors b.safetensors --arch resnet56 --dataset cifar10 --method rebasin-bn
    """
    from mgenb import data, devices, store
    from mgenb.executor import workers
    from mgenb.mega import methods
    from mgenb.nets.checkpoints import SUFFIXES

    names = list(methods.METHODS) if method == "all" else [choose("method", method, [*methods.METHODS, "all"])]
    source, val = "samples" if samples else "auto", val_limit or None
    images = data.load(dataset, source=source, seed=seed, val_limit=val).to(devices.device(device))
    net, parents = _read((first, second), arch, images, (scale, mean, std))
    out = out or Path("merged").with_suffix(parents[0].suffix)
    store.refuse_taken(out, SUFFIXES)
    states = parents[0].state, parents[1].state
    task = methods.Task(net, *states, images.train.at_most(train_limit or "all", seed), images.val, budget, seed, size)
    settings = _settings(task, arch, images) | {"train_limit": train_limit}
    kept = {name: store.unfinished(f"merge-{name}", settings) for name in names}
    _judge((first, second), task)
    with workers(jobs, scheduler) as executor:
        results = _taken(methods.found(task, kept, executor))
    _save(out, parents[0], task, results, settings | {"table": _tell((first, second), task, results, images)})
    for file in kept.values():
        file.unlink(missing_ok=True)


def _settings(task: "Task", arch: str, images: "Dataset") -> dict[str, Any]:
    """Return what a merge depends on."""
    from mgenb import mega, nets, store

    parents = [store.tensor_hash(state, state) for state in (task.first, task.second)]
    same = {"arch": arch, "data": images.describe(), "budget": task.budget, "size": task.size, "seed": task.seed}
    return same | {"parents": parents, "versions": [nets.VERSIONS.get(arch), mega.VERSION]}


def _read(
    files: Sequence[Path], arch: str, images: "Dataset", options: tuple[str, str, str]
) -> "tuple[nn.Module, tuple[Checkpoint, ...]]":
    """Return the network and the checkpoints, and print how they were read and how images are scaled.

    Raises MgenbError where a network that is not ours needs to be told, or is told what its file says.
    """
    from mgenb import nets
    from mgenb.nets import checkpoints, factory

    given = factory.scaling(images.train.images, *options)
    usual = factory.normalised(images.train.images)
    net = factory.build(arch, images.channels, images.size, images.num_classes, *(given or usual))
    found = checkpoints.read_all(files, net.to(images.train.images.device))
    print("".join(f"{sentence}\n" for checkpoint in found for sentence in checkpoint.said), end="")
    telling = [str(file) for file, checkpoint in zip(files, found, strict=True) if checkpoint.scales]
    if given and telling:
        raise MgenbError(f"{telling[0]} says itself how images are scaled; right is without --scale, --mean and --std")
    if not (given or telling or arch in nets.ARCHITECTURES):
        right = "--scale 0-1, 0-255 or normalised, or --mean and --std as in its training"
        raise MgenbError(f"no file says how images are scaled for {arch}; right is {right}")
    why = f"as {telling[0]} says" if telling else "as given" if given else "as the training images are"
    mean, std = ([f"{x:.3f}" for x in found[0].state[f"normalise.{name}"].tolist()] for name in ("mean", "std"))
    print(f"images are scaled {why}: mean {', '.join(mean)}, std {', '.join(std)}")
    return net, found


def _judge(files: Sequence[Path], task: "Task") -> None:
    """Print the accuracies of both networks on validation images, and what is suspicious about them."""
    from mgenb import stats
    from mgenb.measure import population

    rights = [int(population.correct(task.net, task.val, state).sum()) for state in (task.first, task.second)]
    images, chance = len(task.val), max(task.val.counts()) / len(task.val)
    for file, right in zip(files, rights, strict=True):
        accuracy = stats.proportion(right, images)
        print(f"{file}: {accuracy.times(100)} % of {images} validation images are right")
        if accuracy.interval()[0] <= chance or right < max(rights) - FAR * images:
            low = "at chance" if accuracy.interval()[0] <= chance else "far below the other"
            print(f"warning: {file} is {low}: {DOUBT}")


def _tell(
    files: tuple[Path, Path], task: "Task", results: Mapping[str, "Result"], images: "Dataset"
) -> dict[str, dict[str, str]]:
    """Print by which images was chosen, and what that is worth, and how all fare on test images; return the table."""
    from mgenb.mega import methods

    whose = ", the samples shipped with mgenb" if images.variant == "sample" else ""
    print(TRAINED_ON.format(len(task.val), images.name + whose))
    test = images.test.unseal(f"mgenb merge: {', '.join(results)}")
    table = methods.compare(task, (str(files[0]), str(files[1])), results, test)
    print(table.to_string())
    return table.T.to_dict()


def _taken(found: "Mapping[str, Result | str]") -> "dict[str, Result]":
    """Return what the methods found that could take the networks, and say of the others why they are left out.

    Raises MgenbError where none could.
    """
    refused = {name: why for name, why in found.items() if isinstance(why, str)}
    if len(refused) == len(found):
        raise MgenbError(next(iter(refused.values())))
    print("".join(f"{name} is left out: {why}\n" for name, why in refused.items()), end="")
    return {name: result for name, result in found.items() if not isinstance(result, str)}


def _save(
    out: Path, like: "Checkpoint", task: "Task", results: Mapping[str, "Result"], settings: Mapping[str, Any]
) -> None:
    """Write the best merge on validation images, else the best single network, and say which it is."""
    import torch

    from mgenb import __version__
    from mgenb.mega import methods
    from mgenb.nets import checkpoints

    ranked = sorted(results, key=lambda name: -results[name].fitness)  # the first of equals stays first
    merged = [name for name in ranked if methods.merges(name, results[name], task)]
    single = [name for name in ranked if len(results[name].states) == 1]
    if not single:
        print("an ensemble is two networks: there is no merged model to save")
        return
    kept = (merged or single)[0]
    result = results[kept]
    about = {"method": kept, "validation": result.fitness, "provenance": asdict(result.provenance(task))}
    software = {"mgenb": __version__, "torch": torch.__version__}
    checkpoints.write_back(result.states[0], like, out, {**settings, **about, "software": software})
    best = "" if ranked[0] in merged else f"; best on validation is {ranked[0]}, which is no merge"
    print(f"{kept} is in {out}{best}")
