"""Figures: PNGs that do not change by themselves, colours that differ."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

matplotlib.use("agg")

import matplotlib.pyplot as plt

from mgenb.errors import MgenbError
from mgenb.lab import figures

# What one plot may show together.
TOGETHER = {
    "bands": ["low", "mid", "high", "random", "smallest_zeroed"],
    "bands and noise": ["low", "mid", "high", "random", "noise_of_norm"],
    "selections": ["energy", "high_index", "fig7", "random", "magnitude", "largest", "base"],
    "models": ["trained", "generated", "noise", "average", "line_search", "ensemble", "parent", "mega"],
    "under attack": ["attacked_base", "energy", "tenth", "noise", "parent"],
    "attackers": ["attacked_base", "energy", "most_fooled"],
    "extremes": ["most_fooled", "generated", "least_fooled"],
    "bars": ["targeted", "untargeted"],
    "evolutions": ["evolved", "tenth", "random_search", "noise_of_norm", "energy"],
    "verdicts": ["reproduced", "contradicted", "inconclusive", "not tested"],
}


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    with matplotlib.rc_context():
        yield
    plt.close("all")


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
    assert [0, 0.2] in [np.asarray(line.get_xdata()).tolist() for line in ax.lines]


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
