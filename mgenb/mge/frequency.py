"""Weights in the frequency domain (MGE): DCT, bands, energy, and which part is called unimportant.

A *layer* is one weight tensor W. Two readings of "the DCT of the weights": `flat` takes the tensor as one
vector, `kernel` transforms the last two axes of a convolution, or both axes of a matrix.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mgenb.errors import MgenbError, check, choose
from mgenb.seeds import torch_generator
from mgenb.store import State

TRANSFORMS = ("flat", "kernel")
ORDERS = ("shuffled", "kernels", "inside")
BANDS = ("low", "mid", "high")
BANDS_BY = ("index", "size")
CHANGES = ("zeroed", "noise", "kept")
MARKS = ("most", "least")
TENTHS = ("random", "first", "smallest", "largest")
SELECTIONS = ("energy", "high", "highest", "fig7", "random", "magnitude", "largest", "first", "last")
DOMAINS = ("coefficients", "weights")
# selection: its domain; the others are for both
NATURAL = {"energy": "coefficients", "high": "coefficients", "highest": "coefficients"}
NATURAL |= dict.fromkeys(("fig7", "first", "last"), "weights")
FIG7_SHARE = 0.1  # Fig. 7: ten per cent of a band is set to zero in each layer


def weight_names(state: State) -> list[str]:
    """Return the names of the weight tensors of convolutions and matrices; biases and BatchNorm are left out."""
    return [name for name, tensor in state.items() if tensor.ndim >= 2 and tensor.is_floating_point()]


def dct(x: Tensor) -> Tensor:
    """Return the orthonormal DCT-II over the last axis, in the dtype and on the device of `x` (float, [..., n]).

    Makhoul 1980: one FFT of length n of the even samples followed by the odd ones reversed.
    """
    n = x.shape[-1]
    if _rough(n) and x.dtype == torch.float32:
        return dct(x.double()).float()
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    twiddle, norms = _factors(n, x.dtype, x.device)
    return (torch.fft.fft(v) * twiddle).real * norms


def idct(c: Tensor) -> Tensor:
    """Return the inverse of `dct` over the last axis (the orthonormal DCT-III)."""
    n = c.shape[-1]
    if _rough(n) and c.dtype == torch.float32:
        return idct(c.double()).float()
    twiddle, norms = _factors(n, c.dtype, c.device)
    scaled = c / norms
    mirrored = torch.cat([torch.zeros_like(scaled[..., :1]), scaled[..., 1:].flip(-1)], -1)
    spectrum = torch.complex(scaled, -mirrored) * twiddle.conj()
    v = torch.fft.ifft(spectrum).real
    x = torch.empty_like(c)
    x[..., ::2], x[..., 1::2] = v[..., : (n + 1) // 2], v[..., (n + 1) // 2 :].flip(-1)
    return x


@lru_cache(maxsize=128)
def _rough(n: int) -> bool:
    """Return whether `n` has a prime factor for which an FFT in float32 may be off by 1e-4: one above 1,000."""
    factor = 2
    while factor**2 <= n:
        if n % factor:
            factor += 1
        else:
            n //= factor
    return n > 1000


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # what is kept must also serve a later caller that takes gradients
def _factors(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return Makhoul's twiddle factors (complex [n]) and the orthonormal factors (real [n])."""
    angle = -math.pi / (2 * n) * torch.arange(n, device=device, dtype=torch.float64)
    twiddle = torch.polar(torch.ones_like(angle), angle).to(dtype.to_complex())
    norms = torch.full((n,), math.sqrt(2 / n), device=device, dtype=dtype)
    norms[0] = math.sqrt(1 / n)
    return twiddle, norms


def _order(weight: Tensor, transform: str) -> Tensor | slice:
    """Return in which order a transform other than `kernel` reads the elements; MgenbError for an unknown one."""
    kind, _, index = transform.partition(":")
    if kind not in ORDERS or not index.isdigit():
        choose("transform", transform, (*TRANSFORMS, *(f"{order}:0" for order in ORDERS)))
        return slice(None)
    generator = torch_generator(int(index), "order")
    if kind == "shuffled":
        return torch.randperm(weight.numel(), generator=generator).to(weight.device)
    size = weight.shape[2:].numel() if weight.ndim > 2 else weight.shape[-1]
    places = torch.arange(weight.numel()).reshape(-1, size)
    if kind == "kernels":
        return places[torch.randperm(len(places), generator=generator)].reshape(-1).to(weight.device)
    inside = torch.rand(places.shape, generator=generator).argsort(1)
    return places.gather(1, inside).reshape(-1).to(weight.device)


