"""Train networks once: recipes by name, checkpoints every epoch, and a cache that two processes can share."""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mgenb import nets, store
from mgenb.data import Dataset, Split
from mgenb.devices import one_thread, precise
from mgenb.errors import MgenbError, choose
from mgenb.executor import each, workers
from mgenb.seeds import derive
from mgenb.steps import PRECISIONS, Step, side_by_side


@dataclass(frozen=True)
class Recipe:
    """How to train: optimiser, learning rate, momentum, batch size. The loss is cross-entropy.

    schedule: 'constant'; or 'triangle', from 0 to `rate` at 30 % of all steps and back to 0.
    precision: 'float32'; or 'bfloat16', the forward pass under autocast: faster on a GPU, and another training.
    version: raise it when training by the recipe gives other weights; it is part of the key of each trained network.
    """

    optimiser: str
    rate: float
    momentum: float = 0.0
    batch: int = 64
    schedule: str = "constant"
    precision: str = "float32"
    version: int = 1

    def __post_init__(self) -> None:
        choose("precision", self.precision, PRECISIONS)


# MGE Table I names SGD at 0.01 and Adam at 0.001 with cross-entropy; batch and momentum are not stated
RECIPES = {
    "mge-sgd": Recipe("sgd", 0.01),
    "mge-sgd-momentum": Recipe("sgd", 0.01, momentum=0.9),
    "mge-adam": Recipe("adam", 0.001),
    # not the paper's: one short cycle with a high rate (Smith and Topin 2018), to train as well in less time
    "one-cycle": Recipe("adam", 0.01, batch=128, schedule="triangle"),
    # MeGA's, for 50 epochs in the paper; that images are normalised here is a deviation, see nets/mega.py
    "mega-adam": Recipe("adam", 0.01, batch=256),
}
RECIPES |= {f"{name}-bf16": replace(recipe, precision="bfloat16") for name, recipe in RECIPES.items()}

SMALL = 1_000_000  # parameters of a network that leaves most of a GPU idle
Progress = Callable[[int, float], None]


