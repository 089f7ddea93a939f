"""Permutation alignment (weight matching of Git Re-Basin) and recalibration of BatchNorm.

The units of a hidden layer may stand in any order without changing what a network computes, so two trained networks
may be far apart only because their units are numbered differently. Weight matching (Ainsworth, Hayase and Srinivasa
2023, section 3.2, Algorithm 1) looks for the order of one network's units in which its weights have the largest
inner product with the other's. Which axes of which tensors share an order is read off the network's graph.

Activations of the average of two aligned networks vary too little; where there is BatchNorm, statistics that are
computed anew on training images mend that (Jordan et al. 2023, "REPAIR").
"""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import fx, nn
from torch.nn import functional

from mgenb import seeds
from mgenb.data import Split
from mgenb.errors import MgenbError, choose
from mgenb.measure import population
from mgenb.nets import Normalise, Tracer
from mgenb.store import State

Pieces = tuple[tuple[str, int], ...]  # what lies along an axis: (group, units), one after the other
Permutations = Mapping[str, torch.Tensor]  # group -> which old unit, int64 [units], comes to each place

FIXED = ""  # the group of what keeps its order: channels of images, logits
STATISTICS = ("running_mean", "running_var")
BATCH = 256  # images whose statistics BatchNorm takes together when it is recalibrated
ROUNDING = 1e-12  # of the sum of all inner products: a gain below that is none

