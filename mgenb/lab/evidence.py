"""What was found: estimates, readings and reasons, stored as they come and judged all at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mgenb import claims, stats
from mgenb.claims.verdicts import finite
from mgenb.errors import MgenbError
from mgenb.lab import telling

Place = tuple[str, str]  # dataset and architecture of base networks
Look = Mapping[Any, torch.Tensor]  # (method, base index, draw) -> which test images are right

VARIANTS = ("official", "jpeg", "subset", "user", "sample")  # furthest from what the paper used last
AT_CHANCE = 0.05  # an accuracy that is less than this above chance is chance


@dataclass(frozen=True)
class Bases:
    """Base networks as claims see them: their scale, accuracy by chance, and the floor they must reach, in [0, 1].

    `test_accuracy` is empty until the final test has looked at the images of their classes.
    """

    scale: claims.Scale
    chance: float
    floor: float
    val_accuracy: tuple[float, ...]
    test_accuracy: tuple[float, ...] = ()

    @property
    def unfit(self) -> str:
        """Why they prove nothing; "" where they are sound, on validation and, once it is known, on test."""
        for images, accuracies in (("validation", self.val_accuracy), ("test", self.test_accuracy)):
            lowest = min(accuracies, default=1.0)
            if lowest < self.floor:
                return f"a base network has {100 * lowest:.1f} % on {images}, below the floor of {100 * self.floor:g} %"
            if lowest < self.chance + AT_CHANCE:
                return f"a base network has {100 * lowest:.1f} % on {images}, which is chance"
        return ""


@dataclass(frozen=True)
class Measured:
    """What was measured for a claim, on the networks at `places` (none: the first ones).

    `differ`: whether the generated models differ from their base. `left`: the test accuracy, in [0, 1], of the
    better of two methods that are compared.
    """

    estimate: stats.Estimate
    places: tuple[Place, ...] = ()
    differ: bool = True
    left: float = 1.0


@dataclass
class Evidence:
    """What a notebook found, by claim; a cell that is run again overwrites what it said."""

    measured: dict[str, Measured] = field(default_factory=dict)
    readings: dict[tuple[str, str], stats.Estimate] = field(default_factory=dict)
    untested: dict[str, str] = field(default_factory=dict)
    unfinished: str = ""  # as "7 of 12 parts", where not all that was planned has been measured


@dataclass(frozen=True)
class Judged:
    """The verdicts of a notebook's claims, and what each reading alone would say (without Holm), as JSON rows."""

    verdicts: tuple[claims.Verdict, ...] = ()
    readings: tuple[dict[str, Any], ...] = ()


def judge(family: Sequence[claims.Claim], evidence: Evidence, bases: Mapping[Place, Bases]) -> Judged:
    """Judge the claims of a notebook as one family (Holm), in their order; settings are not judged.

    `bases` holds the base networks by place, the first ones first. Where those behind a claim are unfit, or the
    methods that it compares are both at chance, the claim and its readings are *not tested*.
    """
    if not bases:
        raise MgenbError("no base networks were made: call run.bases before run.verdicts")
    judged = {claim.id: claim for claim in family if claim.kind != "setting"}
    measured = {name: evidence.measured[name] for name in judged if name in evidence.measured}
    obstacles = {name: _obstacle(claim, evidence, bases) for name, claim in judged.items()}
    tried = {*measured, *evidence.untested}
    verdicts = claims.judge(
        {name: found.estimate for name, found in measured.items()},
        {name: _scale(claim, measured.get(name), bases) for name, claim in judged.items()},
        blocked={name: reason if name in tried else telling.UNTRIED for name, reason in obstacles.items()},
        differ={name: found.differ for name, found in measured.items()},
        unfinished=evidence.unfinished,
    )
    blocked = {name for name in judged if obstacles[name] or (name in measured and not measured[name].differ)}
    unfinished = claims.UNFINISHED if evidence.unfinished else ""
    readings = (
        _reading(judged[name], reading, estimate, claims.NOT_TESTED if name in blocked else unfinished)
        for (name, reading), estimate in evidence.readings.items()
    )
    order = list(judged)
    return Judged(tuple(sorted(verdicts, key=lambda verdict: order.index(verdict.claim.id))), tuple(readings))


def _places(found: Measured | None, bases: Mapping[Place, Bases]) -> Sequence[Place]:
    return found.places if found and found.places else list(bases)[:1]


def _obstacle(claim: claims.Claim, evidence: Evidence, bases: Mapping[Place, Bases]) -> str:
    """Return why a claim is not tested, whatever was measured for it; "" where nothing is in the way."""
    if claim.id in evidence.untested:
        return evidence.untested[claim.id]
    found = evidence.measured.get(claim.id)
    behind = [bases[place] for place in _places(found, bases)]
    if found and found.left < behind[0].chance + AT_CHANCE:
        return f"both at chance: at most {100 * found.left:.1f} % are right"
    reasons = [networks.unfit for networks in behind]
    return reasons[0] if all(reasons) and not claim.counted else ""


def _scale(claim: claims.Claim, found: Measured | None, bases: Mapping[Place, Bases]) -> claims.Scale:
    """Return the scale of a claim's evidence: of several networks all names, and the data furthest from official."""
    scales = [bases[place].scale for place in _places(found, bases)]
    if claim.counted:
        return claims.Scale(scales[0].profile, "no data", "none", str(claim.scale.get("arch", "any")))
    names = {key: ", ".join(dict.fromkeys(getattr(scale, key) for scale in scales)) for key in ("dataset", "arch")}
    return replace(max(scales, key=lambda scale: VARIANTS.index(scale.variant)), **names)


def _reading(claim: claims.Claim, reading: str, estimate: stats.Estimate, instead: str) -> dict[str, Any]:
    low, high = estimate.interval()
    verdict = instead or claims.decide(claim, (low, high))
    measured = {"estimate": estimate.estimate, "low": finite(low), "high": finite(high)}
    return {"claim": claim.id, "reading": reading, **measured, "verdict": verdict}


def points_lost(look: Look, method: str) -> np.ndarray:
    """Return the points of accuracy that `method` lost against the base, float64, one number a base network.

    `look` maps (label, base index, draw) to which images are right, and holds ("base", index, 0) for every
    base; the draws of one base are averaged, since they are not independent.
    """
    hits = {key: 100 * right.double().mean().item() for key, right in look.items()}
    lost = []
    for index in sorted({base for _, base, _ in look}):
        draws = [hit for (label, base, _), hit in hits.items() if (label, base) == (method, index)]
        lost.append(hits["base", index, 0] - np.mean(draws))
    return np.array(lost)


def compared(look: Look, better: str, worse: str) -> tuple[stats.Estimate, float]:
    """Return how many points more `worse` loses than `better` (see `points_lost`), and the higher accuracy."""
    rights = {name: [right for (label, *_), right in look.items() if label == name] for name in (better, worse)}
    left = max(float(np.mean([right.double().mean() for right in looked])) for looked in rights.values())
    return stats.paired(points_lost(look, worse), points_lost(look, better)), left
