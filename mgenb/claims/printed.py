"""What the papers' printed numbers say by themselves: findings that need no experiment, computed from the registry.

Each finding is a table and one sentence, whose numbers are read off the table.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mgenb.claims.registry import cells

MODELS = [f"model{number}" for number in range(1, 9)]  # of Table 2 of MeGA


@dataclass(frozen=True, eq=False)
class Finding:
    """What follows from printed numbers: for the notebook with this stem, a table and a sentence about it."""

    notebook: str
    table: pd.DataFrame
    sentence: str


def grid(table: str, *across: str) -> pd.DataFrame:
    """Return a paper's table of numbers in its own layout: the axes `across` are columns; dashes are missing."""
    claims = [claim for claim in cells(table) if claim.paper_value is not None]
    values = pd.DataFrame([{**claim.place, "": np.nan if claim.dash else claim.paper_value} for claim in claims])
    return values.set_index(list(claims[0].place))[""].unstack(list(across), sort=False)


def over_parents() -> Finding:
    """Table 1 of MeGA: gains over the parents' mean, over the better one, and the weight average."""
    table = grid("mega.table1", "model")[["parent1", "parent2", "average", "merged"]].dropna()
    parents = table[["parent1", "parent2"]]
    gain = pd.DataFrame(
        {
            "over the mean (points)": 100 * (table["merged"] - parents.mean(axis=1)),
            "over the better (points)": 100 * (table["merged"] - parents.max(axis=1)),
            "weight average": table["average"],
        }
    ).round(2)
    better = gain["over the better (points)"]
    sentence = (
        f"Over the better parent the gains are {better.min():.1f} ({better.idxmin()}) to {better.max():.1f} points;"
        f" the text counts from the parents' mean. The weight average is printed as {table['average'].max():.3f}"
        " everywhere, below the 0.1 of chance."
    )
    return Finding("12_mega_pairs", gain, sentence)


def eight_against_two() -> Finding:
    """Tables 1 and 2 of MeGA: what eight merged networks have over two."""
    eight, two = grid("mega.table2", "model"), grid("mega.table1", "model")
    table = pd.DataFrame(
        {
            "two": two["merged"].reindex(eight.index),
            "eight": eight["merged"],
            "best of eight": eight[MODELS].max(axis=1),
            "spread of eight (sd)": eight[MODELS].std(axis=1).round(3),
        }
    )
    gain = 100 * (table["eight"] - table["two"])
    sentence = (
        f"Eight networks merged are {', '.join(f'{value:+.1f}' for value in gain)} points from two, on average"
        f" {gain.mean():+.1f}. Single seeds spread by {table['spread of eight (sd)'].min():.3f} to"
        f" {table['spread of eight (sd)'].max():.3f} (standard deviation)."
    )
    return Finding("13_mega_hierarchy", table, sentence)


def first_generation() -> Finding:
    """Fig. 2 of MeGA beside Table 1: where the curves start and end."""
    fitness, table = grid("mega.fig2.fitness", "generation"), grid("mega.table1", "model")
    both = fitness[["first", "last"]].copy()
    both["better parent"] = table.loc[both.index, ["parent1", "parent2"]].max(axis=1)
    both["Table 1, merged"] = table.loc[both.index, "merged"]
    behind = both["first"] < both["better parent"]
    sides = [", ".join(both.index[side]) or "none" for side in (behind, ~behind)]
    same = (np.floor(1000 * both["last"] + 1e-9) / 1000 == both["Table 1, merged"]).all()
    sentence = f"The first generation is below the better parent for {sides[0]}, and above both for {sides[1]}." + (
        " Both curves end, cut to three digits, at the test accuracy of Table 1." if same else ""
    )
    return Finding("11_mega_fitness", both, sentence)


FINDINGS = (over_parents, eight_against_two, first_generation)


def findings(notebook: str | None = None) -> list[Finding]:
    """Return what the printed numbers say, for one notebook (by its stem) or all."""
    made = [finding() for finding in FINDINGS]
    return [finding for finding in made if notebook in (None, finding.notebook)]
