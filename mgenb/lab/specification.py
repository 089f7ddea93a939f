"""The specification curve: what each reading of a claim measured, and which choices it is made of."""

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mgenb import claims
from mgenb.claims import ReadingVerdict, Verdict
from mgenb.errors import MgenbError
from mgenb.lab import figures

VACUOUS_LOOK = "not tested"
LINE = 28  # characters of a unit beside the axis


def curve(verdict: Verdict) -> Figure:
    """Return the estimates of all readings with the intervals that decided, sorted, above the choices of each.

    Filled: core readings; open: open ones. Shaded: where the claim is true. Legible with 40 readings. Raises MgenbError
    where nothing was measured.
    """
    if not verdict.readings:
        raise MgenbError(f"{verdict.claim.id} is {verdict.verdict}: there is no reading to draw")
    readings = sorted(verdict.readings, key=lambda reading: reading.estimate)
    rows = _choices(verdict.claim, readings)
    lower = 0.2 * max(len(rows), 1)
    size = (max(5.2, 2.8 + 0.26 * len(readings)), 2.4 + lower)
    fig, (top, below) = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=[2.2, lower])
    _estimates(top, verdict, readings)
    _dots(below, rows, readings)
    top.set_title(f"{verdict.claim.id}: {verdict.outcome}", fontsize=8)
    return fig


def _estimates(ax: Axes, verdict: Verdict, readings: Sequence[ReadingVerdict]) -> None:
    ends = [end for r in readings for end in (r.low, r.estimate, r.high) if end is not None]
    span = [end for end in claims.supported(verdict.claim) if math.isfinite(end)]
    low, high = min(*ends, *span, 0), max(*ends, *span, 0)
    pad = 0.08 * (high - low or 1)
    limits = low - pad, high + pad
    least, most = claims.supported(verdict.claim)
    ax.axhspan(max(least, limits[0]), min(most, limits[1]), color=figures.BAND, linewidth=0, zorder=0)
    for place, reading in enumerate(readings):
        name = VACUOUS_LOOK if reading.verdict == claims.VACUOUS else reading.verdict
        colour = figures.colour(name)
        bottom = limits[0] if reading.low is None else reading.low
        top = limits[1] if reading.high is None else reading.high
        ax.plot([place, place], [bottom, top], color=colour, linewidth=1.8, solid_capstyle="butt")
        fill = colour if reading.core else "white"
        ax.plot(
            place, reading.estimate, figures.MARKERS[name], color=colour, markerfacecolor=fill, label=reading.verdict
        )
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(handles.values(), handles, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set(ylim=limits, ylabel=textwrap.fill(verdict.claim.unit, LINE))
    ax.grid(visible=False, axis="x")


def _choices(claim: claims.Claim, readings: Sequence[ReadingVerdict]) -> list[tuple[str, str, list[bool]]]:
    """Return (point, level, which readings take it) for each level of each point on which readings differ."""
    rows = []
    for name, point in claims.points(claim.paper).items():
        taken = [claim.reading(reading.name).choices.get(name, point.default) for reading in readings]
        levels = [level for level in point.levels if level in taken]
        if len(levels) > 1:
            rows += [(name, level.replace("_", " "), [other == level for other in taken]) for level in levels]
    return rows


def _dots(ax: Axes, rows: Sequence[tuple[str, str, list[bool]]], readings: Sequence[ReadingVerdict]) -> None:
    labels = []
    for line, (name, level, taken) in enumerate(rows):
        first = line == 0 or rows[line - 1][0] != name
        if first and line:
            ax.axhline(line - 0.5, color=figures.BAND, linewidth=0.8)
        labels.append(f"{name.replace('_', ' ')}: {level}" if first else level)
        for place, reading in enumerate(readings):
            if taken[place]:
                fill = figures.TEXT if reading.core else "white"
                ax.plot(place, line, "o", color=figures.TEXT, markerfacecolor=fill, markersize=4)
    ax.set_yticks(range(len(rows)), labels, fontsize=7)
    ax.set(ylim=(max(len(rows), 1) - 0.5, -0.5), xlim=(-0.6, len(readings) - 0.4), xticks=[])
    ax.set_xlabel("readings, sorted by estimate (filled: core, open: open ones)", fontsize=7.5)
    ax.grid(visible=False)