def to_coefficients(weight: Tensor, transform: str) -> Tensor:
    """Return the DCT coefficients of one layer, in the layer's own shape (for `flat`, row after row).

    `shuffled:K` is `flat` after reading the elements in the K-th random order: the control for `flat`, whose
    order is arbitrary. `kernels:K` keeps each kernel (of a matrix, each row) whole and shuffles their order; `inside:K`
    keeps their order and shuffles each inside. Raises MgenbError for an unknown transform.
    """
    if transform == "kernel":
        return dct(dct(weight).transpose(-1, -2)).transpose(-1, -2)
    return dct(weight.reshape(-1)[_order(weight, transform)]).reshape(weight.shape)


def to_weights(coefficients: Tensor, transform: str) -> Tensor:
    """Return the inverse of `to_coefficients`."""
    if transform == "kernel":
        return idct(idct(coefficients.transpose(-1, -2)).transpose(-1, -2))
    weight = torch.empty_like(coefficients).reshape(-1)
    weight[_order(coefficients, transform)] = idct(coefficients.reshape(-1))
    return weight.reshape(coefficients.shape)


def change_coefficients(
    weight: Tensor, mask: Tensor, values: Tensor | float, transform: str, old: Tensor | None = None
) -> Tensor:
    """Return the layer whose coefficients under `mask` (bool, the layer's shape) become `values`.

    Computed as W plus the inverse DCT of the change, so that no change gives back W bit for bit. `old`: the layer's
    coefficients, where they are known already.
    """
    old = to_coefficients(weight, transform) if old is None else old
    change = torch.where(mask, values - old, torch.zeros_like(old))
    return weight + to_weights(change, transform)


def change_band(
    weight: Tensor,
    band: str,
    count: int | None,
    *,
    transform: str,
    seed: int,
    change: str = "zeroed",
    bands: str = "index",
    inside: Tensor | None = None,
) -> Tensor:
    """Return the layer with `count` random coefficients of `band` modified (MGE Fig. 6); `bands`: see `band_mask`.

    `inside`: the band's mask, where it is known already.
    `zeroed`: set to zero; `noise`: Gaussian noise is added whose norm is that of what zeroing them would remove;
    `kept`: all outside the band is set to zero, and `count` is None. Raises MgenbError for an unknown name, when the
    band has fewer coefficients, or for a count that does not go with the change.
    """
    if (choose("change", change, CHANGES) == "kept") != (count is None):
        raise MgenbError(f"count is {count} with change={change!r}; right is None for 'kept', and for it alone")
    mask = band_mask(weight, transform, band, bands) if inside is None else inside
    if count is None:
        return change_coefficients(weight, ~mask, 0.0, transform)
    mask = random_part(mask, count, torch_generator(seed, "zero band", band))
    if change == "zeroed":
        return change_coefficients(weight, mask, 0.0, transform)
    old = to_coefficients(weight, transform)
    noise = torch.randn(weight.shape, generator=torch_generator(seed, "band noise", band)).to(weight)
    values = old + noise * old[mask].norm() / noise[mask].norm()
    return change_coefficients(weight, mask, values, transform, old)


def smallest_band(weight: Tensor, transform: str, bands: str = "index") -> int:
    """Return the size of a layer's smallest band: up to that many, all bands can be changed by equal counts."""
    return min(int(band_mask(weight, transform, band, bands).sum()) for band in BANDS)


def change_layers(state: State, change: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Return `state` with `change(name, weight)` in place of every weight layer."""
    return {**state, **{name: change(name, state[name]) for name in weight_names(state)}}


def frequency_of(shape: torch.Size, transform: str) -> Tensor:
    """Return each coefficient's frequency in [0, 1], float32 in `shape`.

    `flat`: the index over the length. `kernel`: the radius sqrt((u² + v²) / 2), u and v in [0, 1] along the axes.
    """
    if transform != "kernel":
        n = math.prod(shape)
        return (torch.arange(n, dtype=torch.float64) / n).float().reshape(shape)
    rows, columns = (torch.arange(n) / max(n - 1, 1) for n in shape[-2:])
    radius = torch.sqrt((rows[:, None] ** 2 + columns[None, :] ** 2) / 2)
    return radius.expand(shape).contiguous()


def band_mask(weight: Tensor, transform: str, band: str, bands: str = "index") -> Tensor:
    """Return which coefficients of a layer lie in a third of them (bool, its shape and device).

    `bands` are thirds of the frequency range ('index'), or of the coefficients in order of magnitude ('size', the
    largest are high: the paper calls one part both high and the one with the energy). `band` is 'low', 'mid', 'high',
    or several, as in 'low+mid'. Raises MgenbError for an unknown name.
    """
    thirds = [BANDS.index(choose("band", name, BANDS)) for name in band.split("+")]
    places = frequency_of(weight.shape, transform)  # in [0, 1]: what bands are thirds of
    if choose("bands", bands, BANDS_BY) == "size":
        order = to_coefficients(weight.cpu(), transform).abs().reshape(-1).argsort(stable=True)
        places = (order.argsort() / weight.numel()).reshape(weight.shape)
    third = (places * 3).floor().clamp(max=2).to(weight.device)
    return torch.isin(third, torch.tensor(thirds, device=weight.device))


def random_part(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a mask of `count` positions drawn at random from those set in `mask`; MgenbError if there are fewer."""
    places = mask.reshape(-1).nonzero().squeeze(1)
    check("the number of positions", count, 0, len(places))
    chosen = places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]
    return _mask_of(mask.shape, chosen)


