"""What `run.py` measures on a GPU, a part at a time: speeds beside the plain way, and how far from the floor they are.

A part is a function that returns (network, data, quantity, value, unit) rows. `PARTS` holds them in order of worth,
with seconds on one H100. Raise VERSION when a part measures something else: its rows are then made anew.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mgenb import data, devices, mega, mge, nets, training
from mgenb.data import Dataset, Split
from mgenb.measure import population
from mgenb.steps import Step
from mgenb.store import State

VERSION = 2
COMMITTED = Path(__file__).resolve().parents[2] / "figures" / "gpu" / "speed.csv"
COLUMNS = ("part", "version", "network", "data", "quantity", "value", "unit", "card", "torch", "finished")
Row = tuple[str, str, str, float, str]
DEVICE = torch.device("cuda")
PLAIN_BATCH = 256


def seconds(work: Callable[..., Any], *given: Any, **named: Any) -> tuple[float, Any]:
    """Return how long the device was busy with `work(*given, **named)`, and what that returned."""
    torch.cuda.synchronize()
    began = perf_counter()
    found = work(*given, **named)
    torch.cuda.synchronize()
    return perf_counter() - began, found


@cache
def dataset(name: str) -> Dataset:
    return data.load(name).to(DEVICE)


@cache
def ceiling(kind: str) -> float:
    """Operations a second of a large matrix product ('float32', 'tf32', 'bfloat16'), or bytes a second of a 'copy'."""
    if kind == "copy":
        x = torch.empty(2**30, device=DEVICE)
        y = torch.empty_like(x)
        y.copy_(x)
        took, _ = seconds(lambda: [y.copy_(x) for _ in range(5)])
        return 5 * 2 * x.nbytes / took
    size, matmul = 8192, torch.backends.cuda.matmul
    matmul.allow_tf32 = kind == "tf32"
    a, b = (torch.randn(size, size, device=DEVICE, dtype=getattr(torch, kind, torch.float32)) for _ in range(2))
    _ = a @ b
    took, _ = seconds(lambda: [a @ b for _ in range(5)])
    matmul.allow_tf32 = False
    return 5 * 2 * size**3 / took


def operations(net: nn.Module, images: torch.Tensor) -> float:
    """Floating-point operations of one image's way through `net`."""
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        net(images[:16])
    return counted.get_total_flops() / 16


def floor(net: nn.Module, split: Split, models: int, kind: str) -> float:
    """Seconds that counting cannot beat: operations over the matrix rate, or each weight and image read once."""
    weights = sum(t.nbytes for t in net.state_dict().values())
    moved = models * (weights + split.images.nbytes)
    return max(models * len(split) * operations(net, split.images) / ceiling(kind), moved / ceiling("copy"))


def plain_fit(net: nn.Module, train: Split, recipe: training.Recipe, epochs: int, seed: int) -> None:
    """Train as anybody would write it: images on the card, each kernel launched by itself."""
    optimiser: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    if recipe.optimiser == "sgd":
        optimiser = torch.optim.SGD(net.parameters(), lr=recipe.rate, momentum=recipe.momentum)
    net.train()
    for epoch in range(epochs):
        torch.manual_seed(seed + epoch)
        for index in torch.randperm(len(train)).split(recipe.batch):
            here = index.to(DEVICE)
            optimiser.zero_grad()
            functional.cross_entropy(net(train.images[here]), train.labels[here]).backward()
            optimiser.step()


def plain_count(net: nn.Module, split: Split, states: Iterable[State]) -> list[int]:
    """Count as anybody would write it: load each model, and wait for each batch."""
    found = []
    for state in states:
        net.load_state_dict(state)
        net.eval()
        right = 0
        with torch.no_grad():
            for images, labels in zip(split.images.split(PLAIN_BATCH), split.labels.split(PLAIN_BATCH), strict=True):
                right += int((net(images).argmax(1) == labels).sum())
        found.append(right)
    return found


