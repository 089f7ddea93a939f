"""The verdict rule over readings does what it says, and errs no more often than it says."""

import json
import math

import numpy as np
import pytest

from mgenb import claims, stats
from mgenb.claims import Claim, Reading, Scale, decide, power
from mgenb.errors import MgenbError

QUICK = Scale("quick", "sample", "mnist", "lenet")
CPU = Scale("cpu", "official", "mnist", "lenet")
SPEAKING = {"scale": {"dataset": "any", "arch": "any"}}


def claim(kind="comparison", margin=1.0, core=1, open_=0, name="mge.x", **about):
    """A claim of a kind, with so many readings, whose choices are of one point with as many levels."""
    readings = tuple(Reading(f"r{i}", i < core, {"noise": f"level{i}"}, {}) for i in range(core + open_))
    known = {"role": "central", "notebook": "01_x", "unit": "points", **SPEAKING, **about}
    return Claim(name, "mge", "here", "It is so.", kind, margin=margin, readings=readings, **known)


def noisy(centre, width=1.0, n=8):
    return stats.mean(centre + width * np.linspace(-1, 1, n))


@pytest.fixture
def judged(monkeypatch):
    """What judges made-up claims: (claim, {reading number: estimate}) pairs -> verdicts."""

    def judge(*pairs, scale=CPU, **options):
        by_id = {one.id: one for one, _ in pairs}
        monkeypatch.setattr("mgenb.claims.verdicts.get", by_id.__getitem__)
        evidence = {one.id: {f"r{i}": estimate for i, estimate in by.items()} for one, by in pairs}
        return claims.judge(evidence, dict.fromkeys(by_id, scale), **options)

    return judge


# ---------------------------------------------------------------- one interval


@pytest.mark.parametrize(
    ("kind", "interval", "verdict"),
    [
        ("comparison", (1.1, 2.0), "reproduced"),
        ("comparison", (0.5, 2.0), "inconclusive"),  # above 0, but not above the smallest advantage that matters
        ("comparison", (0.2, 0.8), "contradicted"),
        ("comparison", (-math.inf, math.inf), "inconclusive"),
        ("existence", (1.1, 2.0), "reproduced"),
        ("noninferiority", (-0.9, 9.0), "reproduced"),
        ("noninferiority", (-1.1, 9.0), "inconclusive"),
        ("noninferiority", (-9.0, -1.1), "contradicted"),
        ("equivalence", (-0.9, 0.9), "reproduced"),
        ("equivalence", (1.1, 2.0), "contradicted"),
        ("equivalence", (-3.0, -1.5), "contradicted"),
        ("equivalence", (0.0, 2.0), "inconclusive"),
    ],
)
def test_what_an_interval_says(kind, interval, verdict):
    assert decide(claim(kind), interval) == verdict


def test_numbers_bounds_and_relative_margins():
    value = claim("value", paper_value=90.0)
    assert [decide(value, span) for span in ((89.1, 90.9), (91.1, 93.0), (90.0, 92.0))] == [
        *("reproduced", "contradicted", "inconclusive")
    ]
    below = claim("bound", 0.0, paper_value=1.0, direction="below")
    above = claim("bound", 0.0, paper_value=1.0, direction="above")
    assert [decide(bound, (-9.0, 0.5)) for bound in (below, above)] == ["reproduced", "contradicted"]
    rounded = [claim("bound", 0.5, paper_value=1.0, direction=direction) for direction in ("below", "above")]
    assert [claims.supported(bound) for bound in rounded] == [(-math.inf, 1.5), (0.5, math.inf)]
    seconds = claim("ratio", 0.5, paper_value=1000.0, relative=True)
    assert claims.supported(seconds) == (pytest.approx(1000 / 1.5), 1500)


def test_a_setting_is_never_judged():
    with pytest.raises(MgenbError, match="it is not judged"):
        decide(claim("setting"), (0, 1))