def _optimiser(net: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    # on a GPU one kernel updates all weights, and the rate lies where a captured step can read it
    cuda = device.type == "cuda"
    rate = torch.tensor(recipe.rate, device=device) if cuda else recipe.rate
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(net.parameters(), lr=rate, momentum=recipe.momentum, fused=cuda)
    return torch.optim.Adam(net.parameters(), lr=rate, fused=cuda, capturable=cuda)


def rate_at(recipe: Recipe, progress: float) -> float:
    """Return the learning rate at `progress` (0 to 1) of all steps."""
    if recipe.schedule == "constant":
        return recipe.rate
    return recipe.rate * min(progress / 0.3, (1 - progress) / 0.7)


def fit_epoch(step: Step, recipe: Recipe, seed: int, span: tuple[float, float] = (0.0, 1.0)) -> float:
    """Train for one pass over the step's images in an order drawn from `seed`; return the mean loss.

    `span` says which part of the whole training the pass is, for the learning rate's schedule.

    The global generator is seeded inside a fork, so that dropout repeats and nothing outside changes.
    """
    step.net.train()
    # with more threads sums have another order, and the cache would serve what a machine's cores happened to give
    with one_thread(), precise(), torch.random.fork_rng(devices=[step.device] if step.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for index, rate in _batches(step, recipe, span):
            step(index, rate)
    return step.take_loss() / len(step.train)


def _batches(step: Step, recipe: Recipe, span: tuple[float, float]) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield the images of each step of an epoch, in an order from the global generator, and the learning rate."""
    order = torch.randperm(len(step.train)).to(step.device)
    batches = order.split(recipe.batch)
    for number, index in enumerate(batches):
        if len(index) > 1 or len(order) == 1:  # BatchNorm cannot train on a single image
            yield index, rate_at(recipe, span[0] + (span[1] - span[0]) * (number + 0.5) / len(batches))


def _step(net: nn.Module, train: Split, recipe: Recipe, saved: dict[str, Any] | None = None) -> Step:
    """Return what trains `net`, going on from a saved optimiser's state; on a GPU the step is captured."""
    cuda = train.images.is_cuda
    optimiser = _optimiser(net, recipe, train.images.device)
    if cuda and recipe.precision == "bfloat16":
        net.to(memory_format=torch.channels_last)  # as tensor cores read them
    if saved is not None:
        optimiser.load_state_dict({**optimiser.state_dict(), "state": saved["state"]})
    step = Step(net, train, optimiser, recipe.batch, recipe.precision)
    if cuda:
        try:
            with precise():
                step.capture()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(f"the training step cannot be captured ({reason}): it runs as it is, slower", file=sys.stderr)
    return step


def fit(
    net: nn.Module,
    train: Split,
    recipe: Recipe,
    *,
    epochs: int,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train `net` in place for `epochs` and return each epoch's mean loss.

    With `checkpoint`, the state is written there after every epoch and a later call resumes from it: the
    weights end the same as without the interruption. Raises MgenbError when the loss is no longer finite, and for a
    checkpoint that is damaged or another training's.
    """
    key = store.key_of({"recipe": asdict(recipe), "seed": seed})
    saved = store.load_progress(checkpoint, key, train.images.device)
    if saved:
        net.load_state_dict(saved["net"])
    losses: list[float] = saved["losses"] if saved else []
    step = _step(net, train, recipe, saved and saved["optimiser"])
    for epoch in range(len(losses), epochs):
        losses.append(fit_epoch(step, recipe, derive(seed, "epoch", epoch), _span(epoch, epochs)))
        _refuse_diverged(losses)
        now = {"net": net.state_dict(), "optimiser": step.optimiser.state_dict(), "losses": losses}
        store.save_progress(checkpoint, key, now)
        if progress is not None:
            progress(epoch + 1, losses[-1])
    net.to(memory_format=torch.contiguous_format)
    return losses


def _span(epoch: int, epochs: int) -> tuple[float, float]:
    return epoch / epochs, (epoch + 1) / epochs


def fit_side_by_side(
    nets_by_seed: Mapping[int, nn.Module], train: Split, recipe: Recipe, *, epochs: int
) -> dict[int, list[float]]:
    """Train several small networks in place at once on a GPU, each as `fit` would with its seed; return their losses.

    Networks with dropout are refused (MgenbError): its draws would come in another order. So are losses that are no
    longer finite.
    """
    if any(isinstance(module, nn.Dropout) and module.p for net in nets_by_seed.values() for module in net.modules()):
        raise MgenbError("networks with dropout are trained one after the other: use fit")
    steps = {seed: _step(net, train, recipe) for seed, net in nets_by_seed.items()}
    losses: dict[int, list[float]] = {seed: [] for seed in steps}
    for epoch in range(epochs):
        orders = []
        for seed, step in steps.items():
            step.net.train()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "epoch", epoch))
                orders.append(list(_batches(step, recipe, _span(epoch, epochs))))
        with precise():
            side_by_side(list(steps.values()), orders)
        for seed, step in steps.items():
            losses[seed].append(step.take_loss() / len(train))
            _refuse_diverged(losses[seed])
    for net in nets_by_seed.values():
        net.to(memory_format=torch.contiguous_format)
    return losses


def _refuse_diverged(losses: Sequence[float]) -> None:
    if not math.isfinite(losses[-1]):
        raise MgenbError(f"training diverged in epoch {len(losses)}: loss {losses[-1]}; try a smaller rate")


def fresh(arch: str, dataset: Dataset, seed: int) -> nn.Module:
    """Return an untrained network for `dataset`, its weights drawn from `seed`, on the dataset's device."""
    pixels = dataset.train.images.float() / 255
    std, mean = torch.std_mean(pixels, (0, 2, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init", arch))
        net = nets.build(
            arch, dataset.channels, dataset.size, dataset.num_classes, mean.cpu(), std.clamp(min=1e-3).cpu()
        )
    return net.to(dataset.train.images.device)


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.images.cpu().numpy().tobytes())
    digest.update(split.labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:20]


def _settings(arch: str, dataset: Dataset, recipe: str, epochs: int, seed: int) -> dict[str, Any]:
    return {
        "arch": choose("architecture", arch, nets.ARCHITECTURES),
        "version": nets.VERSIONS[arch],
        "data": {"name": dataset.name, "classes": dataset.num_classes, "train": _digest(dataset.train)},
        "recipe": {"name": recipe, **asdict(RECIPES[choose("recipe", recipe, RECIPES)])},
        "epochs": epochs,
        "seed": seed,
    }


def trained(
    arch: str, dataset: Dataset, *, recipe: str = "mge-adam", epochs: int, seed: int, quiet: bool = False
) -> nn.Module:
    """Return a trained network in eval mode, from the cache or trained now.

    The cache is keyed by architecture and recipe with their versions, data, epochs and seed. Progress and
    whether the cache was hit go to stderr. A second process that wants the same network waits for the first.
    """
    path, settings = _cached(arch, dataset, recipe, epochs, seed)
    net = fresh(arch, dataset, seed)
    with store.lock(path):
        if _is_there(path):
            net.load_state_dict(store.load_weights(path)[0])
            if not quiet:
                print(f"{arch} on {dataset.name}, seed {seed}: from the cache", file=sys.stderr)
            return net.eval()
        checkpoint = path.with_suffix(".checkpoint")
        with tqdm(total=epochs, desc=f"training {arch} on {dataset.name}, seed {seed}", disable=quiet) as bar:

            def show(epoch: int, loss: float) -> None:
                bar.n = epoch
                bar.set_postfix(loss=f"{loss:.3f}")

            losses = fit(
                net,
                dataset.train,
                RECIPES[recipe],
                epochs=epochs,
                seed=derive(seed, "fit", arch),
                checkpoint=checkpoint,
                progress=show,
            )
        _keep(path, net, settings, losses)
        checkpoint.unlink(missing_ok=True)
    return net.eval()


def trained_all(
    arch: str, dataset: Dataset, *, recipe: str = "mge-adam", epochs: int, seeds: Sequence[int]
) -> list[nn.Module]:
    """Return `trained` for each of the seeds; those that are not in the cache train side by side.

    On a GPU the small ones do, in this process; else all of them, where `executor.workers` gives some.
    """
    if dataset.train.images.is_cuda:
        _train_missing(arch, dataset, recipe, epochs, seeds)
    else:
        with workers() as executor:
            if executor:
                _train_by(executor, arch, dataset, recipe, epochs, seeds)
    return [trained(arch, dataset, recipe=recipe, epochs=epochs, seed=seed) for seed in seeds]


def _train_missing(arch: str, dataset: Dataset, recipe: str, epochs: int, seeds: Sequence[int]) -> None:
    """Train the small networks that the cache lacks side by side, if there are several."""
    files = {seed: _cached(arch, dataset, recipe, epochs, seed) for seed in seeds}
    missing = {seed: fresh(arch, dataset, seed) for seed, (path, _) in files.items() if not _is_there(path)}
    if len(missing) < 2 or any(nets.count_parameters(net) > SMALL for net in missing.values()):
        return
    by_seed = {derive(seed, "fit", arch): net for seed, net in missing.items()}
    losses = fit_side_by_side(by_seed, dataset.train, RECIPES[recipe], epochs=epochs)
    for seed, net in missing.items():
        path, settings = files[seed]
        with store.lock(path):
            _keep(path, net, settings, losses[derive(seed, "fit", arch)])


def _train_by(executor: Executor, arch: str, dataset: Dataset, recipe: str, epochs: int, seeds: Sequence[int]) -> None:
    """Train what the cache lacks by an executor, whose own cache may be another one."""
    files = {seed: _cached(arch, dataset, recipe, epochs, seed)[0] for seed in seeds}
    missing = [seed for seed in seeds if not _is_there(files[seed])]
    train = partial(_trained_there, arch, dataset, recipe, epochs)
    for number, (state, settings) in each(train, missing, executor, f"{arch} of seed"):
        path = files[missing[number]]
        with store.lock(path):
            if not _is_there(path):
                store.save_weights(path, state, settings)


def _trained_there(
    arch: str, dataset: Dataset, recipe: str, epochs: int, seed: int
) -> tuple[store.State, dict[str, Any]]:
    """Return weights and settings of a trained network, from the cache of where this runs."""
    trained(arch, dataset, recipe=recipe, epochs=epochs, seed=seed, quiet=True)
    return store.load_weights(_cached(arch, dataset, recipe, epochs, seed)[0])


def _cached(arch: str, dataset: Dataset, recipe: str, epochs: int, seed: int) -> tuple[Path, dict[str, Any]]:
    """Return the file in the cache for a trained network, and the settings that name it."""
    if epochs < 1:
        raise MgenbError(f"epochs is {epochs}; right is at least 1")
    settings = _settings(arch, dataset, recipe, epochs, seed)
    return store.cache_dir() / "models" / f"{arch}-{dataset.name}-{store.key_of(settings)}.safetensors", settings


def _is_there(path: Path) -> bool:
    return path.exists() and path.with_suffix(".json").exists()


def _keep(path: Path, net: nn.Module, settings: Mapping[str, Any], losses: Sequence[float]) -> None:
    device = next(net.parameters()).device.type
    trained_with = {"losses": list(losses), "torch": torch.__version__, "device": device}
    store.save_weights(path, net.state_dict(), {**settings, **trained_with})
