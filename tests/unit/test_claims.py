"""The registry is complete and honest, and the verdict rule does what it says."""

import json
import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import resources
from itertools import product

import numpy as np
import pytest

from mgenb import claims, stats
from mgenb.claims import Claim, Scale, decide, verdicts
from mgenb.claims.registry import NUMBER_KINDS, PAPERS, parse
from mgenb.errors import MgenbError

QUICK = Scale("quick", "sample", "mnist", "lenet")
HIGH_LOW = "mge.fig6.high_worse_than_low"
HIGH_MID = "mge.fig6.high_worse_than_mid"
HARMLESS = "mge.fig6.low_mid_harmless"
MERGED = "mega.table1.resnet110.merged"
PAPER_MERGED = Scale("paper", "official", "cifar10", "resnet110")

BUILT_NOW = {
    HIGH_LOW: ("comparison", 1.0, "01_frequency_sensitivity"),
    HIGH_MID: ("comparison", 1.0, "01_frequency_sensitivity"),
    HARMLESS: ("equivalence", 5.0, "01_frequency_sensitivity"),
    "mge.fig5.harmless": ("equivalence", 5.0, "02_zero_filling"),
    "mge.fig5.beats_random": ("comparison", 1.0, "02_zero_filling"),
    "mge.fig5.beats_magnitude": ("comparison", 1.0, "02_zero_filling"),
    "mge.fig7.mask_beats_random": ("comparison", 1.0, "03_importance_mask"),
    "mge.fig7.mask_beats_magnitude": ("comparison", 1.0, "03_importance_mask"),
    "mge.fig7.mask_overlaps_magnitude": ("comparison", 0.05, "03_importance_mask"),
    "mge.fig3.same_distribution": ("equivalence", 0.05, "04_weight_distribution"),
    "mge.fig3.surge": ("existence", 0.05, "04_weight_distribution"),
}


def claim(kind: str, margin: float = 1.0, paper_value: float | None = None, direction: str = "") -> Claim:
    return Claim("mge.x", "mge", "here", "It is so.", kind, "01_x", "", margin, paper_value, direction)


def noisy(centre: float, width: float = 1.0, n: int = 5) -> stats.Estimate:
    return stats.mean(centre + width * np.linspace(-1, 1, n))


# ---------------------------------------------------------------- registry


def test_ids_are_unique_and_named_after_their_paper() -> None:
    ids = [c.id for c in claims.load()]
    assert len(ids) == len(set(ids))
    for c in claims.load():
        assert c.paper in PAPERS
        assert re.fullmatch(rf"{c.paper}\.[a-z0-9_.]+", c.id), c.id
        assert re.fullmatch(r"\d\d_[a-z_]+", c.notebook), c.id
        assert re.fullmatch(r"[^{}]+\.", c.statement), c.id


@pytest.mark.parametrize("paper", PAPERS)
def test_every_cell_of_every_grid_has_a_claim(paper: str) -> None:
    data = tomllib.loads((resources.files("mgenb.claims") / f"{paper}.toml").read_text(encoding="utf-8"))
    for table in data["table"]:
        for values in product(*table["axes"].values()):
            assert claims.get(".".join([table["id"], *map(str, values)]))


def test_the_papers_tables_are_complete() -> None:
    sizes = {"mge.table2": 32, "mge.table3": 24, "mega.table2": 15, "mega.table1.params": 6}
    for prefix, size in sizes.items():
        cells = [c for c in claims.load() if c.id.startswith(prefix + ".") and c.kind == "value"]
        assert len(cells) >= size, prefix
    for arch, models in product(["lenet", "vgg11", "vgg16", "resnet18"], [10, 100, 1000]):
        assert claims.get(f"mge.table4.{arch}.{models}").kind in ("ratio", "bound")


@pytest.mark.parametrize("claim_id", BUILT_NOW)
def test_claims_that_notebooks_judge(claim_id: str) -> None:
    c = claims.get(claim_id)
    assert (c.kind, c.margin, c.notebook) == BUILT_NOW[claim_id]


def test_a_number_that_was_not_read_is_called_so() -> None:
    for c in claims.load():
        if c.kind in NUMBER_KINDS:
            assert c.transcribed == (c.paper_value is not None), c.id
            assert c.transcribed or "not transcribed" in c.notes.lower(), c.id


def test_unknown_id_names_the_nearest() -> None:
    with pytest.raises(MgenbError, match=r"mge\.fig6\.low_mid_harmless"):
        claims.get("mge.fig6.low_mid_harmles")
    with pytest.raises(MgenbError, match="paper"):
        claims.load("mgee")


