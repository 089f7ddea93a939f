"""Train networks once: recipes by name, checkpoints every epoch, and a cache that two processes can share.

What is shipped with the package (`nets/shipped/`) comes before the cache.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mgenb import nets, store
from mgenb.data import Dataset, Split, refuse_test
from mgenb.devices import one_thread, precise, processor
from mgenb.errors import MgenbError, check, choose, demand
from mgenb.seeds import derive
from mgenb.steps import PRECISIONS, Step
from mgenb.store import State


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
        demand(self, optimiser=("sgd", "adam"), schedule=("constant", "triangle"), precision=PRECISIONS)
        demand(self, of="the recipe", rate=0.0, momentum=(0.0, 1.0), batch=1, version=1)


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

QUIET = "TQDM_DISABLE"  # set in processes that share a screen
SHIPPED = Path(nets.__file__).with_name("shipped")
_anew: set[Path] = set()  # what this process was told to train although it was there, and has trained


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
        order = torch.randperm(len(step.train)).to(step.device)
        batches = order.split(recipe.batch)
        for number, index in enumerate(batches):
            if len(index) > 1 or len(order) == 1:  # BatchNorm cannot train on a single image
                step(index, rate_at(recipe, span[0] + (span[1] - span[0]) * (number + 0.5) / len(batches)))
    return step.take_loss() / len(step.train)


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
    show: str = "",
    after: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Train `net` in place for `epochs` and return each epoch's mean loss.

    With `checkpoint`, the state is written there after every epoch and a later call resumes from it: the
    weights end the same as without the interruption. `show` is what a bar on stderr says; "": there is none.
    `after` is called after every epoch with how many are done; it must leave `net` as it is.
    Raises MgenbError when the loss is no longer finite, and for a checkpoint that is damaged or another training's.
    """
    check("epochs", epochs, 1)
    refuse_test(train)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    key = store.key_of({"recipe": asdict(recipe), "seed": seed, "net": shapes, "images": len(train)})
    saved = store.load_progress(checkpoint, key, train.images.device)
    if saved:
        net.load_state_dict(saved["net"])
    losses: list[float] = saved["losses"] if saved else []
    step = _step(net, train, recipe, saved and saved["optimiser"])
    done = len(losses)
    for epoch in tqdm(range(done, epochs), show, epochs, initial=done, disable=not show or bool(os.environ.get(QUIET))):
        span = epoch / epochs, (epoch + 1) / epochs
        losses.append(fit_epoch(step, recipe, derive(seed, "epoch", epoch), span))
        if not math.isfinite(losses[-1]):
            raise MgenbError(f"training diverged in epoch {len(losses)}: loss {losses[-1]}; try a smaller rate")
        now = {"net": net.state_dict(), "optimiser": step.optimiser.state_dict(), "losses": losses}
        store.save_progress(checkpoint, key, now)
        after(epoch + 1)
    net.to(memory_format=torch.contiguous_format)
    return losses


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


@lru_cache(maxsize=2)
def _digest(split: Split) -> str:
    return store.tensor_hash({"images": split.images, "labels": split.labels}, ("images", "labels"))[:20]


def _settings(arch: str, dataset: Dataset, recipe: str, epochs: int, seed: int | None) -> dict[str, Any]:
    """Return what names a trained network; with None for its seed, all of its kind."""
    check("epochs", epochs, 1)
    return {
        "arch": choose("architecture", arch, nets.ARCHITECTURES),
        "version": nets.VERSIONS[arch],
        "data": {"name": dataset.name, "classes": dataset.num_classes, "train": _digest(dataset.train)},
        "recipe": {"name": recipe, **asdict(RECIPES[choose("recipe", recipe, RECIPES)])},
        "epochs": epochs,
        "seed": seed,
    }


def _file(settings: Mapping[str, Any]) -> Path:
    """Return where a trained network is kept; shipped are those of one kind together, stacked."""
    folder = SHIPPED if settings["seed"] is None else store.cache_dir() / "models"
    return folder / f"{settings['arch']}-{settings['data']['name']}-{store.key_of(settings)}.safetensors"


def trained(
    arch: str, dataset: Dataset, *, recipe: str = "mge-adam", epochs: int, seed: int, retrain: bool = False
) -> nn.Module:
    """Return a trained network in eval mode: shipped with mgenb, or from the cache, or trained now.

    It is found by architecture and recipe with their versions, training images, epochs and seed. Whence it comes, or
    its training's progress, goes to stderr. A second process that wants the same network waits for the first.
    `retrain`: what was there is not taken, but the process trains it anew, once.
    """
    settings = _settings(arch, dataset, recipe, epochs, seed)
    path, net, name = _file(settings), fresh(arch, dataset, seed), f"{arch} on {dataset.name}, seed {seed}"
    checkpoint = path.with_suffix(".checkpoint")
    with store.lock(path):
        if there := _there(settings, retrain):
            state, whence = there
            net.load_state_dict(state)
            if not os.environ.get(QUIET):
                print(f"{name}: {whence}", file=sys.stderr)
        else:
            own: dict[str, Any] = {"epochs": epochs, "seed": derive(seed, "fit", arch)}
            losses = fit(net, dataset.train, RECIPES[recipe], **own, checkpoint=checkpoint, show=f"training {name}")
            store.save_weights(path, net.state_dict(), {**settings, "losses": losses, **_made_on(net)})
            _anew.add(path)
        checkpoint.unlink(missing_ok=True)  # also that of a process that was killed just before
    return net.eval()


def _there(settings: Mapping[str, Any], retrain: bool) -> tuple[State, str] | None:
    """Return the trained network that is named so, and whence it comes; None where it must be trained."""
    path, shipped = _file(settings), _file({**settings, "seed": None})
    if retrain and path not in _anew:
        return None
    if not retrain and shipped.exists():
        stacked, about = store.load_weights(shipped)
        if settings["seed"] < about["count"]:
            return {name: tensors[settings["seed"]] for name, tensors in stacked.items()}, "shipped with mgenb"
    if path.exists() and path.with_suffix(".json").exists():
        state, about = store.load_weights(path)
        if odd := [name for name in settings if about.get(name) != settings[name]]:
            raise MgenbError(f"{path} is a network of another {odd[0]}; delete it, and it is trained anew")
        return state, "from the cache"
    return None


def _made_on(net: nn.Module) -> dict[str, str]:
    """Return on what, beside its settings, the bits of a trained network depend."""
    return {"torch": torch.__version__, "device": next(net.parameters()).device.type, "cpu": processor()}


def ship(arch: str, dataset: Dataset, *, recipe: str, epochs: int, count: int, licence: str) -> Path:
    """Train the networks of the seeds 0 to `count` - 1 anew and put them where `trained` looks first; return the file.

    `licence` is that of the images.
    """
    how: dict[str, Any] = {"recipe": recipe, "epochs": epochs, "retrain": True}
    ready = [trained(arch, dataset, seed=seed, **how) for seed in range(count)]
    settings, states = _settings(arch, dataset, recipe, epochs, None), [net.state_dict() for net in ready]
    about = {**settings, "count": count, "licence": licence, **_made_on(ready[0])}
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    store.save_weights(_file(settings), stacked, about)
    return _file(settings)