@pytest.mark.parametrize("centre", [-2.0, -0.2, 0.4, 0.9, 3.0])
@pytest.mark.parametrize("kind", ["comparison", "equivalence", "noninferiority"])
def test_p_is_the_level_where_the_verdict_appears(kind, centre):
    estimate, about = noisy(centre), claim(kind)
    p = claims.p_value(about, estimate)
    assert decide(about, estimate.interval(1 - p)) != "inconclusive"
    assert decide(about, estimate.interval(1 - 0.99 * p)) == "inconclusive"


# ---------------------------------------------------------------- readings


def test_all_core_readings_have_to_agree(judged):
    three = claim(core=3)
    assert judged((three, {0: noisy(9), 1: noisy(8), 2: noisy(7)}))[0].verdict == "reproduced"
    assert judged((three, {0: noisy(-9), 1: noisy(-8), 2: noisy(-7)}))[0].verdict == "contradicted"
    (open_one,) = judged((three, {0: noisy(9), 1: noisy(8), 2: noisy(1.5, 6)}))
    assert open_one.verdict == "inconclusive"
    assert open_one.reason.startswith("2 of 3 core readings reproduced, 0 contradicted; could have seen")


def test_a_core_reading_that_is_missing_leaves_it_open(judged):
    (verdict,) = judged((claim(core=3), {0: noisy(9), 1: noisy(8)}))
    assert verdict.verdict == "inconclusive"
    assert "2 of 3 core readings reproduced, 0 contradicted, 1 without evidence" in verdict.reason


def test_an_open_reading_can_only_turn_a_verdict_into_depends(judged):
    about = claim(core=2, open_=2)
    agree = {0: noisy(9), 1: noisy(8)}
    assert judged((about, {**agree, 2: noisy(1, 6)}))[0].verdict == "reproduced"
    assert judged((about, {**agree, 2: noisy(-9)}))[0].verdict == "depends"
    undecided = {0: noisy(1, 6), 1: noisy(1, 6)}
    assert judged((about, {**undecided, 2: noisy(9)}))[0].verdict == "inconclusive"
    assert judged((about, {**undecided, 2: noisy(9), 3: noisy(-9)}))[0].verdict == "depends"


def test_the_deciding_choice_separates_without_exception(judged):
    readings = [
        Reading("r0", True, {"redrawn": "energy", "noise": "truncated"}, {}),
        Reading("r1", True, {"redrawn": "tenth", "noise": "truncated"}, {}),
        Reading("r2", True, {"redrawn": "energy", "noise": "literal"}, {}),
        Reading("r3", True, {"redrawn": "tenth", "noise": "literal"}, {}),
    ]
    about = Claim(**{**vars(claim()), "readings": tuple(readings)})
    (share,) = judged((about, {0: noisy(-9), 1: noisy(9), 2: noisy(-8), 3: noisy(8)}))
    assert share.reason.startswith("on which part of a layer is drawn anew: holds for tenth, fails for energy")
    (neither,) = judged((about, {0: noisy(-9), 1: noisy(9), 2: noisy(8), 3: noisy(-8)}))
    assert neither.reason.startswith("on no single choice")


def test_a_vacuous_reading_says_nothing(judged):
    about = claim("noninferiority", core=2)
    by = {0: noisy(0, 0.1), 1: noisy(0, 0.1)}
    assert judged((about, by))[0].verdict == "reproduced"
    (verdict,) = judged((about, by), vacuous=[("mge.x", "r1")])
    assert verdict.verdict == "reproduced"  # by the other half
    assert "copies of their base under *r1*" in verdict.reason
    assert [reading.verdict for reading in verdict.readings] == ["reproduced", "vacuous"]
    (none,) = judged((about, by), vacuous=[("mge.x", "r0"), ("mge.x", "r1")])
    assert none.verdict == "inconclusive"