ENTRY = 'id = "mge.a"\nwhere = "x"\nstatement = "y."\nnotebook = "01_x"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'[[claim]]\n{ENTRY}kind = "trend"\n', "direction"),
        (f'[[claim]]\n{ENTRY}kind = "guess"\n', "kind"),
        (f'[[claim]]\n{ENTRY}kind = "comparison"\nmargn = 1\n', "margn"),
        (f'[[claim]]\n{ENTRY}kind = "value"\ntranscribed = true\n', "not transcribed"),
        (f'[[claim]]\n{ENTRY}kind = "value"\n[[claim]]\n{ENTRY}kind = "value"\n', "twice"),
        (f'[[table]]\n{ENTRY}kind = "value"\naxes.q = ["a"]\n[table.cells]\nb = 1\n', "no place"),
        (f'[[claim]]\n{ENTRY}kind = "value"\nscale = {{ data = "mnist" }}\n', "scale"),
    ],
)
def test_wrong_entries_are_named(text: str, message: str) -> None:
    with pytest.raises(MgenbError, match=message):
        parse("mge", text)


def test_hash_depends_on_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    before, other = (claims.registry_hash(stem) for stem in ("01_frequency_sensitivity", "02_zero_filling"))
    changed = (replace(claims.get(HIGH_LOW), margin=2.0), *(c for c in claims.load() if c.id != HIGH_LOW))
    monkeypatch.setattr("mgenb.claims.registry.load", lambda: changed)
    assert claims.registry_hash("01_frequency_sensitivity") != before
    assert claims.registry_hash("02_zero_filling") == other


def test_claims_import_neither_torch_nor_scipy_stats() -> None:
    code = "import sys, mgenb.claims; print([m for m in ('torch', 'scipy.stats') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.5, 2.0), "reproduced"),
        ((0.2, 0.8), "contradicted"),  # real, but without relevance
        ((-3.0, -2.0), "contradicted"),
        ((-0.5, 2.0), "inconclusive"),
        ((-math.inf, math.inf), "inconclusive"),
    ],
)
def test_comparison_asks_for_contradiction_first(interval: tuple[float, float], verdict: str) -> None:
    assert decide(claim("comparison"), interval) == verdict
    assert decide(claim("trend", direction="increase"), interval) == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.9, 0.9), "reproduced"),
        ((1.1, 2), "contradicted"),
        ((-3, -1.5), "contradicted"),
        ((0, 2), "inconclusive"),
    ],
)
def test_equivalence_value_and_ratio(interval: tuple[float, float], verdict: str) -> None:
    assert decide(claim("equivalence"), interval) == verdict
    moved = (interval[0] + 90, interval[1] + 90)
    assert decide(claim("value", paper_value=90), moved) == verdict
    assert decide(claim("ratio", paper_value=90), moved) == verdict


def test_bound_is_one_sided() -> None:
    below, above = (claim("bound", 0, 1.0, direction) for direction in ("below", "above"))
    expected = {(-9.0, 0.5): "reproduced", (1.5, 9.0): "contradicted", (0.5, 1.5): "inconclusive"}
    opposite = {"reproduced": "contradicted", "contradicted": "reproduced", "inconclusive": "inconclusive"}
    for interval, verdict in expected.items():
        assert decide(below, interval) == verdict
        assert decide(above, interval) == opposite[verdict]


def test_existence_is_about_the_margin() -> None:
    some = claim("existence", 0.05)
    assert decide(some, stats.proportion(20, 40).interval()) == "reproduced"
    assert decide(some, stats.proportion(0, 400).interval()) == "contradicted"
    assert decide(some, stats.proportion(0, 10).interval()) == "inconclusive"


def test_setting_is_never_judged() -> None:
    with pytest.raises(MgenbError):
        decide(claim("setting"), (0, 1))
    with pytest.raises(MgenbError):
        claims.judge({"mge.table1.sgd_rate": noisy(0)}, QUICK)


@pytest.mark.parametrize("centre", [-2.0, -0.2, 0.4, 0.9, 3.0])
@pytest.mark.parametrize("kind", ["comparison", "equivalence"])
def test_p_value_is_the_level_where_the_verdict_appears(kind: str, centre: float) -> None:
    estimate, c = noisy(centre), claim(kind)
    p = claims.p_value(c, estimate)
    assert decide(c, estimate.interval(1 - p)) != "inconclusive"
    assert decide(c, estimate.interval(1 - 0.99 * p)) == "inconclusive"


def test_p_value_ends() -> None:
    assert claims.p_value(claim("comparison"), stats.mean([5.0, 5.0, 5.0])) == pytest.approx(1e-12)
    assert claims.p_value(claim("comparison"), stats.mean([5.0, 5.0])) == 1.0


# ---------------------------------------------------------------- judging a family


