"""Evaluate networks: one or a population, per image or counted, with an exact early stop.

One model after the other: stacking them (torch.func.vmap) was slower on a CPU, and no faster on an H100.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mgenb.data import Split, refuse_test
from mgenb.devices import COUNTING, precise
from mgenb.errors import MgenbError, check
from mgenb.measure.fused import fuse
from mgenb.measure.speed import CPU_BATCH, USUAL, evaluated, fastest, ordered
from mgenb.store import State

Criterion = Callable[[Iterable[State]], Sequence[float]]  # a number for each state_dict, in order; more is better

GPU_BATCH = 2048
MEASURED = 256  # images from which on it pays to know the fastest way
CLOSE = 3e-4  # of the largest logit; the ways were seen to differ by at most 5e-5
BATCH_ELEMENTS = 2**29  # of the largest layer for a batch on a GPU
STOPS = 8  # batches at least, where a pass may end early


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return a detached copy of the network's state_dict."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@torch.inference_mode()
def predict(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return the predicted class of each image, int64 [n], on the CPU; -1 where the logits are NaN.

    The class of the largest of `logits`; on a CPU in the way that `speed.fastest` finds.
    """
    if split.images.is_cuda:
        return classes_of(logits(net, split, state))
    batch_of, classifier = _plain(net, split)
    return torch.cat(list(map(classifier(_tensors(net, state)), split.images.split(batch_of(None)))))


