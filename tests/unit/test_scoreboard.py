"""The scoreboard: the best evidence of each claim, and a README that shows what the committed records say."""

import json
import re
from pathlib import Path

import pytest

from mgenb import claims
from mgenb.lab import catalog, scoreboard

ROOT = Path(__file__).parents[2]
ID = "mge.fig7.mask_beats_random"


def record(verdict, profile, variant="official", low=0.5, **context):
    scale = {"profile": profile, "variant": variant, "dataset": "mnist", "arch": "lenet"}
    numbers = {"estimate": 1.0, "low": low, "high": 1.5, "p": 0.01, "n": 5, "unit": "seeds", "reason": "why not"}
    row = {"id": ID, "verdict": verdict, "scale": scale, **numbers}
    told = {"device": "cpu", "cores": 2, **context}
    return {"stem": "03_importance_mask", "profile": profile, "result": {"claims": [row]}, "context": told}


def test_every_claim_has_a_row_and_most_have_no_record():
    frame = scoreboard.table([])
    assert list(frame.index) == [claim.id for claim in claims.load()]
    assert set(frame["verdict"]) == {claims.NOT_TESTED}
    assert set(frame["why"]) == {scoreboard.NO_RECORD}
    assert set(scoreboard.table([], "mega")["paper"]) == {"mega"}


def test_the_best_evidence_is_shown_with_its_scale_and_machine():
    gpu = record("contradicted", "paper", device="NVIDIA H100")
    for records in ([record("reproduced", "quick"), gpu], [gpu, record("reproduced", "quick")]):
        row = scoreboard.table(records).loc[ID]
        assert (row["verdict"], row["hardware"]) == ("contradicted", "NVIDIA H100")
        assert row["scale"] == "lenet on mnist [paper]"
        assert row["measured"].startswith("1.00 [0.50, 1.50]")
    row = scoreboard.table([record("inconclusive", "cpu", low=None), record(claims.NOT_TESTED, "paper")]).loc[ID]
    assert (row["verdict"], row["hardware"]) == ("inconclusive", "2 cores")
    assert "[?, 1.50]" in row["measured"]


def test_a_claim_that_the_registry_dropped_is_left_out():
    old = record("reproduced", "cpu")
    old["result"]["claims"][0]["id"] = "mge.made.up"
    assert scoreboard.best_verdicts([old]) == {}


def test_counts_leave_settings_out():
    frame = scoreboard.table([record("reproduced", "cpu")])
    counted = scoreboard.counts(frame, "paper")
    assert list(counted.columns) == list(scoreboard.ORDER)
    assert counted.to_numpy().sum() == sum(claim.kind != "setting" for claim in claims.load())
    assert counted.loc["mge", "reproduced"] == 1


def test_markdown_holds_what_has_a_verdict():
    lines = scoreboard.markdown(scoreboard.table([record("reproduced", "cpu")])).splitlines()
    assert len(lines) == 3
    assert "[03](notebooks/03_importance_mask.ipynb)" in lines[2]


def test_the_chart_draws_every_claim_as_large_as_another():
    frame = scoreboard.table([record("reproduced", "cpu")])
    drawn = [bar.get_width() for ax in scoreboard.chart(frame).axes for bar in ax.patches]
    assert sum(drawn) == (frame["kind"] != "setting").sum()


def test_the_table_in_the_readme_is_current():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- mgenb claims --markdown -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert shown
    wanted = scoreboard.markdown(scoreboard.table(catalog.committed_records()))
    assert shown[1].strip() == wanted, "put the output of `mgenb claims --markdown` between the two comments"


@pytest.mark.parametrize("stem", [notebook.stem for notebook in catalog.notebooks()])
def test_every_notebook_has_a_quick_record(stem):
    assert json.loads((ROOT / "figures" / "quick" / f"{stem}.json").read_text())["stem"] == stem
