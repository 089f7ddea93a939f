"""Estimates with intervals at any level. Each constructor names its unit of replication.

An interval must exist at every level, not at 95 % alone: Holm's correction asks for stricter ones.
Nothing here imports torch, and scipy's submodules load on first use.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from mgenb.errors import MgenbError

Interval = tuple[float, float]
NO_INTERVAL: Interval = (-math.inf, math.inf)
MIN_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """A measured number with its uncertainty.

    `n` counts the units of replication named by `unit` ("seeds", "images", "models", "episodes");
    `method` names the interval.
    """

    estimate: float
    n: int
    unit: str
    method: str
    bounds: Callable[[float], Interval] = field(repr=False, compare=False)

    def interval(self, level: float = 0.95) -> Interval:
        """Return (low, high) at confidence `level` in (0, 1); infinite ends where n is too small."""
        if not 0 < level < 1:
            raise MgenbError(f"level {level!r} is not a confidence level; it lies between 0 and 1")
        low, high = self.bounds(level)
        return float(low), float(high)

    def __str__(self) -> str:
        """Return 'estimate [low, high]' at 95 %, rounded to a tenth."""
        return self.text()

    def text(self, digits: int = 1, least: float = -math.inf) -> str:
        """Return 'estimate [low, high]' at 95 %, with so many digits; the interval is cut at the `least` possible."""
        low, high = self.interval()
        return f"{self.estimate:.{digits}f} [{max(low, least):.{digits}f}, {high:.{digits}f}]"

    def times(self, factor: float) -> "Estimate":
        """Return the estimate in another unit of measurement, e.g. times(100) for percent; factor > 0."""
        if factor <= 0:
            raise MgenbError(f"factor {factor!r} must be above 0")
        return self._changed(factor * self.estimate, lambda low, high: (factor * low, factor * high))

    def _changed(self, estimate: float, ends: Callable[[float, float], Interval]) -> "Estimate":
        return replace(self, estimate=estimate, bounds=lambda level: ends(*self.bounds(level)))


def exact(value: float, unit: str = "networks") -> Estimate:
    """A number that is counted, not sampled (parameters of a network): its interval is itself."""
    number = float(_numbers("value", [value])[0])
    return Estimate(number, 1, unit, "exact count", lambda level: (number, number))


def mean(values: ArrayLike, unit: str = "seeds") -> Estimate:
    """Mean with Student's t interval.

    Fewer than 3 values give an infinite interval: what varies by seed cannot be told from two of them.
    Three or more equal values give an interval of no width. Raises MgenbError for no or non-finite values.
    """
    x = _numbers("values", values)
    centre = float(x.mean())
    error = float(x.std(ddof=1)) / math.sqrt(x.size) if np.ptp(x) > 0 else 0.0

    def bounds(level: float) -> Interval:
        if x.size < MIN_SEEDS:
            return NO_INTERVAL
        if error == 0:
            return float(x[0]), float(x[0])  # the mean of equal numbers may differ from them in the last bit
        # stdtrit is what scipy.stats.t.ppf calls, without its overhead: verdicts ask for many levels.
        half = -float(scipy.special.stdtrit(x.size - 1, (1 - level) / 2)) * error
        return centre - half, centre + half

    return Estimate(centre, x.size, unit, "t interval", bounds)


def paired(a: ArrayLike, b: ArrayLike, unit: str = "seeds") -> Estimate:
    """Mean of a - b over pairs, with a t interval. Raises MgenbError when the lengths differ."""
    x, y = _pairs(a, b)
    return replace(mean(x - y, unit), method="paired t interval")


def pooled(groups: Sequence[ArrayLike], unit: str = "base networks") -> Estimate:
    """Mean of the means of groups that are what they are (the cells of a table), whatever their sizes.

    t interval with the degrees of freedom of Welch (1947) and Satterthwaite (1946); n counts all values. A group of
    fewer than 3 values gives an infinite interval, as `mean` does. Raises MgenbError for no or empty groups.
    """
    if not groups:
        raise MgenbError("there is no group to pool")
    values = [_numbers("a group", group) for group in groups]
    sizes, means = np.array([x.size for x in values]), [x.mean() for x in values]
    squared = np.array([x.var(ddof=1) / x.size if x.size > 1 else 0.0 for x in values])
    error, centre = math.sqrt(squared.sum()) / len(values), float(np.mean(means))
    freedom = squared.sum() ** 2 / (squared**2 / (sizes - 1).clip(1)).sum() if error else math.inf

    def bounds(level: float) -> Interval:
        if sizes.min() < MIN_SEEDS:
            return NO_INTERVAL
        half = -float(scipy.special.stdtrit(freedom, (1 - level) / 2)) * error if error else 0.0
        return centre - half, centre + half

    return Estimate(centre, int(sizes.sum()), unit, "t interval over groups", bounds)


def ratio(numerators: ArrayLike, denominators: ArrayLike, unit: str = "seeds") -> Estimate:
    """Geometric mean of paired ratios, with a t interval on their logarithms.

    Raises MgenbError unless all numbers are above 0.
    """
    x, y = _pairs(numerators, denominators)
    if min(x.min(), y.min()) <= 0:
        raise MgenbError("a ratio needs numerators and denominators above 0")
    logs = mean(np.log(x / y), unit)

    def ends(low: float, high: float) -> Interval:
        with np.errstate(over="ignore"):  # at strict levels of few values the end is infinite
            return np.exp(low), np.exp(high)

    return replace(logs._changed(math.exp(logs.estimate), ends), method="t interval on log ratios")


def largest(estimates: Sequence[Estimate], of: int) -> Estimate:
    """The largest of `of` quantities, from estimates of some or all of them.

    The lower end is the largest lower end at Bonferroni's level. The upper end is the largest upper end where all
    are estimated: the interval of whichever quantity is the largest holds it (Berger 1982). Where some are not it is
    infinite, since any of those may be larger. Raises MgenbError for no estimates.
    """
    if not estimates:
        raise MgenbError("there is no estimate to take the largest of")
    top = max(estimates, key=lambda known: known.estimate)

    def bounds(level: float) -> Interval:
        strict = 1 - (1 - level) / len(estimates)
        low = max(known.bounds(strict)[0] for known in estimates)
        return low, max(known.bounds(level)[1] for known in estimates) if len(estimates) >= of else math.inf

    return replace(top, method=f"largest of {of}, {len(estimates)} known, {top.method}", bounds=bounds)


def proportion(k: int, n: int, unit: str = "images") -> Estimate:
    """Share k / n in [0, 1] with Wilson's score interval (1927). Raises MgenbError unless whole and 0 <= k <= n."""
    numbers = isinstance(k, Real) and isinstance(n, Real)
    if not (numbers and 0 <= k <= n and 0 < n < 2**63 and k % 1 == n % 1 == 0):
        raise MgenbError(f"{k} of {n} is not a proportion")
    test = scipy.stats.binomtest(int(k), int(n))
    return Estimate(k / n, int(n), unit, "Wilson interval", lambda level: test.proportion_ci(level, method="wilson"))


