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

    blocked: why it proves nothing all the same; "" where it does.
    """

    estimate: stats.Estimate
    places: tuple[Place, ...] = ()
    blocked: str = ""


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

    `bases` holds the base networks by place, the first ones first. Where something stands in the way of a claim (see
    `_blocked`) it and its readings are *not tested*.
    """
    if not bases:
        raise MgenbError("no base networks were made: call run.bases before run.verdicts")
    judged = [claim for claim in family if claim.kind != "setting"]
    measured, untested = evidence.measured, evidence.untested
    blocked = {claim.id: _blocked(claim, evidence, bases) for claim in judged}
    verdicts = claims.judge(
        {claim.id: measured[claim.id].estimate for claim in judged if claim.id in measured},
        {claim.id: _scale(claim, measured.get(claim.id), bases) for claim in judged},
        {name: why if name in (*measured, *untested) else telling.UNTRIED for name, why in blocked.items()},
        evidence.unfinished,
    )
    otherwise = claims.UNFINISHED if evidence.unfinished else ""
    readings = [
        _reading(claims.get(name), reading, estimate, claims.NOT_TESTED if blocked[name] else otherwise)
        for (name, reading), estimate in evidence.readings.items()
    ]
    return Judged(tuple(verdicts), tuple(readings))


def nothing_to_judge(bases: Sequence[Bases], differ: bool, left: float) -> str:
    """Return why a measurement on `bases` proves nothing; "" where it does.

    `differ`: whether the generated models differ from their base. `left`: the test accuracy of the better of two
    methods that are compared; at chance there is nothing left to compare.
    """
    if not differ:
        return "generated models do not differ from the base"
    at_chance = bases and left < bases[0].chance + AT_CHANCE
    return f"both at chance: at most {100 * left:.1f} % are right" if at_chance else ""


def _places(measured: Measured | None, bases: Mapping[Place, Bases]) -> Sequence[Place]:
    return measured.places if measured and measured.places else list(bases)[:1]


def _blocked(claim: claims.Claim, evidence: Evidence, bases: Mapping[Place, Bases]) -> str:
    """Return why a claim is not tested, whatever was measured for it; "" where nothing is in the way.

    The notebook says so, what was measured proves nothing, or all base networks behind it are unfit.
    """
    measured = evidence.measured.get(claim.id)
    unfit = [bases[place].unfit for place in _places(measured, bases)]
    of_bases = unfit[0] if all(unfit) and not claim.counted else ""
    return evidence.untested.get(claim.id) or (measured.blocked if measured else "") or of_bases


def _scale(claim: claims.Claim, measured: Measured | None, bases: Mapping[Place, Bases]) -> claims.Scale:
    """Return the scale of a claim's evidence: of several networks all names, and the data furthest from official."""
    scales = [bases[place].scale for place in _places(measured, bases)]
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
