"""The segment between two networks: mixtures on it, and where any network lies beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mgenb.errors import MgenbError, check
from mgenb.measure import population
from mgenb.store import State

NORMALISE = "normalise."  # how nets.build names the layer that scales images
STATISTICS = ("running_mean", "running_var")  # how BatchNorm names what it has seen


@dataclass(frozen=True)
class Provenance:
    """Where a network lies beside its two parents, over all weights and biases (no BatchNorm statistics).

    alpha: place on the segment, 0 at the second parent and 1 at the first. Distances are in units of the distance
    between the parents: from the segment, from the first and from the second parent. All 0 where both are one.
    """

    alpha: float
    off_segment: float
    to_first: float
    to_second: float

    def label(self, tolerance: float = 0.01) -> str:
        """Return 'parent copy' within `tolerance` of a parent, 'on the segment' within it of the segment, or 'off'."""
        if min(self.to_first, self.to_second) <= tolerance:
            return "parent copy"
        return "on the segment" if self.off_segment <= tolerance else "off the segment"


def provenance(state: State, first: State, second: State) -> Provenance:
    """Return the provenance coordinates of a network."""
    return provenances({name: state[name][None] for name in learned(first)}, first, second)[0]


def provenances(stacked: State, first: State, second: State) -> list[Provenance]:
    """Return where each individual of a stacked state_dict lies; sums in float64, tensor by tensor."""
    sums = []
    for name in (name for name in stacked if not name.endswith(STATISTICS)):
        edge = (first[name] - second[name]).double().flatten()
        way = (stacked[name] - second[name]).double().flatten(1)
        sums.append(torch.stack([(edge @ edge).expand(len(way)), way @ edge, way.square().sum(1)]))
    length, along, across = sum(sums, torch.zeros(()))
    if not length.any():
        return [Provenance(0.0, 0.0, 0.0, 0.0)] * len(length)
    alpha, to_second = along / length, across / length  # squared distances in units of the edge
    to_first = to_second - 2 * alpha + 1
    nearest = alpha.clamp(0, 1)
    off = to_second - 2 * alpha * nearest + nearest**2
    columns = [alpha, *(distance.clamp(min=0).sqrt() for distance in (off, to_first, to_second))]
    return [Provenance(*row) for row in torch.stack(columns, 1).tolist()]


def learned(state: State) -> list[str]:
    """Return the names of weights, biases and BatchNorm statistics; how images are scaled is not in the genome."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not name.startswith(NORMALISE)]


def layer_of(name: str) -> str:
    """Return the name of the layer that a tensor belongs to."""
    return name.rpartition(".")[0]


def layers(state: State) -> list[str]:
    """Return the names of the layers that hold something learned, in order; a BatchNorm is a layer of its own."""
    return list(dict.fromkeys(map(layer_of, learned(state))))


def between(first: State, second: State, alpha: float | Mapping[str, float]) -> State:
    """Return alpha * first + (1 - alpha) * second, alpha in [0, 1] for all layers or for each; exact at both ends.

    Counters, and how images are scaled, are the first network's.
    """
    share = alpha if isinstance(alpha, Mapping) else dict.fromkeys(layers(first), alpha)
    for value in {*share.values()}:
        check("alpha", value, 0.0, 1.0)
    return {**first, **mixed(first, second, lambda name: share[layer_of(name)])}


def mixed(first: State, second: State, share: Callable[[str], float | torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what is learned of both, `share(name)` of the first and the rest of the second."""
    return {name: torch.lerp(second[name], first[name], share(name)) for name in learned(first)}


def check_match(first: State, second: State) -> None:
    """Raise MgenbError, naming the key, unless both state_dicts have the same tensors in the same shapes.

    Networks that normalise their images differently do not match either.
    """
    population.check_fits(second, first, "the second network", "the first network")
    for name in first:
        if name.startswith(NORMALISE) and not first[name].equal(second[name]):
            raise MgenbError(f"{name!r} differs: the networks scale their images differently, and cannot be mixed")
