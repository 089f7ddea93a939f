"""The explorer of notebook 01: zero part of one layer's band; see spectrum, weights and accuracy at once."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib as mpl
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


@dataclass(frozen=True)
class Explorer:
    """A network as it was in `state`, and images; what is shown is measured when it is asked for."""

    net: nn.Module
    state: Mapping[str, torch.Tensor]
    split: Split
    shares: tuple[float, ...]
    seed: int

    @property
    def layers(self) -> list[str]:
        """The names to choose from."""
        return frequency.weight_names(self.state)

    def accuracy(self, layer: str, transform: str, band: str, share: float) -> float:
        """Return the accuracy in percent of the network with that one layer changed."""
        changed = {layer: self.changed(layer, transform, band, share)}
        return 100 * self._right(changed) / len(self.split)

    def _right(self, changed: Mapping[str, torch.Tensor]) -> int:
        return int(population.correct(self.net, self.split, {**self.state, **changed}).sum())

    def changed(self, layer: str, transform: str, band: str, share: float) -> torch.Tensor:
        """Return `layer` with random coefficients of `band` zeroed: `share` of the smallest band's size."""
        self._check(layer, transform, band, share)
        count = round(share * frequency.smallest_band(self.state[layer], transform))
        seed = seeds.derive(self.seed, "explore", layer, transform)
        return frequency.zero_band(self.state[layer], band, count, transform=transform, seed=seed)

    def _check(self, layer: str, transform: str, band: str, share: float) -> None:
        choose("layer", layer, self.layers)
        choose("transform", transform, frequency.TRANSFORMS)
        choose("band", band, frequency.BANDS)
        choose("share", str(float(share)), map(str, self.shares))

    def frame(self, layer: str, transform: str, band: str, share: float) -> Figure:
        """Return the figure for one choice; pyplot does not know it, so that nothing has to be closed."""
        new, old = self.changed(layer, transform, band, share), self.state[layer]
        right = {"base": self._right({})}
        for name in frequency.BANDS:
            right[name] = self._right({layer: self.changed(layer, transform, name, share)})
        with mpl.rc_context(figures.STYLE):
            fig = Figure(figsize=(11, 3.6))
            axes = fig.subplots(1, 3)
            _draw_spectrum(axes[0], old, new, transform, band)
            _draw_weights(axes[1], old, new, band)
            _draw_accuracy(axes[2], right, len(self.split), band)
            axes[2].set_xlabel(f"right of {len(self.split):,} {ROLES[self.split.role]} images (%)")
            count = round(share * frequency.smallest_band(old, transform))
            what = f"{count:,} coefficients of the {band} band set to zero, drawn at random"
            fig.suptitle(f"{_short(layer)}, {transform} DCT: {what}", fontsize=10.5)
        return fig

    def widget(self) -> widgets.VBox:
        """Return the controls above the frame that they choose."""
        shares = [(f"{100 * share:g} %", share) for share in self.shares]
        controls = {
            "layer": widgets.Dropdown(options=[(_short(n), n) for n in self.layers], description="layer"),
            "transform": widgets.Dropdown(options=frequency.TRANSFORMS, description="DCT"),
            "band": widgets.Dropdown(options=frequency.BANDS, description="band"),
            "share": widgets.SelectionSlider(options=shares, description="share", continuous_update=False),
        }
        image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))

        def show(layer: str, transform: str, band: str, share: float) -> None:
            buffer = io.BytesIO()
            self.frame(layer, transform, band, share).savefig(buffer, format="png", dpi=100)
            image.value = buffer.getvalue()

        errors = widgets.interactive_output(show, controls)
        return widgets.VBox([widgets.HBox(list(controls.values())), image, errors])


def frequency_explorer(
    net: nn.Module, split: Split, *, seed: int = 0, shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0)
) -> Explorer:
    """Return the explorer of `net` as it is now, on the images of `split`.

    Raises MgenbError for shares outside (0, 1] and for the test split, on which nothing may be chosen.
    """
    if getattr(split, "role", "test") not in ROLES:  # a SealedSplit tells no role
        raise SealedSplitError("the explorer shows train or val images, not the test split")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise MgenbError(f"shares are {tuple(shares)}; right are numbers above 0 and up to 1")
    return Explorer(net, population.state_of(net), split, tuple(map(float, shares)), seed)


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


def _draw_accuracy(ax: Axes, right: Mapping[str, int], images: int, band: str) -> None:
    labels = []
    for place, (name, hits) in enumerate(right.items()):
        measured = stats.proportion(hits, images).times(100)
        alpha = 1.0 if name in ("base", band) else 0.3
        ax.barh(place, measured.estimate, color=figures.colour(name), alpha=alpha)
        for hue, width in (("white", 5.0), (figures.TEXT, 2.0)):
            ax.plot(measured.interval(), [place, place], color=hue, linewidth=width, solid_capstyle="butt")
        labels.append(f"{'unchanged' if name == 'base' else name}\n{measured.estimate:.1f} %")
    ax.axvline(100 * right["base"] / images, color=figures.MUTED, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.get_yticklabels()[list(right).index(band)].set_fontweight("bold")
    ax.set(xlim=(0, 100), ylim=(len(labels) - 0.5, -0.5), title="accuracy, with 95 % interval")