@torch.inference_mode()
def logits(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return the logits of each image, float32 [n, classes], on the CPU.

    With `state` the network computes as if it held those tensors. It computes in eval mode and in whole float32, and
    `net` itself stays as it is. Raises MgenbError when `state` lacks a tensor of the network, or has another shape.
    """
    ready, tensors = evaluated(net), _usual(_tensors(net, state))
    with precise():  # they must not depend on the way in which they are computed
        return torch.cat([_logits(ready, tensors, images).cpu() for images, _ in batches(split)])


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
    net: nn.Module, split: Split, states: Iterable[State], *, fewest: int | None = None, precision: str = COUNTING
) -> list[Count]:
    """Return how many images each state_dict of a population has right, in the order given.

    `states` is consumed as it is evaluated: a generator keeps few of them in memory. With `fewest` a model's
    pass ends as soon as it is certain whether it has at least that many right: the decision is that of the
    full pass, the count is bounds only; since that selects, the test split is refused (SealedSplitError).
    `precision`: with 'tf32' a GPU's convolutions and matrices drop the last 13 bits of what they read, which is several
    times faster, and at most a few images in ten thousand are classified otherwise than in 'float32'. On a CPU it
    changes nothing.
    """
    return counter(net, split, precision)(states, fewest)


Counter = Callable[[Iterable[State], int | None], list[Count]]
# (fewest) -> images at once; and state_dict that fits -> (images -> their classes, on their device)
Prepared = tuple[Callable[[int | None], int], Callable[[State], Callable[[torch.Tensor], torch.Tensor]]]


def counter(net: nn.Module, split: Split, precision: str = COUNTING) -> Counter:
    """Return (states, fewest) -> counts, as `count`; what depends on network and images alone is prepared once."""
    batch_of, classifier = (_fused if split.images.is_cuda else _plain)(net, split, precision)

    @torch.inference_mode()
    def right_with(state: State, size: int, fewest: int | None) -> tuple[torch.Tensor, int]:
        classes = map(classifier(_tensors(net, state)), split.images.split(size))
        return _right(classes, split.labels.split(size), len(split), fewest)

    def counted(states: Iterable[State], fewest: int | None = None) -> list[Count]:
        if fewest is not None:
            check("fewest", fewest, 0)
            refuse_test(split)
        with precise(precision, fastest=True):
            right_of_seen = [right_with(state, batch_of(fewest), fewest) for state in states]
        rights = torch.stack([right for right, _ in right_of_seen]).tolist() if right_of_seen else []
        return [Count(right, seen, len(split)) for right, (_, seen) in zip(rights, right_of_seen, strict=True)]

    return counted


def _plain(net: nn.Module, split: Split, precision: str = COUNTING) -> Prepared:
    """Return how a CPU classifies: in the way that is fastest there, and into the classes of the usual way.

    Another memory order or batch moves logits by some millionths of the largest, so a batch in which that could change
    a class is computed again as usual.
    """
    many = len(split) >= MEASURED and any(tensor.ndim == 4 for tensor in net.state_dict().values())
    way = last, size = fastest(net, split.images) if many else USUAL
    ready = evaluated(net)

    def classifier(tensors: State) -> Callable[[torch.Tensor], torch.Tensor]:
        quick = ordered(tensors, last)

        def classify(images: torch.Tensor) -> torch.Tensor:
            logits = torch.cat([_logits(ready, quick, part) for part in images.split(size)])
            if way != USUAL and _close(logits):
                logits = _logits(ready, ordered(tensors), images)
            return classes_of(logits)

        return classify

    return lambda fewest: CPU_BATCH, classifier


def _close(logits: torch.Tensor) -> bool:
    """Return whether an image's two largest logits are nearer than `CLOSE` of the batch's largest, or not finite."""
    first, second = logits.topk(2).values.unbind(-1)
    return not (first - second).min() > CLOSE * logits.abs().max()


def accuracy_on(net: nn.Module, split: Split, precision: str = COUNTING) -> Criterion:
    """Return the criterion accuracy on `split`, in [0, 1], for what selects; SealedSplitError for the test split."""
    refuse_test(split)
    counted = counter(net, split, precision)
    return lambda states: [count.right / count.total for count in counted(states, None)]


def scores(name: str, criterion: Criterion, states: Iterable[State], count: int) -> list[float]:
    """Return what a criterion gives `count` state_dicts; MgenbError, by the criterion's name, for another number."""
    values = [float(value) for value in criterion(states)]
    if len(values) != count:
        raise MgenbError(f"{name} gave {len(values)} values for {count} individuals; right is one for each")
    return values


def predictions(net: nn.Module, split: Split, states: Iterable[State]) -> torch.Tensor:
    """Return the class that each model of a population predicts for each image, int64 [models, n], on the CPU.

    -1 where a model's logits are NaN. Raises MgenbError for an empty population.
    """
    rows = [predict(net, split, state) for state in states]
    if not rows:
        raise MgenbError("the population is empty; right is at least one state_dict")
    return torch.stack(rows)


def _fused(net: nn.Module, split: Split, precision: str) -> Prepared:
    """Return how a GPU classifies: in large batches, with few passes over memory."""
    try:
        slim, folded = fuse(net)
    except Exception:  # whatever torch.fx raises for a network that it cannot trace: it is evaluated as it is
        slim, folded = evaluated(net), dict
    most = max(1, BATCH_ELEMENTS // _largest(net, split))

    def classifier(state: State) -> Callable[[torch.Tensor], torch.Tensor]:
        tensors = folded(state)
        if precision == "tf32":  # tensor cores read channels last
            tensors = ordered(tensors)
        return lambda images: classes_of(_logits(slim, tensors, images))

    def batch_of(fewest: int | None) -> int:
        parts = max(math.ceil(len(split) / most), 1 if fewest is None else STOPS)
        return math.ceil(len(split) / parts)  # equal batches: each other size is measured anew

    return batch_of, classifier


def batches(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images, labels) in batches of the size that suits the split's device."""
    size = CPU_BATCH if split.images.device.type == "cpu" else GPU_BATCH
    yield from zip(split.images.split(size), split.labels.split(size), strict=True)


def classes_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the predicted class, int64 [..., n], of logits [..., n, classes]; -1 where a logit is NaN."""
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


def quick_copy(net: nn.Module, state: State | None = None) -> nn.Module:
    """Return a copy of `net` in eval mode, as `logits` computes with it: on a CPU channels-last.

    With `state` it holds those tensors. Raises MgenbError when they do not fit.
    """
    scratch = evaluated(net)
    tensors = _usual(_tensors(net, state))
    scratch.load_state_dict({name: tensor.detach().clone() for name, tensor in tensors.items()}, assign=True)
    return scratch


def _usual(tensors: State) -> State:
    """Return the tensors in the memory order that decides what is computed: on a CPU channels-last."""
    return tensors if any(tensor.is_cuda for tensor in tensors.values()) else ordered(tensors)


def _logits(net: nn.Module, tensors: State, images: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(net, dict(tensors), (images,))


def tally(
    logits: Iterable[torch.Tensor], labels: Iterable[torch.Tensor], total: int, fewest: int | None = None
) -> Count:
    """Count right images batch by batch, until it is certain whether `fewest` of `total` are right."""
    right, seen = _right(map(classes_of, logits), labels, total, fewest)
    return Count(int(right), seen, total)


def _right(
    classes: Iterable[torch.Tensor], labels: Iterable[torch.Tensor], total: int, fewest: int | None
) -> tuple[torch.Tensor, int]:
    """Return how many images are right, on their device, and of how many; without `fewest` nothing waits for it."""
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for predicted, truth in zip(classes, labels, strict=False):
        right = right + (predicted == truth).sum()
        seen += len(truth)
        if fewest is not None and not int(right) < fewest <= int(right) + total - seen:
            break
    return right, seen


def _largest(net: nn.Module, split: Split) -> int:
    """Return how many elements the largest layer reads and writes for one image, by measuring it."""
    sizes: list[int] = []
    twin = evaluated(net)
    for module in twin.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _, inputs, output: sizes.append(sum(t.numel() for t in (*inputs, output)))
            )
    with precise(), torch.inference_mode():
        twin(split.images[:1])
    return max(sizes)


def _tensors(net: nn.Module, state: State | None) -> dict[str, torch.Tensor]:
    """Return the tensors to compute with: those of `state`, checked against the network, or its own."""
    own = net.state_dict()
    if state is None:
        return own
    check_fits(state, own)
    return {name: state[name].to(tensor) for name, tensor in own.items()}


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