def test_a_reading_without_models_leaves_the_verdict_to_the_others(judged):
    about = claim(core=3)
    (verdict,) = judged((about, {0: noisy(9), 1: noisy(8), 2: None}))
    assert (verdict.verdict, verdict.estimate) == ("reproduced", pytest.approx(8))
    assert "no models under *r2*" in verdict.reason
    assert [reading.name for reading in verdict.readings] == ["r0", "r1"]
    (against,) = judged((about, {0: noisy(9), 1: noisy(-8), 2: None}))
    assert against.verdict == "depends"
    (few,) = judged((about, {0: noisy(9), 1: None, 2: None}))  # less than half speak
    assert few.verdict == "inconclusive"
    assert "1 of 3 core readings reproduced, 0 contradicted, 2 infeasible" in few.reason
    (without,) = judged((about, {0: noisy(9), 1: None}))
    assert "1 infeasible, 1 without evidence" in without.reason


def test_infeasible_and_vacuous_readings_are_silent_together(judged):
    about, by = claim("noninferiority", core=4), {0: noisy(0, 0.1), 1: noisy(0, 0.1), 2: noisy(-9, 0.1), 3: None}
    (verdict,) = judged((about, by), vacuous=[("mge.x", "r2")])
    assert verdict.verdict == "reproduced"  # r2 would contradict, if its models were not copies
    (fewer,) = judged((about, {**by, 1: None}), vacuous=[("mge.x", "r2")])
    assert fewer.verdict == "inconclusive"


def test_an_unregistered_reading_is_refused(judged):
    with pytest.raises(MgenbError, match="has no reading 'r7'"):
        judged((claim(), {7: noisy(9)}))


def test_the_interval_that_is_shown_decided(judged):
    pairs = [(claim(core=2, name=f"mge.c{i}"), {0: noisy(4 + i), 1: noisy(3 + i)}) for i in range(3)]
    for (about, by), verdict in zip(pairs, judged(*pairs), strict=True):
        assert verdict.verdict == "reproduced"
        assert decide(about, (verdict.low, verdict.high)) == "reproduced"
        assert verdict.estimate == pytest.approx(by[1].estimate)  # of the reading that speaks least for it
        for reading in verdict.readings:
            shown = (reading.low, reading.high)
            assert decide(about, shown) == reading.verdict
    strongest = judged(*pairs)[2]
    (alone,) = judged(pairs[2])
    assert alone.high - alone.low < strongest.high - strongest.low  # one claim alone needs no correction


# ---------------------------------------------------------------- a family


def test_holm_makes_a_family_stricter(judged):
    weak = next(noisy(c) for c in np.linspace(1, 3, 800) if 0.03 < claims.p_value(claim(), noisy(c)) < 0.05)
    a, b = claim(name="mge.a"), claim(name="mge.b")
    assert judged((a, {0: weak}))[0].verdict == "reproduced"
    assert [v.verdict for v in judged((a, {0: weak}), (b, {0: weak}))] == ["inconclusive"] * 2
    # the stronger claim goes first, and the weaker one is then alone
    assert [v.verdict for v in judged((a, {0: weak}), (b, {0: noisy(90)}))] == ["reproduced"] * 2


def test_controls_pass_or_fail_in_a_family_of_their_own(judged):
    weak = next(noisy(c) for c in np.linspace(1, 3, 800) if 0.03 < claims.p_value(claim(), noisy(c)) < 0.05)
    control = claim(name="mge.control", role="control")
    follows = claim(name="mge.largest", family="largest")
    verdicts = judged((claim(), {0: weak}), (control, {0: weak}), (follows, {0: weak}))
    assert [verdict.verdict for verdict in verdicts] == ["reproduced", "passes", "reproduced"]
    assert judged((control, {0: noisy(-9)}))[0].verdict == "fails"


