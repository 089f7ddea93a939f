"""What the papers' printed numbers say by themselves: findings that need no experiment, computed from the registry.

Each finding is a table and one sentence, whose numbers are read off the table.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mgenb.claims.registry import cells, get

COUNTS = [10, 100, 1000]  # of models, in Tables III and IV of MGE
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


def one_percent() -> Finding:
    """The abstract's 1 % of the training time against Table IV."""
    table = grid("mge.table4", "models")[[str(count) for count in COUNTS]]
    printed = table.stack().dropna()
    sentence = (
        f"Of {table.size} cells of Table IV {len(printed)} print {printed.min():.2f} to {printed.max():.2f} % of the"
        f" training time; the other {table.size - len(printed)} are dashes, below 1 %. None of the numbers is the"
        f" {get('mge.text.one_percent').paper_value:g} % of the abstract."
    )
    return Finding("07_time_ratio", table, sentence)


def gains() -> Finding:
    """Generated minus trained in Table II, and the text's nearly 2 %."""
    table = grid("mge.table2", "source")
    gain = (table["generated"] - table["trained"]).round(2).unstack(sort=False)
    flat = gain.stack()
    claimed = get("mge.text.two_percent_higher").paper_value
    sentence = (
        f"Generated models are at least as accurate in {int((flat >= 0).sum())} of {flat.size} cells, more accurate in"
        f" {int((flat > 0).sum())}; the mean gain is {flat.mean():.2f} points, the largest {flat.max():.2f}. For LeNet"
        f" on MNIST, where the text has nearly {claimed:g}, it is {gain.loc['mnist', 'lenet']:.2f}."
    )
    return Finding("06_accuracy_table", gain, sentence)


def repeated_seconds() -> Finding:
    """VGG16's seconds in Table III that are LeNet's."""
    table = _seconds("generate").loc[["lenet", "vgg16"]]
    same = [count for count in table if table[count].nunique() == 1]
    sentence = (
        f"VGG16's seconds for {' and '.join(map(str, same))} models are LeNet's, and less than its own"
        f" {table.loc['vgg16', COUNTS[0]]:,.0f} s for {COUNTS[0]}."
    )
    return Finding("07_time_ratio", table, sentence)


def base_included() -> Finding:
    """Seconds to generate N models as a base plus N times a rate, by least squares in relative error."""
    table = _seconds("generate").drop("vgg16")
    rows = {}
    for arch, seconds in table.iterrows():
        design = np.stack([1 / seconds, np.array(COUNTS) / seconds], 1)
        (base, rate), *_ = np.linalg.lstsq(design, np.ones(len(COUNTS)), rcond=None)
        off = 100 * (design @ [base, rate] - 1)
        trained = _seconds("train").loc[arch, COUNTS[0]] / COUNTS[0]
        residuals = {f"off at {count} (%)": residual for count, residual in zip(COUNTS, off, strict=True)}
        rows[arch] = {"base (s)": base, "rate (s a model)": rate, "to train one (s)": trained, **residuals}
    fit = pd.DataFrame(rows).T.round(2)
    off = fit.filter(like="off").abs().max(axis=1)
    sentence = (
        "Seconds to generate N models as base + N x rate: LeNet's fit to within"
        f" {off['lenet']:.1f} %, with a base of {fit.loc['lenet', 'base (s)']:.0f} s where training one takes"
        f" {fit.loc['lenet', 'to train one (s)']:.0f} s: generation time seems to include training the base."
        f" {' and '.join(off.index[1:])} are off by up to {' and '.join(f'{value:.0f} %' for value in off[1:])}."
    )
    return Finding("07_time_ratio", fit, sentence)


def beyond_a_dash() -> Finding:
    """A time that is printed in Table III although a dash means more than 100,000 s."""
    table = cells("mge.table3")
    limit = next(claim.paper_value for claim in table if claim.dash)
    printed = {" ".join(claim.place.values()): claim.paper_value for claim in table if not claim.dash}
    beyond = pd.Series(printed, name="seconds")[lambda seconds: seconds > limit].to_frame()
    first = beyond["seconds"].iloc[0]
    return Finding("07_time_ratio", beyond, f"A dash means more than {limit:,.0f} s, but {first:,.2f} s is printed.")


def dashes_by_rate() -> Finding:
    """The dashes of Table IV, below 1 %, by the seconds of Table III and the time to train ten models."""
    ratios, generated = grid("mge.table4", "models"), _seconds("generate")
    ten = generated[COUNTS[0]] / (ratios[str(COUNTS[0])] / 100)  # also of VGG16, whose own time is a dash
    rows = [
        {"network": arch, "models": count, "% by rate": 100 * generated.loc[arch, count] / (ten[arch] * count / 10)}
        for arch, count in itertools.product(ratios.index, COUNTS)
        if np.isnan(ratios.loc[arch, str(count)])
    ]
    table = pd.DataFrame(rows).set_index(["network", "models"]).round(2)
    above = table.index[table["% by rate"] >= 1]
    sentence = (
        "By the time that ten take, the dashes of Table IV are"
        f" {table['% by rate'].min():.2f} to {table['% by rate'].max():.2f} %; not below 1 % is"
        f" {', '.join(f'{arch} for {count}' for arch, count in above) or 'none'}."
    )
    return Finding("07_time_ratio", table, sentence)


def robust_without_attack() -> Finding:
    """Table V: the gap between the models against what a hundredfold epsilon costs."""
    table = grid("mge.table5", "model")[["original", "evolved"]]
    table["difference"] = table["evolved"] - table["original"]
    costs = table["original"].iloc[0] - table["original"].iloc[-1]
    sentence = (
        f"A hundredfold epsilon costs the original {costs:.2f} points, while at the smallest it is already"
        f" {table['difference'].iloc[0]:.2f} points behind: the gap is hardly one of the attack's size."
    )
    return Finding("09_robust_evolution", table.round(2), sentence)


def over_parents() -> Finding:
    """Table 1 of MeGA: gains over the parents' mean, over the better one, and the weight average."""
    table = grid("mega.table1", "model")[["parent1", "parent2", "average", "merged"]].dropna()
    parents, gain = table[["parent1", "parent2"]], table[["average"]].set_axis(["weight average"], axis=1)
    for name, rival in (("mean", parents.mean(axis=1)), ("better", parents.max(axis=1))):
        gain[f"over the {name} (points)"] = (100 * (table["merged"] - rival)).round(2)
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


FINDINGS: tuple[Callable[[], Finding], ...] = (
    *(one_percent, dashes_by_rate, gains, repeated_seconds, base_included, beyond_a_dash, robust_without_attack),
    *(over_parents, eight_against_two, first_generation),
)


def findings(notebook: str | None = None) -> list[Finding]:
    """Return what the printed numbers say, for one notebook (by its stem) or all."""
    made = [finding() for finding in FINDINGS]
    return [finding for finding in made if notebook in (None, finding.notebook)]


def _seconds(action: str) -> pd.DataFrame:
    table = grid("mge.table3", "models", "action").xs(action, axis=1, level="action")
    return table[[str(count) for count in COUNTS]].set_axis(COUNTS, axis=1)