def base_of(arch: str, name: str, recipe: str, epochs: int, seed: int = 0) -> nn.Module:
    net = training.fresh(arch, dataset(name), seed)
    training.fit(net, dataset(name).train, training.RECIPES[recipe], epochs=epochs, seed=seed)
    return net.eval()


def ceilings() -> Iterator[Row]:
    for kind in ("float32", "tf32", "bfloat16"):
        yield "", "", f"matrix product, {kind}", ceiling(kind) / 1e12, "TFLOP/s"
    yield "", "", "copy, bytes read and written", ceiling("copy") / 1e12, "TB/s"


def fused_networks() -> Iterator[Row]:
    """Counting 5,000 random images once: with fused layers, and as the network stands."""
    pixels = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    images = Split(pixels, torch.zeros(5000, dtype=torch.int64, device=DEVICE), torch.arange(5000), "val")
    for arch in ("vgg11", "resnet18", "resnet56", "densenet121"):
        net = nets.build(arch, 3, 32, 10).to(DEVICE).eval()
        states = [population.state_of(net)] * 4
        for precision in devices.PRECISIONS:
            counted = population.counter(net, images, precision)
            first, _ = seconds(counted, states[:1], None)
            took, _ = seconds(counted, states, None)
            yield arch, "random", f"fused, {precision}, a model", 1000 * took / 4, "ms"
            yield arch, "random", f"fused, {precision}, the first model", 1000 * first, "ms"
        took, _ = seconds(plain_count, net, images, states)
        yield arch, "random", "plain, a model", 1000 * took / 4, "ms"


def lenet_training() -> Iterator[Row]:
    """Ten epochs of MNIST at batch 64: captured and plain, three seeds."""
    there, recipe = dataset("mnist"), training.RECIPES["mge-adam"]
    for seed in range(3):
        net = training.fresh("lenet", there, seed)
        took, _ = seconds(training.fit, net, there.train, recipe, epochs=10, seed=seed)
        yield "lenet", "mnist", f"captured, ten epochs, seed {seed}", took, "s"
        yield "lenet", "mnist", f"captured, accuracy, seed {seed}", 100 * population.accuracy(net, there.val), "%"
        net = training.fresh("lenet", there, seed)
        took, _ = seconds(plain_fit, net, there.train, recipe, 10, seed)
        yield "lenet", "mnist", f"plain, ten epochs, seed {seed}", took, "s"
        yield "lenet", "mnist", f"plain, accuracy, seed {seed}", 100 * population.accuracy(net, there.val), "%"
    work = 30 * len(there.train) * operations(net, there.train.images)  # forward once, backward twice, ten epochs
    yield "lenet", "mnist", "floor", work / ceiling("float32"), "s"


def thousand(arch: str, name: str, recipe: str, epochs: int, models: dict[str, int], plain: int = 8) -> Iterator[Row]:
    """Generate models and count them on 10,000 images of `name`, by precision; and some of them the plain way."""
    net, there = base_of(arch, name, recipe, epochs), dataset(name)
    images = replace(there.train.take(10_000, 0), role="val")
    base, settings = population.state_of(net), mge.Settings()
    whole = population.count(net, images, [base])[0].right
    yield arch, name, "base", whole / 100, "%"
    took, _ = seconds(lambda: sum(1 for _ in mge.candidates(base, settings, 0, 200)))
    yield arch, name, "generated alone, 200 models", took, "s"
    counts: dict[str, list[int]] = {}
    for precision, many in models.items():

        def work(precision: str = precision, many: int = many) -> list[population.Count]:
            states = (state for _, state in mge.candidates(base, settings, 0, many))
            return population.count(net, images, states, precision=precision)

        took, found = seconds(work)
        counts[precision] = [one.right for one in found]
        yield arch, name, f"generated and counted, {many} models, {precision}", took, "s"
        yield arch, name, f"floor, {many} models, {precision}", floor(net, images, many, precision), "s"
        accepted = sum(mge.accepts(right / 10_000, whole / 10_000) for right in counts[precision])
        yield arch, name, f"accepted of {many}, {precision}", accepted, "models"
        yield arch, name, f"mean accuracy of {many}, {precision}", sum(counts[precision]) / many / 100, "%"
    apart = [abs(a - b) for a, b in zip(*counts.values(), strict=False)]
    yield arch, name, f"counts of {len(apart)} models differ by precision, mean", sum(apart) / len(apart), "images"
    yield arch, name, f"counts of {len(apart)} models differ by precision, most", max(apart), "images"
    on_cpu = {key: tensor.cpu() for key, tensor in base.items()}

    def plainly() -> list[int]:
        generated = mge.model_generator(on_cpu, settings)
        made = (generated(mge.candidate_seed(0, index)) for index in range(plain))
        return plain_count(net, images, made)

    took, found = seconds(plainly)
    yield arch, name, f"plain, for 1000 models, from {plain}", 1000 * took / plain, "s"
    strict = counts["float32"][:plain]
    yield (
        arch,
        name,
        "plain counts differ, most",
        max(abs(a - b) for a, b in zip(found, strict, strict=False)),
        "images",
    )


