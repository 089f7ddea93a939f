"""Every claim of both papers beside its best evidence, from the committed records alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mgenb import claims
from mgenb.claims import JUDGED, NOT_TESTED, UNFINISHED, Claim, Verdict
from mgenb.lab import catalog, telling
from mgenb.lab.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STALE = "stale"  # what evidence there is was judged or measured by what is no longer so
ORDER = (*JUDGED, UNFINISHED, NOT_TESTED, STALE)
NO_RECORD = "nothing was run"


def best_verdicts(records: Sequence[Record]) -> dict[str, tuple[Verdict, Record]]:
    """Return claim id -> its verdict of the best evidence, and the record that holds it.

    Stale records are no evidence, and claims that the registry has dropped are left out.
    """
    known = {claim.id for claim in claims.load()}
    fresh = [record for record in records if not record.stale]
    evidence = [(Verdict.from_json(row), record) for record in fresh for row in record.claims if row["id"] in known]
    evidence.sort(key=lambda pair: claims.rank(pair[0]))
    return {verdict.claim.id: (verdict, record) for verdict, record in reversed(evidence)}


def table(records: Sequence[Record], paper: str | None = None) -> pd.DataFrame:
    """Return a row for each claim of `paper` ("mge", "mega"; None: both), settings too, by id."""
    verdicts = best_verdicts(records)
    rows = [_row(claim, *verdicts.get(claim.id, (None, None))) for claim in claims.load(paper)]
    frame = pd.DataFrame(rows).set_index("claim")
    for record in (record for record in records if record.stale):
        for name in (row["id"] for row in record.claims if row["verdict"] in JUDGED and row["id"] in frame.index):
            why = f"stale: {record.label}, {record.stale}"
            if frame.loc[name, "verdict"] not in JUDGED:
                frame.loc[name, ["verdict", "why", "outcome"]] = STALE, why, f"{STALE} [{record.profile}]"
            else:  # of a lower profile, or another notebook
                frame.loc[name, "why"] = "; ".join(filter(None, [frame.loc[name, "why"], why]))
    return frame


def _row(claim: Claim, verdict: Verdict | None, record: Record | None) -> dict[str, str]:
    row = {**telling.row(claim, verdict), "paper": claim.paper, "kind": claim.kind, "notebook": claim.notebook}
    row |= {"outcome": verdict.outcome if verdict else "not tested yet", "scale": "", "hardware": ""}
    if verdict is None or record is None:
        return {**row, "why": NO_RECORD}
    if verdict.verdict not in JUDGED:
        return row
    scale, context = verdict.scale, record.context
    where = scale.arch if claim.counted else f"{scale.arch} on {scale.dataset} [{scale}]"
    machine = context["device"] if context["device"] != "cpu" else f"{context['cores']} cores"
    return {**row, "scale": where, "hardware": machine}


def counts(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return how many claims of each verdict there are, a row for each value of the column `by`; settings left out."""
    judged = frame[frame["kind"] != "setting"]
    counted = pd.crosstab(judged[by], judged["verdict"])
    return counted.reindex(columns=_shown(frame), fill_value=0).rename_axis(columns=None)


def _shown(frame: pd.DataFrame) -> list[str]:
    """Return the verdicts in their order; *unfinished* and *stale* only where something is."""
    return [verdict for verdict in ORDER if verdict not in (UNFINISHED, STALE) or (frame["verdict"] == verdict).any()]


def markdown(frame: pd.DataFrame) -> str:
    """Return the claims that have a verdict, or had, as a table in Markdown, with links from the project's root."""
    lines = ["| verdict | claim | measured (95 %) | scale | in |", "|---|---|---|---|---|"]
    for row in frame[frame["verdict"].isin((*JUDGED, STALE))].sort_values("notebook", kind="stable").to_dict("records"):
        link = f"[{row['notebook'][:2]}](notebooks/{row['notebook']}.ipynb)"
        claim = f"{row['statement']} ({row['where']})"
        lines.append(f"| {row['verdict']} | {claim} | {row['measured']} | {row['scale']} | {link} |")
    return "\n".join(lines)


def chart(frame: pd.DataFrame) -> "Figure":
    """Return the one-figure summary: claims of each notebook by verdict; comparisons left, printed numbers right."""
    import matplotlib.pyplot as plt  # slow to load, as is what follows

    from mgenb.lab import figures

    stems, shown = sorted(set(frame[frame["kind"] != "setting"]["notebook"])), _shown(frame)
    reproduces = {notebook.stem: notebook.reproduces for notebook in catalog.notebooks()}
    printed = frame["kind"] == "value"
    sides = {"sentences and comparisons": ~printed, "printed numbers and curves": printed}
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 0.9 + 0.32 * len(stems)), sharey=True)
    for ax, (title, chosen) in zip(axes, sides.items(), strict=True):
        counted = counts(frame[chosen], "notebook").reindex(stems, columns=shown, fill_value=0)
        counted.plot.barh(ax=ax, stacked=True, width=0.8, legend=False, color=list(map(figures.colour, shown)))
        for bars in ax.containers:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            ax.bar_label(bars, fmt=lambda n: f"{n:g}" if n else "", label_type="center", fontsize=7, bbox=box)
        ax.set(title=title, xlabel="claims", ylabel=None)
        ax.grid(visible=False, axis="y")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_yticks(range(len(stems)), [f"{stem[:2]}  {reproduces.get(stem, 'no notebook yet')}" for stem in stems])
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig
