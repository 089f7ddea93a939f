"""Permutation alignment (weight matching of Git Re-Basin) and recalibration of BatchNorm.

The units of a hidden layer may stand in any order without changing what a network computes, so two trained networks
may be far apart only because their units are numbered differently. Weight matching (Ainsworth, Hayase and Srinivasa
2023, section 3.2, Algorithm 1) looks for the order of one network's units in which its weights have the largest
inner product with the other's. Which axes of which tensors share an order is read off the network's graph.

Activations of the average of two aligned networks vary too little; where there is BatchNorm, statistics that are
computed anew on training images mend that (Jordan et al. 2023, "REPAIR").
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import fx, nn

from mgenb import seeds
from mgenb.data import Dataset, Split, refuse_test
from mgenb.errors import MgenbError, check
from mgenb.measure import population
from mgenb.mega.segment import STATISTICS
from mgenb.nets import Tracer
from mgenb.store import State

Pieces = tuple[tuple[str, int], ...]  # what lies along an axis: (group, units), one after the other
Use = tuple[str, int, int]  # where units stand: tensor, dimension, units before them
Permutations = Mapping[str, torch.Tensor]  # group -> which old unit, int64 [units], comes to each place

FIXED = ""  # the group of what keeps its order: channels of images, logits
BATCH = 256  # images whose statistics BatchNorm takes together when it is recalibrated
ROUNDING = 1e-12  # of the sum of all inner products: a gain below that is none


@dataclass(frozen=True)
class Specification:
    """Which axes of a network's tensors share a permutation.

    sizes: units of each group, in the graph's order; a group is named after the first layer whose outputs it is.
    axes: for each tensor, by dimension, what lies along it; () or FIXED keeps its order. Behind a flattening, each
    unit has several entries. tensors: all of them, on the meta device. weights: the parameters, which are matched.
    """

    sizes: Mapping[str, int]
    axes: Mapping[str, tuple[Pieces, ...]]
    tensors: State
    weights: tuple[str, ...]


def specification(net: nn.Module) -> Specification:
    """Return which axes of the network's tensors share a permutation, read off its graph by torch.fx.

    Raises MgenbError that names the node of the graph, or the tensor, that cannot be followed.
    """
    reader = _Reader()
    reader.read(net)
    tensors = {name: tensor.to("meta") for name, tensor in net.state_dict().items()}
    axes = {name: tuple(reader.pieces(name, dim) for dim in range(t.ndim)) for name, t in tensors.items()}
    for name, dims in axes.items():
        groups = [group for pieces in dims for group in dict(pieces) if group != FIXED]
        if len(groups) > len(set(groups)):
            raise MgenbError(f"{name!r} has the same units along two axes, which weight matching cannot align")
    sizes = {group: len(tensors[f"{group}.weight"]) for group in reader.oldest.values() if group != FIXED}
    return Specification(sizes, axes, tensors, tuple(name for name, _ in net.named_parameters()))


@dataclass(frozen=True)
class _Axis:
    """The channels of an activation; without pieces, any number of them in fixed order."""

    pieces: Pieces = ()
    flat: bool = False  # [n, features], each unit with one or more features in a row


class _Reader:
    """Follows a network's graph, by `RULES`, with an `_Axis` in place of each activation.

    oldest: group -> the first of those with which it shares its order. along: (tensor, dimension) -> what lies there.
    """

    def __init__(self) -> None:
        self.oldest = {FIXED: FIXED}
        self.along: dict[tuple[str, int], _Axis] = {}

    def read(self, net: nn.Module) -> None:
        """Apply to each node its rule; MgenbError that names node and operation where there is none."""
        axes: dict[fx.Node, Any] = {}
        for node in Tracer().trace(net).nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), axes.__getitem__)
            operation = getattr(node.target, "__name__", node.target) if node.op.startswith("call") else node.op
            if node.op == "call_module":
                layer = net.get_submodule(str(node.target))
                operation, args = type(layer).__name__, (node.target, layer, *args)
            self.place = f"{node.name!r} ({operation})"
            self.demand(operation in RULES, "this operation is not supported")
            axes[node] = RULES[operation](self, *args, **kwargs)

    def demand(self, right: bool, why: str) -> None:
        """Raise MgenbError that names the node unless its operation is `right`."""
        if not right:
            raise MgenbError(f"units cannot be followed through node {self.place}: {why}")

    def tie(self, axis: _Axis, other: _Axis) -> None:
        """Make both axes keep one order."""
        pieces = axis.pieces or [(FIXED, n) for _, n in other.pieces]
        others = other.pieces or [(FIXED, n) for _, n in axis.pieces]
        same = [n for _, n in pieces] == [n for _, n in others]
        self.demand(same, "it combines channels of different numbers of layers")
        for (group, _), (tied, _) in zip(pieces, others, strict=True):
            pair = {self.oldest[group], self.oldest[tied]}
            first = next(group for group in self.oldest if group in pair)
            self.oldest |= {group: first for group, old in self.oldest.items() if old in pair}

    def lay(self, layer: str, module: nn.Module, axis: _Axis, dim: int = 0) -> _Axis:
        """Note that `axis` runs along dimension `dim` of all tensors of a layer that have one."""
        for name, tensor in module.state_dict(prefix=f"{layer}.").items():
            if tensor.ndim > dim:
                self.tie(self.along.setdefault((name, dim), axis), axis)  # a layer may be used twice
        return axis

    def pieces(self, name: str, dim: int) -> Pieces:
        """Return what lies along one dimension of a tensor, each group by the oldest that shares its order."""
        return tuple((self.oldest[group], n) for group, n in self.along.get((name, dim), _Axis()).pieces)


def _layer(reader: _Reader, name: str, module: nn.Conv2d | nn.Linear, x: _Axis) -> _Axis:
    reader.demand(x.flat == isinstance(module, nn.Linear), "its input's axis of channels is not known")
    if getattr(module, "groups", 1) == 1:
        reader.oldest.setdefault(name, name)
        reader.lay(name, module, x, dim=1)
        x = _Axis(((name, len(module.weight)),), x.flat)
    else:
        depthwise = module.groups == module.in_channels == module.out_channels
        reader.demand(depthwise, "groups of several channels are not supported")
    return reader.lay(name, module, x)


def _channelwise(reader: _Reader, *args: Any, **_: Any) -> _Axis:
    """Every channel is treated alike and alone, or with the same channel of other activations."""
    first, *others = (arg for arg in args if isinstance(arg, _Axis))
    for other in others:
        reader.tie(first, other)
    return first


def _flattened(reader: _Reader, x: _Axis, start_dim: int = 0, end_dim: int = -1) -> _Axis:
    reader.demand((start_dim, end_dim) == (1, -1), "right is a flattening of each image whole")
    return replace(x, flat=True)


def _joined(reader: _Reader, axes: Sequence[_Axis], dim: int = 0) -> _Axis:
    maps = all(axis.pieces and not axis.flat for axis in axes)
    reader.demand(dim == 1 and maps, "right is a concatenation of channels")
    return _Axis(tuple(piece for axis in axes for piece in axis.pieces))


def _output(reader: _Reader, x: Any) -> _Axis:
    reader.demand(isinstance(x, _Axis), "right is one tensor of logits")
    return _channelwise(reader, _Axis(), x)


CHANNELWISE = "Identity ReLU ReLU6 Dropout MaxPool2d AvgPool2d AdaptiveAvgPool2d adaptive_avg_pool2d relu relu6 dropout"
RULES: dict[str, Callable[..., Any]] = {  # by the name of a module's type, of a function or a method
    **dict.fromkeys([*CHANNELWISE.split(), "add", "iadd", "mul", "imul"], _channelwise),
    **dict.fromkeys(("Conv2d", "Linear"), _layer),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d"), _Reader.lay),
    "Flatten": lambda reader, _, module, x: _flattened(reader, x, module.start_dim, module.end_dim),
    "flatten": _flattened,
    "cat": _joined,
    "Normalise": lambda reader, _, module, x: _Axis(((FIXED, len(module.mean)),)),
    "placeholder": lambda reader, *default: _Axis(),
    "get_attr": lambda reader: reader.demand(False, "a tensor outside a layer is not supported"),
    "output": _output,
}


def match(a: State, b: State, spec: Specification, seed: int) -> dict[str, torch.Tensor]:
    """Return the permutations of b's units under which its weights have the largest inner product with a's.

    Algorithm 1 of Git Re-Basin: for one group after the other, in an order drawn from `seed`, the best permutation
    with the others held is a linear assignment; until none improves. That ends in a local optimum, so the start
    matters. The paper starts from b as it is; here a first pass in the graph's order matches each group by those
    tensors whose other axis is settled by then: a permuted copy is found at once, and different networks align better.
    Computes in float64. Raises MgenbError when a state_dict does not fit the specification or is not finite.
    """
    a, b, uses = _weights(a, spec), _weights(b, spec), _uses(spec)
    generator = seeds.torch_generator(seed, "match")
    permutations: dict[str, torch.Tensor] = {}
    order, improved = list(spec.sizes), True
    while improved:
        improved = False
        for group in order:
            products = _inner_products(a, b, spec, group, uses[group], permutations)
            best = torch.from_numpy(linear_sum_assignment(products.numpy(), maximize=True)[1])
            if group in permutations:
                old, new = (products.gather(1, way[:, None]).sum() for way in (permutations[group], best))
                if new - old <= ROUNDING * products.abs().sum():
                    continue
            permutations[group], improved = best, True
        order = [list(spec.sizes)[i] for i in torch.randperm(len(order), generator=generator)]
    return permutations


def _uses(spec: Specification) -> dict[str, list[Use]]:
    """Return where each group stands among the weights."""
    uses = defaultdict(list)
    for name in spec.weights:
        for dim, pieces in enumerate(spec.axes[name]):
            for place, (group, _) in enumerate(pieces):
                uses[group].append((name, dim, sum(n for _, n in pieces[:place])))
    return uses


def _inner_products(
    a: State, b: State, spec: Specification, group: str, uses: Sequence[Use], permutations: Permutations
) -> torch.Tensor:
    """Return the inner products of a's units with b's, float64 [units, units], over uses with settled other axes."""
    n = spec.sizes[group]
    total = torch.zeros(n, n, dtype=torch.float64)
    for name, dim, start in uses:
        rest = [() if i == dim else pieces for i, pieces in enumerate(spec.axes[name])]
        if {g for pieces in rest for g in dict(pieces)} - {FIXED, *permutations}:
            continue
        repeat = a[name].shape[dim] // sum(n for _, n in spec.axes[name][dim])
        x, y = (state[name].narrow(dim, start * repeat, n * repeat) for state in (a, b))
        y = _reordered(y, rest, permutations)
        total += (x.movedim(dim, 0).reshape(n, -1) @ y.movedim(dim, 0).reshape(n, -1).T).cpu()
    return total


def _reordered(tensor: torch.Tensor, axes: Sequence[Pieces], permutations: Permutations) -> torch.Tensor:
    """Return the tensor with its units in their new order; itself where none has one."""
    for dim, pieces in enumerate(axes):
        if set(dict(pieces)) & set(permutations):
            sizes = [n for _, n in pieces]
            entries = torch.arange(tensor.shape[dim]).view(sum(sizes), -1).split(sizes)  # one or more of each unit
            order = [own[permutations.get(group, slice(None))] for (group, _), own in zip(pieces, entries, strict=True)]
            tensor = tensor.index_select(dim, torch.cat(order).flatten().to(tensor.device))
    return tensor


def permuted(state: State, permutations: Permutations, spec: Specification) -> dict[str, torch.Tensor]:
    """Return a copy of a state_dict that fits `spec` with its units in another order: the network computes the same.

    Groups that `permutations` lacks keep their order.
    """
    return {name: _reordered(tensor.detach().clone(), spec.axes[name], permutations) for name, tensor in state.items()}


def aligned(net: nn.Module, a: State, b: State, seed: int) -> dict[str, torch.Tensor]:
    """Return b with its units in the order in which its weights fit a's best: see `match`, and what these raise."""
    spec = specification(net)
    return permuted(b, match(a, b, spec, seed), spec)


