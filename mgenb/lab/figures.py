"""One look for every figure: style, colours that keep their meaning, intervals, captions and saving."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mgenb.errors import choose
from mgenb.stats import Estimate
from mgenb.store import write_atomic

DPI = 150
TEXT = "#222222"
MUTED = "#595959"
BAND = "#dfe6ea"

STYLE = mpl.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#5A5A5A"

# Okabe and Ito's palette without its yellow (too pale on white), and a grey: (colour, marker, line) -> names.
# A look serves again only for things that never share a plot, or that are the same thing (`generated` is
# made with the `energy` mask; `high_index` keeps the `high` band).
_LOOKS: dict[tuple[str, str, str], tuple[str, ...]] = {
    (BLUE, "o", "-"): ("low", "energy", "generated"),
    (ORANGE, "s", "--"): ("mid",),
    (PURPLE, "^", "-."): ("high", "high_index"),
    (GREEN, "D", "-"): ("fig7",),
    (GREEN, "D", "--"): ("kernel", "parent"),
    (VERMILLION, "*", "--"): ("shuffled",),
    (GREY, "x", "--"): ("random", "random_search"),
    (ORANGE, "v", ":"): ("magnitude", "first_generation", "average"),
    (VERMILLION, "P", ":"): ("largest",),
    (BLACK, "s", "-"): ("trained", "base"),
    (SKY, "x", "--"): ("noise",),
    (VERMILLION, "*", "-"): ("evolved", "mega"),
    (PURPLE, "P", "-."): ("zero_filled", "line_search"),
    (GREY, "^", ":"): ("ensemble",),
    (GREEN, "o", "-"): ("reproduced",),
    (VERMILLION, "X", "-"): ("contradicted",),
    (ORANGE, "D", "-"): ("inconclusive",),
    ("#A0A0A0", "_", "-"): ("not tested",),
    (PURPLE, "_", ":"): ("unfinished",),
    (SKY, "x", ":"): ("stale",),
}
COLOURS, MARKERS, LINESTYLES = (
    {name: look[part] for look, names in _LOOKS.items() for name in names} for part in range(3)
)


def use_style() -> None:
    """Make `STYLE` the default of every figure made from here on."""
    mpl.rcParams.update(STYLE)


def colour(name: str) -> str:
    """Return the colour that `name` has in all notebooks; raise MgenbError for an unknown name."""
    return COLOURS[choose("colour name", name, COLOURS)]


def curve(
    ax: Axes, x: ArrayLike, estimate: ArrayLike, low: ArrayLike, high: ArrayLike, name: str, label: str | None = None
) -> None:
    """Draw `estimate` against `x` in the look of `name`, with its interval from `low` to `high` shaded."""
    hue, text = colour(name), label if label is not None else name.replace("_", " ")
    ax.fill_between(np.asarray(x), np.asarray(low), np.asarray(high), color=hue, alpha=0.18, linewidth=0)
    ax.plot(x, estimate, color=hue, marker=MARKERS[name], linestyle=LINESTYLES[name], label=text)


def intervals(
    ax: Axes, rows: Sequence[tuple[str, float, float, float, str]], margin: tuple[float, float] | None = None
) -> None:
    """Draw a forest plot of rows (label, estimate, low, high, colour name), first on top, and a line at zero.

    `margin` is the range of differences that count as none; it is shaded.
    """
    if margin is not None:
        ax.axvspan(*margin, color=BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for place, (_, estimate, low, high, name) in enumerate(rows):
        ax.plot([low, high], [place, place], color=colour(name), linewidth=2.2, solid_capstyle="butt")
        ax.plot([estimate], [place], color=colour(name), marker=MARKERS[name], markersize=7)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)


def forest(
    ax: Axes, estimates: Mapping[str, Estimate], looks: Mapping[str, str], margin: tuple[float, float] | None = None
) -> None:
    """Draw label -> estimate with 95 % intervals as `intervals` does; `looks` maps labels to other looks' names."""
    rows = [(label, e.estimate, *e.interval(), looks.get(label, label)) for label, e in estimates.items()]
    intervals(ax, rows, margin)


def caption(fig: Figure, text: str) -> None:
    """Write `text` in small grey letters under the figure, as "profile quick, 5 LeNets, MNIST sample"."""
    wrapped = textwrap.fill(text, int(15 * fig.get_figwidth()))
    fig.supxlabel(wrapped, x=0.99, ha="right", fontsize=7.5, color=MUTED)


def save(fig: Figure, path: Path) -> None:
    """Save `fig` as PNG at `path`, atomically; equal figures give equal bytes."""
    # The temporary file has no suffix to tell the format by; matplotlib would write its version inside.
    options: dict[str, Any] = {
        "format": "png",
        "dpi": max(DPI, fig.dpi),
        "facecolor": "white",
        "metadata": {"Software": None},
    }
    write_atomic(path, lambda temporary: fig.savefig(temporary, **options))
