"""The verdict rule: what intervals say about claims, under every registered reading, one family of claims at a time.

reproduced     the claim holds under every core reading (a control: passes)
contradicted   it fails under every core reading (a control: fails)
depends        it holds under one reading, core or open, and fails under another
inconclusive   the intervals allow more than one of these
not tested     nothing was measured at a scale that speaks to the claim
unfinished     not all that was planned has been measured: no verdict yet

That all core readings agree is an intersection-union test: a claim's p is the largest of theirs, and Holm's correction
runs over the claims of the family. Whether readings differ is tested by Holm over the readings of the claim, at the
family's level divided by the number of its claims.

A reading is silent where its models are copies of their base (vacuous), or where it makes none (infeasible: it cannot
be what a paper that has models did). The other core readings decide, if they are at least half of all.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mgenb.claims.power import what_decides
from mgenb.claims.registry import NUMBER_KINDS, Claim, Reading, get, points
from mgenb.claims.scale import PROFILES, Scale, about, at_paper_scale, obstacle
from mgenb.errors import MgenbError
from mgenb.stats import NO_INTERVAL, Estimate, Interval

ALPHA = 0.05
SMALLEST_P = 1e-12
REPRODUCED, CONTRADICTED, DEPENDS, INCONCLUSIVE = "reproduced", "contradicted", "depends", "inconclusive"
PASSES, FAILS = "passes", "fails"
NOT_TESTED, UNFINISHED = "not tested", "unfinished"
SILENT = VACUOUS, INFEASIBLE = "vacuous", "infeasible"
JUDGED = (REPRODUCED, CONTRADICTED, DEPENDS, PASSES, FAILS, INCONCLUSIVE)  # the others are no evidence
NOVELTY_FLOOR = 0.1  # of the disagreement of two trained networks, below which a generated one is its base's copy
POINTS = ("percent points", "percent points of those images", "percent points of attack success")
RANGES = dict.fromkeys(POINTS, (-100.0, 100.0)) | dict.fromkeys(("% accuracy", "% of the examples"), (0.0, 100.0))

Evidence = Mapping[str, Mapping[str, Estimate | None]]  # claim id -> reading -> what was measured; None: infeasible


@dataclass(frozen=True)
class ReadingVerdict:
    """What one reading says: its estimate, and the interval at the level at which it was decided, in the claim's unit.

    `verdict` is reproduced, contradicted, inconclusive or vacuous; `p` the smallest level that decides it. What is
    infeasible has no estimate, and is named in the verdict's reason alone.
    """

    name: str
    core: bool
    verdict: str
    estimate: float
    low: float | None
    high: float | None
    n: int
    p: float


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict with the evidence behind it.

    `estimate`, `low`, `high` are of the core reading that speaks least for the verdict; the interval is the one that
    decided, after correction, in the claim's unit. `n` counts units of replication (`unit`); `p` is the smallest level
    at which the claim is decided. All None where nothing was tested. `readings` holds what each reading says.
    """

    claim: Claim
    verdict: str
    scale: Scale
    reason: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    p: float | None = None
    readings: tuple[ReadingVerdict, ...] = field(default=())

    @property
    def outcome(self) -> str:
        """The verdict with its scale: `verdict [scale]`; with how far it is where it is unfinished."""
        progress = f", {self.reason}" if self.verdict == UNFINISHED else ""
        return f"{self.verdict}{progress} [{self.scale}]"

    @property
    def token(self) -> str:
        """The line that notebooks print and nbval compares: `claim-id: verdict [scale]`."""
        return f"{self.claim.id}: {self.outcome}"

    @property
    def measured(self) -> str:
        """The estimate with the interval that decided, and the unit; of readings that differ, from which to which."""
        if self.estimate is None:
            return ""
        if self.verdict == DEPENDS:
            decided = [reading.estimate for reading in self.readings if reading.verdict in (REPRODUCED, CONTRADICTED)]
            return f"{min(decided):.2f} to {max(decided):.2f} {self.claim.unit}, by reading"
        ends = ("?" if end is None else f"{end:.2f}" for end in (self.low, self.high))
        return f"{self.estimate:.2f} [{', '.join(ends)}] {self.claim.unit}"

    @property
    def replicates(self) -> str:
        """How many units of replication there are, as "5 seeds"; "" where there are none."""
        return "" if self.estimate is None else f"{self.n} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON data: numbers are finite or None."""
        plain = {name: getattr(self, name) for name in ("verdict", "token", "n", "unit", "reason")}
        numbers = {name: finite(getattr(self, name)) for name in ("estimate", "low", "high", "p")}
        about = {"id": self.claim.id, "scale": asdict(self.scale), "margin": self.claim.margin}
        return {**about, **plain, **numbers, "readings": [asdict(reading) for reading in self.readings]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Verdict":
        """Return the verdict that `to_json` wrote; the claim is looked up in today's registry."""
        same = ("verdict", "reason", "estimate", "low", "high", "n", "unit", "p")
        readings = tuple(ReadingVerdict(**reading) for reading in data.get("readings", ()))
        plain = {name: data[name] for name in same}
        return cls(claim=get(data["id"]), scale=Scale(**data["scale"]), readings=readings, **plain)


def supported(claim: Claim) -> tuple[float, float]:
    """Return the span, in the claim's unit, in which the claim is true; ends may be infinite.

    A comparison and an existence lie above the smallest advantage that matters, non-inferiority above its negative.
    A bound has its margin where what is printed is rounded.
    """
    if claim.kind in ("comparison", "existence"):
        return claim.margin, math.inf
    if claim.kind == "noninferiority":
        return -claim.margin, math.inf
    if claim.kind == "equivalence":
        return -claim.margin, claim.margin
    if claim.paper_value is None or claim.kind not in (*NUMBER_KINDS, "bound"):
        raise MgenbError(f"claim {claim.id!r} is a {claim.kind}; it is not judged")
    if claim.kind == "bound":
        below = claim.direction == "below"
        return (-math.inf, claim.paper_value + claim.margin) if below else (claim.paper_value - claim.margin, math.inf)
    if claim.relative:
        return claim.paper_value / (1 + claim.margin), claim.paper_value * (1 + claim.margin)
    return claim.paper_value - claim.margin, claim.paper_value + claim.margin


def decide(claim: Claim, interval: Interval) -> str:
    """Return "reproduced", "contradicted" or "inconclusive" for an interval in the claim's unit."""
    (low, high), (least, most) = interval, supported(claim)
    if high < least or low > most:
        return CONTRADICTED
    return REPRODUCED if least <= low and high <= most else INCONCLUSIVE


def p_value(claim: Claim, estimate: Estimate) -> float:
    """Return the smallest alpha in [1e-12, 1] at which the interval of level 1 - alpha decides the claim.

    Found by bisection, which needs nested intervals; 1.0 when no level decides.
    """
    low, high = math.log(SMALLEST_P), math.log(1 - 1e-9)
    if _decided(claim, estimate, math.exp(low)):
        return SMALLEST_P
    if not _decided(claim, estimate, math.exp(high)):
        return 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if _decided(claim, estimate, math.exp(middle)) else (middle, high)
    return math.exp(high)


def _decided(claim: Claim, estimate: Estimate, alpha: float) -> bool:
    return decide(claim, estimate.interval(1 - alpha)) != INCONCLUSIVE


@dataclass(frozen=True)
class _Tested:
    """A reading of a claim with what it says by itself."""

    reading: Reading
    estimate: Estimate
    p: float
    says: str  # what it says at level 1 - p; inconclusive where no level decides

    @classmethod
    def of(cls, claim: Claim, reading: Reading, estimate: Estimate | None, *, vacuous: bool) -> "_Tested":
        if estimate is None:
            return cls(reading, Estimate(math.nan, 0, "", "none", lambda level: NO_INTERVAL), 1.0, INFEASIBLE)
        p = 1.0 if vacuous else p_value(claim, estimate)
        says = VACUOUS if vacuous else decide(claim, estimate.interval(1 - p)) if p < 1 else INCONCLUSIVE
        return cls(reading, estimate, p, says)


def judge(
    evidence: Evidence,
    scales: Mapping[str, Scale],
    *,
    blocked: Mapping[str, str] | None = None,
    vacuous: Iterable[tuple[str, str]] = (),
    unfinished: str = "",
) -> list[Verdict]:
    """Return a verdict for each claim (of one notebook) with evidence or a reason against it, in the order given.

    `evidence` holds, by claim and reading, estimates in the claim's unit; None where a reading gave no models.
    `scales` says what was run. `blocked` maps ids to the reason why they cannot be tested (a base model below its
    accuracy floor). `vacuous` names claims and readings whose models hardly differ from their base. `unfinished` says,
    as "7 of 12 parts", how much of the plan has been measured where that is not all: then what could be tested is
    *unfinished*.

    Of a family (the paper's claims of one notebook, its controls, or what follows from other claims) at most 5 % are
    expected to hold a false verdict: *reproduced* or *contradicted* though not all core readings are so, *depends*
    though all readings agree.
    """
    blocked, empty = blocked or {}, frozenset(vacuous)
    claims = {name: get(name) for name in {**evidence, **blocked}}
    reasons = {name: blocked.get(name) or obstacle(claim, scales[name]) for name, claim in claims.items()}
    verdicts = {name: Verdict(claims[name], NOT_TESTED, scales[name], why) for name, why in reasons.items() if why}
    families: dict[tuple[bool, str], list[str]] = {}
    for name in (name for name in evidence if name not in verdicts):
        if unfinished:
            verdicts[name] = Verdict(claims[name], UNFINISHED, scales[name], unfinished)
        else:
            families.setdefault((claims[name].control, claims[name].family), []).append(name)
    for family in families.values():
        tested = {name: _tested(claims[name], evidence[name], empty) for name in family}
        verdicts |= {verdict.claim.id: verdict for verdict in _family(claims, tested, scales)}
    return [verdicts[name] for name in claims]


def _tested(
    claim: Claim, by_reading: Mapping[str, Estimate | None], vacuous: frozenset[tuple[str, str]]
) -> list[_Tested]:
    for name in by_reading:
        claim.reading(name)  # refuses a reading that is not registered
    known = [reading for reading in claim.readings if reading.name in by_reading]
    return [_Tested.of(claim, r, by_reading[r.name], vacuous=(claim.id, r.name) in vacuous) for r in known]


def _family(
    claims: Mapping[str, Claim], tested: Mapping[str, Sequence[_Tested]], scales: Mapping[str, Scale]
) -> Iterable[Verdict]:
    agreed = {name: _agreed(claims[name], readings) for name, readings in tested.items()}
    levels = _levels([p for _, p in agreed.values()], ALPHA)
    for (name, (word, p)), alpha in zip(agreed.items(), levels, strict=True):
        said = word if p <= alpha else INCONCLUSIVE
        yield _verdict(claims[name], said, tested[name], scales[name], alpha, ALPHA / len(tested))


def _agreed(claim: Claim, readings: Sequence[_Tested]) -> tuple[str, float]:
    """Return what all core readings that are not silent say, and the largest of their p.

    Inconclusive and 1 where they do not agree, one has no evidence, or more than half of all core readings are silent.
    """
    core = [tested for tested in readings if tested.reading.core]
    speaking = [tested for tested in core if tested.says not in SILENT]
    words = {tested.says for tested in speaking}
    enough = len(core) == sum(reading.core for reading in claim.readings) <= 2 * len(speaking)
    if not enough or len(words) != 1 or not words <= {REPRODUCED, CONTRADICTED}:
        return INCONCLUSIVE, 1.0
    return words.pop(), max(tested.p for tested in speaking)


def _levels(p: Sequence[float], alpha: float) -> list[float]:
    """Return the level against which Holm's step-down holds each; after the first failure, that of the failure."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    levels, failed = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        level = failed or alpha / (len(p) - rank)
        levels[i] = level
        failed = failed or (level if p[i] > level else 0.0)
    return levels


def _verdict(
    claim: Claim, word: str, tested: Sequence[_Tested], scale: Scale, alpha: float, alpha_of_readings: float
) -> Verdict:
    alone = _alone(claim, tested, alpha_of_readings)
    words = [reading.verdict for reading in alone]
    notes = []
    if REPRODUCED in words and CONTRADICTED in words:
        word = DEPENDS
        notes.append(_deciding_choice(claim, alone))
    elif word == INCONCLUSIVE:
        notes += _how_open(claim, tested, alone, alpha)
    elif word == CONTRADICTED and claim.kind == "comparison":
        notes.append(_how_far(claim, tested))
    notes += _silent(tested)
    if not at_paper_scale(claim, scale):
        notes.append(f"at reduced scale [{scale}]: {scale.dataset}, {scale.arch} (the paper: {about(claim)})")
    if claim.control:
        word = {REPRODUCED: PASSES, CONTRADICTED: FAILS}.get(word, word)
    least = _speaks_least(tested)
    estimate, p = least.estimate, _agreed(claim, tested)[1]
    why = "; ".join(note for note in notes if note)
    measured = (estimate.estimate, *_ends(claim, estimate, alpha), estimate.n, estimate.unit, p)
    return Verdict(claim, word, scale, why, *measured, readings=tuple(alone))


def _alone(claim: Claim, tested: Sequence[_Tested], alpha: float) -> list[ReadingVerdict]:
    """Return what each reading that has an estimate says, corrected for their number at the level `alpha`."""
    tested, verdicts = [reading for reading in tested if reading.says != INFEASIBLE], []
    for reading, level in zip(tested, _levels([reading.p for reading in tested], alpha), strict=True):
        word = reading.says if reading.says == VACUOUS or reading.p <= level else INCONCLUSIVE
        measured = (reading.estimate.estimate, *_ends(claim, reading.estimate, level), reading.estimate.n, reading.p)
        verdicts.append(ReadingVerdict(reading.reading.name, reading.reading.core, word, *measured))
    return verdicts


def _ends(claim: Claim, estimate: Estimate, alpha: float) -> tuple[float | None, float | None]:
    """Return the ends of an interval, cut to what is possible in the claim's unit; None where there is no end."""
    least, most = RANGES.get(claim.unit, NO_INTERVAL)
    low, high = map(finite, estimate.interval(1 - alpha))
    return (None if low is None else max(low, least)), (None if high is None else min(high, most))


def _speaks_least(tested: Sequence[_Tested]) -> _Tested:
    """Return the core reading with the largest p, of those that are not silent if there are any, else the first."""
    core = [reading for reading in tested if reading.reading.core] or list(tested)
    core = [reading for reading in core if reading.says not in SILENT] or core
    return max(core, key=lambda reading: reading.p)


def _deciding_choice(claim: Claim, alone: Sequence[ReadingVerdict]) -> str:
    """Say which point separates readings that hold from those that fail without exception."""
    for name, point in points(claim.paper).items():
        levels: dict[str, set[str]] = {REPRODUCED: set(), CONTRADICTED: set()}
        for reading in alone:
            if reading.verdict in levels:
                levels[reading.verdict].add(claim.reading(reading.name).choices.get(name, point.default))
        holds, fails = levels[REPRODUCED], levels[CONTRADICTED]
        if not holds & fails:
            return f"on {point.what}: holds for {_listed(holds)}, fails for {_listed(fails)}"
    return "on no single choice"


def _listed(levels: Iterable[str]) -> str:
    return ", ".join(sorted(levels)).replace("_", " ")


def _silent(tested: Sequence[_Tested]) -> Iterable[str]:
    """Say which core readings do not speak, and why."""
    for word, why in {VACUOUS: "copies of their base", INFEASIBLE: "no models"}.items():
        if names := [f"*{r.reading.name}*" for r in tested if r.reading.core and r.says == word]:
            yield f"{why} under {'; '.join(names)}"


def _how_open(claim: Claim, tested: Sequence[_Tested], alone: Sequence[ReadingVerdict], alpha: float) -> Iterable[str]:
    core = [reading for reading in alone if reading.core]
    registered = sum(reading.core for reading in claim.readings)
    counted = {word: sum(r.verdict == word for r in core) for word in (REPRODUCED, CONTRADICTED, VACUOUS)}
    counted[INFEASIBLE] = sum(r.reading.core and r.says == INFEASIBLE for r in tested)
    if registered > 1 or counted[VACUOUS]:
        how_many = [f"{counted[REPRODUCED]} of {registered} core readings reproduced"]
        how_many += [f"{counted[CONTRADICTED]} contradicted"]
        counted["without evidence"] = registered - len(core) - counted[INFEASIBLE]
        how_many += [f"{counted[word]} {word}" for word in (*SILENT, "without evidence") if counted[word]]
        yield ", ".join(how_many)
    undecided = [r.estimate for r in tested if r.reading.core and r.p > alpha and r.says not in SILENT]
    if undecided:
        yield what_decides(supported(claim), undecided, alpha, claim.unit)


def _how_far(claim: Claim, tested: Sequence[_Tested]) -> str:
    """Say of a comparison that is contradicted whether a smaller advantage, or a disadvantage, is there."""
    core = [reading for reading in tested if reading.reading.core and reading.says not in SILENT]
    ends = [reading.estimate.interval(1 - ALPHA) for reading in core]
    if all(low > 0 for low, _ in ends):
        return f"there is an advantage, but of less than {claim.margin:g} {claim.unit}"
    return "a disadvantage" if all(high < 0 for _, high in ends) else "no relevant advantage"


def rank(verdict: Verdict) -> tuple[bool, int, bool]:
    """Return what orders verdicts, best evidence first: paper, cpu, quick; official data; what was not judged last."""
    return verdict.verdict not in JUDGED, PROFILES.index(verdict.scale.profile), verdict.scale.variant != "official"


def finite(number: float | None) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return None if number is None or not math.isfinite(number) else float(number)