def test_unfinished_and_blocked_claims_are_not_judged(judged):
    (verdict,) = judged((claim(), {0: noisy(9)}), unfinished="7 of 12 parts")
    assert verdict.token == "mge.x: unfinished, 7 of 12 parts [cpu]"
    (verdict,) = judged((claim(), {0: noisy(9)}), blocked={"mge.x": "a base network is at chance"})
    assert (verdict.verdict, verdict.reason) == ("not tested", "a base network is at chance")


def test_intervals_stay_within_what_is_possible(judged):
    points = claim(unit="percent points", margin=1.0)
    (wide,) = judged((points, {0: stats.mean([-90.0, 90.0, 95.0])}))
    assert (wide.low, wide.high) == (-100, 100)
    assert (wide.readings[0].low, wide.readings[0].high) == (-100, 100)
    (none,) = judged((points, {0: stats.mean([90.0, 95.0])}))
    assert (none.low, none.high) == (None, None)
    (free,) = judged((claim(unit="s"), {0: stats.mean([-90.0, 90.0, 95.0])}))
    assert free.low < -100


def test_contradicted_comparisons_say_which_way(judged):
    by_estimate = (noisy(0.5, 0.05), noisy(0.0, 0.05), noisy(-5, 0.5))
    small, none, worse = (judged((claim(), {0: estimate}))[0] for estimate in by_estimate)
    assert small.reason.startswith("there is an advantage, but of less than 1 points")
    assert none.reason.startswith("no relevant advantage")
    assert worse.reason.startswith("a disadvantage")


def test_printed_numbers_need_the_papers_scale(judged):
    number = claim("value", 0.02, paper_value=0.816, scale={"dataset": "cifar10", "arch": "resnet110"})
    there = Scale("paper", "official", "cifar10", "resnet110")
    assert judged((number, {0: stats.exact(0.82)}), scale=there)[0].verdict == "reproduced"
    for changed in ({"profile": "cpu"}, {"dataset": "mnist"}, {"arch": "resnet56"}, {"changed": "t=0.9"}):
        (verdict,) = judged((number, {0: stats.exact(0.82)}), scale=Scale(**{**vars(there), **changed}))
        assert verdict.verdict == "not tested"
        assert "needs the paper's own scale: dataset cifar10, network resnet110" in verdict.reason


def test_reduced_scale_is_said(judged):
    about = claim(scale={"dataset": "mnist", "arch": "vgg11"})
    assert "at reduced scale [quick, sample]: mnist, lenet" in judged((about, {0: noisy(9)}), scale=QUICK)[0].reason
    full = Scale("paper", "official", "mnist", "vgg11")
    assert judged((about, {0: noisy(9)}), scale=full)[0].reason == ""


def test_json_is_finite_and_comes_back(judged):
    for estimate in (noisy(9), stats.mean([1.0, 2.0])):
        (verdict,) = judged((claim(core=2), {0: estimate, 1: noisy(9)}))
        data = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
        assert claims.Verdict.from_json(data).to_json() == verdict.to_json()
    assert data["low"] is None


def test_best_evidence():
    about = claim()
    made = {p: claims.Verdict(about, "reproduced", Scale(p, "official", "mnist", "lenet")) for p in ("cpu", "quick")}
    untested = claims.Verdict(about, claims.NOT_TESTED, Scale("paper", "official", "mnist", "lenet"))
    unfinished = claims.Verdict(about, claims.UNFINISHED, Scale("paper", "official", "mnist", "lenet"))
    assert min([made["quick"], untested, unfinished, made["cpu"]], key=claims.rank) is made["cpu"]


# ---------------------------------------------------------------- error rates and power, by simulation