def test_token_and_reduced_scale() -> None:
    verdict = claims.judge({HIGH_LOW: noisy(9)}, QUICK)[0]
    assert verdict.token == "mge.fig6.high_worse_than_low: reproduced [quick, sample]"
    assert "at reduced scale [quick, sample]: mnist, lenet" in verdict.reason
    full = claims.judge({HIGH_LOW: noisy(9)}, Scale("paper", "official", "mnist", "vgg11"))[0]
    assert full.token == "mge.fig6.high_worse_than_low: reproduced [paper]"
    assert full.reason == ""
    assert str(Scale("paper", "jpeg", "cifar10", "vgg11")) == "paper, jpeg"


def test_two_seeds_are_inconclusive() -> None:
    verdict = claims.judge({HIGH_LOW: stats.mean([20.0, 20.0])}, QUICK)[0]
    assert verdict.verdict == "inconclusive"
    assert "2 seeds give no interval" in verdict.reason


def test_inconclusive_says_what_would_decide() -> None:
    verdict = claims.judge({HARMLESS: noisy(3, width=4)}, QUICK)[0]
    assert verdict.verdict == "inconclusive"
    low, high = noisy(3, width=4).interval()
    half = (high - low) / 2
    assert f"effect of {half + 5:.2g} percent points" in verdict.reason
    assert f"about {math.ceil(5 * (half / 2) ** 2)} seeds would decide it" in verdict.reason


def test_contradicted_comparison_says_which_way() -> None:
    evidence = {HIGH_LOW: noisy(0.3, 0.05), HIGH_MID: noisy(-5, 0.5)}
    small, negative = claims.judge(evidence, QUICK)
    assert (small.verdict, negative.verdict) == ("contradicted", "contradicted")
    assert small.reason.startswith("no relevant advantage")
    assert negative.reason.startswith("a disadvantage")


def test_holm_makes_a_family_stricter() -> None:
    weak = next(noisy(c) for c in np.linspace(1, 2, 400) if 0.03 < claims.p_value(claim("comparison"), noisy(c)) < 0.05)
    assert claims.judge({HIGH_LOW: weak}, QUICK)[0].verdict == "reproduced"
    assert [v.verdict for v in claims.judge({HIGH_LOW: weak, HIGH_MID: weak}, QUICK)] == ["inconclusive"] * 2
    # The stronger claim goes first, and the weaker one is then alone.
    assert [v.verdict for v in claims.judge({HIGH_LOW: weak, HIGH_MID: noisy(90)}, QUICK)] == ["reproduced"] * 2


def false_rates(seeds: int, at: str, noise: float, runs: int = 300) -> tuple[float, float]:
    """Share of families with a false verdict, judged as a family and one by one.

    Each claim lies on the boundary where a verdict turns false.
    """
    names = [name for name, (kind, _, _) in BUILT_NOW.items() if kind in ("comparison", "equivalence")]
    false = {"comparison": "contradicted" if at == "upper" else "reproduced", "equivalence": "reproduced"}
    rng = np.random.default_rng(7)
    together = alone = 0
    for _ in range(runs):
        evidence = {}
        for c in map(claims.get, names):
            truth = c.margin if at == "upper" or c.kind == "equivalence" else 0.0
            evidence[c.id] = stats.mean(truth + c.margin * noise * rng.normal(size=seeds))
        together += any(v.verdict == false[v.claim.kind] for v in claims.judge(evidence, QUICK))
        alone += any(
            decide(claims.get(name), e.interval()) == false[claims.get(name).kind] for name, e in evidence.items()
        )
    return together / runs, alone / runs


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("at", ["lower", "upper"])
@pytest.mark.parametrize("noise", [0.05, 1.0, 5.0])
def test_false_verdicts_of_a_family(seeds: int, at: str, noise: float) -> None:
    together, _ = false_rates(seeds, at, noise)
    assert together <= 0.05 + 0.0125  # one standard error of 300 runs


def test_without_holm_a_family_would_err() -> None:
    _, alone = false_rates(8, "upper", 1.0)
    assert alone > 0.1


def test_true_effects_are_found() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        evidence = {
            HIGH_LOW: stats.mean(10 + rng.normal(size=5)),
            HIGH_MID: stats.mean(-10 + rng.normal(size=5)),
            HARMLESS: stats.mean(rng.normal(size=5) / 2),
        }
        found = [v.verdict for v in claims.judge(evidence, QUICK)]
        assert found == ["reproduced", "contradicted", "reproduced"]


def test_numbers_need_the_papers_scale() -> None:
    evidence = {MERGED: stats.exact(0.82)}
    assert claims.judge(evidence, PAPER_MERGED)[0].verdict == "reproduced"
    for other in (
        replace(PAPER_MERGED, profile="cpu"),
        replace(PAPER_MERGED, dataset="mnist"),
        replace(PAPER_MERGED, arch="resnet56"),
    ):
        verdict = claims.judge(evidence, other)[0]
        assert verdict.verdict == "not tested"
        assert "paper's own scale: dataset cifar10, network resnet110" in verdict.reason
    jpeg = claims.judge(evidence, replace(PAPER_MERGED, variant="jpeg"))[0]
    assert jpeg.token == f"{MERGED}: reproduced [paper, jpeg]"


