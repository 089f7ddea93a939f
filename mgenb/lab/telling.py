"""How claims are told in a notebook: before they are measured, as verdict tokens, and as a table.

The cells of one table of a paper share a line where nothing was measured for them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from mgenb import claims

UNTRIED = "no evidence in this notebook"
FEW = 4  # claims of one table that are still listed one by one where nothing was measured

Groups = dict[tuple[str, str], list[claims.Claim]]


def sentences(of: Sequence[claims.Claim]) -> Iterator[str]:
    """Yield two lines for each claim, of a larger table for its first: id, place and margin; the statement."""
    for (prefix, kind), group in _groups(of).items():
        few = len(group) <= FEW
        for claim in group if few else group[:1]:
            told = claim.id if few else f"{prefix}.*, {len(group)} claims, the first of which"
            yield f"{told} ({claim.where}; {claim.origin}; {kind}, margin {claim.margin:g} {claim.unit})"
            yield f"    {claim.statement}"


def tokens(verdicts: Sequence[claims.Verdict]) -> Iterator[str]:
    """Yield a token for each verdict, of a larger table's untested cells one for all."""
    untested = _groups(verdict.claim for verdict in verdicts if verdict.reason == UNTRIED)
    for verdict in verdicts:
        group = untested.get(_group_of(verdict.claim), [])
        if verdict.claim not in group or len(group) <= FEW:
            yield verdict.token
        elif verdict.claim == group[0]:
            prefix, kind = _group_of(verdict.claim)
            yield f"{prefix}.* ({len(group)} {kind} claims): {verdict.told}"


def table(of: Sequence[claims.Claim], verdicts: Sequence[claims.Verdict]) -> pd.DataFrame:
    """Return paper against measured, a row a claim; a table's untested cells share one row."""
    judged = {verdict.claim.id: verdict for verdict in verdicts}
    untested = _groups(claim for claim in of if claim.id not in judged or judged[claim.id].reason == UNTRIED)
    rows = []
    for claim in of:
        group = untested.get(_group_of(claim), [])
        if claim not in group or len(group) <= FEW:
            rows.append(_row(claim, judged))
        elif claim == group[0]:
            told = f"{_group_of(claim)[0]}.* ({len(group)} claims)"
            rows.append({**_row(claim, judged), "claim": told, "paper value": ""})
    return pd.DataFrame(rows).set_index("claim")


def _group_of(claim: claims.Claim) -> tuple[str, str]:
    """Return what the cells of one table share: the first two parts of the id, and the kind."""
    return ".".join(claim.id.split(".")[:2]), claim.kind


def _groups(of: Iterable[claims.Claim]) -> Groups:
    groups: Groups = {}
    for claim in of:
        groups.setdefault(_group_of(claim), []).append(claim)
    return groups


def _row(claim: claims.Claim, judged: Mapping[str, claims.Verdict]) -> dict[str, object]:
    verdict = judged.get(claim.id)
    row: dict[str, object] = {"claim": claim.id, "where": claim.where, "says": claim.origin}
    row |= {"statement": claim.statement, "paper value": claim.printed_value}
    if verdict is None or verdict.estimate is None:
        why = verdict.reason if verdict else "a setting is not judged"
        return {**row, "measured": "", "n": "", "verdict": claims.NOT_TESTED, "why": why}
    row["measured"] = f"{verdict.estimate:.2f} [{verdict.low:.2f}, {verdict.high:.2f}] {claim.unit}"
    return {**row, "n": f"{verdict.n} {verdict.unit}", "verdict": verdict.verdict, "why": verdict.reason}