def merging() -> Iterator[Row]:
    """MeGA on two ResNet-56: 20 x 20 on 5,000 images."""
    there = dataset("cifar10")
    parents = [base_of("resnet56", "cifar10", "mega-adam-bf16", 2, seed) for seed in (0, 1)]
    images, net = there.val.take(5000, 0), parents[0]
    first, second = (population.state_of(one) for one in parents)
    for one in parents:
        yield "resnet56", "cifar10", "parent, two epochs", 100 * population.accuracy(one, images), "%"
    for precision in ("tf32", "float32"):

        def work(precision: str = precision) -> mega.Merged:
            return mega.merge(first, second, mega.Settings(), 0, population.accuracy_on(net, images, precision))

        took, merged = seconds(work)
        yield "resnet56", "cifar10", f"merge, {merged.evaluations} evaluations, {precision}", took, "s"
        yield "resnet56", "cifar10", f"fitness, {precision}", 100 * merged.fitness, "%"
        yield "resnet56", "cifar10", f"floor, {precision}", floor(net, images, merged.evaluations, precision), "s"
    took, _ = seconds(plain_count, net, images, [first] * 10)
    yield "resnet56", "cifar10", "plain, for 400 evaluations, from 10", 40 * took, "s"


def resnet56_training() -> Iterator[Row]:
    """ResNet-56, 50 epochs at batch 256, in bfloat16; the plain way in float32 for one epoch."""
    there = dataset("cifar10")
    net = training.fresh("resnet56", there, 0)
    recipe = training.RECIPES["mega-adam-bf16"]
    took, losses = seconds(training.fit, net, there.train, recipe, epochs=50, seed=0)
    yield "resnet56", "cifar10", f"captured, bfloat16, 50 epochs of {len(there.train)} images", took, "s"
    yield "resnet56", "cifar10", "accuracy", 100 * population.accuracy(net, there.val), "%"
    yield "resnet56", "cifar10", "last loss", losses[-1], ""
    work = 150 * len(there.train) * operations(net.eval(), there.train.images)
    yield "resnet56", "cifar10", "floor, bfloat16", work / ceiling("bfloat16"), "s"
    net = training.fresh("resnet56", there, 0)
    took, _ = seconds(plain_fit, net, there.train, recipe, 1, 0)
    yield "resnet56", "cifar10", "plain, float32, for 50 epochs, from 1", 50 * took, "s"


def bfloat16() -> Iterator[Row]:
    """What bfloat16 changes: ResNet-20, five epochs, three seeds."""
    there = dataset("cifar10")
    for seed in range(3):
        for name in ("mega-adam", "mega-adam-bf16"):
            net = training.fresh("resnet20", there, seed)
            recipe = training.RECIPES[name]
            took, _ = seconds(training.fit, net, there.train, recipe, epochs=5, seed=seed)
            yield "resnet20", "cifar10", f"five epochs, {recipe.precision}, seed {seed}", took, "s"
            yield (
                "resnet20",
                "cifar10",
                f"accuracy, {recipe.precision}, seed {seed}",
                100 * population.accuracy(net, there.val),
                "%",
            )


