"""Every claim of both papers beside its best evidence, from the committed records alone.

Central claims come first; cells of tables, checks and our controls stand apart. Counts and what cannot be otherwise
(role "check") are no evidence for a paper, and enter no sentence.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mgenb import claims
from mgenb.claims import INCONCLUSIVE, JUDGED, NOT_TESTED, UNFINISHED, Claim, Verdict
from mgenb.lab import record, telling
from mgenb.lab.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STALE = "stale"  # what evidence there is was judged or measured by what is no longer so
ORDER = (*JUDGED, UNFINISHED, NOT_TESTED, STALE)
NO_RECORD = "nothing was run"
PAPERS = {"mge": "MGE", "mega": "MeGA"}
MANY = 3  # cells of one table that are no longer listed one by one
FURTHEST = 100.0  # margins from the end of what a claim allows that the forest plot shows
TICKS = (-100, -10, -1, 0, 1, 10, 100)
PARTS = {  # of VERDICTS.md
    "central": "What the papers are about",
    "detail": "Details: cells of tables, numbers and smaller sentences",
    "control": "Controls: what the papers lack",
    "check": "Checks: counts, and what cannot be otherwise",
}
TABLE_IN_README = re.compile(r"(?<=<!-- mgenb claims --markdown -->\n).*?(?=\n<!-- end -->)", re.DOTALL)


def best_verdicts(records: Sequence[Record]) -> dict[str, Verdict]:
    """Return claim id -> its verdict of the best evidence.

    Stale records are no evidence, and claims that the registry has dropped are left out.
    """
    known = {claim.id for claim in claims.load()}
    rows = [row for made in records if not made.stale for row in made.claims]
    verdicts = [Verdict.from_json(row) for row in rows if row["id"] in known]
    return {verdict.claim.id: verdict for verdict in sorted(verdicts, key=claims.rank, reverse=True)}  # the last stays


def table(records: Sequence[Record], paper: str | None = None) -> pd.DataFrame:
    """Return a row for each claim of `paper` ("mge", "mega"; None: both), settings too, by id."""
    stale = {row["id"]: made for made in records if made.stale for row in made.claims if row["verdict"] in JUDGED}
    best = best_verdicts(records)
    rows = [_row(claim, best.get(claim.id), stale.get(claim.id)) for claim in claims.load(paper)]
    frame = pd.DataFrame(rows).set_index("claim")
    failing = {notebook: _failing_controls(rows) for notebook, rows in frame.groupby("notebook")}
    return frame.assign(**{"controls that fail": frame["notebook"].map(failing)})


def _row(claim: Claim, verdict: Verdict | None, stale: Record | None) -> dict[str, str]:
    row = {**telling.row(claim, verdict), "paper": claim.paper, "kind": claim.kind, "notebook": claim.notebook}
    row |= {"outcome": verdict.outcome if verdict else NOT_TESTED, "scale": "", "networks": ""}
    row["holds if"] = "" if claim.kind == "setting" else telling.holds_if(claim)
    row["why"] = row["why"] or ("" if verdict else NO_RECORD)
    if verdict and verdict.verdict in JUDGED:
        scale = verdict.scale
        networks = scale.arch if claim.counted else f"{scale.arch} on {scale.dataset}"
        row |= {"scale": str(scale), "networks": networks}
    if stale:
        note = f"{stale.label}: {stale.stale}"
        if row["scale"]:  # there is fresh evidence as well
            row["why"] = "; ".join(filter(None, (row["why"], f"{STALE}: {note}")))
        else:
            row |= {"verdict": STALE, "why": note, "outcome": f"{STALE} [{stale.profile}]"}
    return row


def _failing_controls(rows: pd.DataFrame) -> str:
    """Return the controls of a notebook that fail; "" where none does."""
    return " ".join(rows.loc[(rows["role"] == "control") & (rows["verdict"] == claims.FAILS), "statement"])


def counts(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return how many claims of each verdict there are, a row for each value of the column `by`; settings left out."""
    judged = frame[frame["kind"] != "setting"]
    counted = pd.crosstab(judged[by], judged["verdict"])
    shown = [verdict for verdict in ORDER if verdict in counted]
    return counted.reindex(columns=shown, fill_value=0).rename_axis(columns=None)


