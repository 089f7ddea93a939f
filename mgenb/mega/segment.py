"""The segment between two networks: mixtures on it, and where any network lies beside it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mgenb.store import State

NORMALISE = "normalise."  # how nets.build names the layer that scales images


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
    stacked = {name: state[name][None] for name in learned(first)}
    return provenances(stacked, first, second)[0]


def learned(state: State) -> list[str]:
    """Return the names of weights, biases and BatchNorm statistics; how images are scaled is not in the genome."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not name.startswith(NORMALISE)]


def layers(state: State) -> list[str]:
    """Return the names of the layers that hold something learned, in order; a BatchNorm is a layer of its own."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in learned(state)))


def between(first: State, second: State, alpha: float | Mapping[str, float]) -> State:
    """Return alpha * first + (1 - alpha) * second, alpha in [0, 1] for all layers or for each; exact at both ends.

    Counters, and how images are scaled, are the first network's.
    """
    share = alpha if isinstance(alpha, Mapping) else dict.fromkeys(layers(first), alpha)
    mixed = {n: torch.lerp(second[n], first[n], share[n.rpartition(".")[0]]) for n in learned(first)}
    return {**first, **mixed}


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def provenances(stacked: State, first: State, second: State) -> list[Provenance]:
    """Return where each individual lies; sums in float64, tensor by tensor."""
    some = next(iter(stacked.values()))
    length, along, across = (torch.zeros(n, dtype=torch.float64, device=some.device) for n in (1, len(some), len(some)))
    for name in (one for one in stacked if not is_statistic(one)):
        edge = (first[name] - second[name]).double().flatten()
        way = (stacked[name] - second[name]).double().flatten(1)
        length, along, across = length + edge @ edge, along + way @ edge, across + way.square().sum(1)
    if not float(length):
        return [Provenance(0.0, 0.0, 0.0, 0.0)] * len(across)
    alpha, to_second = along / length, across / length  # squared distances in units of the edge
    to_first = to_second - 2 * alpha + 1
    nearest = alpha.clamp(0, 1)
    off = to_second - 2 * alpha * nearest + nearest**2
    columns = [alpha, *(distance.clamp(min=0).sqrt() for distance in (off, to_first, to_second))]
    return [Provenance(*row) for row in torch.stack(columns, 1).tolist()]
