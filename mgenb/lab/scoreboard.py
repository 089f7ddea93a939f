"""Every claim of both papers beside its best evidence, from the committed records alone.

Central claims come first; cells of tables, checks and our controls stand apart. Counts and what cannot be otherwise
(role "check") are no evidence for a paper, and enter no sentence.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mgenb import claims
from mgenb.claims import (
    CONTRADICTED,
    DEPENDS,
    FAILS,
    INCONCLUSIVE,
    JUDGED,
    NOT_TESTED,
    REPRODUCED,
    UNFINISHED,
    Claim,
    Verdict,
)
from mgenb.lab import telling
from mgenb.lab.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STALE = "stale"  # what evidence there is was judged or measured by what is no longer so
ORDER = (*JUDGED, UNFINISHED, NOT_TESTED, STALE)
NO_RECORD = "nothing was run"
PAPERS = {"mge": "MGE", "mega": "MeGA"}
FURTHEST = 4.0  # margins from the end of what a claim allows that the forest plot shows
PARTS = {  # of VERDICTS.md
    "central": "What the papers are about",
    "detail": "Details: cells of tables, numbers and smaller sentences",
    "control": "Controls: what the papers lack",
    "check": "Checks: counts, and what cannot be otherwise",
}


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
    nulls = {notebook: _strongest_null(rows) for notebook, rows in frame.groupby("notebook")}
    return frame.assign(null=frame["notebook"].map(nulls))


def _row(claim: Claim, verdict: Verdict | None, record: Record | None) -> dict[str, str]:
    row = {**telling.row(claim, verdict), "paper": claim.paper, "kind": claim.kind, "notebook": claim.notebook}
    row |= {"outcome": verdict.outcome if verdict else "not tested yet", "scale": "", "profile": "", "hardware": ""}
    if verdict is None or record is None:
        return {**row, "why": "a setting is not judged" if claim.kind == "setting" else NO_RECORD}
    if verdict.verdict not in JUDGED:
        return row
    scale, context = verdict.scale, record.context
    where = scale.arch if claim.counted else f"{scale.arch} on {scale.dataset}"
    machine = context["device"] if context["device"] != "cpu" else f"{context['cores']} cores"
    return {**row, "scale": where, "profile": str(scale), "hardware": machine}


def _strongest_null(rows: pd.DataFrame) -> str:
    """Return the control of a notebook that speaks loudest against its claims; "" where none was judged."""
    controls = rows[(rows["role"] == "control") & rows["verdict"].isin(JUDGED)]
    order = [FAILS, DEPENDS, INCONCLUSIVE]
    worst = min(controls.itertuples(), key=lambda c: order.index(c.verdict) if c.verdict in order else 9, default=None)
    return f"{worst.verdict}: {worst.statement}" if worst else ""


def counts(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return how many claims of each verdict there are, a row for each value of the column `by`; settings left out."""
    judged = frame[frame["kind"] != "setting"]
    counted = pd.crosstab(judged[by], judged["verdict"])
    shown = [verdict for verdict in ORDER if verdict in counted]
    return counted.reindex(columns=shown, fill_value=0).rename_axis(columns=None)


def sentences(frame: pd.DataFrame, paper: str) -> list[str]:
    """Return the verdict on a paper in five sentences, from the verdicts on its central claims."""
    central = frame[(frame["paper"] == paper) & (frame["role"] == "central")]

    def listed(*verdicts: str) -> str:
        chosen = central[central["verdict"].isin(verdicts)]
        return "; ".join(f"{row.statement.rstrip('.')} ({row.where})" for row in chosen.itertuples()) or "none"

    number = {verdict: int((central["verdict"] == verdict).sum()) for verdict in ORDER}
    left = len(central) - number[REPRODUCED] - number[CONTRADICTED] - number[DEPENDS]
    depends = central[central["verdict"] == DEPENDS]
    on = "; ".join(f"{row.statement.rstrip('.')} ({row.why.partition(';')[0]})" for row in depends.itertuples())
    return [
        f"{PAPERS[paper]} makes {len(central)} central claims that can be judged: {number[REPRODUCED]} are reproduced,"
        f" {number[CONTRADICTED]} contradicted, {number[DEPENDS]} depend on how the paper is read, {left} are open.",
        f"Reproduced: {listed(REPRODUCED)}.",
        f"Contradicted: {listed(CONTRADICTED)}.",
        f"Depending on the reading: {on or 'none'}.",
        f"Open, for want of evidence: {listed(INCONCLUSIVE, UNFINISHED, NOT_TESTED, STALE)}.",
    ]