def test_what_is_counted_needs_no_data_and_takes_nothing_from_the_others() -> None:
    anywhere = Scale("quick", "no data", "none", "resnet56")
    counts = {f"mega.table1.params.{arch}": stats.exact(n) for arch, n in (("resnet56", 0.862), ("resnet110", 1.743))}
    verdicts = claims.judge(counts, anywhere)
    assert [one.verdict for one in verdicts] == ["reproduced", "contradicted"]
    assert verdicts[0].token == "mega.table1.params.resnet56: reproduced [quick, no data]"
    sampled = {"mega.text.better_than_mean": stats.mean([2.0, 2.4, 2.2, 2.6])}
    alone = claims.judge(sampled, QUICK)[0]
    assert claims.judge(sampled | counts, QUICK)[0].verdict == alone.verdict == "reproduced"


def test_numbers_whose_subject_is_unknown_are_not_judged() -> None:
    scale = Scale("paper", "official", "cifar10", "resnet56")
    assert claims.judge({"mega.table1.weight_average": stats.exact(0.01)}, scale)[0].verdict == "not tested"


def test_untranscribed_numbers_are_never_judged() -> None:
    for c in claims.load():
        if c.kind in NUMBER_KINDS and not c.transcribed:
            scale = Scale("paper", "official", c.scale.get("dataset", "mnist"), c.scale.get("arch", "lenet"))
            verdict = claims.judge({c.id: noisy(50)}, scale)[0]
            assert (verdict.verdict, verdict.p) == ("not tested", None)
            assert "not transcribed" in verdict.reason


def test_what_is_blocked_leaves_the_family() -> None:
    evidence = {HIGH_LOW: noisy(9), HARMLESS: noisy(0, 0.1)}
    blocked, free = claims.judge(evidence, QUICK, {HIGH_LOW: "base accuracy 12 % is below 90 %", HARMLESS: ""})
    assert (blocked.verdict, blocked.reason) == ("not tested", "base accuracy 12 % is below 90 %")
    assert free.verdict == "reproduced"
    assert claims.judge({}, QUICK, blocked={HIGH_MID: "no data"})[0].token.endswith("not tested [quick, sample]")


def test_scale_may_differ_within_a_family() -> None:
    other = replace(QUICK, arch="vgg11")
    verdicts = claims.judge({HIGH_LOW: noisy(9), HIGH_MID: noisy(9)}, {HIGH_LOW: QUICK, HIGH_MID: other})
    assert [v.scale.arch for v in verdicts] == ["lenet", "vgg11"]


def test_json_is_finite_and_comes_back() -> None:
    for estimate in (noisy(9), stats.mean([1.0, 2.0])):
        verdict = claims.judge({HIGH_LOW: estimate}, QUICK)[0]
        data = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
        assert claims.Verdict.from_json(data).to_json() == verdict.to_json()
    assert data["low"] is None


def test_best_evidence() -> None:
    scales = [Scale(p, v, "mnist", "vgg11") for p, v in (("quick", "sample"), ("cpu", "official"), ("paper", "jpeg"))]
    verdicts = [claims.judge({HIGH_LOW: noisy(9)}, scale)[0] for scale in scales]
    assert min(verdicts, key=claims.rank).scale.profile == "paper"
    untested = claims.Verdict(claims.get(HIGH_LOW), claims.NOT_TESTED, scales[2], "no GPU")
    assert min([untested, verdicts[0]], key=claims.rank).scale.profile == "quick"


def test_a_sample_or_a_changed_parameter_is_not_the_papers_scale() -> None:
    claim = claims.get("mge.table2.mnist.lenet.trained")
    known = replace(claim, paper_value=99.0, transcribed=True)
    at = {"dataset": "mnist", "arch": "lenet", "profile": "paper"}
    assert verdicts._at_paper_scale(known, Scale(variant="official", **at))
    assert not verdicts._at_paper_scale(known, Scale(variant="sample", **at))
    assert not verdicts._at_paper_scale(known, Scale(variant="official", changed="t=0.99", **at))
    assert str(Scale("quick", "sample", "mnist", "lenet", "t=0.99")) == "quick, sample, t=0.99"


def test_controls_are_told_from_the_papers_claims() -> None:
    assert claims.get("mge.fig5.beats_magnitude").origin == "our control"
    assert claims.get("mge.fig6.high_worse_than_low").origin == "inferred from a figure"
    assert claims.get("mge.text.one_percent").origin == "paper"
