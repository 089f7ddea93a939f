"""MGE (arXiv 2402.17486): a generator that redraws the unimportant part of trained weights, and a discriminator.

What the paper leaves open is an option of `Settings`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mgenb.errors import MgenbError, demand
from mgenb.mge import frequency
from mgenb.seeds import derive, torch_generator
from mgenb.store import State, usable

NOISES = ("truncated", "literal", "gaussian", "uniform")
SCALES = ("absolute", "relative")
PLACED = ("replaced", "added")
DRAWN = ("random", "fig7")  # selections that choose at random, so that each seed has another mask
STACK_ELEMENTS = 2**27  # weights that are generated at once: half a GiB


@dataclass(frozen=True)
class Settings:
    """How to generate; raises MgenbError for what is unknown or does not go together.

    selection: what is unimportant, one of `frequency.SELECTIONS`; its size is the share `share` (0 to 1) of all
        values of a layer or, for None, what lies outside the energy share `t` (0 to 1) of the layer's DCT
        coefficients, whatever the selection, so that controls have the paper's size.
    part: only this share (0 to 1) of what is unimportant is redrawn, the most unimportant first.
    domain: redraw DCT 'coefficients' or, at the mask's positions, 'weights' (the mask of Fig. 7).
    noise: Eq. 1 reads N(-z, z) with z in [0, 0.2]. 'truncated': mean 0, deviation z, cut to [-z, z] (the text's
        words); 'literal': mean -z, deviation z; 'gaussian': mean 0, deviation z; 'uniform': on [-z, z].
    z_drawn: each layer's z is itself drawn, uniform on [0, z], anew for each model.
    scale: 'absolute', z as it is; 'relative', z times the standard deviation of the layer's weights. The
        orthonormal DCT keeps that deviation, so one z means the same in both domains.
    placed: 'replaced', draws stand in place of the unimportant coefficients (Algorithm 1, line 3); 'added', these
        become zero, and a draw is added to every weight of a layer that has any (Eq. 3).
    """

    selection: str = "energy"
    t: float = 0.8
    noise: str = "truncated"
    z: float = 0.2
    domain: str = "coefficients"
    scale: str = "relative"
    transform: str = "flat"
    band: str = "mid"
    share: float | None = None
    part: float = 1.0
    z_drawn: bool = False
    placed: str = "replaced"

    def __post_init__(self) -> None:
        bands = (*frequency.BANDS, "low+mid")
        demand(self, noise=NOISES, scale=SCALES, placed=PLACED, band=bands, z=(0.0, 1e6), t=(0.0, 1.0), part=(0.0, 1.0))
        if self.share is not None:
            demand(self, share=(0.0, 1.0))
        if self.placed == "added" and self.domain == "weights":
            raise MgenbError("placed='added' is about coefficients: with domain='weights' it is what 'replaced' does")
        unimportant(torch.eye(2), self, 0)  # selection, domain and transform, before anything is trained

    @property
    def fixed(self) -> bool:
        """Whether mask and z are the same for every seed."""
        return self.selection not in DRAWN and not self.z_drawn


# layer_generator or layer_noise: (layer's weight, settings) -> (seed -> that layer, changed)
Layers = Callable[[Tensor, Settings], Callable[[int], Tensor]]


def unimportant(weight: Tensor, settings: Settings, seed: int) -> Tensor:
    """Return the mask (bool, the layer's shape) of what `settings` lets the generator redraw."""
    return _mask(weight, settings, _count(weight, settings), seed)


def _count(weight: Tensor, settings: Settings) -> int:
    """Return how many values of a layer are redrawn."""
    if settings.share is None:
        coefficients = frequency.to_coefficients(weight.cpu(), settings.transform)
        count = frequency.unimportant_count(coefficients, settings.t)
    else:
        count = round(settings.share * weight.numel())
    return round(settings.part * count)


def _mask(weight: Tensor, settings: Settings, count: int, seed: int) -> Tensor:
    how = {"domain": settings.domain, "transform": settings.transform, "band": settings.band}
    # chosen on the CPU: of two coefficients that nearly tie, another device could take the other one
    return frequency.select(weight.cpu(), settings.selection, count, **how, seed=seed).to(weight.device)


@torch.inference_mode()  # rows of a stack that is made in inference mode can be filled in it alone
def _fill(values: Tensor, settings: Settings, seed: int) -> Tensor:
    """Fill `values` in place, on the CPU, with the random numbers that `_shaped` makes draws of Eq. 1."""
    generator = torch_generator(seed, "values")
    if settings.noise in ("truncated", "uniform"):
        return values.uniform_(-1, 1, generator=generator)
    return values.normal_(generator=generator)


def _shaped(values: Tensor, noise: str, z: float) -> Tensor:
    if noise == "truncated":
        # by the inverse distribution function: torch's trunc_normal_ draws otherwise in other versions, and slower
        return z * math.sqrt(2) * torch.erfinv(math.erf(math.sqrt(0.5)) * values)
    return z * (values - float(noise == "literal"))


def _redrawer(weight: Tensor, settings: Settings) -> Callable[..., Tensor]:
    """Return (mask, random numbers, share of z) -> the layer redrawn; what is the same for all is computed once."""
    z = settings.z * (weight.std().item() if settings.scale == "relative" else 1.0)
    old = frequency.to_coefficients(weight, settings.transform) if settings.domain == "coefficients" else weight

    def redrawn(mask: Tensor, raw: Tensor, share_of_z: float = 1.0) -> Tensor:
        values = _shaped(raw.to(weight, non_blocking=True), settings.noise, share_of_z * z)
        if settings.domain == "weights":
            return torch.where(mask, values, weight)
        if settings.placed == "added":
            kept = frequency.change_coefficients(weight, mask, 0.0, settings.transform, old)
            return kept + torch.where(mask.any(), values, 0.0)
        return frequency.change_coefficients(weight, mask, values, settings.transform, old)

    return redrawn


def _drawn(weight: Tensor, settings: Settings, seed: int) -> tuple[Tensor, float]:
    """Return a layer's random numbers, and which share of z it has."""
    share_of_z = torch.rand((), generator=torch_generator(seed, "z")).item() if settings.z_drawn else 1.0
    return _fill(torch.empty(weight.shape), settings, seed), share_of_z


def redraw(weight: Tensor, mask: Tensor, settings: Settings, seed: int) -> Tensor:
    """Return one layer with the part under `mask` redrawn; on the layer's device, from CPU draws."""
    return _redrawer(weight, settings)(mask, *_drawn(weight, settings, seed))


def layer_generator(weight: Tensor, settings: Settings) -> Callable[[int], Tensor]:
    """Return seed -> the layer with its unimportant part redrawn.

    Its coefficients are computed once, and so is the mask unless the selection itself is drawn: what is left
    for each seed is the draw and one inverse DCT.
    """
    redrawn, count = _redrawer(weight, settings), _count(weight, settings)
    fixed = None if settings.selection in DRAWN else _mask(weight, settings, count, 0)

    def generated(seed: int) -> Tensor:
        mask = _mask(weight, settings, count, derive(seed, "mask")) if fixed is None else fixed
        return redrawn(mask, *_drawn(weight, settings, seed))

    return generated


def with_noise(weight: Tensor, norm: Tensor, generator: torch.Generator) -> Tensor:
    """Return the layer plus Gaussian noise of that Euclidean norm (no dimensions), from CPU draws."""
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    return weight + noise * norm / noise.norm()


def layer_noise(weight: Tensor, settings: Settings) -> Callable[[int], Tensor]:
    """Return seed -> the layer plus noise of the norm of what `layer_generator` changes: the control."""
    generated = layer_generator(weight, settings)
    return lambda seed: with_noise(weight, (generated(seed) - weight).norm(), torch_generator(seed, "noise"))


def noise_of_same_norm(base: State, changed: State, seed: int) -> State:
    """Return `base` plus noise whose norm in each weight layer is that of `changed - base`: the control."""

    def layer(name: str, weight: Tensor) -> Tensor:
        return with_noise(weight, (changed[name] - weight).norm(), torch_generator(seed, "noise", name))

    return frequency.change_layers(base, layer)


def model_generator(base: State, settings: Settings) -> Callable[[int], State]:
    """Return seed -> a generated state_dict: every weight layer redrawn at once; biases and BatchNorm as in `base`.

    The same (base, settings, seed) gives the same weights on the same device, every time.
    MgenbError for a base that `store.usable` refuses.
    """
    base = usable(base, "the base")
    layers = {name: layer_generator(base[name], settings) for name in frequency.weight_names(base)}
    return lambda seed: {**base, **{name: layer(derive(seed, name)) for name, layer in layers.items()}}


def generate(base: State, settings: Settings, seed: int) -> State:
    """Return one generated state_dict: `model_generator(base, settings)(seed)`."""
    return model_generator(base, settings)(seed)


def candidate_seed(seed: int, index: int) -> int:
    """Return the seed of the candidate `index` (0, 1, ...) of the stream `seed`."""
    return derive(seed, "candidate", index)


def candidates(base: State, settings: Settings, seed: int, count: int) -> Iterator[tuple[int, State]]:
    """Yield `count` pairs (candidate seed, generated state_dict), independent draws of all layers.

    On a GPU they are made a stack at a time, but for settings that `stacks` refuses.
    """
    seeds = [candidate_seed(seed, index) for index in range(count)]
    if next(iter(base.values())).is_cuda and settings.fixed:
        made = (layers for stack in stacks(base, settings, seeds) for layers in unstacked(stack))
        yield from zip(seeds, ({**base, **layers} for layers in made), strict=True)
    else:
        yield from zip(seeds, map(model_generator(base, settings), seeds), strict=True)


def stacks(base: State, settings: Settings, seeds: Sequence[int]) -> Iterator[State]:
    """Yield the weight layers that `model_generator` makes for many seeds, stacked: [models, *shape] each.

    One inverse DCT a layer serves a whole stack. The random numbers are the CPU's, and are drawn by threads while the
    device is busy with the stack before. Raises MgenbError for a mask or a z that is drawn: see `model_generator`.
    """
    if not settings.fixed:
        raise MgenbError(f"stacks have one mask and one z: selection {settings.selection!r} or z_drawn is not for them")
    weights = {name: base[name] for name in frequency.weight_names(base)}
    redrawn = {}
    for name, weight in weights.items():
        layer = partial(_redrawer(weight, settings), unimportant(weight, settings, 0))
        redrawn[name] = torch.func.vmap(layer, randomness="same")  # a shuffled transform draws its one order
    size = max(1, STACK_ELEMENTS // sum(weight.numel() for weight in weights.values()))
    with ThreadPoolExecutor() as threads:
        drawing = (_draw_ahead(threads, weights, settings, seeds[i : i + size]) for i in range(0, len(seeds), size))
        ahead = next(drawing, None)
        while ahead is not None:
            raw, jobs = ahead
            for job in jobs:
                job.result()
            ahead = next(drawing, None)
            yield {name: redrawn[name](values) for name, values in raw.items()}
            if any(values.is_pinned() for values in raw.values()):
                torch.cuda.synchronize()  # else draws are made, and held, far ahead of the device


def _draw_ahead(
    threads: ThreadPoolExecutor, weights: State, settings: Settings, seeds: Sequence[int]
) -> tuple[State, list[Future[Tensor]]]:
    """Start drawing the random numbers of a stack; return where they will be, [models, *shape], and what fills it."""
    raw = {n: torch.empty((len(seeds), *w.shape), pin_memory=w.is_cuda) for n, w in weights.items()}
    rows = [(values[row], derive(seed, name)) for name, values in raw.items() for row, seed in enumerate(seeds)]
    return raw, [threads.submit(_fill, row, settings, seed) for row, seed in rows]


def unstacked(stack: State) -> Iterator[State]:
    """Yield the models of a stack one by one: views of its tensors [models, *shape]."""
    for layers in zip(*stack.values(), strict=True):
        yield dict(zip(stack, layers, strict=True))


def accepts(fitness: float, base_fitness: float, eps: float = 0.05) -> bool:
    """Return the discriminator's decision: better than the base, or closer to it than `eps`.

    Fitness is an accuracy in [0, 1], or minus a loss.
    """
    # accuracies are fractions whose floats would let in 0.90 beside 0.95, which is not closer than 0.05
    return fitness > base_fitness or base_fitness - fitness < eps - 1e-9


def fewest_right(base_right: int, total: int, eps: float = 0.05) -> int:
    """Return how many of `total` images a model must have right to be accepted beside a base with `base_right`.

    `total` + 1 where even a perfect model is refused (a perfect base, eps = 0).
    """
    return bisect_left(range(total + 1), True, key=lambda right: accepts(right / total, base_right / total, eps))
