"""How claims are told in a notebook: before they are measured, as verdict tokens, and as a table.

The cells of one table of a paper share a line where nothing was measured for them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from mgenb import claims

UNTRIED = "no evidence in this notebook"
FEW = 4  # claims of one table that are still listed one by one where nothing was measured


def sentences(of: Sequence[claims.Claim]) -> Iterator[str]:
    """Yield two lines for each claim, of a larger table for its first: id, place and margin; the statement."""
    tables = [_table(claim) for claim in of]
    for claim, count in _shared(sorted(of, key=lambda claim: tables.index(_table(claim))), of):
        name = claim.id if count == 1 else f"{_table(claim)[0]}.*, {count} claims, the first of which"
        yield f"{name} ({claim.where}; {claim.role}; {claim.kind}{_margin(claim)})"
        yield f"    {claim.statement}"


def tokens(verdicts: Sequence[claims.Verdict]) -> Iterator[str]:
    """Yield a token for each verdict, of a larger table's untested cells one for all."""
    by_claim = {verdict.claim.id: verdict for verdict in verdicts}
    untried = [verdict.claim for verdict in verdicts if verdict.reason == UNTRIED]
    for claim, count in _shared([verdict.claim for verdict in verdicts], untried):
        verdict = by_claim[claim.id]
        yield verdict.token if count == 1 else f"{_table(claim)[0]}.* ({count} {claim.kind} claims): {verdict.outcome}"


def table(of: Sequence[claims.Claim], verdicts: Sequence[claims.Verdict]) -> pd.DataFrame:
    """Return paper against measured, a row a claim; a table's untested cells share one row."""
    by_claim = {verdict.claim.id: verdict for verdict in verdicts}
    untried = [claim for claim in of if claim.id not in by_claim or by_claim[claim.id].reason == UNTRIED]
    rows = []
    for claim, count in _shared(of, untried):
        shared = {} if count == 1 else {"claim": f"{_table(claim)[0]}.* ({count} claims)", "paper value": ""}
        rows.append({**row(claim, by_claim.get(claim.id)), **shared})
    return pd.DataFrame(rows).set_index("claim")


def row(claim: claims.Claim, verdict: claims.Verdict | None) -> dict[str, str]:
    """Return what the paper says beside what was measured; None: nothing was judged."""
    row = {"claim": claim.id, "where": claim.where, "role": claim.role, "statement": claim.statement}
    row["paper value"] = claim.printed_value
    if verdict is None:
        return {**row, "measured": "", "n": "", "verdict": claims.NOT_TESTED, "readings": "", "why": ""}
    row |= {"measured": verdict.measured, "n": verdict.replicates, "verdict": verdict.verdict}
    return {**row, "readings": agreeing(verdict), "why": verdict.reason}


def holds_if(claim: claims.Claim) -> str:
    """Return where an interval must lie for the claim to hold, as "> 1" or "-1 to 1"."""
    least, most = claims.supported(claim)
    if math.isinf(most):
        return f"> {least:g}"
    return f"< {most:g}" if math.isinf(least) else f"{least:g} to {most:g}"


def agreeing(verdict: claims.Verdict) -> str:
    """Return what the registered core readings say, as "5 of 6" or "3 for, 1 against, of 6"; "" for a single one.

    Of a claim that is decided these are the readings that speak: the others' models are copies, or there are none.
    """
    core = sum(reading.core for reading in verdict.claim.readings)
    if core == 1 or not verdict.readings:
        return ""
    words = [reading.verdict for reading in verdict.readings if reading.core]
    if verdict.verdict not in (claims.DEPENDS, claims.INCONCLUSIVE):
        return f"{sum(word != claims.VACUOUS for word in words)} of {core}"
    return f"{words.count(claims.REPRODUCED)} for, {words.count(claims.CONTRADICTED)} against, of {core}"


def readings(claim: claims.Claim) -> pd.DataFrame:
    """Return the readings of a claim: whether each is core, and for each choice what it says and how it stands."""
    rows = []
    for reading in claim.readings:
        for name, level in reading.choices.items():
            point = claims.points(claim.paper)[name]
            about = point.levels[level]
            rows.append([reading.name, "core" if reading.core else "open", point.what, about["says"], about["stands"]])
    columns = ["reading", "", "on", "says", "stands as"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def grid(table: str, ours: Mapping[str, float], *across: str) -> pd.DataFrame:
    """Return a paper's table in its layout with ours beside; `ours` maps cells' ids to numbers. A dash: no number."""
    cells = claims.cells(table)
    names = claims.names(cells[0].paper)
    digits = max(len(cell.printed_value.partition(".")[2]) for cell in cells) if cells[0].printed_value else 2

    def fixed(number: float | None, otherwise: str) -> str:
        return otherwise if number is None else f"{number:.{digits}f}"

    rows: list[dict[str, str]] = []
    for cell in cells:
        place = {axis: names.get(value, value.replace("_", " ")) for axis, value in cell.place.items()}
        printed = "-" if cell.dash else fixed(cell.paper_value, "not given")
        rows += [{**place, "of": "paper", "": printed}, {**place, "of": "ours", "": fixed(ours.get(cell.id), "-")}]
    return pd.DataFrame(rows).set_index([*cells[0].place, "of"])[""].unstack([*across, "of"], sort=False)


def _margin(claim: claims.Claim) -> str:
    if not claim.margin:
        return ""
    return f", margin {100 * claim.margin:g} %" if claim.relative else f", margin {claim.margin:g} {claim.unit}"


def _table(claim: claims.Claim) -> tuple[str, str]:
    """Return what the cells of one table share: the first two parts of the id, and the kind."""
    return ".".join(claim.id.split(".")[:2]), claim.kind


def _shared(of: Iterable[claims.Claim], untried: Iterable[claims.Claim]) -> Iterator[tuple[claims.Claim, int]]:
    """Yield each claim with 1, but of a larger table's `untried` cells the first alone, with how many they are."""
    groups: dict[tuple[str, str], list[claims.Claim]] = {}
    for claim in untried:
        groups.setdefault(_table(claim), []).append(claim)
    for claim in of:
        group = groups.get(_table(claim), [])
        if claim not in group or len(group) <= FEW:
            yield claim, 1
        elif claim == group[0]:
            yield claim, len(group)