# what treats every channel alike and alone
KEEPING = (nn.Identity, nn.ReLU, nn.ReLU6, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
KEEPING_FUNCTIONS = (torch.relu, functional.relu, functional.relu6, functional.dropout, functional.adaptive_avg_pool2d)
TYING_FUNCTIONS = (operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul)


@dataclass(frozen=True)
class Specification:
    """Which axes of a network's tensors share a permutation.

    sizes: units of each group, in the graph's order; a group is named after the first layer whose outputs it is.
    axes: for each tensor, by dimension, what lies along it; () or FIXED keeps its order. Behind a flattening, each
    unit has several entries. shapes: of all tensors. weights: the parameters, which are what is matched.
    """

    sizes: Mapping[str, int]
    axes: Mapping[str, tuple[Pieces, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    weights: tuple[str, ...]


def specification(net: nn.Module) -> Specification:
    """Return which axes of the network's tensors share a permutation, read off its graph by torch.fx.

    Raises MgenbError that names the node of the graph, or the tensor, that cannot be followed.
    """
    reader = _Reader(net)
    reader.run(None)
    state = net.state_dict()
    axes = {name: tuple(reader.pieces(name, dim) for dim in range(t.ndim)) for name, t in state.items()}
    for name, dims in axes.items():
        groups = [group for pieces in dims for group in dict(pieces) if group != FIXED]
        if len(groups) > len(set(groups)):
            raise MgenbError(f"{name!r} has the same units along two axes, which weight matching cannot align")
    units = {group: n for dims in axes.values() for pieces in dims for group, n in pieces}
    sizes = {group: units[group] for group in reader.parent if group in units and group != FIXED}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Specification(sizes, axes, shapes, tuple(name for name, _ in net.named_parameters()))


@dataclass(frozen=True)
class _Axis:
    """The channels of an activation; without pieces, any number of them in fixed order."""

    pieces: Pieces = ()
    flat: bool = False  # [n, features], each unit with one or more features in a row


class _Refused(Exception):
    """Why a node cannot be followed."""


class _Reader(fx.Interpreter):
    """Runs a graph with an `_Axis` in place of each activation.

    parent: a union-find forest of groups with the oldest as root; FIXED is the oldest of all.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, graph=Tracer().trace(net))
        self.extra_traceback = False
        self.parent = {FIXED: FIXED}
        self.bound: dict[tuple[str, int], _Axis] = {}  # (tensor, dimension) -> what lies along it

    def run_node(self, n: fx.Node) -> Any:
        """Return the node's axis; MgenbError that names node and operation where there is none."""
        try:
            return super().run_node(n)
        except _Refused as why:
            what = type(self.fetch_attr(str(n.target))) if n.op == "call_module" else n.target
            what = getattr(what, "__name__", what)
            raise MgenbError(f"units cannot be followed through node {n.name!r} ({what}): {why}") from why

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> _Axis:
        return _Axis()

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> _Axis:
        raise _Refused("a tensor outside a layer is not supported")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> _Axis:
        module, x = self.module.get_submodule(target), args[0]
        if isinstance(module, Normalise):
            return _Axis(((FIXED, module.get_buffer("mean").numel()),))
        if isinstance(module, nn.Conv2d | nn.Linear):
            return self._layer(target, module, x)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return self._bind(target, ("weight", "bias", *STATISTICS), 0, x)
        if isinstance(module, nn.Flatten):
            return self._flattened(x, module.start_dim, module.end_dim)
        if isinstance(module, KEEPING):
            return x
        raise _Refused("this operation is not supported")

    def call_function(self, target: Any, args: Any, kwargs: Any) -> _Axis:
        shaping: dict[Any, Callable[..., _Axis]]
        shaping = {torch.flatten: self._flattened, torch.mean: self._averaged, torch.cat: self._joined}
        if target in shaping:
            return shaping[target](*args, **kwargs)
        if target in TYING_FUNCTIONS:
            axes = [arg for arg in args if isinstance(arg, _Axis)]
            return self._tied(axes[0], axes[-1])
        if target in KEEPING_FUNCTIONS:
            return args[0]
        raise _Refused("this operation is not supported")

    def call_method(self, target: Any, args: Any, kwargs: Any) -> _Axis:
        return self.call_function(getattr(torch, target, None), args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> None:
        if not isinstance(args[0], _Axis):
            raise _Refused("right is one tensor of logits")
        self._tied(_Axis(), args[0])

    def _layer(self, target: str, module: nn.Conv2d | nn.Linear, x: _Axis) -> _Axis:
        if x.flat != isinstance(module, nn.Linear):
            raise _Refused("its input's axis of channels is not known")
        out = _Axis(((target, module.weight.shape[0]),), x.flat)
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            if not module.groups == module.in_channels == module.out_channels:
                raise _Refused("groups of several channels are not supported")
            out = x
        else:
            self.parent.setdefault(target, target)
            self._bind(target, ("weight",), 1, x)
        return self._bind(target, ("weight", "bias"), 0, out)

    def _bind(self, target: str, names: Sequence[str], dim: int, axis: _Axis) -> _Axis:
        """Note that `axis` runs along dimension `dim` of these tensors of a layer."""
        tensors = ((name, getattr(self.module.get_submodule(target), name)) for name in names)
        for name, tensor in ((name, tensor) for name, tensor in tensors if tensor is not None):
            units = sum(n for _, n in axis.pieces)
            if units and (tensor.shape[dim] % units if axis.flat else tensor.shape[dim] != units):
                raise _Refused(f"{name} has {tensor.shape[dim]} entries for {units} units")
            self._tied(self.bound.setdefault((f"{target}.{name}", dim), axis), axis)  # a layer may be used twice
        return axis

    def _tied(self, one: _Axis, other: _Axis) -> _Axis:
        """Make both axes keep one order."""
        pairs = [(FIXED, group) for group, _ in one.pieces + other.pieces]
        if one.pieces and other.pieces:
            if [n for _, n in one.pieces] != [n for _, n in other.pieces]:
                raise _Refused("it combines channels of different numbers of layers")
            pairs = [(group, tied) for (group, _), (tied, _) in zip(one.pieces, other.pieces, strict=True)]
        for pair in pairs:
            root, child = sorted(map(self._root, pair), key=list(self.parent).index)
            self.parent[child] = root
        return one

    def _root(self, group: str) -> str:
        return group if self.parent[group] == group else self._root(self.parent[group])

    def _flattened(self, x: _Axis, start_dim: int = 0, end_dim: int = -1) -> _Axis:
        if (start_dim, end_dim) != (1, -1):
            raise _Refused("right is a flattening of each image whole")
        return replace(x, flat=True)

    def _averaged(self, x: _Axis, dim: Any = (), keepdim: bool = False) -> _Axis:
        if x.flat or not isinstance(dim, Sequence) or {i % 4 for i in dim} != {2, 3}:
            raise _Refused("right is a mean over both axes of space")
        return replace(x, flat=not keepdim)

    def _joined(self, axes: Sequence[_Axis], dim: int = 0) -> _Axis:
        if dim != 1 or any(axis.flat or not axis.pieces for axis in axes):
            raise _Refused("right is a concatenation of channels")
        return _Axis(tuple(piece for axis in axes for piece in axis.pieces))

    def pieces(self, name: str, dim: int) -> Pieces:
        """Return what lies along one dimension of a tensor, each group by its root's name."""
        return tuple((self._root(group), n) for group, n in self.bound.get((name, dim), _Axis()).pieces)


def match(a: State, b: State, spec: Specification, seed: int) -> dict[str, torch.Tensor]:
    """Return the permutations of b's units under which its weights have the largest inner product with a's.

    Algorithm 1 of Git Re-Basin: for one group after the other, in an order drawn from `seed`, the best permutation
    with the others held is a linear assignment; until none improves. That ends in a local optimum, so the start
    matters. The paper starts from b as it is; here a first pass in the graph's order matches each group by those
    tensors whose other axis is settled by then: a permuted copy is found at once, and different networks align better.
    Computes in float64. Raises MgenbError when a state_dict does not fit the specification or is not finite.
    """
    one, other = _weights(a, spec), _weights(b, spec)
    uses, groups, generator = _uses(spec), list(spec.sizes), seeds.torch_generator(seed, "match")
    permutations: dict[str, torch.Tensor] = {}

    def improved(group: str) -> bool:
        cost = _inner_products(one, other, spec, group, uses[group], permutations)
        best = torch.from_numpy(linear_sum_assignment(cost.numpy(), maximize=True)[1])
        if group in permutations:
            old, new = (cost.gather(1, order[:, None]).sum() for order in (permutations[group], best))
            if new - old <= ROUNDING * cost.abs().sum():
                return False
        permutations[group] = best
        return True

    for group in groups:
        improved(group)
    while sum(improved(groups[i]) for i in torch.randperm(len(groups), generator=generator)):  # any() would stop early
        pass
    return permutations


Use = tuple[str, int, int]  # tensor, dimension, units before the group's own


def _uses(spec: Specification) -> dict[str, list[Use]]:
    """Return where each group stands among the weights."""
    uses: dict[str, list[Use]] = defaultdict(list)
    for name in spec.weights:
        for dim, pieces in enumerate(spec.axes[name]):
            for group, _, start in _starts(pieces):
                uses[group].append((name, dim, start))
    return uses


def _starts(pieces: Pieces) -> Iterator[tuple[str, int, int]]:
    """Yield each piece with the number of units before it."""
    for (group, n), end in zip(pieces, accumulate(n for _, n in pieces), strict=True):
        yield group, n, end - n


def _inner_products(
    a: State, b: State, spec: Specification, group: str, uses: Sequence[Use], permutations: Permutations
) -> torch.Tensor:
    """Return the inner products of a's units with b's, float64 [units, units], over uses with settled other axes."""
    n = spec.sizes[group]
    total = torch.zeros(n, n, dtype=torch.float64)
    for name, dim, start in uses:
        rest = {i: pieces for i, pieces in enumerate(spec.axes[name]) if i != dim}
        if {g for pieces in rest.values() for g in dict(pieces)} - {FIXED, *permutations}:
            continue
        repeat = a[name].shape[dim] // sum(n for _, n in spec.axes[name][dim])
        x, y = (state[name].narrow(dim, start * repeat, n * repeat) for state in (a, b))
        for i, pieces in rest.items():
            y = _reordered(y, i, pieces, permutations)
        total += (x.movedim(dim, 0).reshape(n, -1) @ y.movedim(dim, 0).reshape(n, -1).T).cpu()
    return total


def _reordered(tensor: torch.Tensor, dim: int, pieces: Pieces, permutations: Permutations) -> torch.Tensor:
    """Return the tensor with the units along `dim` in their new order; itself where none has one."""
    if not set(dict(pieces)) & set(permutations):
        return tensor
    orders = [start + permutations.get(group, torch.arange(n)) for group, n, start in _starts(pieces)]
    repeat = tensor.shape[dim] // sum(n for _, n in pieces)
    index = torch.cat(orders)[:, None] * repeat + torch.arange(repeat)
    return tensor.index_select(dim, index.flatten().to(tensor.device))


def permuted(state: State, permutations: Permutations, spec: Specification) -> dict[str, torch.Tensor]:
    """Return a copy of a state_dict with its units in another order: the network computes the same.

    Groups that `permutations` lacks keep their order. Raises MgenbError for an unknown group, for what is no
    permutation (on the CPU) of its units, and where the state_dict does not fit the specification.
    """
    _check(state, spec)
    for group, order in permutations.items():
        places = torch.arange(spec.sizes[choose("group of units", group, spec.sizes)])
        if not torch.equal(order.sort().values, places):
            raise MgenbError(f"{group!r} is not given a permutation; right is 0 to {len(places) - 1}, each once")
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    for name, dims in spec.axes.items():
        for dim, pieces in enumerate(dims):
            copies[name] = _reordered(copies[name], dim, pieces, permutations)
    return copies


def aligned(net: nn.Module, a: State, b: State, seed: int) -> dict[str, torch.Tensor]:
    """Return b with its units in the order in which its weights fit a's best: see `match`, and what these raise."""
    spec = specification(net)
    return permuted(b, match(a, b, spec, seed), spec)


def _weights(state: State, spec: Specification) -> dict[str, torch.Tensor]:
    """Return the parameters in float64; MgenbError when the state_dict does not fit or they are not finite."""
    _check(state, spec)
    for name in spec.weights:
        if not state[name].isfinite().all():
            raise MgenbError(f"{name!r} has values that are not finite; such a network cannot be aligned")
    return {name: state[name].detach().double() for name in spec.weights}


def _check(state: State, spec: Specification) -> None:
    """Raise MgenbError that names the tensor in which a state_dict differs from the specification's network."""
    population.check_fits(state, spec.shapes)
    for name in state:
        if name not in spec.shapes:
            raise MgenbError(f"the state_dict has {name!r}, which the network lacks")


@torch.no_grad()
def recalibrate(net: nn.Module, state: State, split: Split) -> dict[str, torch.Tensor]:
    """Return a copy of `state` whose BatchNorm statistics are those of its activations on training images.

    They are reset and become the mean over batches, of nearly equal size and in the split's order, of one pass,
    in which each BatchNorm normalises by its batch and dropout is off. All else stays, and so does `net`; without
    BatchNorm the copy equals `state`. Raises SealedSplitError for the test split, and MgenbError when the state_dict
    does not fit or there are fewer than two images.
    """
    population.refuse_test(split)
    if len(split) < 2:
        raise MgenbError(f"BatchNorm is recalibrated on {len(split)} images; right is at least 2")
    scratch = population.quick_copy(net, state)
    norms = {name: m for name, m in scratch.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches in place of a running one
        norm.train()
    for images in split.images.tensor_split(math.ceil(len(split) / BATCH)) if norms else ():
        scratch(images)
    new = {f"{name}.{kind}": norm.get_buffer(kind) for name, norm in norms.items() for kind in STATISTICS}
    return {name: new.get(name, tensor).detach().clone() for name, tensor in state.items()}
