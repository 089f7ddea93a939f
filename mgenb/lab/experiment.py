"""What an experiment stands on: the data and the trained networks that its part names, and one look at the test images.

A part names them by `dataset`, `train`, `val`, `test` (images at most, as text: a number or "all"), `arch`, `recipe`,
`epochs`, and by `base` (the number of one network), `pair` (of two) or `tree` (of as many as its `models` says); the
run adds `seed`, `profile`, `device` and `retrain`. Where a part names them, `folds` says that one in so many training
images is for validation, `first_seed` where the seeds of networks begin, and `val_classes` and `novel_classes` how many
classes are kept from training for few-shot learning (see `dealt`). `fresh` is the number of a network that the function
itself trains anew (it may return the facts that stand with the part, as its `weights`).
So the function needs nothing but its part, and can be called in another process, or on another machine.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgenb import data, store, training
from mgenb.data.splits import LOOKS, ClassSplit, split_classes
from mgenb.devices import COUNTING
from mgenb.errors import MgenbError
from mgenb.executor import each, workers
from mgenb.lab import catalog, rows
from mgenb.measure import population
from mgenb.store import State

SPLITS = ("train", "val", "test")
LOADED = ("dataset", *SPLITS, "seed", "profile", "device", "folds")  # what makes a dataset
DEALT = ("val_classes", "novel_classes")  # for few-shot learning: how its classes are dealt
WHERE_NAMED = ("folds", "first_seed", *DEALT)  # a part need not have them
# how a part names its networks, and how they are called
NUMBERED = {"base": "network", "pair": "pair", "tree": "tree", "fresh": "fresh network"}
TRAINED = ("arch", "dataset", "train", "recipe", "epochs")  # what makes a base network, with its number

# a state_dict, None for the network's own, or what makes one: so that only one need be held at a time
Candidate = tuple[nn.Module, State | Callable[[], State] | None]
Candidates = Mapping[Any, Candidate]  # by label
Measure = Callable[[nn.Module, data.Split, Any], Any]
Finish = Callable[[nn.Module, data.Dataset], None]


def dataset(part: rows.Part) -> data.Dataset:
    """Return the dataset that a part names on its device, with at most so many images of each split (or "all").

    The quick profile reads the shipped samples of a named dataset, always, so that its outputs are the same on every
    machine.
    """
    limits: dict[str, Any] = {f"{name}_limit": None if part[name] == "all" else int(part[name]) for name in SPLITS}
    if part.get("folds"):
        limits["val_fraction"] = 1 / part["folds"]
    quick = part["profile"] == "quick" and part["dataset"] in data.NAMES
    source = "samples" if quick else "auto"
    return data.load(part["dataset"], source=source, seed=part["seed"], download=not quick, **limits).to(part["device"])


def load(part: rows.Part) -> data.Dataset:
    """Return the dataset that a part names; it is kept for the parts that follow.

    Where the part deals classes, train and val hold the base classes, and the sealed test the novel ones.
    """
    return dealt(part).data if "novel_classes" in part else _load(*(part.get(name) for name in LOADED))


def dealt(part: rows.Part) -> ClassSplit:
    """Return the dataset that a part names, dealt by class for few-shot learning."""
    val, novel = (part[name] for name in DEALT)
    return _dealt(_load(*(part.get(name) for name in LOADED)), val=val, novel=novel, seed=part["seed"])


_dealt = lru_cache(maxsize=2)(split_classes)


@lru_cache(maxsize=2)
def _load(*values: Any) -> data.Dataset:
    return dataset(dict(zip(LOADED, values, strict=True)))


def trained(part: rows.Part, finish: Finish | None = None) -> list[nn.Module]:
    """Return the trained networks that a part names, in eval mode; they are shared, and not to be changed.

    `finish(net, dataset)` changes each in place before anyone else sees it.
    """
    seeds = [1000 * part["seed"] + part.get("first_seed", 0) + number for number in _numbers(part)]
    how = part["recipe"], part["epochs"], bool(part.get("retrain"))
    return [_trained(part["arch"], load(part), seed, finish, *how) for seed in seeds]


def _numbers(part: rows.Part) -> list[int]:
    of = next(name for name in NUMBERED if name in part)
    count = part["models"] if of == "tree" else {"base": 1, "pair": 2, "fresh": 0}[of]
    return list(range(count * part[of], count * (part[of] + 1)))


@lru_cache(maxsize=16)  # a tree of eight, as trained and finished
def _trained(
    arch: str, dataset: data.Dataset, seed: int, finish: Finish | None, recipe: str, epochs: int, retrain: bool
) -> nn.Module:
    net = training.trained(arch, dataset, recipe=recipe, epochs=epochs, seed=seed, retrain=retrain)
    if finish:
        finish(net, dataset)
    return net


def final_test(dataset: data.Dataset, models: Candidates, measure: Measure = population.correct) -> dict[Any, Any]:
    """Return label -> what `measure` finds on the test images: the one look at the sealed test split.

    `models` maps a label to (network, state_dict, or what makes one when called, or None). `measure` takes (network,
    test split, state_dict or None) and by default says which images are right (bool [n], CPU); an attack is another.
    """
    if not models:
        raise MgenbError("final_test was given no models")
    test = dataset.test.unseal(f"experiment: {len(models)} models")
    return {label: measure(net, test, state() if callable(state) else state) for label, (net, state) in models.items()}


def measure(
    parts: Sequence[rows.Part], function: rows.Function, experiment: rows.Experiment, run: rows.Part, folder: Path
) -> rows.Rows:
    """Return the rows of the planned parts: measured where `folder` lacks them, or read where `catalog.ANALYSE` says.

    `run` holds the run's seed, profile and device, and whether networks are trained anew. What measures side by side
    is chosen by `executor.workers`.
    """
    if source := os.environ.get(catalog.ANALYSE):
        measured = rows.read(Path(source) / f"{experiment.stem}.csv")
        if measured.experiment != experiment:
            wrong = f"the rows in {source} are of {measured.experiment}, not of {experiment}"
            raise MgenbError(f"{wrong}: measure them anew")
        return rows.select(measured, parts)
    once, facts = partial(_looking_once, function, run), partial(_facts, run)
    with workers() as executor:
        if executor:
            _train(parts, facts, executor)
        return rows.measure(parts, once, experiment=experiment, folder=folder, facts=facts, executor=executor)


def _train(parts: Sequence[rows.Part], facts: rows.Facts, executor: Executor) -> None:
    """Train the networks that parts name side by side: parts of the same one would wait for each other."""
    names = [name for name in (*SPLITS, *TRAINED, *WHERE_NAMED) if name in parts[0]]
    singles = [{name: part[name] for name in names} | {"base": n} for part in parts for n in _numbers(part)]
    list(each(facts, {str(single): single for single in singles}.values(), executor, "network"))


def _looking_once(function: rows.Function, run: rows.Part, part: rows.Part) -> tuple[Any, ...]:
    before = len(LOOKS)
    made, arrays, known = rows.unpacked(function({**part, **run}))
    if (looks := len(LOOKS) - before) > 1:
        raise MgenbError(f"the part {dict(part)} looked at the test images {looks} times; right is one look")
    return made, arrays, {**known, "test_looks": looks}


def _facts(run: rows.Part, part: rows.Part) -> dict[str, Any]:
    """Return what stands with a part: its data, its networks and their weights as trained, and the machine."""
    described = load({**part, **run}).describe()
    states = [net.state_dict() for net in trained({**part, **run})]
    number = next(f"{shown} {part[of]}" for of, shown in NUMBERED.items() if of in part)
    return {
        "data": described["digest"],
        "weights": "-".join(store.tensor_hash(state, state)[:20] for state in states),
        "nets": ", ".join([*(f"{name} {part[name]}" for name in TRAINED), number]),
        "described": described,
        "profile": run["profile"],
        **machine(torch.device(run["device"])),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return what computes on `device`: its name, the cores beside it, and the version of torch."""
    name = f"{torch.cuda.get_device_name(device)}, counting in {COUNTING}" if device.type == "cuda" else "cpu"
    return {"device": name, "cores": os.cpu_count(), "torch": torch.__version__}


def caption(measured: rows.Rows) -> str:
    """Return which profile, networks and data made the rows."""
    described = zip(measured.parts["arch"], measured.parts["described"], strict=True)
    places = ((arch, about["name"], about["variant"]) for arch, about in described)
    return made_by(measured.parts["profile"].iloc[0], places)


def made_by(profile: str, places: Iterable[tuple[str, str, str]]) -> str:
    """Return "profile quick, lenet on mnist [sample]", with each place (architecture, dataset, variant) once."""
    named = (f"{arch} on {dataset} [{variant}]" for arch, dataset, variant in places)
    return ", ".join([f"profile {profile}", *dict.fromkeys(named)])
