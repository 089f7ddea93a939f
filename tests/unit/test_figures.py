"""Figures: diagrams whose text can be read, PNGs that do not change by themselves, colours that differ."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

matplotlib.use("agg")

import matplotlib.pyplot as plt

from mgenb.errors import MgenbError
from mgenb.lab import diagrams, figures

COMPARISON = [
    (0.03, 0.06, "reproduced"),
    (-0.01, 0.03, "inconclusive"),
    (0.003, 0.015, "contradicted (no relevant advantage)"),
    (-0.05, -0.025, "contradicted (worse)"),
]
EQUIVALENCE = [
    (-0.01, 0.008, "reproduced"),
    (-0.045, 0.045, "inconclusive"),
    (0.026, 0.05, "contradicted"),
]
DRAWINGS = {
    "mge_overview": diagrams.mge_overview,
    "mge_generator": diagrams.mge_generator,
    "emge_loop": diagrams.emge_loop,
    "mega_loop": diagrams.mega_loop,
    "mega_tree": diagrams.mega_tree,
    "verdict_rules": lambda: diagrams.verdict_rules(COMPARISON, EQUIVALENCE, 0.02),
}
# What one plot may show together.
TOGETHER = {
    "bands": ["low", "mid", "high"],
    "selections": ["energy", "high_index", "fig7", "random", "magnitude", "largest", "base"],
    "models": ["trained", "generated", "noise", "average", "line_search", "ensemble", "parent", "mega"],
    "verdicts": ["reproduced", "contradicted", "inconclusive", "not tested"],
}


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.fixture(scope="module", params=DRAWINGS)
def drawing(request: pytest.FixtureRequest) -> Figure:
    fig = DRAWINGS[request.param]()
    assert isinstance(fig, Figure)
    figures.caption(fig, "profile quick, LeNet on mnist [sample]")
    FigureCanvasAgg(fig).draw()
    return fig


def texts(fig: Figure) -> list[Text]:
    found = fig.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible() and artist.get_text())
    return [text for text in found if text.get_text().strip()]


def holds(outer: Bbox, inner: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1


def overlap(one: Bbox, other: Bbox) -> bool:
    shared = Bbox.intersection(one, other)
    return shared is not None and shared.width > 1 and shared.height > 1


def test_text_lies_inside_the_figure_and_can_be_read(drawing: Figure) -> None:
    for text in texts(drawing):
        assert holds(drawing.bbox, text.get_window_extent()), text.get_text()
        assert text.get_fontsize() >= 7, text.get_text()


def test_texts_do_not_overlap(drawing: Figure) -> None:
    for one, other in combinations(texts(drawing), 2):
        where = one.get_text(), other.get_text()
        assert not overlap(one.get_window_extent(), other.get_window_extent()), where


def test_boxes_hold_their_text_and_do_not_overlap(drawing: Figure) -> None:
    boxes = drawing.findobj(FancyBboxPatch)
    labels = {text.get_gid(): text for text in texts(drawing)}
    for box in boxes:
        assert holds(box.get_window_extent(), labels[box.get_gid()].get_window_extent()), box.get_gid()
    for one, other in combinations(boxes, 2):
        assert not overlap(one.get_window_extent(), other.get_window_extent()), (
            one.get_gid(),
            other.get_gid(),
        )


def test_arrows_do_not_cross_text(drawing: Figure) -> None:
    shafts = drawing.findobj(FancyArrowPatch)
    shafts += [line for line in drawing.findobj(Line2D) if line.get_gid() == "arrow"]
    for shaft in shafts:
        path = shaft.get_transform().transform_path(shaft.get_path()).interpolated(50)
        for text in texts(drawing):
            assert not text.get_window_extent().count_contains(path.vertices), text.get_text()


def test_verdict_rules_shows_the_verdicts_it_is_given() -> None:
    shown = [text.get_text() for text in texts(diagrams.verdict_rules(COMPARISON, EQUIVALENCE, 0.02))]
    for _, _, verdict in COMPARISON + EQUIVALENCE:
        assert verdict in shown


def test_generator_drawing_keeps_the_smallest_set_with_its_share_of_energy() -> None:
    weights, spectrum, important, redrawn = diagrams._one_layer(t=0.8, z=0.1)
    energy = np.sort(spectrum[important] ** 2)
    assert energy.sum() >= 0.8 * (weights**2).sum() > energy[1:].sum()
    assert np.array_equal(redrawn[important], spectrum[important])
    assert np.abs(redrawn[~important]).max() <= 0.1


def test_saved_png_has_150_dpi_and_the_same_bytes_twice(tmp_path: Path) -> None:
    figures.use_style()
    for name in ("one.png", "two.png"):
        fig, ax = plt.subplots()
        figures.curve(ax, [0, 1], [0.2, 0.5], [0.1, 0.4], [0.3, 0.6], "energy")
        figures.caption(fig, "profile quick " * 20)
        figures.save(fig, tmp_path / name)
    with Image.open(tmp_path / "one.png") as image:
        assert round(image.info["dpi"][0]) >= 150
        assert "Software" not in image.info
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_curve_takes_colour_marker_and_label_from_the_name() -> None:
    _, ax = plt.subplots()
    figures.curve(ax, [0, 1], [1, 2], [0, 1], [2, 3], "high_index")
    (line,) = ax.lines
    assert (line.get_color(), line.get_marker()) == (
        figures.colour("high_index"),
        figures.MARKERS["high_index"],
    )
    assert line.get_label() == "high index"
    assert ax.collections[0].get_datalim(ax.transData).bounds == (0, 0, 1, 3)


def test_intervals_draws_rows_from_the_top() -> None:
    _, ax = plt.subplots()
    figures.intervals(ax, [("first", 0.1, 0, 0.2, "mega"), ("second", 0, -0.1, 0.1, "noise")], (-0.05, 0.05))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    spans = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert [0, 0.2] in [list(span) for span in spans]


def test_unknown_colour_names_the_nearest() -> None:
    with pytest.raises(MgenbError, match="energy"):
        figures.colour("enregy")


def luminance(name: str) -> float:
    rgb = np.array(to_rgb(figures.colour(name)))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("name", figures.COLOURS)
def test_every_colour_stands_out_on_white(name: str) -> None:
    assert 1.05 / (luminance(name) + 0.05) > 1.9


def deuteranope(name: str) -> np.ndarray:
    """What an eye without green cones sees (Machado et al. 2009, severity 1), in sRGB."""
    seen = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    rgb = np.array(to_rgb(figures.colour(name)))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    mixed = np.clip(seen @ linear, 0, 1)
    return np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("group", TOGETHER.values(), ids=TOGETHER)
def test_what_is_shown_together_differs(group: list[str]) -> None:
    for one, other in combinations(group, 2):
        assert figures.colour(one) != figures.colour(other), (one, other)
        assert figures.MARKERS[one] != figures.MARKERS[other], (one, other)
        assert np.linalg.norm(deuteranope(one) - deuteranope(other)) > 0.15, (one, other)
