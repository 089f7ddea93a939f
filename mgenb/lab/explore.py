"""The explorer of notebook 01: zero part of one layer's band; see spectrum, weights and accuracy at once."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from mgenb import seeds, stats
from mgenb.data import Split
from mgenb.errors import MgenbError, SealedSplitError, choose
from mgenb.lab import figures
from mgenb.measure import population
from mgenb.mge import frequency

BINS = 30  # a multiple of three, so that no bin of the spectrum lies in two bands
POINTS = 3000
ROLES = {"train": "training", "val": "validation"}


def frame(net: nn.Module, split: Split, layer: str, transform: str, band: str, share: float) -> Figure:
    """Return the figure for one choice: random coefficients of one layer's `band` set to zero.

    `share` is of the smallest band's size, in (0, 1]. pyplot does not know the figure, so nothing has to be closed.
    Raises MgenbError for an unknown choice and for the test split, on which nothing may be chosen.
    """
    if getattr(split, "role", "test") not in ROLES:  # a SealedSplit tells no role
        raise SealedSplitError("the explorer shows train or val images, not the test split")
    if not 0 < share <= 1:
        raise MgenbError(f"share is {share}; right is a number above 0 and up to 1")
    state = net.state_dict()
    old = state[choose("layer", layer, frequency.weight_names(state))]
    count = round(share * frequency.smallest_band(old, choose("transform", transform, frequency.TRANSFORMS)))
    seed = seeds.derive(0, "explore", layer, transform)
    weights = {"base": old}
    for name in frequency.BANDS:
        weights[name] = frequency.change_band(old, name, count, transform=transform, seed=seed)
    new = weights[choose("band", band, frequency.BANDS)]
    right = {name: population.correct(net, split, {**state, layer: weight}) for name, weight in weights.items()}
    fig = Figure(figsize=(11, 3.6))
    axes = fig.subplots(1, 3)
    _draw_spectrum(axes[0], old, new, transform, band)
    _draw_weights(axes[1], old, new, band)
    _draw_accuracy(axes[2], right, band)
    axes[2].set_xlabel(f"right of {len(split):,} {ROLES[split.role]} images (%)")
    what = f"{count:,} coefficients of the {band} band set to zero, drawn at random"
    fig.suptitle(f"{_short(layer)}, {transform} DCT: {what}", fontsize=10.5)
    return fig


def widget(net: nn.Module, split: Split, shares: Sequence[float]) -> widgets.VBox:
    """Return menus, and below them the `frame` that they choose; a picture, for an Output widget hangs nbclient."""
    choices: dict[str, Sequence[Any]] = {
        "layer": [(_short(name), name) for name in frequency.weight_names(net.state_dict())],
        "transform": frequency.TRANSFORMS,
        "band": frequency.BANDS,
        "share": [(f"{100 * share:g} %", share) for share in shares],
    }
    menus = {name: widgets.Dropdown(options=options, description=name) for name, options in choices.items()}
    picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))

    def show(_: Any = None) -> None:
        buffer = io.BytesIO()
        frame(net, split, **{name: menu.value for name, menu in menus.items()}).savefig(buffer, format="png", dpi=100)
        picture.value = buffer.getvalue()

    for menu in menus.values():
        menu.observe(show, "value")
    show()
    return widgets.VBox([*menus.values(), picture])


def _short(layer: str) -> str:
    return layer.removeprefix("net.").removesuffix(".weight")


def _draw_spectrum(ax: Axes, old: torch.Tensor, new: torch.Tensor, transform: str, band: str) -> None:
    where = frequency.frequency_of(old.shape, transform).reshape(-1)
    bins = (where * BINS).long().clamp(max=BINS - 1)
    sizes = bins.bincount(minlength=BINS)
    start = frequency.BANDS.index(band) / 3
    ax.axvspan(start, start + 1 / 3, color=figures.BAND, linewidth=0, zorder=0)
    for weight, name, label in ((old, "base", "before"), (new, band, "after")):
        heights = frequency.to_coefficients(weight, transform).abs().reshape(-1).cpu()
        x, y = ((bins.bincount(values, BINS) / sizes)[sizes > 0] for values in (where, heights))
        ax.plot(x, y, color=figures.colour(name), marker=figures.MARKERS[name], markersize=4, label=label)
    ax.set(xlim=(0, 1), xlabel="frequency (0 lowest, 1 highest)")
    ax.set(ylim=(0, None), ylabel="mean |coefficient|", title=f"spectrum, {band} band shaded")
    ax.legend()


def _draw_weights(ax: Axes, old: torch.Tensor, new: torch.Tensor, band: str) -> None:
    before, after = (weight.reshape(-1)[:: -(-old.numel() // POINTS)].cpu() for weight in (old, new))
    reach = 1.05 * torch.cat([before, after]).abs().max().item()
    ax.plot([-reach, reach], [-reach, reach], color=figures.BLACK, linewidth=1, label="no change")
    ax.scatter(before, after, s=5, color=figures.colour(band), alpha=0.5, linewidth=0, label="a weight")
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="weight before", ylabel="weight after")
    change = f"{100 * (new - old).norm() / old.norm():.0f} % of their norm"
    ax.set(aspect="equal", title=f"weights, changed by {change}")
    ax.legend(loc="upper left", markerscale=2)


def _draw_accuracy(ax: Axes, right: Mapping[str, torch.Tensor], band: str) -> None:
    measured = {name: stats.proportion(int(hits.sum()), len(hits)).times(100) for name, hits in right.items()}
    looks = {f"{'unchanged' if name == 'base' else name}\n{e.estimate:.1f} %": name for name, e in measured.items()}
    figures.forest(ax, {label: measured[name] for label, name in looks.items()}, looks)
    ax.axvline(measured["base"].estimate, color=figures.MUTED, linestyle=":", linewidth=1)
    ax.get_yticklabels()[list(right).index(band)].set_fontweight("bold")
    ax.set(xlim=(0, 100), title="accuracy, with 95 % interval")