def surge(values: ArrayLike) -> float:
    """Return the p-value of a surge: one narrow bin that holds more values than its neighbours tell.

    The central 99 % of `values` is cut into 100 bins. Where the density is locally straight, a bin's count
    given the sum of it and its four neighbours is binomial with 1/5; the smallest tail is multiplied by the
    number of bins tested (Bonferroni), so the p-value is conservative. Raises MgenbError below 50 values.
    """
    return surging_bin(values)[0]


def surging_bin(values: ArrayLike) -> tuple[float, float, float]:
    """Return the p-value of `surge`, and the centre and the width of the bin that stands out most."""
    x = _numbers("values", values)
    if x.size < 50:
        raise MgenbError(f"a surge needs at least 50 values, not {x.size}")
    low, high = np.quantile(x, [0.005, 0.995])
    if low == high:
        return 0.0, float(low), 0.0
    counts = np.histogram(x, bins=100, range=(low, high))[0]
    five = np.convolve(counts, np.ones(5, dtype=np.int64), "valid")
    tails = scipy.stats.binom.sf(counts[2:-2] - 1, five, 1 / 5)
    width = (high - low) / 100
    centre = low + (int(tails.argmin()) + 2.5) * width
    return float(min(1.0, tails.min() * len(five))), float(centre), float(width)


def ks_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples, in [0, 1]."""
    x, y = np.sort(_numbers("a", a)), np.sort(_numbers("b", b))
    both = np.concatenate([x, y])
    below = [np.searchsorted(side, both, side="right") / side.size for side in (x, y)]
    return float(np.abs(below[0] - below[1]).max())  # scipy's ks_2samp is 3 to 100 times slower


def holm(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values, in the order given (Holm, 1979); each at most 1.

    Raises MgenbError for what is no probability.
    """
    p = _floats("p-values", pvalues)
    if not ((p >= 0) & (p <= 1)).all():  # NaN is neither
        raise MgenbError(f"p-values are {p.tolist()}; right is from 0 to 1 each")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def _floats(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise MgenbError(f"{name} are {values!r}; right are numbers") from error


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    x = _floats(name, values).ravel()
    if x.size == 0:
        raise MgenbError(f"{name} is empty; a statistic needs at least one number")
    if not np.isfinite(x).all():
        raise MgenbError(f"{name} holds {int((~np.isfinite(x)).sum())} numbers that are not finite")
    return x


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = _numbers("the first sequence", a), _numbers("the second sequence", b)
    if x.size != y.size:
        raise MgenbError(f"pairs need equal lengths, got {x.size} and {y.size}")
    return x, y