def _mask_of(shape: torch.Size, places: Tensor) -> Tensor:
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=places.device)
    mask[places] = True
    return mask.reshape(shape)


def unimportant_count(values: Tensor, energy_share: float) -> int:
    """Return how many of the smallest `values` lie outside the fewest that hold `energy_share` of the energy.

    `energy_share` is the paper's t in [0, 1]; t = 1 returns 0 even where values are 0.
    """
    check("the energy share t", energy_share, 0.0, 1.0)
    if energy_share == 1:
        return 0
    energy = values.double().square().reshape(-1).sort(descending=True).values.cumsum(0)
    kept = int(torch.searchsorted(energy, energy_share * energy[-1])) + 1 if energy_share else 0
    return values.numel() - min(kept, values.numel())


def select(weight: Tensor, selection: str, count: int, **options: Any) -> Tensor:
    """Return the mask (bool, the layer's shape) of the `count` positions that `selection` calls unimportant.

    The paper's readings: `energy`, the smallest coefficients; `high`, the coefficients of lowest index, since
    the upper share is called important; `fig7`, the weights that change most when a tenth of `band` ('low+mid' is
    both together) is zeroed, or least, as `marks` says. Controls of the same size: `random`, `magnitude` (smallest)
    and `largest`, in `domain`; `highest`, the coefficients of highest index; `first` and `last`, the weights of lowest
    and highest index. `options`: those of `order`.
    Raises MgenbError for an unknown name, a count outside the layer, or a selection outside its domain.
    """
    check("the number of unimportant weights", count, 0, weight.numel())
    return _mask_of(weight.shape, _keys(weight, selection, **options).topk(count, largest=False, sorted=False).indices)


def order(weight: Tensor, selection: str, **options: Any) -> Tensor:
    """Return all positions of the flattened layer in the order in which `select` takes them, int64 [n]."""
    return _keys(weight, selection, **options).argsort(stable=True)


def _keys(
    weight: Tensor,
    selection: str,
    *,
    domain: str = "coefficients",
    transform: str = "flat",
    band: str = "mid",
    marks: str = "most",
    tenth: str = "random",
    seed: int = 0,
) -> Tensor:
    """Return a number for each position, [n]: the smaller, the earlier it is taken."""
    choose("selection", selection, SELECTIONS)
    choose("domain", domain, DOMAINS)
    choose("marks", marks, MARKS)
    natural = NATURAL.get(selection, domain)
    if domain != natural:
        raise MgenbError(f"selection {selection!r} is about {natural}; set domain={natural!r}")
    if selection == "random":
        drawn = torch.randperm(weight.numel(), generator=torch_generator(seed, "random selection"))
        return drawn.argsort().to(weight.device)
    if selection in ("high", "highest", "first", "last"):
        places = frequency_of(weight.shape, transform if domain == "coefficients" else "flat").reshape(-1)
        rank = places.argsort(stable=True).argsort().to(weight.device)
        return -rank if selection in ("highest", "last") else rank
    if selection == "fig7":
        sizes = fig7_change(weight, band, transform, seed, tenth).abs()
        return (-sizes if marks == "most" else sizes).reshape(-1)
    sizes = (to_coefficients(weight, transform) if domain == "coefficients" else weight).abs().reshape(-1)
    return -sizes if selection == "largest" else sizes


def fig7_change(weight: Tensor, band: str, transform: str, seed: int, tenth: str = "random") -> Tensor:
    """Return by how much each weight changes when a tenth of the coefficients of `band` is set to zero (Fig. 7).

    Which `tenth`: `random`; the `first`, those of lowest frequency; the `smallest` or the `largest` coefficients.
    """
    inside = band_mask(weight, transform, band)
    count = round(FIG7_SHARE * int(inside.sum()))
    if choose("tenth", tenth, TENTHS) == "random":
        mask = random_part(inside, count, torch_generator(seed, "fig7", band))
    else:
        size = to_coefficients(weight, transform).abs()
        rank = {"first": frequency_of(weight.shape, transform).to(weight), "smallest": size, "largest": -size}[tenth]
        places = torch.where(inside, rank, torch.inf).reshape(-1).argsort(stable=True)
        mask = _mask_of(weight.shape, places[:count])
    return change_coefficients(weight, mask, 0.0, transform) - weight
