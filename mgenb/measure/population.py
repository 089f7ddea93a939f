"""Evaluate networks: one or a population, per image or counted, with an exact early stop.

One model after the other: stacking them (torch.func.vmap) was slower on a CPU, and no faster on an H100.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from mgenb.data import Split
from mgenb.devices import PRECISIONS, precise
from mgenb.errors import MgenbError, SealedSplitError, choose
from mgenb.measure.fused import fuse
from mgenb.store import State

Criterion = Callable[[Iterable[State]], Sequence[float]]  # a number for each state_dict, in order; more is better

# batches that stay in a CPU's cache are up to seven times faster than one large batch
CPU_BATCH, GPU_BATCH = 128, 2048
BATCH_ELEMENTS = 2**29  # of the largest layer for a batch on a GPU
STOPS = 8  # batches at least, where a pass may end early


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return a detached copy of the network's state_dict."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def predict(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return the predicted class of each image, int64 [n], on the CPU; -1 where the logits are NaN. See `logits`."""
    return classes_of(logits(net, split, state))


@torch.inference_mode()
def logits(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return the logits of each image, float32 [n, classes], on the CPU.

    With `state` the network computes as if it held those tensors; its own stay as they are.
    The network runs in eval mode and leaves in the mode in which it came. Raises MgenbError when `state`
    lacks a tensor of the network, or has another shape.
    """
    tensors = _tensors(net, state)
    with evaluating(net):
        return torch.cat([_logits(net, tensors, images).cpu() for images, _ in batches(split)])


def correct(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return whether each image is classified rightly, bool [n], on the CPU."""
    return predict(net, split, state) == split.labels.cpu()


def accuracy(net: nn.Module, split: Split, state: State | None = None) -> float:
    """Return the accuracy on `split`, a share in [0, 1]."""
    return correct(net, split, state).double().mean().item()


@dataclass(frozen=True)
class Count:
    """How many of the `seen` images were `right`, of `total` in all; `seen` is smaller after an early stop."""

    right: int
    seen: int
    total: int

    @property
    def most(self) -> int:
        """The largest count that the whole pass could have given; the smallest is `right`."""
        return self.right + self.total - self.seen

    def passes(self, fewest: int) -> bool:
        """Whether the whole pass has at least `fewest` right; MgenbError when too few images were seen to know."""
        if self.right < fewest <= self.most:
            raise MgenbError(f"{self.seen} of {self.total} images do not tell whether {fewest} are right")
        return self.right >= fewest


def count(
    net: nn.Module, split: Split, states: Iterable[State], *, fewest: int | None = None, precision: str = "float32"
) -> list[Count]:
    """Return how many images each state_dict of a population has right, in the order given.

    `states` is consumed as it is evaluated: a generator keeps few of them in memory. With `fewest` a model's
    pass ends as soon as it is certain whether it has at least that many right: the decision is that of the
    full pass, the count is bounds only; since that selects, the test split is refused (SealedSplitError).
    `precision`: 'tf32' lets a GPU's convolutions and matrices drop the last 13 bits of what they read: several
    times faster, and a few images in ten thousand are classified otherwise. Elsewhere it changes nothing.
    """
    return counter(net, split, precision)(states, fewest)


Counter = Callable[[Iterable[State], int | None], list[Count]]


def counter(net: nn.Module, split: Split, precision: str = "float32") -> Counter:
    """Return (states, fewest) -> counts, as `count`; what depends on network and images alone is prepared once."""
    choose("precision", precision, PRECISIONS)
    if split.images.is_cuda:
        return _fused_counter(net, split, precision)

    def counted(states: Iterable[State], fewest: int | None = None) -> list[Count]:
        if fewest is not None:
            refuse_test(split)
        return [_count_one(net, split, state, fewest) for state in states]

    return counted


def accuracy_on(net: nn.Module, split: Split, precision: str = "float32") -> Criterion:
    """Return the criterion accuracy on `split`, in [0, 1], for what selects; SealedSplitError for the test split."""
    refuse_test(split)
    counted = counter(net, split, precision)
    return lambda states: [one.right / one.total for one in counted(states, None)]


def scores(name: str, criterion: Criterion, states: Iterable[State], count: int) -> list[float]:
    """Return what a criterion gives `count` state_dicts; MgenbError, by the criterion's name, for another number."""
    found = [float(value) for value in criterion(states)]
    if len(found) != count:
        raise MgenbError(f"{name} gave {len(found)} values for {count} individuals; right is one for each")
    return found


def predictions(net: nn.Module, split: Split, states: Iterable[State]) -> torch.Tensor:
    """Return the class that each model of a population predicts for each image, int64 [models, n], on the CPU.

    -1 where a model's logits are NaN. Raises MgenbError for an empty population.
    """
    rows = [predict(net, split, state) for state in states]
    if not rows:
        raise MgenbError("the population is empty; right is at least one state_dict")
    return torch.stack(rows)


def _fused_counter(net: nn.Module, split: Split, precision: str) -> Counter:
    """Return what counts on a GPU one model after the other, each with few passes over memory, in large batches."""
    try:
        slim, folded = fuse(net)
    except Exception:  # whatever torch.fx raises for a network that it cannot trace: it is evaluated as it is
        slim, folded = net, dict
    last = precision == "tf32"  # tensor cores read channels last
    most = max(1, BATCH_ELEMENTS // _largest(net, split))

    @torch.inference_mode()
    def counted(states: Iterable[State], fewest: int | None = None) -> list[Count]:
        if fewest is not None:
            refuse_test(split)
        parts = max(math.ceil(len(split) / most), 1 if fewest is None else STOPS)
        size = math.ceil(len(split) / parts)  # equal batches: each other size is measured anew
        images, labels = split.images.split(size), split.labels.split(size)
        found = []
        with precise(precision, fastest=True):
            for state in states:
                tensors = folded(_tensors(net, state))
                if last:
                    tensors = {name: _channels_last(tensor) for name, tensor in tensors.items()}
                found.append(_right((_logits(slim, tensors, part) for part in images), labels, len(split), fewest))
        rights = torch.stack([right for right, _ in found]).tolist() if found else []
        return [Count(right, seen, len(split)) for right, (_, seen) in zip(rights, found, strict=True)]

    return counted


def refuse_test(split: Split) -> None:
    """Raise SealedSplitError for the test split: what selects may not see it."""
    if split.role == "test":
        raise SealedSplitError("models are selected on validation images: the test split is for run.final_test alone")


def batches(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images, labels) in batches of the size that suits the split's device."""
    size = CPU_BATCH if split.images.device.type == "cpu" else GPU_BATCH
    yield from zip(split.images.split(size), split.labels.split(size), strict=True)


def classes_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the predicted class, int64 [..., n], of logits [..., n, classes]; -1 where a logit is NaN."""
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put every module of `net` in eval mode, in whole float32; each is put back afterwards, after an error too."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with precise():  # predictions must not depend on the way in which they are computed
            yield
    finally:
        for module, training in modes:
            module.training = training


def quick_copy(net: nn.Module, state: State | None = None) -> nn.Module:
    """Return a copy of `net` in eval mode, its weights in the memory order in which the device is fastest.

    With `state` it holds those tensors. Raises MgenbError when they do not fit.
    """
    scratch = copy.deepcopy(net).eval()
    if state is not None:
        scratch.load_state_dict(_tensors(net, state))
    scratch.load_state_dict(_quick(scratch.state_dict()), assign=True)
    return scratch


def _quick(tensors: State) -> dict[str, torch.Tensor]:
    """Return convolutions channels-last on a CPU, where that is mostly faster; the same values."""
    return {name: _channels_last(t) if t.device.type == "cpu" else t for name, t in tensors.items()}


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _logits(net: nn.Module, tensors: State, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = torch.func.functional_call(net, dict(tensors), (images,))
    return logits


@torch.inference_mode()
def _count_one(net: nn.Module, split: Split, state: State, fewest: int | None) -> Count:
    tensors = _tensors(net, state)
    with evaluating(net):
        parts = (_logits(net, tensors, images) for images, _ in batches(split))
        return tally(parts, (labels for _, labels in batches(split)), len(split), fewest)


def tally(
    logits: Iterable[torch.Tensor], labels: Iterable[torch.Tensor], total: int, fewest: int | None = None
) -> Count:
    """Count right images batch by batch, until it is certain whether `fewest` of `total` are right."""
    right, seen = _right(logits, labels, total, fewest)
    return Count(int(right), seen, total)


def _right(
    logits: Iterable[torch.Tensor], labels: Iterable[torch.Tensor], total: int, fewest: int | None
) -> tuple[torch.Tensor, int]:
    """Return how many images are right, on their device, and of how many; without `fewest` nothing waits for it."""
    right, seen = None, 0
    for batch, truth in zip(logits, labels, strict=False):
        here = (classes_of(batch) == truth).sum()
        right = here if right is None else right + here
        seen += len(truth)
        if fewest is not None and not int(right) < fewest <= int(right) + total - seen:
            break
    return torch.zeros((), dtype=torch.int64) if right is None else right, seen


def _largest(net: nn.Module, split: Split) -> int:
    """Return how many elements the largest layer reads and writes for one image, by measuring it."""
    largest = 0

    def measure(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() for t in (*inputs, output)))

    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(measure) for module in leaves]
    try:
        with evaluating(net), torch.inference_mode():
            net(split.images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def _tensors(net: nn.Module, state: State | None) -> dict[str, torch.Tensor]:
    """Return the tensors to compute with: those of `state`, checked against the network, or its own."""
    own = net.state_dict()
    if state is None:
        return _quick(own)
    check_fits(state, own)
    return _quick({name: state[name].to(tensor.device) for name, tensor in own.items()})


def check_fits(state: State, network: State, what: str = "the state_dict", where: str = "the network") -> None:
    """Raise MgenbError that names the first tensor that only one of the two has, or both in different shapes.

    `what` and `where` name them in the message.
    """
    for name in {**network, **state}:
        if name not in state:
            raise MgenbError(f"{what} lacks {name!r}, which {where} has")
        if name not in network:
            raise MgenbError(f"{what} has {name!r}, which {where} lacks")
        if state[name].shape != network[name].shape:
            shapes = f"{tuple(state[name].shape)}; right is {tuple(network[name].shape)}"
            raise MgenbError(f"{name!r} has shape {shapes}: {what} does not fit {where}")
