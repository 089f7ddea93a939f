"""From rows of models to estimates: means over the models of a base network, over a cell of a table, over its cells.

Rows have the columns `what`, `method`, `dataset`, `arch`, `base`, and measurements as "test (%)". The rows of `what`
= "base" are the base networks themselves, those of "other seed" another trained network beside each. A column of
numbers by base network has the index `UNIT`; NaN where a base network has no model.
"""

from collections.abc import Sequence

import pandas as pd

from mgenb import claims, stats
from mgenb.lab.rows import Rows

CELL, UNIT = ["dataset", "arch"], ["dataset", "arch", "base"]
LEAST, POOLED = 3, 4  # base networks with a model, for a cell to say something; base networks of a cell that is pooled

Cell = tuple[str, str]


def by_base(rows: Rows, what: str, column: str) -> pd.DataFrame:
    """Return the mean over the models of each base network: a row a base network, a column a method."""
    chosen = rows.of(what)
    means = chosen.pivot_table(column, UNIT, "method", sort=False)
    return means.reindex(rows.of("base").set_index(UNIT).index, columns=chosen["method"].unique())


def above(rows: Rows, what: str, column: str = "test (%)") -> pd.DataFrame:
    """Return by how much models lie above their base, in the column's unit."""
    return by_base(rows, what, column).sub(by_base(rows, "base", column)["base"], axis=0)


def novelty(rows: Rows, what: str, column: str = "disagreement (%)") -> pd.DataFrame:
    """Return how much models differ from their base, in units of how much two trained networks of the cell differ."""
    seeds = by_base(rows, "other seed", column)["trained"].groupby(CELL).transform("mean")
    return by_base(rows, what, column).div(seeds.clip(lower=1e-9), axis=0)


def by_cell(values: pd.Series) -> dict[Cell, pd.Series]:
    """Return cell -> one number for each base network that has one, of cells that are not empty.

    Empty is a cell in which fewer than 3 base networks, or fewer than half, have a number.
    """
    sizes = values.groupby(CELL, sort=False).size()
    known = {cell: of.dropna() for cell, of in values.groupby(CELL, sort=False)}
    return {cell: of for cell, of in known.items() if len(of) >= max(LEAST, sizes[cell] / 2)}


def means(values: pd.Series) -> dict[Cell, stats.Estimate]:
    """Return cell -> the mean over its base networks, of cells that are not empty."""
    return {cell: stats.mean(of, "base networks") for cell, of in by_cell(values).items()}


def wide(values: pd.Series, without: Sequence[Cell] = ()) -> dict[Cell, pd.Series]:
    """Return `by_cell` of the cells with at least 4 base networks, `without` some.

    Nothing where more than half of these cells are empty, or are among those to do without.
    """
    planned = [cell for cell, size in values.groupby(CELL, sort=False).size().items() if size >= POOLED]
    full = {cell: of for cell, of in by_cell(values).items() if cell in planned and cell not in without}
    return full if 2 * len(full) >= len(planned) else {}


def over(values: pd.Series, without: Sequence[Cell] = ()) -> stats.Estimate | None:
    """Return the mean over the `wide` cells, each a mean of its own; n counts base networks. None: there are none."""
    full = wide(values, without)
    return stats.pooled(list(full.values())) if full else None


def copies(new: pd.Series) -> list[Cell]:
    """Return the cells whose models are copies of their base, on the mean; `new` is their novelty."""
    return [cell for cell, of in by_cell(new).items() if of.mean() < claims.NOVELTY_FLOOR]
