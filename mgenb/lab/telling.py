"""How claims are told in a notebook: before they are measured, as verdict tokens, and as a table.

The cells of one table of a paper share a line where nothing was measured for them.
"""

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from mgenb import claims

UNTRIED = "no evidence in this notebook"
FEW = 4  # claims of one table that are still listed one by one where nothing was measured


def sentences(of: Sequence[claims.Claim]) -> Iterator[str]:
    """Yield two lines for each claim, of a larger table for its first: id, place and margin; the statement."""
    tables = [_table(claim) for claim in of]
    for claim, count in _shared(sorted(of, key=lambda claim: tables.index(_table(claim))), of):
        name = claim.id if count == 1 else f"{_table(claim)[0]}.*, {count} claims, the first of which"
        yield f"{name} ({claim.where}; {claim.origin}; {claim.kind}, margin {claim.margin:g} {claim.unit})"
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
    row = {"claim": claim.id, "where": claim.where, "says": claim.origin, "statement": claim.statement}
    row |= {"paper value": claim.printed_value, "measured": "", "n": ""}
    if verdict is None:
        return {**row, "verdict": claims.NOT_TESTED, "why": "a setting is not judged"}
    if verdict.estimate is not None:
        ends = ", ".join("?" if end is None else f"{end:.2f}" for end in (verdict.low, verdict.high))
        row |= {"measured": f"{verdict.estimate:.2f} [{ends}] {claim.unit}", "n": f"{verdict.n} {verdict.unit}"}
    return {**row, "verdict": verdict.verdict, "why": verdict.reason}


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
