"""What was measured: estimates by claim and reading, and reasons, stored as they come and judged all at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mgenb import claims, stats
from mgenb.errors import MgenbError
from mgenb.lab import telling

Place = tuple[str, str]  # dataset and architecture of base networks

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
    """What was measured for a claim under one reading, on the networks at `places` (none: the first ones).

    estimate: None where the reading gave no models (infeasible). blocked: why it proves nothing all the same; "" where
    it does. vacuous: the models are nearly copies of their base.
    """

    estimate: stats.Estimate | None
    places: tuple[Place, ...] = ()
    blocked: str = ""
    vacuous: bool = False


@dataclass
class Evidence:
    """What a notebook measured, by claim and reading; a cell that is run again overwrites what it said."""

    measured: dict[tuple[str, str], Measured] = field(default_factory=dict)
    untested: dict[str, str] = field(default_factory=dict)
    unfinished: str = ""  # as "7 of 12 parts", where not all that was planned has been measured

    def of(self, claim: claims.Claim) -> dict[str, Measured]:
        """Return reading -> what was measured for the claim."""
        return {reading: measured for (name, reading), measured in self.measured.items() if name == claim.id}


def judge(
    family: Sequence[claims.Claim], evidence: Evidence, bases: Mapping[Place, Bases]
) -> tuple[claims.Verdict, ...]:
    """Judge the claims of a notebook together, in their order; settings are not judged.

    `bases` holds the base networks by place, the first ones first. Where something stands in the way of a claim (see
    `_blocked`) it is *not tested*; a reading that proves nothing is left out.
    """
    if not bases:
        raise MgenbError("no base networks were made: call run.rest_on before run.verdicts")
    judged = [claim for claim in family if claim.kind != "setting"]
    measured = {claim.id: evidence.of(claim) for claim in judged}
    blocked = {claim.id: _blocked(claim, measured[claim.id], evidence, bases) for claim in judged}
    sound = {name: {r: m for r, m in readings.items() if not m.blocked} for name, readings in measured.items()}
    verdicts = claims.judge(
        {name: {r: m.estimate for r, m in readings.items()} for name, readings in sound.items() if readings},
        {claim.id: _scale(claim, measured[claim.id].values(), bases) for claim in judged},
        blocked={name: why for name, why in blocked.items() if why},
        vacuous=[(name, r) for name, readings in sound.items() for r, m in readings.items() if m.vacuous],
        unfinished=evidence.unfinished,
    )
    by_claim = {verdict.claim.id: verdict for verdict in verdicts}
    return tuple(by_claim[claim.id] for claim in judged)


def _at_chance(bases: Sequence[Bases], left: float) -> str:
    """Return that nothing is left to compare where `left`, the accuracy of the better of two, is chance; else ""."""
    at_chance = bases and left < bases[0].chance + AT_CHANCE
    return f"both at chance: at most {100 * left:.1f} % are right" if at_chance else ""


def measured_on(
    bases: Mapping[Place, Bases],
    places: tuple[Place, ...],
    estimate: stats.Estimate | None,
    left: float,
    novelty: float,
) -> Measured:
    """Return what was measured on the networks at `places`.

    `left`: the test accuracy of the better of two methods that are compared. `novelty`: disagreement of the models
    with their base, in that of two trained networks; see `claims.NOVELTY_FLOOR`.
    """
    blocked = _at_chance([bases[place] for place in places], left)
    return Measured(estimate, places, blocked, novelty < claims.NOVELTY_FLOOR)


def _places(measured: Iterable[Measured], bases: Mapping[Place, Bases]) -> Sequence[Place]:
    places = dict.fromkeys(place for reading in measured for place in reading.places)
    return list(places) or list(bases)[:1]


def _blocked(
    claim: claims.Claim, measured: Mapping[str, Measured], evidence: Evidence, bases: Mapping[Place, Bases]
) -> str:
    """Return why a claim is not tested, whatever was measured for it; "" where nothing is in the way.

    The notebook says so, nothing that was measured proves anything, or all base networks behind it are unfit.
    """
    if claim.id in evidence.untested:
        return evidence.untested[claim.id]
    if not measured:
        return telling.UNTRIED
    if all(reading.estimate is None for reading in measured.values()):
        return "no model was accepted under any reading"
    unfit = [bases[place].unfit for place in _places(measured.values(), bases)]
    if all(unfit) and not claim.counted:
        return unfit[0]
    reasons = [reading.blocked for reading in measured.values()]
    return reasons[0] if all(reasons) else ""


def _scale(claim: claims.Claim, measured: Iterable[Measured], bases: Mapping[Place, Bases]) -> claims.Scale:
    """Return the scale of a claim's evidence: of several networks all names, and the data furthest from official."""
    scales = [bases[place].scale for place in _places(measured, bases)]
    if claim.counted:
        return claims.Scale(scales[0].profile, "no data", "none", str(claim.scale.get("arch", "any")))
    names = {key: ", ".join(dict.fromkeys(getattr(scale, key) for scale in scales)) for key in ("dataset", "arch")}
    return replace(max(scales, key=lambda scale: VARIANTS.index(scale.variant)), **names)
