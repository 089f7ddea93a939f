"""The scoreboard: the best evidence of each claim, and a README that shows what the committed records say."""

import re
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from mgenb import claims
from mgenb.lab import catalog, record, scoreboard

ROOT = Path(__file__).parents[2]
ID = "mge.fig7.mask_beats_random"


def test_every_claim_has_a_row_and_most_have_no_record():
    frame = scoreboard.table([])
    assert list(frame.index) == [claim.id for claim in claims.load()]
    assert set(frame["verdict"]) == {claims.NOT_TESTED}
    assert set(frame["why"]) == {scoreboard.NO_RECORD}
    assert set(scoreboard.table([], "mega")["paper"]) == {"mega"}


def test_the_best_evidence_is_shown_with_its_scale_and_machine(recorded):
    gpu = recorded("contradicted", "paper", context={"device": "NVIDIA H100"})
    for records in ([recorded("reproduced", "quick"), gpu], [gpu, recorded("reproduced", "quick")]):
        row = scoreboard.table(records).loc[ID]
        assert (row["verdict"], row["hardware"]) == ("contradicted", "NVIDIA H100")
        assert row["scale"] == "lenet on mnist [paper]"
        assert row["measured"].startswith("1.00 [0.50, 1.50]")
    open_below = recorded("inconclusive", "cpu")
    open_below.claims[0]["low"] = None
    row = scoreboard.table([open_below, recorded(claims.NOT_TESTED, "paper")]).loc[ID]
    assert (row["verdict"], row["hardware"]) == ("inconclusive", "2 cores")
    assert "[?, 1.50]" in row["measured"]


def test_a_claim_that_the_registry_dropped_is_left_out(recorded):
    assert scoreboard.best_verdicts([recorded(claim="mge.made.up")]) == {}
    assert set(scoreboard.table([recorded(claim="mge.made.up", schema=0)])["verdict"]) == {claims.NOT_TESTED}


def test_a_stale_record_counts_for_nothing_and_is_shown(recorded):
    stale = recorded("contradicted", "paper", registry="0" * 16)
    alone = scoreboard.table([stale])
    assert (alone.loc[ID, "verdict"], alone.loc[ID, "outcome"]) == ("stale", "stale [paper]")
    assert alone.loc[ID, "measured"] == ""
    assert "03_importance_mask (paper), judged by other registry entries" in alone.loc[ID, "why"]
    assert scoreboard.counts(alone, "paper").loc["mge", "stale"] == 1
    both = scoreboard.table([recorded("reproduced", "quick"), stale]).loc[ID]
    assert both["verdict"] == "reproduced"
    assert both["why"].startswith("why not; stale: 03_importance_mask (paper)")
    untested = scoreboard.table([recorded(claims.NOT_TESTED, "paper", version=7)]).loc[ID]
    assert untested["verdict"] == claims.NOT_TESTED
    drawn = [bar.get_width() for ax in scoreboard.chart(alone).axes for bar in ax.patches if isinstance(bar, Rectangle)]
    assert sum(drawn) == (alone["kind"] != "setting").sum()


def test_counts_leave_settings_out(recorded):
    frame = scoreboard.table([recorded()])
    counted = scoreboard.counts(frame, "paper")
    assert list(counted.columns) == [*claims.JUDGED, claims.NOT_TESTED]
    assert counted.to_numpy().sum() == sum(claim.kind != "setting" for claim in claims.load())
    assert counted.loc["mge", "reproduced"] == 1


def test_markdown_holds_what_has_a_verdict(recorded):
    lines = scoreboard.markdown(scoreboard.table([recorded()])).splitlines()
    assert len(lines) == 3
    assert "[03](notebooks/03_importance_mask.ipynb)" in lines[2]


def test_the_chart_draws_every_claim_as_large_as_another(recorded):
    frame = scoreboard.table([recorded()])
    drawn = [bar.get_width() for ax in scoreboard.chart(frame).axes for bar in ax.patches if isinstance(bar, Rectangle)]
    assert sum(drawn) == (frame["kind"] != "setting").sum()


def test_the_table_in_the_readme_is_current():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- mgenb claims --markdown -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert shown
    wanted = scoreboard.markdown(scoreboard.table(record.committed()))
    assert shown[1].strip() == wanted, "put the output of `mgenb claims --markdown` between the two comments"


@pytest.mark.parametrize("stem", [notebook.stem for notebook in catalog.notebooks()])
def test_every_notebook_has_a_quick_record(stem):
    assert record.read(ROOT / "figures" / "quick" / f"{stem}.json").stem == stem