def _weights(state: State, spec: Specification) -> dict[str, torch.Tensor]:
    """Return the parameters in float64; MgenbError when the state_dict does not fit or they are not finite."""
    population.check_fits(state, spec.tensors)
    for name in spec.weights:
        if not state[name].isfinite().all():
            raise MgenbError(f"{name!r} has values that are not finite; such a network cannot be aligned")
    return {name: state[name].detach().double() for name in spec.weights}


@torch.no_grad()
def recalibrate(net: nn.Module, state: State, split: Split) -> dict[str, torch.Tensor]:
    """Return a copy of `state` whose BatchNorm statistics are those of its activations on training images.

    They are reset and become the mean over batches, of nearly equal size and in the split's order, of one pass,
    in which each BatchNorm normalises by its batch and dropout is off. All else stays, and so does `net`; without
    BatchNorm the copy equals `state`. Raises SealedSplitError for the test split, and MgenbError when the state_dict
    does not fit or there are fewer than two images.
    """
    refuse_test(split)
    check("the number of images for BatchNorm", len(split), 2)
    scratch = population.quick_copy(net, state)
    norms = [module for module in scratch.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches in place of a running one
        norm.train()
    for images in split.images.tensor_split(math.ceil(len(split) / BATCH)) if norms else ():
        scratch(images)
    new = {name: tensor for name, tensor in scratch.state_dict().items() if name.endswith(STATISTICS)}
    return {name: new.get(name, tensor).detach().clone() for name, tensor in state.items()}


def refresh(net: nn.Module, dataset: Dataset) -> None:
    """Give a trained network the BatchNorm statistics of all its training images, in place: see `recalibrate`."""
    net.load_state_dict(recalibrate(net, net.state_dict(), dataset.train))