def simulated(judged, truths, n, core, runs, rng):
    """Return the share of families with a false verdict, and of verdicts of each kind.

    `truths`: for each claim the true advantage under each of its readings, the core ones first; 1 is the margin.
    """
    abouts = [claim(core=core, open_=len(truth) - core, name=f"mge.c{i}") for i, truth in enumerate(truths)]
    false, words = 0, []
    for _ in range(runs):
        pairs = []
        for about, truth in zip(abouts, truths, strict=True):
            shared = rng.normal(size=n)  # readings are measured on the same base networks
            draws = {i: t + 1.7 * shared + 1.1 * rng.normal(size=n) for i, t in enumerate(truth)}
            pairs.append((about, {i: stats.mean(draw) for i, draw in draws.items()}))
        verdicts = [verdict.verdict for verdict in judged(*pairs)]
        false += any(map(is_false, verdicts, truths, [core] * len(truths)))
        words += verdicts
    return false / runs, {word: words.count(word) / len(words) for word in set(words)}


def is_false(verdict, truth, core):
    holds = [t > 1 for t in truth]
    return (
        (verdict == "reproduced" and not all(holds[:core]))
        or (verdict == "contradicted" and any(holds[:core]))
        or (verdict == "depends" and len(set(holds)) == 1)
    )


CASES = {
    "all at the margin": lambda core, open_: [[1.0] * (core + open_)] * 4,
    "one core reading at the margin": lambda core, open_: [[6.0] * (core - 1) + [1.0] + [6.0] * open_] * 4,
    "all fail, one hardly": lambda core, open_: [[-4.0] * (core - 1) + [1.0 + 1e-9] + [-4.0] * open_] * 4,
    "open readings at the margin": lambda core, open_: [[6.0] * core + [1.0 + 1e-9] * open_] * 4,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("core", "open_"), [(2, 3), (6, 10)])
def test_false_verdicts_of_a_family_are_few(judged, monkeypatch, case, core, open_):
    monkeypatch.setattr("mgenb.claims.verdicts._how_open", lambda *about: ())  # takes most of the time
    rng = np.random.default_rng(5)
    rates = [simulated(judged, CASES[case](core, open_), n, core, 60, rng)[0] for n in (5, 8, 12)]
    assert np.mean(rates) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 180)


def test_what_is_plain_is_found(judged):
    rng = np.random.default_rng(6)
    truths = [[8.0] * 5, [-6.0] * 5, [8.0, 8.0, 8.0, -6.0, -6.0]]
    _, words = simulated(judged, truths, 12, 3, 20, rng)
    assert min(words.get(word, 0) for word in ("reproduced", "contradicted", "depends")) > 0.28


@pytest.mark.parametrize(("kind", "centre"), [("comparison", 2.0), ("comparison", 0.3), ("noninferiority", 0.0)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_what_would_decide_it_does(kind, centre, alpha):
    rng = np.random.default_rng(8)
    about, deviation = claim(kind), 2.0
    pilot = rng.normal(size=5)
    pilot = centre + deviation * (pilot - pilot.mean()) / pilot.std(ddof=1)
    told = power.what_decides(claims.supported(about), [stats.mean(pilot)], alpha, "points")
    needed = int(told.split("about ")[1].split()[0])
    repeats = [stats.mean(centre + deviation * rng.normal(size=needed)) for _ in range(300)]
    decided = np.mean([decide(about, repeat.interval(1 - alpha)) != "inconclusive" for repeat in repeats])
    assert decided >= 0.8 - 2 * math.sqrt(0.8 * 0.2 / 300)
    half = [stats.mean(centre + deviation * rng.normal(size=max(3, needed // 2))) for _ in range(300)]
    assert np.mean([decide(about, repeat.interval(1 - alpha)) != "inconclusive" for repeat in half]) < 0.8


def test_what_would_decide_says_where_it_cannot_be_said(judged):
    (verdict,) = judged((claim(), {0: stats.mean([20.0, 20.0])}))
    assert "2 seeds give no interval" in verdict.reason
    (verdict,) = judged((claim(), {0: stats.mean([0.0, 1.0, 2.0])}))
    assert "on the boundary" in verdict.reason
