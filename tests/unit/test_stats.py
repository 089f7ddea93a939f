"""Intervals cover what they promise, and say nothing where too little was measured."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy

from mgenb import stats
from mgenb.errors import MgenbError

RUNS = 1000


def coverage(draw: Callable[[np.random.Generator], stats.Estimate], truth: float, level: float = 0.95) -> float:
    rng = np.random.default_rng(0)
    intervals = [draw(rng).interval(level) for _ in range(RUNS)]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [3, 10])
def test_mean_covers(n: int, level: float) -> None:
    assert coverage(lambda rng: stats.mean(rng.normal(2, 5, n)), 2, level) == pytest.approx(level, abs=0.03)


def test_mean_equals_scipy() -> None:
    x = [1.0, 2.5, 3.0, 7.0]
    expected = scipy.stats.t.interval(0.9, 3, np.mean(x), scipy.stats.sem(x))
    assert stats.mean(x).interval(0.9) == pytest.approx(expected)


def test_two_seeds_have_no_interval() -> None:
    assert stats.mean([1.0, 1.0]).interval() == (-math.inf, math.inf)
    assert stats.ratio([1.0, 2.0], [1.0, 1.0]).interval() == (0.0, math.inf)


def test_constant_values_have_no_width() -> None:
    assert stats.mean([0.1, 0.1, 0.1]).interval(0.999) == (0.1, 0.1)


def test_exact_is_its_own_interval() -> None:
    assert stats.exact(862_154).times(1e-6).interval() == pytest.approx((0.862154, 0.862154))


def test_paired_ignores_what_both_share() -> None:
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 100, 6)
    estimate = stats.paired(seeds + 1 + rng.normal(0, 0.1, 6), seeds)
    low, high = estimate.interval()
    assert 0.5 < low < estimate.estimate < high < 1.5
    assert (estimate.n, estimate.unit) == (6, "seeds")


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (8, 10, 0.49016, 0.94332), (50, 100, 0.40383, 0.59617)],
)
def test_wilson_known_values(k: int, n: int, low: float, high: float) -> None:
    assert stats.proportion(k, n).interval() == pytest.approx((low, high), abs=1e-4)


def test_wilson_covers() -> None:
    assert coverage(lambda rng: stats.proportion(rng.binomial(60, 0.9), 60), 0.9) == pytest.approx(0.95, abs=0.03)


def test_pooled_covers_groups_of_unlike_size_and_spread() -> None:
    def draw(rng: np.random.Generator) -> stats.Estimate:
        return stats.pooled([rng.normal(1, 0.1, 12), rng.normal(-3, 2, 5), rng.normal(5, 1, 8)])

    assert coverage(draw, 1) == pytest.approx(0.95, abs=0.03)
    assert stats.pooled([[1.0, 2, 3], [4.0, 5]]).interval() == stats.NO_INTERVAL
    assert stats.pooled([[1.0] * 3, [4.0] * 3]).interval() == (2.5, 2.5)
    with pytest.raises(MgenbError, match="no group"):
        stats.pooled([])


def test_ratio_covers() -> None:
    def draw(rng: np.random.Generator) -> stats.Estimate:
        return stats.ratio(3 * np.exp(rng.normal(0, 0.3, 8)), np.exp(rng.normal(0, 0.3, 8)))

    assert coverage(draw, 3) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    "estimate",
    [
        stats.mean([1.0, 2, 4]),
        stats.proportion(3, 40),
        stats.pooled([[1.0, 2, 4], [0.0, 3, 1]]),
        stats.ratio([1.0, 2, 3], [2.0, 2, 2]),
    ],
)
def test_intervals_nest(estimate: stats.Estimate) -> None:
    lows, highs = zip(*(estimate.interval(1 - alpha) for alpha in (1e-12, 1e-6, 0.01, 0.2, 0.9)), strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs, reverse=True)


def test_times_scales_everything() -> None:
    share = stats.proportion(9, 10)
    percent = share.times(100)
    assert percent.estimate == pytest.approx(90)
    assert percent.interval() == pytest.approx(tuple(100 * end for end in share.interval()))


def test_holm_known_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]).size == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.mean([]),
        lambda: stats.mean([1.0, math.nan]),
        lambda: stats.paired([1.0], [1.0, 2.0]),
        lambda: stats.proportion(3, 2),
        lambda: stats.proportion(0, 0),
        lambda: stats.ratio([1.0, 0.0, 2.0], [1.0, 1.0, 1.0]),
        lambda: stats.mean([1.0, 2, 3]).interval(95),
        lambda: stats.mean([1.0, 2, 3]).times(0),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(MgenbError):
        call()


def test_surge_holds_its_level_and_finds_a_repeated_value() -> None:
    rng = np.random.default_rng(5)
    smooth = [stats.surge(rng.standard_normal(2400)) < 0.05 for _ in range(200)]
    assert np.mean(smooth) < 0.09
    spiked = [np.r_[rng.standard_normal(2280), np.full(120, 0.3)] for _ in range(40)]
    assert np.mean([stats.surge(values) < 0.05 for values in spiked]) > 0.9


def test_surging_bin_says_where() -> None:
    values = np.r_[np.random.default_rng(5).standard_normal(2280), np.full(120, 0.3)]
    p, centre, width = stats.surging_bin(values)
    assert p == stats.surge(values) < 0.05
    assert centre - width / 2 <= 0.3 <= centre + width / 2


def test_surge_refuses_too_few_values() -> None:
    with pytest.raises(MgenbError, match="at least 50 values"):
        stats.surge(np.arange(10.0))


def test_ks_distance_is_scipys() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal(501), rng.uniform(-2, 2, 300)
    assert stats.ks_distance(a, b) == pytest.approx(scipy.stats.ks_2samp(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("truths", [(0, 0, 0, 0), (3, 0, 0, 0), (-1, -2, -1, -3)])
def test_largest_covers_the_largest(truths: tuple[float, ...]) -> None:
    def draw(rng: np.random.Generator) -> stats.Estimate:
        return stats.largest([stats.mean(rng.normal(truth, 2, 5)) for truth in truths], of=4)

    assert coverage(draw, max(truths)) >= 0.95 - 0.02


def test_largest_of_one_is_it_and_of_more_is_wider() -> None:
    one, other = stats.mean([1.0, 2.0, 3.0]), stats.mean([0.5, 2.0, 3.4])
    assert stats.largest([one], of=1).interval() == one.interval()
    low, high = stats.largest([one, other], of=2).interval()
    assert low < one.interval()[0]
    assert high == other.interval()[1]
    with pytest.raises(MgenbError, match="no estimate"):
        stats.largest([], of=2)


def test_what_was_not_estimated_may_be_larger() -> None:
    known = [stats.mean([1.0, 2.0, 3.0]), stats.mean([0.5, 2.0, 3.4])]
    assert stats.largest(known, of=3).interval() == (stats.largest(known, of=2).interval()[0], math.inf)
