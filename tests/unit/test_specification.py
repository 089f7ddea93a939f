"""The specification curve: every reading and every choice that varies is drawn, and nothing leaves the figure."""

import itertools
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mgenb import claims, stats
from mgenb.claims import Reading
from mgenb.errors import MgenbError
from mgenb.lab import figures, specification

CLAIM = claims.get("mge.text.comparable")
POINTS = claims.points("mge")
SCALE = claims.Scale("cpu", "official", "mnist", "lenet")
VARIED = ("redrawn", "noise", "z", "accepted")


def forty():
    """Return 40 readings, six of them core, that take every level of the points in VARIED."""
    readings = []
    for number in range(40):
        choices = {}
        for name in VARIED:
            levels = list(POINTS[name].levels)
            choices[name] = levels[(number + len(readings) // len(levels)) % len(levels)]
        readings.append(Reading(f"r{number}", number < 6, choices, {}))
    return tuple(readings)


@pytest.fixture
def verdict(monkeypatch):
    """A verdict on made-up readings: (readings, what is measured for each) -> verdict."""

    def judge(readings, estimates, **options):
        claim = replace(CLAIM, readings=readings)
        monkeypatch.setattr("mgenb.claims.verdicts.get", lambda name: claim)
        by_reading = {reading.name: estimate for reading, estimate in zip(readings, estimates, strict=False)}
        return claims.judge({claim.id: by_reading}, {claim.id: SCALE}, **options)[0]

    return judge


@pytest.fixture
def drawn():
    """What draws a curve in the style of the notebooks, and closes it in the end."""
    figs = []

    def draw(of):
        with plt.rc_context(figures.STYLE):
            figs.append(specification.curve(of))
            figs[-1].canvas.draw()
        return figs[-1]

    yield draw
    plt.close("all")


def estimates(count, seed=1):
    rng = np.random.default_rng(seed)
    return [stats.mean(rng.normal(0, 6) + rng.normal(size=6)) for _ in range(count)]


def points_of(ax):
    """Return (x, y, filled) of all markers."""
    lines = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    return [(*np.asarray(line.get_xydata())[0], line.get_markerfacecolor() != "white") for line in lines]


def test_forty_readings_are_all_there_sorted_and_filled_where_core(verdict, drawn):
    made = verdict(forty(), estimates(40))
    top, _ = drawn(made).axes
    points = points_of(top)
    assert [x for x, _, _ in points] == list(range(40))
    assert [y for _, y, _ in points] == sorted(reading.estimate for reading in made.readings)
    assert sum(filled for _, _, filled in points) == 6
    bars = [line for line in top.lines if line.get_marker() == "None"]
    order = sorted(made.readings, key=lambda reading: reading.estimate)
    assert [tuple(line.get_ydata()) for line in bars] == [(reading.low, reading.high) for reading in order]


def test_every_level_that_varies_is_a_row_with_a_dot_for_each_reading_that_takes_it(verdict, drawn):
    made = verdict(forty(), estimates(40))
    _, below = drawn(made).axes
    labels = [label.get_text() for label in below.get_yticklabels()]
    levels = [(name, level) for name in POINTS if name in VARIED for level in POINTS[name].levels]
    assert [label.split(": ")[-1] for label in labels] == [level.replace("_", " ") for _, level in levels]
    order = sorted(made.readings, key=lambda reading: reading.estimate)
    taken = [made.claim.reading(reading.name).choices for reading in order]
    wanted = {(x, y) for y, (name, level) in enumerate(levels) for x in range(40) if taken[x][name] == level}
    assert {(x, y) for x, y, _ in points_of(below)} == wanted


def test_nothing_lies_outside_the_figure_or_over_something_else(verdict, drawn):
    fig = drawn(verdict(forty(), estimates(40)))
    low, high = fig.get_tightbbox().transformed(fig.dpi_scale_trans).get_points()
    assert fig.bbox.padded(1).contains(*low)
    assert fig.bbox.padded(1).contains(*high)
    top, below = fig.axes
    assert not top.get_tightbbox().overlaps(below.get_tightbbox())
    boxes = [label.get_window_extent() for label in below.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    legend = top.get_legend().get_window_extent()
    assert not any(legend.contains(*top.transData.transform((x, y))) for x, y, _ in points_of(top))


def test_an_interval_without_an_end_reaches_the_frame_and_near_copies_are_grey(verdict, drawn):
    readings = forty()[:3]
    measured = [stats.mean([0.1, 0.2]), stats.mean([0.1, 0.2, 0.3]), stats.mean([0.0, 0.1, 0.2])]
    made = verdict(readings, measured, vacuous=[(CLAIM.id, "r2")])
    assert made.readings[0].low is None
    top, _ = drawn(made).axes
    bars = [line for line in top.lines if line.get_marker() == "None"]
    assert [tuple(line.get_ydata()) for line in bars].count(top.get_ylim()) == 1
    assert "vacuous" in [text.get_text() for text in top.get_legend().get_texts()]
    assert figures.colour("not tested") in [line.get_color() for line in bars]


def test_a_claim_with_one_reading_has_a_curve_and_one_without_evidence_none(verdict, drawn):
    top, below = drawn(verdict((claims.AS_STATED,), estimates(1))).axes
    assert len(points_of(top)) == 1
    assert points_of(below) == []
    with pytest.raises(MgenbError, match="is not tested: there is no reading to draw"):
        specification.curve(verdict((claims.AS_STATED,), estimates(1), blocked={CLAIM.id: "for a reason"}))
