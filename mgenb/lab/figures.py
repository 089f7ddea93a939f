"""One look for every figure: style, colours that keep their meaning, intervals, captions and saving."""

import textwrap
import tomllib
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

_DATA = tomllib.loads(Path(__file__).with_name("looks.toml").read_text(encoding="utf-8"))
BLACK, BLUE, ORANGE = (_DATA["palette"][name] for name in ("black", "blue", "orange"))
COLOURS: dict[str, str] = {name: _DATA["palette"][look[0]] for name, look in _DATA["looks"].items()}
MARKERS: dict[str, str] = {name: look[1] for name, look in _DATA["looks"].items()}
LINESTYLES: dict[str, str] = {name: look[2] for name, look in _DATA["looks"].items()}


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
    look: dict[str, Any] = {"color": colour(name), "marker": MARKERS[name], "linestyle": LINESTYLES[name]}
    ax.fill_between(np.asarray(x), np.asarray(low), np.asarray(high), color=colour(name), alpha=0.18, linewidth=0)
    ax.plot(x, estimate, label=name.replace("_", " ") if label is None else label, **look)


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
    options: dict[str, Any] = {"format": "png", "facecolor": "white", "metadata": {"Software": None}}
    write_atomic(path, lambda temporary: fig.savefig(temporary, dpi=max(DPI, fig.dpi), **options))