def central(frame: pd.DataFrame, paper: str) -> pd.DataFrame:
    """Return one page: the central claims of a paper with what was measured, the strongest null and the verdict."""
    chosen = frame[(frame["paper"] == paper) & (frame["role"] == "central")]
    page = chosen[["statement", "paper value", "measured", "null", "verdict", "readings", "profile", "notebook"]]
    names = {"measured": "ours", "null": "strongest null", "readings": "readings that agree", "profile": "scale"}
    return page.rename(columns=names).assign(notebook=page["notebook"].str[:2]).set_index("statement")


def markdown(frame: pd.DataFrame, roles: Sequence[str] = ("central",)) -> str:
    """Return the claims of these roles that were tried as a table in Markdown, with links from the project's root."""
    lines = ["| verdict | claim | paper | ours | readings | scale | in |", "|---|---|---|---|---|---|---|"]
    shown = frame[frame["role"].isin(roles) & (frame["verdict"] != NOT_TESTED)]
    for row in shown.sort_values(["paper", "notebook"], kind="stable", ascending=[False, True]).to_dict("records"):
        link = f"[{row['notebook'][:2]}](notebooks/{row['notebook']}.ipynb)"
        claim, badge = f"{row['statement']} ({row['where']})", f"`{row['profile']}`" if row["profile"] else ""
        cells = (f"**{row['verdict']}**", claim, row["paper value"], row["measured"], row["readings"], badge, link)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def untested(frame: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each reason why claims are not tested, with the claims; cells of a table are one."""
    chosen = frame[(frame["verdict"] == NOT_TESTED) & (frame["kind"] != "setting")]
    for (notebook, why), rows in chosen.groupby(["notebook", "why"], sort=False):
        families: dict[str, list[str]] = {}
        for name in rows.index:
            families.setdefault(".".join(name.split(".")[:2]), []).append(name)
        names = [
            f"`{key}.*` ({len(of)})" if len(of) > 2 else ", ".join(f"`{n}`" for n in of) for key, of in families.items()
        ]
        yield f"- {notebook[:2]}: {', '.join(names)}: {why}."


def document(frame: pd.DataFrame) -> str:
    """Return VERDICTS.md: five sentences a paper, then every claim by role, then what was not tested, and why."""
    lines = ["# Verdicts", "", "Made by `mgenb refresh` from the committed records; nothing here is typed.", ""]
    for paper, name in PAPERS.items():
        lines += [f"## {name} in five sentences", "", *(f"- {line}" for line in sentences(frame, paper)), ""]
    for role, title in PARTS.items():
        lines += [f"## {title}", "", markdown(frame, (role,)), ""]
    return "\n".join([*lines, "## Not tested, and why", "", *untested(frame), ""])


def forest(records: Sequence[Record], paper: str) -> "Figure":
    """Return the central claims of a paper that were judged, in units of their margins, with what they allow shaded.

    Zero is the end of what the claim allows that lies nearest; to the right it holds. Intervals are those that decided.
    """
    import matplotlib.pyplot as plt  # slow to load, as is what follows

    from mgenb.lab import figures

    judged = [verdict for verdict, _ in best_verdicts(records).values() if verdict.verdict in JUDGED]
    order = {claim.id: place for place, claim in enumerate(claims.load(paper)) if claim.role == "central"}
    shown = sorted((v for v in judged if v.claim.id in order), key=lambda verdict: order[verdict.claim.id])
    fig, ax = plt.subplots(figsize=(7.6, 0.9 + 0.34 * max(len(shown), 1)))
    ax.axvspan(0, FURTHEST, color=figures.BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=figures.MUTED, linewidth=1)
    for place, verdict in enumerate(shown):
        colour = figures.colour(verdict.verdict)
        ends = [_inside(verdict.claim, end) for end in (verdict.low, verdict.estimate, verdict.high)]
        low, centre, high = ends[0], ends[1], ends[2]
        ax.plot(sorted((low, high)), [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        ax.plot(centre, place, figures.MARKERS[verdict.verdict], color=colour, label=verdict.verdict)
    ax.set_yticks(range(len(shown)), [f"{v.claim.id}  [{v.scale.profile}]" for v in shown], fontsize=7.5)
    ax.set(ylim=(len(shown) - 0.4, -0.6), xlim=(-FURTHEST, FURTHEST))
    ax.set_xlabel("margins beyond the end of what the claim allows (shaded: it holds; cut at the frame)")
    ax.grid(visible=False, axis="y")
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=4)
    return fig


def _inside(claim: Claim, value: float | None) -> float:
    """Return how far a value lies inside what the claim allows (outside: negative), in margins, cut to the frame."""
    least, most = claims.supported(claim)
    ends = [end for end in (least, most) if math.isfinite(end)]
    unit = claim.margin or max(map(abs, ends)) or 1.0
    if claim.relative and claim.paper_value:
        unit = claim.margin * claim.paper_value
    if value is None:
        return -FURTHEST
    inside = min(value - least, most - value) / unit
    return max(-FURTHEST, min(FURTHEST, inside))
