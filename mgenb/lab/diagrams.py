"""The two papers' schemes and our verdict rules, drawn: each function returns a figure of its own."""

from itertools import pairwise, product
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray
from scipy import fft, stats

from mgenb.lab.figures import (
    BAND,
    BLACK,
    BLUE,
    DPI,
    GREEN,
    GREY,
    MUTED,
    ORANGE,
    PURPLE,
    STYLE,
    TEXT,
    VERMILLION,
    intervals,
)

Point = tuple[float, float]
Array = NDArray[np.float64]
Example = tuple[float, float, str]


class _Box(NamedTuple):
    """Where arrows touch a box."""

    left: Point
    right: Point
    top: Point
    bottom: Point


def _canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a white figure whose one axes counts in inches, and below zero has room for a caption."""
    fig = plt.figure(figsize=(width, height + 0.3), dpi=DPI, facecolor="white", layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(-0.3, height), autoscale_on=False)
    ax.axis("off")
    _note(ax, (0.2, height - 0.28), title, size=12, ha="left", color=TEXT).set_fontweight("bold")
    return fig, ax


def _note(ax: Axes, xy: Point, text: str, *, size: float = 8.5, ha: str = "center", color: str = MUTED) -> Text:
    """Write `text` at `xy`."""
    return ax.text(*xy, text, size=size, ha=ha, va="center", color=color, family="DejaVu Sans", linespacing=1.3)


def _box(
    ax: Axes,
    xy: Point,
    text: str,
    width: float = 1.6,
    height: float = 0.8,
    hue: str = GREY,
    drop: float = 0.0,
) -> _Box:
    """Draw a rounded box with its centre at `xy` and its text `drop` below that.

    The box and its text share a gid, by which tests pair them.
    """
    (x, y), w, h = xy, width / 2, height / 2
    patch = FancyBboxPatch((x - w, y - h), width, height, boxstyle="round,pad=0,rounding_size=0.1", linewidth=1.4)
    patch.set(edgecolor=hue, facecolor=mpl.colors.to_rgba(hue, 0.13), gid=f"box:{text}")
    ax.add_patch(patch)
    _note(ax, (x, y - drop), text, size=9, color=TEXT).set_gid(f"box:{text}")
    return _Box((x - w, y), (x + w, y), (x, y + h), (x, y - h))


def _arrow(ax: Axes, *points: Point, hue: str = MUTED) -> None:
    """Draw an arrow through `points`, straight from one to the next; tests find its shaft by the gid."""
    if points[2:]:
        ax.plot(
            *zip(*points[:-1], strict=True),
            color=hue,
            linewidth=1.5,
            solid_capstyle="projecting",
            gid="arrow",
        )
    start, end = points[-2:]
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=2, color=hue, linewidth=1.5
    )
    ax.add_patch(arrow)


def _network(ax: Axes, xy: Point, hue: str, scale: float = 1.0) -> None:
    """Draw a small network of 3, 4 and 2 nodes around `xy`, 0.56 wide and 0.48 high times `scale`."""
    layers = [
        [(xy[0] + scale * across, xy[1] + scale * 0.16 * (i - (count - 1) / 2)) for i in range(count)]
        for across, count in ((-0.28, 3), (0, 4), (0.28, 2))
    ]
    for here, there in pairwise(layers):
        for start, end in product(here, there):
            ax.plot(*zip(start, end, strict=True), color=hue, linewidth=0.6 * scale, alpha=0.6)
    for layer in layers:
        ax.plot(*zip(*layer, strict=True), "o", color=hue, markersize=4.5 * scale)


def mge_overview() -> Figure:
    """Draw MGE from the trained base to the pool of accepted models and E-MGE (MGE, Fig. 1)."""
    fig, ax = _canvas(10, 4.3, "MGE: new models from a trained one, without training")
    base = _box(ax, (1.0, 2.7), "trained base", 1.4, 1.1, BLACK, drop=0.34)
    _network(ax, (1.0, 2.84), BLACK)
    dct = _box(ax, (2.95, 2.7), "DCT\nof each layer's\nweights", 1.4, 0.9)
    keep = _box(ax, (5.05, 3.3), "important coefficients:\nkeep", 1.9, 0.7, BLUE)
    redraw = _box(ax, (5.05, 2.1), "unimportant ones:\nredraw from $N(-z, z)$", 1.9, 0.7, ORANGE)
    inverse = _box(ax, (7.05, 2.7), "inverse\nDCT", 1.1, 0.9)
    new = _box(ax, (8.75, 2.7), "new model $g$", 1.4, 1.1, BLUE, drop=0.34)
    _network(ax, (8.75, 2.84), BLUE)
    rule = "discriminator: accuracy\n$f(g) > f(\\mathrm{base})$, or\nless than $\\varepsilon = 0.05$ away?"
    judge = _box(ax, (8.75, 0.8), rule, 2.1, 1.0, PURPLE)
    pool = _box(ax, (5.05, 0.55), "model pool", 1.9, 0.8, GREEN, drop=0.25)
    for across in (-0.55, 0, 0.55):
        _network(ax, (5.05 + across, 0.68), GREEN, 0.7)
    evolve = _box(ax, (1.9, 0.55), "E-MGE: evolve the pool\nfor robustness or\nfew-shot tasks", 2.1, 0.8, VERMILLION)
    _arrow(ax, base.right, dct.left)
    _arrow(ax, inverse.right, new.left)
    for middle in (keep, redraw):
        _arrow(ax, dct.right, middle.left)
        _arrow(ax, middle.right, inverse.left)
    _arrow(ax, new.bottom, judge.top)
    _arrow(ax, (judge.left[0], pool.right[1]), pool.right, hue=GREEN)
    _note(ax, (6.85, 0.7), "accepted", color=TEXT)
    _arrow(ax, (judge.left[0], 1.2), (redraw.bottom[0], 1.2), redraw.bottom, hue=VERMILLION)
    _note(ax, (6.5, 1.36), "rejected: draw again", color=TEXT)
    _arrow(ax, pool.left, evolve.right)
    return fig


def _one_layer(t: float, z: float) -> tuple[Array, Array, NDArray[np.bool_], Array]:
    """Return 8 x 8 weights, their DCT, the mask of important ones, and the DCT with the others redrawn."""
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 0.2, (8, 8))
    spectrum = fft.dctn(weights, norm="ortho")
    order = np.argsort(-np.abs(spectrum), axis=None)
    share = np.cumsum(spectrum.flat[order] ** 2) / np.sum(spectrum**2)
    important = np.zeros((8, 8), dtype=bool)
    important.flat[order[: np.searchsorted(share, t) + 1]] = True
    drawn = stats.truncnorm.rvs(-1, 1, scale=z, size=(8, 8), random_state=rng)
    return weights, spectrum, important, np.where(important, spectrum, drawn)


def _heat_map(ax: Axes, xy: Point, values: Array, marked: NDArray[np.bool_], hue: str) -> None:
    """Draw 8 x 8 `values` as a square of 1.6 around `xy`, the `marked` cells framed in `hue`."""
    left, top, cell = xy[0] - 0.8, xy[1] + 0.8, 0.2
    extent = (left, left + 1.6, top - 1.6, top)
    ax.imshow(values, extent=extent, cmap="PRGn", vmin=-0.5, vmax=0.5, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(marked):
        corner = (left + column * cell + 0.015, top - (row + 1) * cell + 0.015)
        ax.add_patch(Rectangle(corner, cell - 0.03, cell - 0.03, fill=False, edgecolor=hue, linewidth=1.3))


def _sorted_spectrum(ax: Axes, corner: Point, spectrum: Array, important: NDArray[np.bool_]) -> None:
    """Draw the sizes of the coefficients, largest first, from `corner` on, 1.9 wide and 1.6 high."""
    sizes, count = -np.sort(-np.abs(spectrum), axis=None), int(important.sum())
    x, step = corner[0] + 1.9 * np.arange(64) / 64, 1.9 / 64
    hues = [BLUE] * count + [ORANGE] * (64 - count)
    ax.bar(x, 1.6 * sizes / sizes[0], step * 0.8, bottom=corner[1], color=hues, align="edge")
    cut = corner[0] + step * (count - 0.1)
    ax.plot([cut, cut], [corner[1], corner[1] + 1.3], color=TEXT, linewidth=1, linestyle="--")
    _note(ax, (cut + 0.06, corner[1] + 1.22), "$t = 0.8$ of the\nenergy up to here", ha="left", color=TEXT)


def mge_generator() -> Figure:
    """Draw what the generator does to one layer, with a small real computation (MGE, Fig. 2)."""
    weights, spectrum, important, redrawn = _one_layer(t=0.8, z=0.1)
    new = fft.idctn(redrawn, norm="ortho")
    count, alike = int(important.sum()), np.corrcoef(weights.flat, new.flat)[0, 1]
    fig, ax = _canvas(11.4, 3.6, "MGE's generator on one layer")
    nothing, y = np.zeros_like(important), 1.8
    columns = [
        (1.05, "weights $W$", "one layer,\n$8 \\times 8$ weights"),
        (3.35, "DCT of $W$", f"{count} of 64 coefficients\nare important"),
        (5.65, "sorted by size", "blue: kept\norange: redrawn"),
        (8.0, "new coefficients", f"{64 - count} redrawn from\n$N(-z, z)$, $z = 0.1$"),
        (10.3, "new weights", f"correlation\nwith $W$: {alike:.2f}"),
    ]
    for x, heading, text in columns:
        _note(ax, (x, y + 1.0), heading, size=10, color=TEXT)
        _note(ax, (x, y - 1.1), text, color=TEXT)
    _heat_map(ax, (1.05, y), weights, nothing, TEXT)
    _heat_map(ax, (3.35, y), spectrum, important, BLUE)
    _sorted_spectrum(ax, (4.7, y - 0.8), spectrum, important)
    _heat_map(ax, (8.0, y), redrawn, ~important, ORANGE)
    _heat_map(ax, (10.3, y), new, nothing, TEXT)
    for start, end, text in (
        (1.9, 2.5, "DCT"),
        (4.2, 4.65, ""),
        (6.7, 7.15, ""),
        (8.85, 9.45, "inverse\nDCT"),
    ):
        _arrow(ax, (start, y), (end, y))
        _note(ax, ((start + end) / 2, y + 0.22), text, color=TEXT)
    _note(ax, (0.25, 0.1), "Colours run from $-0.5$ to $0.5$ in all four squares.", ha="left", size=8)
    return fig


def emge_loop() -> Figure:
    """Draw E-MGE's loop of mutation, fusion and selection (MGE, Fig. 4)."""
    fig, ax = _canvas(9.8, 4.3, "E-MGE: evolving generated models")
    pool = _box(ax, (1.15, 2.5), "models that MGE\ngenerated", 1.7, 0.8, GREEN)
    population = _box(ax, (3.55, 2.5), "population of\n$n = 10$", 1.7, 1.2, BLACK, drop=0.3)
    for across in (-0.5, 0, 0.5):
        _network(ax, (3.55 + across, 2.76), BLACK, 0.7)
    mutation = _box(ax, (6.05, 3.15), "$j = 10$ mutations:\nMGE's generator", 1.9, 0.8, ORANGE)
    fusion = _box(ax, (6.05, 1.85), "$m = 20$ fusions:\nweighted averages", 1.9, 0.8, BLUE)
    fitness = _box(ax, (8.6, 2.5), "fitness\n$F_q + \\gamma F_d$\nquality and diversity", 1.8, 1.0, PURPLE)
    best = _box(ax, (8.6, 0.75), "the best 10\nsurvive", 1.8, 0.8, BLACK)
    result = _box(ax, (1.15, 0.75), "evolved models", 1.7, 0.8, VERMILLION)
    _arrow(ax, pool.right, population.left)
    for change in (mutation, fusion):
        _arrow(ax, population.right, change.left)
        _arrow(ax, change.right, fitness.left)
    _arrow(ax, fitness.bottom, best.top)
    _arrow(ax, best.left, (population.bottom[0], 0.75), population.bottom)
    _arrow(ax, (population.bottom[0], 0.75), result.right)
    _note(ax, (5.65, 0.93), "$N = 100$ generations (robustness) or 150 (few-shot)", color=TEXT)
    _note(ax, (2.78, 0.93), "at the end", color=TEXT)
    return fig