def sentences(frame: pd.DataFrame, paper: str) -> list[str]:
    """Return the verdict on a paper in five sentences, from the verdicts on its central claims."""
    central = frame[(frame["paper"] == paper) & (frame["role"] == "central")]
    of = {verdict: list(central[central["verdict"] == verdict].itertuples()) for verdict in ORDER}
    said = {
        verdict: [row.statement.rstrip(".") + (f" [{row.scale}]" if row.scale else "") for row in rows]
        for verdict, rows in of.items()
    }
    listed = {verdict: "; ".join(statements) or "none" for verdict, statements in said.items()}
    why = [row.why.partition(";")[0] for row in of[claims.DEPENDS]]
    depends = "; ".join(f"{statement} ({on})" for statement, on in zip(said[claims.DEPENDS], why, strict=True))
    number = {verdict: len(rows) for verdict, rows in of.items()}
    left = {verdict: number[verdict] for verdict in (INCONCLUSIVE, UNFINISHED, NOT_TESTED, STALE)}
    return [
        f"Of {len(central)} central claims of {PAPERS[paper]}, {number[claims.REPRODUCED]} reproduced,"
        f" {number[claims.CONTRADICTED]} contradicted, {number[claims.DEPENDS]} dependent on the reading,"
        f" {sum(left.values())} undecided.",
        f"Reproduced: {listed[claims.REPRODUCED]}.",
        f"Contradicted: {listed[claims.CONTRADICTED]}.",
        f"Dependent on how the paper is read: {depends or 'none'}.",
        f"Undecided ({', '.join(f'{count} {verdict}' for verdict, count in left.items() if count) or 'none'});"
        f" measured but inconclusive: {listed[INCONCLUSIVE]}; not tested: {listed[NOT_TESTED]}.",
    ]


def central(frame: pd.DataFrame, paper: str) -> pd.DataFrame:
    """Return one page: the central claims of a paper with what was measured, the controls that fail and the verdict."""
    chosen = frame[(frame["paper"] == paper) & (frame["role"] == "central")]
    names = {"paper value": "paper", "measured": "ours", "readings": "core readings"}
    shown = ["statement", "paper value", "holds if", "measured", "controls that fail", "verdict"]
    shown += ["readings", "scale", "notebook"]
    return chosen[shown].rename(columns=names).set_index("statement")


def markdown(frame: pd.DataFrame, role: str = "central") -> str:
    """Return the claims of a role that were judged, of central ones all, as a table in Markdown, with links."""
    lines = ["| verdict | claim | paper | holds if | ours | core readings | scale | in |", f"|{'---|' * 8}"]
    shown = frame[(frame["role"] == role) & (frame["verdict"].isin(JUDGED) | (role == "central"))]
    for row in shown.sort_values("notebook", kind="stable").to_dict("records"):
        claim = f"{row['statement']} ({row['where']})"
        scale = f"`{row['scale']}` {escape(row['networks'])}" if row["scale"] else ""
        ours = (row["holds if"], row["measured"] or escape(row["why"], quote=False), row["readings"], scale)
        cells = (f"**{row['verdict']}**", claim, row["paper value"], *ours)
        lines.append(f"| {' | '.join((*cells, _link(row['notebook'])))} |")
    return "\n".join(lines)


def _link(notebook: str) -> str:
    return f"[{notebook[:2]}](notebooks/{notebook}.ipynb)"