def capture_by_network() -> Iterator[Row]:
    """A training step, captured and with each kernel launched by itself."""
    there = dataset("cifar10")
    for arch, name in (
        ("resnet18", "mge-sgd-momentum"),
        ("resnet18", "mge-sgd-momentum-bf16"),
        ("densenet121", "mega-adam-bf16"),
    ):
        net, recipe = training.fresh(arch, there, 0), training.RECIPES[name]
        step = training._step(net, there.train, recipe)
        plain = Step(net, there.train, step.optimiser, recipe.batch, recipe.precision)
        index = torch.arange(recipe.batch, device=DEVICE)
        for label, one in (("captured", step), ("each kernel by itself", plain)):
            one(index, recipe.rate)
            took, _ = seconds(lambda one=one, index=index, rate=recipe.rate: [one(index, rate) for _ in range(50)])
            yield arch, "cifar10", f"{label}, {recipe.precision}, a step of {recipe.batch}", 20 * took, "ms"


# name: (function, seconds on one H100, data that it reads), in order of worth
PARTS: dict[str, tuple[Callable[[], Iterator[Row]], float, str]] = {
    "ceilings": (ceilings, 5, ""),
    "fused": (fused_networks, 25, ""),
    "lenet-1000": (lambda: thousand("lenet", "mnist", "mge-adam", 4, {"tf32": 1000, "float32": 1000}), 20, "mnist"),
    "lenet-training": (lenet_training, 60, "mnist"),
    "vgg11-1000": (
        lambda: thousand("vgg11", "mnist", "mge-adam", 2, {"tf32": 1000, "float32": 100}),
        60,
        "mnist",
    ),
    "mega-resnet56": (merging, 60, "cifar10"),
    "resnet18-1000": (
        lambda: thousand("resnet18", "cifar10", "mge-sgd-momentum-bf16", 3, {"tf32": 1000, "float32": 50}, plain=3),
        80,
        "cifar10",
    ),
    "resnet56-training": (resnet56_training, 88, "cifar10"),
    "bfloat16": (bfloat16, 50, "cifar10"),
    "capture": (capture_by_network, 20, "cifar10"),
}


def done(files: Iterable[Path]) -> set[str]:
    """Return the parts that have rows of this version already."""
    found = set()
    for file in files:
        if file.exists():
            with file.open(newline="") as handle:
                found |= {row["part"] for row in csv.DictReader(handle) if row["version"] == str(VERSION)}
    return found


def available(name: str) -> bool:
    return not name or data.load(name).variant in ("official", "jpeg")


def write(file: Path, part: str, rows: list[Row]) -> None:
    context = (torch.cuda.get_device_name(), torch.__version__, datetime.now(UTC).isoformat(timespec="seconds"))
    fresh = not file.exists()
    with file.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if fresh:
            writer.writerow(COLUMNS)
        writer.writerows((part, VERSION, *row[:3], f"{row[3]:.6g}", row[4], *context) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--skip", default="")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    ends, file = time.monotonic() + given.seconds, given.out / "speed.csv"
    skipped = {*given.skip.split(","), *done([file] if given.only else [file, COMMITTED])}
    for name, (measure, estimate, reads) in PARTS.items():
        if name in skipped or (given.only and name not in given.only.split(",")):
            continue
        if not available(reads):
            print(f"{name}: left out, {reads} is not here as a whole", flush=True)
        elif ends - time.monotonic() < estimate:
            print(f"{name}: left for another time, {estimate:g} s do not fit", flush=True)
        else:
            print(f"part {name}, {estimate:g} s", flush=True)
            began, rows = perf_counter(), []
            for row in measure():
                rows.append(row)
                print(f"  {row[0]} {row[1]}: {row[2]}: {row[3]:.5g} {row[4]}", flush=True)
            write(file, name, [*rows, ("", "", "whole part", perf_counter() - began, "s")])
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
