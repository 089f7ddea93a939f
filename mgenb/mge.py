"""MGE (arXiv 2402.17486): a generator that redraws the unimportant part of trained weights, and a discriminator.

What the paper leaves open is an option of `Settings`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from mgenb import frequency
from mgenb.errors import MgenbError, choose
from mgenb.seeds import derive, torch_generator

State = dict[str, torch.Tensor]

NOISES = ("truncated", "literal", "gaussian")
SCALES = ("absolute", "relative")


@dataclass(frozen=True)
class Settings:
    """How to generate.

    selection: what is unimportant, one of `frequency.SELECTIONS`; its size is what lies outside the energy
        share `t` (0 to 1) of the layer's DCT coefficients, whatever the selection, so that controls have the
        paper's size.
    domain: redraw DCT 'coefficients' or, at the mask's positions, 'weights' (the mask of Fig. 7).
    noise: Eq. 1 reads N(-z, z) with z in [0, 0.2]. 'truncated': mean 0, deviation z, cut to [-z, z] (the text's
        words); 'literal': mean -z, deviation z; 'gaussian': mean 0, deviation z.
    scale: 'absolute', z as it is; 'relative', z times the standard deviation of the layer's weights. The
        orthonormal DCT keeps that deviation, so one z means the same in both domains.
    """

    selection: str = "energy"
    t: float = 0.8
    noise: str = "truncated"
    z: float = 0.2
    domain: str = "coefficients"
    scale: str = "relative"
    transform: str = "flat"
    band: str = "mid"

    def __post_init__(self) -> None:
        choose("selection", self.selection, frequency.SELECTIONS)
        choose("noise", self.noise, NOISES)
        choose("domain", self.domain, frequency.DOMAINS)
        choose("scale", self.scale, SCALES)
        choose("band", self.band, frequency.BANDS)
        if not 0 <= self.z < float("inf"):
            raise MgenbError(f"z is {self.z}; right is a number of at least 0 (the paper: up to 0.2)")
        if not 0 <= self.t <= 1:
            raise MgenbError(f"the energy share t is {self.t}; right is a number from 0 to 1")


def draw(shape: torch.Size, noise: str, z: float, generator: torch.Generator) -> torch.Tensor:
    """Return float32 draws of Eq. 1 in `shape`, on the CPU, for one reading of `noise` (see `Settings`)."""
    normal = torch.empty(shape)
    if choose("noise", noise, NOISES) == "truncated":
        return z * torch.nn.init.trunc_normal_(normal, a=-1, b=1, generator=generator)
    return z * (normal.normal_(generator=generator) - float(noise == "literal"))


def unimportant(weight: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """Return the mask (bool, the layer's shape) of what `settings` lets the generator redraw."""
    coefficients = frequency.to_coefficients(weight, settings.transform)
    return frequency.select(
        weight,
        settings.selection,
        frequency.unimportant_count(coefficients, settings.t),
        domain=settings.domain,
        transform=settings.transform,
        band=settings.band,
        seed=seed,
    )


def redraw(weight: torch.Tensor, mask: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """Return one layer with the part under `mask` redrawn; on the layer's device, from CPU draws."""
    z = settings.z * (weight.std().item() if settings.scale == "relative" else 1.0)
    values = draw(weight.shape, settings.noise, z, torch_generator(seed, "values")).to(weight)
    if settings.domain == "weights":
        return torch.where(mask, values, weight)
    return frequency.change_coefficients(weight, mask, values, settings.transform)


def generate_layer(weight: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """Return one layer with its unimportant part redrawn."""
    return redraw(weight, unimportant(weight, settings, derive(seed, "mask")), settings, seed)


def generate(base: Mapping[str, torch.Tensor], settings: Settings, seed: int) -> State:
    """Return a generated state_dict: every weight layer redrawn at once; biases and BatchNorm as in `base`.

    The same (base, settings, seed) gives the same weights on the same device, every time.
    """
    return frequency.change_layers(base, lambda name, weight: generate_layer(weight, settings, derive(seed, name)))


def accepts(fitness: float, base_fitness: float, eps: float = 0.05) -> bool:
    """Return the discriminator's decision: better than the base, or closer to it than `eps` (fitness in [0, 1])."""
    # accuracies are fractions whose floats would let in 0.90 beside 0.95, which is not closer than 0.05
    return fitness > base_fitness or base_fitness - fitness < eps - 1e-9


def candidates(
    base: Mapping[str, torch.Tensor], settings: Settings, seed: int, count: int
) -> Iterator[tuple[int, State]]:
    """Yield `count` pairs (candidate seed, generated state_dict), independent draws of all layers."""
    for index in range(count):
        candidate_seed = derive(seed, "candidate", index)
        yield candidate_seed, generate(base, settings, candidate_seed)


def noise_of_same_norm(base: Mapping[str, torch.Tensor], changed: Mapping[str, torch.Tensor], seed: int) -> State:
    """Return `base` plus Gaussian noise whose norm in each weight layer is that of `changed - base`: the control."""

    def layer(name: str, weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(weight.shape, generator=torch_generator(seed, "noise", name)).to(weight)
        return weight + noise * (changed[name] - weight).norm() / noise.norm()

    return frequency.change_layers(base, layer)


@dataclass(frozen=True)
class LayerwiseResult:
    """What Algorithm 1 ended with: the state_dict, tries spent on each layer, and layers left as they were."""

    state: State
    tries: dict[str, int]
    kept: tuple[str, ...]


def generate_layerwise(
    base: Mapping[str, torch.Tensor],
    settings: Settings,
    seed: int,
    fitness: Callable[[State], float],
    *,
    eps: float = 0.05,
    tries: int = 100,
) -> LayerwiseResult:
    """Run Algorithm 1's search: layer by layer, redraw until the discriminator accepts, `tries` (n_D) times at most.

    `fitness` maps a state_dict to [0, 1]. A layer for which no try is accepted keeps its weights.
    """
    if tries < 1:
        raise MgenbError(f"tries is {tries}; right is at least 1 (the paper: 100)")
    state, spent, kept = dict(base), {}, []
    base_fitness = fitness(state)
    for name in frequency.weight_names(base):
        for attempt in range(1, tries + 1):
            layer = generate_layer(base[name], settings, derive(seed, name, attempt))
            if accepts(fitness({**state, name: layer}), base_fitness, eps):
                state[name] = layer
                break
        else:
            kept.append(name)
        spent[name] = attempt
    return LayerwiseResult(state, spent, tuple(kept))