def without_evidence(frame: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each reason why claims that are not central have no verdict, of a table with how many cells."""
    left = ~frame["verdict"].isin(JUDGED) & (frame["kind"] != "setting") & (frame["role"] != "central")
    chosen = frame[left].sort_values("notebook", kind="stable")
    why = chosen["why"].str.partition(": dataset ")[0]  # what the paper's own scale is stands in the ids
    for (notebook, verdict, reason), rows in chosen.groupby(["notebook", "verdict", why], sort=False):
        tables: dict[str, list[str]] = {}
        for name in rows.index:
            tables.setdefault(claims.get(name).table or name, []).append(f"`{name}`")
        names = [", ".join(of) if len(of) < MANY else f"`{key}.*` ({len(of)})" for key, of in tables.items()]
        yield f"- {_link(notebook)} {verdict}, {escape(reason, quote=False)}: {', '.join(names)}"


def document(frame: pd.DataFrame) -> str:
    """Return VERDICTS.md: five sentences a paper, then every claim by role, then what has no verdict, and why."""
    lines = ["# Verdicts", "", "Made by `mgenb refresh` from the committed records; nothing here is typed.", ""]
    lines += ["*Holds if*: where the whole interval must lie, a margin of ours that was fixed before measuring."]
    lines += ["`?`: an end that too few repeats leave open.", ""]
    for paper, name in PAPERS.items():
        lines += [f"## {name} in five sentences", "", *(f"- {line}" for line in sentences(frame, paper)), ""]
    for role, title in PARTS.items():
        lines += [f"## {title}", "", markdown(frame, role), ""]
    lines += ["## Claims without a verdict, and why", "", *without_evidence(frame), ""]
    silent = [(name, sentence) for paper, name in PAPERS.items() for sentence in claims.unjudged(paper)]
    lines += ["## Sentences that cannot be judged, and why", ""]
    return "\n".join([*lines, *(f"- {name}, {s.where}: {s.says} ({s.why})" for name, s in silent), ""])


def publish(root: Path) -> list[str]:
    """Write VERDICTS.md and the README's table from the committed records; return the names of files that changed."""
    from mgenb.store import write_atomic  # imports torch

    frame, changed = table(record.committed()), []
    readme = root / "README.md"
    texts = {root / "VERDICTS.md": document(frame)}
    if readme.exists():
        shown = markdown(frame)
        texts[readme] = TABLE_IN_README.sub(lambda _: shown, readme.read_text(encoding="utf-8"))
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))
            changed.append(path.name)
    return changed


def forest(records: Sequence[Record], paper: str) -> "Figure":
    """Return the central claims of a paper that were judged, in units of their margins, with what they allow shaded.

    Zero is the end of what the claim allows that lies nearest; to the right it holds. Intervals are those that decided.
    The axis is linear up to one margin, logarithmic beyond.
    """
    import matplotlib.pyplot as plt  # slow to load, as is what follows

    from mgenb.lab import figures

    best = {name: verdict for name, verdict in best_verdicts(records).items() if verdict.verdict in JUDGED}
    shown = [best[claim.id] for claim in claims.load(paper) if claim.role == "central" and claim.id in best]
    fig, ax = plt.subplots(figsize=(7.6, 1.2 + 0.34 * max(len(shown), 1)))
    ax.axvspan(0, FURTHEST, color=figures.BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=figures.MUTED, linewidth=1)
    for place, verdict in enumerate(shown):
        colour, marker = figures.colour(verdict.verdict), figures.MARKERS[verdict.verdict]
        others = [inside(verdict.claim, reading.estimate)[0] for reading in verdict.readings]
        depends = verdict.verdict == claims.DEPENDS  # on neither side: a bar over its readings
        ends = (min(others), max(others)) if depends else inside(verdict.claim, verdict.low, verdict.high)
        ax.plot(ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        ax.plot(others, [place] * len(others), "|", color=figures.MUTED, markersize=9, clip_on=False)
        centre = math.nan if depends else inside(verdict.claim, verdict.estimate)[0]
        ax.plot(centre, place, marker, color=colour, markersize=7, label=verdict.verdict, clip_on=False)
    ax.set_yticks(range(len(shown)), [f"{v.claim.id}  [{v.scale.profile}]" for v in shown], fontsize=7.5)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS], minor=False)
    ax.set(ylim=(len(shown) - 0.4, -0.6), xlim=(-FURTHEST, FURTHEST))
    ax.set_xlabel("margins inside what the claim allows (shaded: it holds; strokes: all readings)")
    ax.grid(visible=False, axis="y")
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=4)
    return fig


def inside(claim: Claim, *values: float | None) -> tuple[float, float]:
    """Return how far a value, or the span between two, lies inside what the claim allows: least and most, in margins.

    Outside is negative; both are cut to the frame. None, of an interval without an end, is infinitely far.
    """
    least, most = claims.supported(claim)
    finite = [end for end in (least, most) if math.isfinite(end)]
    unit = claim.margin * (claim.paper_value or 1.0 if claim.relative else 1.0) or max(map(abs, finite)) or 1.0
    far = (-math.inf, math.inf)
    span = [far[place] if value is None else value for place, value in enumerate(values)]
    if len(finite) > 1:  # the middle of what is allowed lies deepest inside
        span.append(min(max((least + most) / 2, span[0]), span[-1]))
    gaps = [min(sign * (value - end) for sign, end in ((1, least), (-1, most)) if end in finite) for value in span]
    cut = [max(-FURTHEST, min(FURTHEST, gap / unit)) for gap in gaps]
    return min(cut), max(cut)