def mega_loop() -> Figure:
    """Draw MeGA's genetic algorithm for two parents (MeGA, Fig. 1)."""
    fig, ax = _canvas(10.2, 5.1, "MeGA: merging two trained networks by a genetic algorithm")
    parents = [
        _box(ax, (0.95, y), f"parent $ {name} $", 1.3, 1.0, GREEN, drop=0.32) for name, y in (("A", 3.4), ("B", 2.1))
    ]
    for y in (3.4, 2.1):
        _network(ax, (0.95, y + 0.12), GREEN)
    text = "population of 20, at first\n$\\alpha A + (1 - \\alpha) B$, one $\\alpha$ each"
    population = _box(ax, (3.45, 2.75), text, 2.4, 1.3, BLACK, drop=0.3)
    alphas = np.random.default_rng(1).uniform(size=20)
    ax.plot([2.6, 4.3], [3.08, 3.08], color=MUTED, linewidth=1)
    ax.plot(2.6 + 1.7 * alphas, np.full(20, 3.08), "o", color=BLACK, markersize=4, alpha=0.7)
    ax.plot([2.6, 4.3], [3.08, 3.08], "D", color=GREEN, markersize=7)
    _note(ax, (2.44, 3.08), "$A$", color=TEXT)
    _note(ax, (4.46, 3.08), "$B$", color=TEXT)
    fitness = _box(ax, (6.15, 2.75), "fitness: accuracy on\nvalidation images", 1.8, 0.9, PURPLE)
    choice = _box(ax, (8.85, 2.75), "tournaments:\n4 parents are chosen", 2.0, 0.9, BLUE)
    crossover = _box(ax, (8.85, 0.85), "crossover:\n$\\beta P_1 + (1 - \\beta) P_2$", 2.0, 0.9, BLUE)
    mutation = _box(ax, (6.15, 0.85), "mutation: noise\nwith $p = 0.02$", 1.8, 0.9, ORANGE)
    elite = _box(ax, (3.45, 0.85), "elitism: the best one\nstays as it is", 2.0, 0.9, BLACK)
    merged = _box(ax, (8.85, 4.15), "merged model:\nthe best child", 2.0, 0.8, VERMILLION)
    for parent in parents:
        _arrow(ax, parent.right, population.left)
    _arrow(ax, population.right, fitness.left)
    _arrow(ax, fitness.right, choice.left)
    _arrow(ax, choice.bottom, crossover.top)
    _arrow(ax, crossover.left, mutation.right)
    _arrow(ax, mutation.left, elite.right)
    _arrow(ax, elite.top, population.bottom)
    _note(ax, (3.57, 1.7), "next generation", ha="left", color=TEXT)
    _arrow(ax, fitness.top, (fitness.top[0], merged.left[1]), merged.left, hue=VERMILLION)
    _note(ax, (6.27, 3.7), "after 20 generations", ha="left", color=TEXT)
    return fig


def mega_tree() -> Figure:
    """Draw eight trained models merged pairwise to one (MeGA, Fig. 3)."""
    fig, ax = _canvas(10.2, 4.9, "MeGA on eight models: merge in pairs, then merge what came out")
    labels = ("eight trained models", "four merges", "two merges", "one merge:\none model is left")
    xs, y = [2.6 + 1.0 * place for place in range(8)], 3.95
    for level, label in enumerate(labels):
        _note(ax, (0.2, y), label, ha="left", size=9, color=TEXT)
        for x in xs:
            _network(ax, (x, y), VERMILLION if level else GREEN, 1.0 + 0.05 * level)
        if level < 3:
            joined = [(left + right) / 2 for left, right in zip(xs[::2], xs[1::2], strict=True)]
            for place, x in enumerate(xs):
                _arrow(ax, (x, y - 0.34), (joined[place // 2], y - 0.75))
            xs, y = joined, y - 1.1
    _note(ax, (10.0, 0.35), "each pair of arrows is\none run of MeGA", ha="right")
    return fig


def _rule_panel(ax: Axes, title: str, rule: str, rows: list[Example]) -> None:
    """Draw `rows` as intervals with their verdicts on the right, under a title and the rule's words."""
    looks = [(verdict.partition(" (")[0], (low + high) / 2, low, high) for low, high, verdict in rows]
    intervals(ax, [("", middle, low, high, name) for name, middle, low, high in looks])
    ax.yaxis.tick_right()
    ax.set_yticks(range(len(rows)), [verdict for _, _, verdict in rows])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title(title, loc="left", weight="bold")
    ax.set_xlabel(rule, loc="left", linespacing=1.5)


def verdict_rules(comparison: list[Example], equivalence: list[Example], margin: float) -> Figure:
    """Draw example intervals (low, high, verdict) for the rules of a comparison and of an equivalence.

    The caller takes the verdicts from the rule itself, so that drawing and rule cannot differ.
    """
    with mpl.rc_context(STYLE):
        fig = plt.figure(
            figsize=(10.2, 4.4), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
        )
        left, right = fig.subplots(1, 2)
        rule = (
            "difference $A - B$ with its 95 % interval\n"
            "1. contradicted: wholly below $d$ (no advantage that matters)\n"
            "2. reproduced: wholly above 0\n"
            "3. inconclusive: everything else"
        )
        _rule_panel(left, "“A is better than B”", rule, comparison)
        rule = (
            "difference $A - B$ with its 95 % interval\n"
            "1. reproduced: wholly between $-d$ and $d$\n"
            "2. contradicted: wholly outside of these\n"
            "3. inconclusive: everything else"
        )
        _rule_panel(right, "“A and B are alike”", rule, equivalence)
        left.axvline(margin, color=TEXT, linewidth=1, linestyle="--")
        left.set_xticks([0, margin], ["0", "$d$"])
        right.axvspan(-margin, margin, color=BAND, linewidth=0, zorder=0)
        right.set_xticks([-margin, 0, margin], ["$-d$", "0", "$d$"])
    return fig
