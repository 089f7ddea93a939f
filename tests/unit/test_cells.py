"""Means over models, base networks, cells and a table, against numbers that are worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from mgenb.lab import cells
from mgenb.lab.rows import Experiment, Rows

SMALL, LARGE = ("mnist", "lenet"), ("mnist", "vgg11")


def rows_of(listed):
    """Rows from (what, method, cell, base, test accuracy, disagreement)."""
    names = ["what", "method", "cell", "base", "test (%)", "disagreement (%)"]
    frame = pd.DataFrame(listed, columns=names)
    frame[["dataset", "arch"]] = frame.pop("cell").tolist()
    return Rows(Experiment("made_up", 1, 0), frame, pd.DataFrame(), {}, 0)


def column(by_base):
    """A column of numbers by base network, from cell -> its numbers."""
    units = [(*cell, base) for cell, numbers in by_base.items() for base in range(len(numbers))]
    index = pd.MultiIndex.from_tuples(units, names=cells.UNIT)
    return pd.Series([number for numbers in by_base.values() for number in numbers], index, dtype=float)


@pytest.fixture
def rows():
    listed = []
    for base in range(3):
        listed.append(("base", "base", SMALL, base, 90.0 + base, 0.0))
        listed.append(("other seed", "trained", SMALL, base, 90.0, 10.0))
        listed += [
            ("generated", "tenth", SMALL, base, 88.0 + base, 4.0),
            ("generated", "tenth", SMALL, base, 89.0 + base, 6.0),
        ]
    listed.append(("generated", "energy", SMALL, 1, 80.0, 20.0))
    listed.append(("generated", "index", SMALL, 1, np.nan, np.nan))  # refused
    return rows_of(listed)


def test_models_of_a_base_network_are_averaged_first(rows):
    above = cells.above(rows, "generated")
    assert list(above) == ["tenth", "energy", "index"]
    assert above["tenth"].tolist() == [-1.5] * 3
    assert above["energy"].isna().tolist() == [True, False, True]
    assert above["index"].isna().all()


def test_novelty_is_in_units_of_another_trained_network(rows):
    assert cells.novelty(rows, "generated")["tenth"].tolist() == [0.5] * 3
    assert cells.novelty(rows, "generated")["energy"].max() == 2


@pytest.mark.parametrize(
    ("known", "of", "empty"), [(3, 3, False), (2, 3, True), (3, 6, False), (3, 7, True), (0, 3, True)]
)
def test_a_cell_needs_three_base_networks_and_half_of_all(known, of, empty):
    values = column({SMALL: [1.0] * known + [np.nan] * (of - known)})
    assert (cells.by_cell(values) == {}) is empty
    assert [mean.n for mean in cells.means(values).values()] == ([] if empty else [known])


def test_cells_count_alike_whatever_their_size_and_small_ones_are_not_pooled():
    values = column({SMALL: [1.0, 1, 1, 1], LARGE: [4.0] * 12, ("gtsrb", "lenet"): [100.0] * 3})
    assert cells.over(values).estimate == 2.5
    assert cells.over(values).n == 16
    assert list(cells.wide(values)) == [SMALL, LARGE]


def test_more_than_half_of_the_cells_must_say_something():
    values = column({SMALL: [1.0] * 4, LARGE: [np.nan] * 4})
    assert cells.over(values).estimate == 1
    assert cells.over(values, without=[SMALL]) is None
    assert cells.over(column({SMALL: [1.0] * 4, LARGE: [np.nan] * 4, ("gtsrb", "lenet"): [np.nan] * 4})) is None


def test_copies_are_cells_below_the_floor_on_the_mean():
    assert cells.copies(column({SMALL: [0.05, 0.05, 0.12], LARGE: [0.09, 0.1, 0.12]})) == [SMALL]
