"""How much more would decide a claim: the number of repeats, from Student's t and the level that is asked for."""

import math
from bisect import bisect_left
from collections.abc import Sequence

import scipy

from mgenb.stats import Estimate, Interval

POWER = 0.8  # of a repeat of the experiment, were the truth what was estimated
MOST = 100_000


def what_decides(span: Interval, estimates: Sequence[Estimate], alpha: float, unit: str) -> str:
    """Say how many repeats would decide whether the truths lie in `span`, each at level `alpha`, in 80 % of cases.

    `estimates` are of the readings that are not decided, and are taken for the truth; `span` and they are in `unit`.
    """
    power = 1 - (1 - POWER) / len(estimates)  # all of them are to be decided
    needed = [_needed(span, estimate, alpha, power) for estimate in estimates]
    first = estimates[0]
    if any(number is None for number in needed):
        return f"an estimate lies on the boundary, which more {first.unit} may not leave"
    if any(math.isinf(_half(estimate, alpha)) for estimate in estimates):
        return f"{first.n} {first.unit} give no interval; more are needed"
    count = max(max(number for number in needed if number), first.n + 1)
    seen = max(_half(estimate, alpha) for estimate in estimates)
    return f"could have seen {seen:.2g} {unit}".rstrip() + f"; about {_round_up(count)} {first.unit} would decide it"


def _half(estimate: Estimate, alpha: float) -> float:
    low, high = estimate.interval(1 - alpha)
    return (high - low) / 2


def _needed(span: Interval, estimate: Estimate, alpha: float, power: float) -> int | None:
    """Return the smallest n at which a t interval leaves the ends of `span` with this power; None where none does."""
    reach = min((abs(end - estimate.estimate) for end in span if math.isfinite(end)), default=math.inf)
    deviation = _deviation(estimate)
    if reach == 0 or deviation is None:
        return None if reach == 0 else estimate.n + 1

    def enough(n: int) -> bool:
        limit = float(scipy.stats.t.ppf(1 - alpha / 2, n - 1))
        return float(scipy.stats.nct.sf(limit, n - 1, reach * math.sqrt(n) / deviation)) >= power

    most = 3
    while not enough(most):
        if most > MOST:
            return None
        most *= 2
    return bisect_left(range(most), True, most // 2 + 1, key=enough)


def _deviation(estimate: Estimate) -> float | None:
    """Return the standard deviation of one unit, read off the 68 % interval; None where there is no interval."""
    level = 0.68
    half = _half(estimate, 1 - level)
    if not math.isfinite(half) or estimate.n < 2:
        return None
    return half / float(scipy.stats.t.ppf((1 + level) / 2, estimate.n - 1)) * math.sqrt(estimate.n)


def _round_up(number: float) -> int:
    """Round up to 2 significant digits."""
    step = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / step) * step
