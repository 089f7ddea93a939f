"""The verdict rule: what an interval says about a claim, one family of claims at a time.

reproduced     the interval supports the claim
contradicted   the interval excludes it, or any advantage that matters
inconclusive   the interval allows both
not tested     nothing was measured at a scale that speaks to the claim
unfinished     not all that was planned has been measured: no verdict yet
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mgenb.claims.registry import NUMBER_KINDS, Claim, get
from mgenb.errors import MgenbError
from mgenb.stats import Estimate, Interval, holm

ALPHA = 0.05
SMALLEST_P = 1e-12
PROFILES = ("paper", "cpu", "quick")  # best evidence first
NOT_TESTED = "not tested"
UNFINISHED = "unfinished"
JUDGED = ("reproduced", "contradicted", "inconclusive")  # the others are no evidence
WHOLE = ("official", "jpeg")  # variants with all the images of the official set


@dataclass(frozen=True)
class Scale:
    """What was run: profile ("quick", "cpu", "paper"), data variant ("official", "jpeg", "sample", ...).

    `changed` names the parameters that were set by hand, as "t=0.99": a claim judged so is told apart.
    """

    profile: str
    variant: str
    dataset: str
    arch: str
    changed: str = ""

    def __str__(self) -> str:
        variant = "" if self.variant == "official" else self.variant
        return ", ".join(part for part in (self.profile, variant, self.changed) if part)


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict with the evidence behind it.

    `low` and `high` are the 95 % interval in the claim's unit; `n` counts units of replication (`unit`);
    `p` is the smallest level at which the claim is decided. All None where nothing was tested.
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

    @property
    def outcome(self) -> str:
        """The verdict with its scale: `verdict [scale]`; with how far it is where it is unfinished."""
        progress = f", {self.reason}" if self.verdict == UNFINISHED else ""
        return f"{self.verdict}{progress} [{self.scale}]"

    @property
    def token(self) -> str:
        """The line that notebooks print and nbval compares: `claim-id: verdict [scale]`."""
        return f"{self.claim.id}: {self.outcome}"

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON data: numbers are finite or None."""
        plain = {name: getattr(self, name) for name in ("verdict", "token", "n", "unit", "reason")}
        plain |= {name: finite(getattr(self, name)) for name in ("estimate", "low", "high", "p")}
        return {"id": self.claim.id, "scale": asdict(self.scale), "margin": self.claim.margin, **plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Verdict":
        """Return the verdict that `to_json` wrote; the claim is looked up in today's registry."""
        same = ("verdict", "reason", "estimate", "low", "high", "n", "unit", "p")
        return cls(claim=get(data["id"]), scale=Scale(**data["scale"]), **{name: data[name] for name in same})


def decide(claim: Claim, interval: Interval) -> str:
    """Return "reproduced", "contradicted" or "inconclusive" for an interval in the claim's unit."""
    (low, high), (least, most, too_low) = interval, _ranges(claim)
    # In this order: an advantage that is real but too small to matter does not reproduce the claim.
    if high < too_low or low > most:
        return "contradicted"
    one_sided = claim.kind in ("comparison", "trend", "existence")
    supported = low > least if one_sided else least <= low and high <= most
    return "reproduced" if supported else "inconclusive"


def _ranges(claim: Claim) -> tuple[float, float, float]:
    """Return the range that an interval must lie in to reproduce the claim, and the value below which it contradicts.

    An interval above the range contradicts as well.
    """
    if claim.kind in ("comparison", "trend"):
        return 0.0, math.inf, claim.margin
    if claim.kind == "existence":
        return claim.margin, math.inf, claim.margin
    centre = 0.0 if claim.kind == "equivalence" else claim.paper_value
    if centre is None or claim.kind == "setting":
        raise MgenbError(f"claim {claim.id!r} is not judged: it is a setting, or its number is not transcribed")
    if claim.kind == "bound":
        return (-math.inf, centre, -math.inf) if claim.direction == "below" else (centre, math.inf, centre)
    return centre - claim.margin, centre + claim.margin, centre - claim.margin


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


def judge(
    evidence: Mapping[str, Estimate],
    scale: Scale | Mapping[str, Scale],
    blocked: Mapping[str, str] | None = None,
    unfinished: str = "",
) -> list[Verdict]:
    """Return a verdict for each claim of a family (the claims of one notebook), in the order of `blocked`, `evidence`.

    `evidence` maps claim ids to estimates in the claim's unit. `scale` is what was run, one for all or one
    for each id. `blocked` maps ids to the reason why they cannot be tested (a base model below its accuracy
    floor), "" where there is none. `unfinished` says, as "7 of 12 parts", how much of the plan has been measured where
    that is not all: then what could be tested is *unfinished*, whatever the evidence.

    Holm's step-down over the claims that can be tested, false-verdict rate at most 5 % for the family: the
    k-th smallest p of m is held against 0.05 / (m - k + 1), and once one fails, it and the rest are
    inconclusive.
    """
    claims = {name: get(name) for name in {**(blocked or {}), **evidence}}
    scales = {name: scale if isinstance(scale, Scale) else scale[name] for name in claims}
    reasons = {name: (blocked or {}).get(name) or _obstacle(claim, scales[name]) for name, claim in claims.items()}
    verdicts = {name: Verdict(claim, NOT_TESTED, scales[name], reasons[name]) for name, claim in claims.items()}
    family = {name: estimate for name, estimate in evidence.items() if not reasons[name]}
    if unfinished:
        verdicts |= {name: Verdict(get(name), UNFINISHED, scales[name], unfinished) for name in family}
    else:
        verdicts |= {verdict.claim.id: verdict for verdict in _family_verdicts(family, scales)}
    return list(verdicts.values())


def rank(verdict: Verdict) -> tuple[bool, int, bool]:
    """Return what orders verdicts, best evidence first: paper, cpu, quick; official data; what was not judged last."""
    return verdict.verdict not in JUDGED, PROFILES.index(verdict.scale.profile), verdict.scale.variant != "official"


def _family_verdicts(family: Mapping[str, Estimate], scales: Mapping[str, Scale]) -> Iterator[Verdict]:
    p = [p_value(get(name), estimate) for name, estimate in family.items()]
    passed = holm(p) <= ALPHA
    for (name, estimate), p_own, decided in zip(family.items(), p, passed, strict=True):
        # A comparison can turn from "above 0" to "below the margin" as its interval shrinks. So it is
        # read at the family's strictest level, or at the first level that decides it.
        alpha = max(p_own, ALPHA / len(p)) if decided else ALPHA / (len(p) - int(passed.sum()))
        claim, interval = get(name), estimate.interval(1 - alpha)
        verdict = decide(claim, interval) if decided else "inconclusive"
        why = _why(claim, verdict, scales[name], estimate, interval)
        low, high = estimate.interval(0.95)
        yield Verdict(claim, verdict, scales[name], why, estimate.estimate, low, high, estimate.n, estimate.unit, p_own)


def _why(claim: Claim, verdict: str, scale: Scale, estimate: Estimate, interval: Interval) -> str:
    notes = []
    if verdict == "inconclusive":
        notes.append(_what_it_takes(claim, estimate, interval))
    elif verdict == "contradicted" and claim.kind in ("comparison", "trend"):
        notes.append("a disadvantage" if interval[1] < 0 else "no relevant advantage")
    if not _at_paper_scale(claim, scale):
        notes.append(f"at reduced scale [{scale}]: {scale.dataset}, {scale.arch} (the paper: {_about(claim)})")
    return "; ".join(notes)


def _obstacle(claim: Claim, scale: Scale) -> str:
    """Say why the claim cannot be judged at this scale; "" when it can."""
    if claim.kind not in NUMBER_KINDS:
        return ""
    if not claim.transcribed or claim.paper_value is None:
        return "the paper's number is not transcribed"
    return "" if _at_paper_scale(claim, scale) else f"needs the paper's own scale: {_about(claim)}, profile paper"


def _at_paper_scale(claim: Claim, scale: Scale) -> bool:
    """Whether profile, data, network and parameters are the paper's; what is not known never matches."""
    same = all(claim.scale.get(key) in ("any", getattr(scale, key)) for key in ("dataset", "arch"))
    return claim.counted or (same and scale.profile == "paper" and scale.variant in WHOLE and not scale.changed)


def _about(claim: Claim) -> str:
    dataset, arch = (claim.scale.get(key, "not transcribed") for key in ("dataset", "arch"))
    return f"dataset {dataset}, network {arch}"


def _what_it_takes(claim: Claim, estimate: Estimate, interval: Interval) -> str:
    """Tell the smallest effect that this design could have seen, and about how much more data decides."""
    half = (interval[1] - interval[0]) / 2
    if not math.isfinite(half):
        return f"{estimate.n} {estimate.unit} give no interval; more are needed"
    smallest = half if claim.kind in ("comparison", "trend", "bound") else half + claim.margin
    seen = f"could have seen an effect of {smallest:.2g} {claim.unit}".rstrip()
    least, most, too_low = _ranges(claim)
    value = estimate.estimate
    widest = max(min(value - least, most - value), too_low - value, value - most)  # half an interval that decides
    if widest <= 0:
        return f"{seen}; the estimate lies on the boundary, which more {estimate.unit} may not leave"
    needed = max(_round_up(estimate.n * (half / widest) ** 2), estimate.n + 1)
    return f"{seen}; about {needed} {estimate.unit} would decide it"


def _round_up(number: float) -> int:
    """Round up to 2 significant digits."""
    step = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / step) * step


def _decided(claim: Claim, estimate: Estimate, alpha: float) -> bool:
    return decide(claim, estimate.interval(1 - alpha)) != "inconclusive"


def finite(number: float | None) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return None if number is None or not math.isfinite(number) else float(number)
