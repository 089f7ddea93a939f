"""The scoreboard: the best evidence of each claim, and a README that shows what the committed records say."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mgenb import claims, stats
from mgenb.lab import catalog, figures, record, scoreboard, telling

ROOT = Path(__file__).parents[2]
ID = "mge.fig7.mask_unimportant"
JUDGEABLE = [claim for claim in claims.load() if claim.kind != "setting"]


def inner(claim: claims.Claim) -> tuple[float, float, float]:
    """Return a value well inside what a claim allows, one as far outside, and one margin in its unit."""
    least, most = claims.supported(claim)
    ends = [end for end in (least, most) if np.isfinite(end)]
    unit = (claim.margin * (claim.paper_value or 1 if claim.relative else 1)) or max(map(abs, ends)) or 1.0
    if len(ends) > 1:
        return (least + most) / 2, most + 2 * unit, unit
    side = 1 if np.isfinite(least) else -1
    return ends[0] + 2 * side * unit, ends[0] - 2 * side * unit, unit


KINDS = ("inside", "outside", "mixed", "wide", "missing")


def estimates(claim, kind, rng):
    """Return made-up evidence for the readings of a claim: they agree, differ, or say nothing."""
    inside, outside, unit = inner(claim)
    by_reading = {}
    for place, reading in enumerate(claim.readings):
        centre = {"inside": inside, "outside": outside}.get(kind, (inside, outside)[place % 2])
        width = unit * (50 if kind == "wide" else 0.1)
        by_reading[reading.name] = stats.mean(centre + width * rng.normal(size=6))
    return by_reading


@pytest.fixture(scope="module")
def full(recorded):
    """Records of all notebooks at the paper's own scale, with evidence of each kind, and none for one claim in five."""
    rng = np.random.default_rng(3)
    several = sorted(JUDGEABLE, key=lambda claim: (claim.paper, claim.role, len(claim.readings) == 1))
    kinds = {claim.id: KINDS[place % len(KINDS)] for place, claim in enumerate(several)}
    made = []
    for notebook in catalog.notebooks():
        own = [claim for claim in JUDGEABLE if claim.notebook == notebook.stem and kinds[claim.id] != "missing"]
        paper = {claim.id: (claim.scale.get("dataset", "any"), claim.scale.get("arch", "any")) for claim in own}
        scales = {name: claims.Scale("paper", "official", *where) for name, where in paper.items()}
        verdicts = claims.judge({claim.id: estimates(claim, kinds[claim.id], rng) for claim in own}, scales)
        rows = [verdict.to_json() for verdict in verdicts]
        made.append(recorded(stem=notebook.stem, profile="paper", claims=rows, version=catalog.version(notebook.stem)))
    return made


def test_every_claim_has_a_row_and_most_have_no_record():
    frame = scoreboard.table([])
    assert list(frame.index) == [claim.id for claim in claims.load()]
    assert set(frame["verdict"]) == {claims.NOT_TESTED}
    assert set(frame["why"]) == {scoreboard.NO_RECORD}
    assert set(scoreboard.table([], "mega")["paper"]) == {"mega"}


def test_what_a_record_says_is_text_and_no_html(recorded):
    written = recorded("not tested")
    written.claims[0]["reason"] = "<img src=x onerror=alert(1)>"
    page = scoreboard.document(scoreboard.table([written]))
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_the_best_evidence_is_shown_with_its_scale(recorded):
    gpu = recorded("contradicted", "paper")
    for records in ([recorded("reproduced", "quick"), gpu], [gpu, recorded("reproduced", "quick")]):
        row = scoreboard.table(records).loc[ID]
        assert (row["verdict"], row["scale"], row["networks"]) == ("contradicted", "paper", "lenet on mnist")
        assert row["measured"].startswith("1.00 [0.50, 1.50]")
    open_below = recorded("inconclusive", "cpu")
    open_below.claims[0]["low"] = None
    row = scoreboard.table([open_below, recorded(claims.NOT_TESTED, "paper")]).loc[ID]
    assert (row["verdict"], row["scale"]) == ("inconclusive", "cpu")
    assert "[?, 1.50]" in row["measured"]


def test_a_claim_that_the_registry_dropped_is_left_out(recorded):
    assert scoreboard.best_verdicts([recorded(claim="mge.made.up")]) == {}
    assert set(scoreboard.table([recorded(claim="mge.made.up", schema=0)])["verdict"]) == {claims.NOT_TESTED}


def test_a_stale_record_counts_for_nothing_and_is_shown(recorded):
    stale = recorded("contradicted", "paper", registry="0" * 16)
    alone = scoreboard.table([stale])
    assert (alone.loc[ID, "verdict"], alone.loc[ID, "outcome"]) == ("stale", "stale [paper]")
    assert alone.loc[ID, "measured"] == ""
    assert alone.loc[ID, "why"].startswith("03_importance_mask (paper): judged by other registry entries")
    assert scoreboard.counts(alone, "paper").loc["mge", "stale"] == 1
    both = scoreboard.table([recorded("reproduced", "quick"), stale]).loc[ID]
    assert both["verdict"] == "reproduced"
    assert both["why"].startswith("why not; stale: 03_importance_mask (paper)")
    untested = scoreboard.table([recorded(claims.NOT_TESTED, "paper", version=7)]).loc[ID]
    assert untested["verdict"] == claims.NOT_TESTED


def test_counts_leave_settings_out(recorded):
    frame = scoreboard.table([recorded()])
    counted = scoreboard.counts(frame, "paper")
    assert list(counted.columns) == ["reproduced", claims.NOT_TESTED]
    assert counted.to_numpy().sum() == len(JUDGEABLE)
    assert counted.loc["mge", "reproduced"] == 1


# ---------------------------------------------------------------- five sentences


@pytest.mark.parametrize("paper", scoreboard.PAPERS)
def test_five_sentences_count_what_the_table_shows(full, paper):
    frame = scoreboard.table(full)
    first, reproduced, contradicted, depends, left = scoreboard.sentences(frame, paper)
    central = frame[(frame["paper"] == paper) & (frame["role"] == "central")]
    count = {verdict: int((central["verdict"] == verdict).sum()) for verdict in scoreboard.ORDER}
    told = list(map(int, re.findall(r"\d+", first)))
    decided = [count["reproduced"], count["contradicted"], count["depends"]]
    assert told == [len(central), *decided, len(central) - sum(decided)]
    assert min(decided) > 0  # else the made-up records show nothing
    for sentence, verdict in ((reproduced, "reproduced"), (contradicted, "contradicted"), (depends, "depends")):
        named = [row.statement for row in central.itertuples() if row.statement[:-1] in sentence]
        assert named == list(central.loc[central["verdict"] == verdict, "statement"])
    assert sum(map(int, re.findall(r"(\d+) [a-z]", left.split(")")[0]))) == len(central) - sum(decided)


def test_checks_and_details_enter_no_sentence(full):
    frame = scoreboard.table(full)
    other = frame.assign(verdict=frame["verdict"].where(frame["role"] == "central", "reproduced"))
    for paper in scoreboard.PAPERS:
        assert scoreboard.sentences(other, paper) == scoreboard.sentences(frame, paper)


def test_without_records_nothing_is_reproduced():
    first, *verdicts, last = scoreboard.sentences(scoreboard.table([]), "mega")
    count = sum(claim.role == "central" for claim in claims.load("mega"))
    assert f"0 reproduced, 0 contradicted, 0 dependent on the reading, {count} undecided" in first
    assert [sentence.split(": ")[1] for sentence in verdicts] == ["none."] * 3
    assert last.startswith(f"Undecided ({count} not tested); measured but inconclusive: none; not tested: ")


# ---------------------------------------------------------------- README.md and VERDICTS.md


def listed(text):
    """Return how often VERDICTS.md lists each claim, by id and for whole tables' cells by their number."""
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    by_statement = {f"{claim.statement} ({claim.where})": claim.id for claim in JUDGEABLE}
    ids = [by_statement[row.split(" | ")[1]] for row in rows]
    left = text.split("## Claims without a verdict, and why")[1].split("\n## ")[0]
    ids += re.findall(r"`([a-z0-9_.]+)`", left)
    cells = {}
    for name, count in re.findall(r"`([^`]+)\.\*` \((\d+)\)", left):
        cells[name] = cells.get(name, 0) + int(count)
    return ids, cells


@pytest.mark.parametrize("made", ["full", "none"])
def test_verdicts_md_lists_every_claim_once(request, made):
    records = request.getfixturevalue("full") if made == "full" else []
    ids, cells = listed(scoreboard.document(scoreboard.table(records)))
    assert len(ids) == len(set(ids))
    rest = [claim for claim in JUDGEABLE if claim.id not in ids]
    assert cells == {table: sum(claim.table == table for claim in rest) for table in {claim.table for claim in rest}}
    assert {claim.id for claim in JUDGEABLE} >= set(ids)


def test_what_has_no_verdict_says_why(recorded):
    stale = recorded("reproduced", "cpu", stem="02_zero_filling", claim="mge.fig5.beats_random", version=7)
    lines = list(scoreboard.without_evidence(scoreboard.table([stale, recorded("unfinished")])))
    assert all(re.match(r"- \[\d\d\]\(notebooks/\w+\.ipynb\) (not tested|stale|unfinished), \S.+: `", x) for x in lines)
    assert any("stale, 02_zero_filling (cpu): measured by version 7" in line for line in lines)
    assert any(line.endswith(f"unfinished, why not: `{ID}`") for line in lines)
    reasons = [line.partition(": `")[0] for line in lines]
    assert len(reasons) == len(set(reasons))


def test_tables_render_and_nothing_is_cut(full):
    text = scoreboard.document(scoreboard.table(full))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {9}
    assert "..." not in text
    assert "nan" not in text
    for target in set(re.findall(r"\]\(([^)]+)\)", text)):
        assert (ROOT / target).exists()
    for part in scoreboard.PARTS.values():
        assert f"\n## {part}\n\n| verdict | " in text  # GitHub wants an empty line before a table


def test_a_page_holds_the_central_claims_with_the_controls_that_fail(full):
    frame = scoreboard.table(full)
    page = scoreboard.central(frame, "mega")
    assert list(page.index) == [claim.statement for claim in claims.load("mega") if claim.role == "central"]
    for row in page.itertuples():
        controls = frame[(frame["notebook"] == row.notebook) & (frame["role"] == "control")]
        shown = row[page.columns.get_loc("controls that fail") + 1]
        for control in controls.itertuples():
            assert (control.statement in shown) == (control.verdict == "fails")


def test_readings_are_counted_for_and_against_where_they_do_not_decide(full):
    best = scoreboard.best_verdicts(full)
    several = [v for v in best.values() if v.verdict in claims.JUDGED and sum(r.core for r in v.claim.readings) > 1]
    assert {v.verdict for v in several} >= {"reproduced", "contradicted", "depends", "inconclusive"}
    for verdict in several:
        told = list(map(int, re.findall(r"\d+", telling.agreeing(verdict))))
        core = sum(reading.core for reading in verdict.claim.readings)
        words = [reading.verdict for reading in verdict.readings if reading.core]
        if verdict.verdict in ("depends", "inconclusive"):
            assert told == [words.count("reproduced"), words.count("contradicted"), core]
        else:
            assert told == [len(words) - words.count("vacuous"), core]


def test_publishing_writes_both_files_once(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(record, "committed", lambda: [recorded(claim="mge.fig5.decays", stem="02_zero_filling")])
    (tmp_path / "README.md").write_text("# a\n\n<!-- mgenb claims --markdown -->\nold\n<!-- end -->\n\nb\n")
    assert scoreboard.publish(tmp_path) == ["VERDICTS.md", "README.md"]
    assert scoreboard.publish(tmp_path) == []
    shown = scoreboard.markdown(scoreboard.table(record.committed()))
    assert "**reproduced**" in shown
    readme = (tmp_path / "README.md").read_text()
    assert readme == f"# a\n\n<!-- mgenb claims --markdown -->\n{shown}\n<!-- end -->\n\nb\n"


def test_readme_and_verdicts_md_are_current():
    frame = scoreboard.table(record.committed())
    shown = scoreboard.TABLE_IN_README.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown == [scoreboard.markdown(frame)], "make it anew: mgenb refresh 14"
    document = (ROOT / "VERDICTS.md").read_text(encoding="utf-8")
    assert document == scoreboard.document(frame), "make it anew: mgenb refresh 14"


@pytest.mark.parametrize("stem", [notebook.stem for notebook in catalog.notebooks()])
def test_every_notebook_has_a_quick_record(stem):
    assert record.read(ROOT / "figures" / "quick" / f"{stem}.json").stem == stem


# ---------------------------------------------------------------- forest plot


@pytest.mark.parametrize("kind", sorted({claim.kind for claim in JUDGEABLE}))
def test_what_holds_lies_right_of_zero_and_what_fails_left(kind):
    for claim in (claim for claim in JUDGEABLE if claim.kind == kind):
        inside, outside, unit = inner(claim)
        least, most = scoreboard.inside(claim, inside - 0.1 * unit, inside + 0.1 * unit)
        assert 0 < least <= scoreboard.inside(claim, inside)[0] <= most, claim.id
        least, most = scoreboard.inside(claim, outside - 0.1 * unit, outside + 0.1 * unit)
        assert least <= scoreboard.inside(claim, outside)[0] <= most < 0, claim.id
        assert scoreboard.inside(claim, None, None)[0] == -scoreboard.FURTHEST


def test_an_interval_around_the_middle_of_an_equivalence_reaches_it():
    claim = claims.get("mge.fig3.same_distribution")
    assert scoreboard.inside(claim, -0.5 * claim.margin, 0.5 * claim.margin) == pytest.approx((0.5, 1.0))
    assert scoreboard.inside(claim, None, 0.0) == (-scoreboard.FURTHEST, pytest.approx(1.0))
    above = claims.get("mge.fig6.high_worse_than_low")
    assert scoreboard.inside(above, 2 * above.margin, None) == (1.0, scoreboard.FURTHEST)


@pytest.mark.parametrize("paper", scoreboard.PAPERS)
def test_the_forest_plot_draws_every_judged_central_claim_once(full, paper):
    with plt.rc_context(figures.STYLE):
        fig = scoreboard.forest(full, paper)
        fig.canvas.draw()
    frame = scoreboard.table(full)
    judged = frame[frame["verdict"].isin(claims.JUDGED) & (frame["role"] == "central") & (frame["paper"] == paper)]
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{name}  [paper]" for name in judged.index]
    lines = [line for line in ax.lines if line.get_marker() in figures.MARKERS.values()]
    drawn = {np.asarray(line.get_ydata()).item(): line for line in lines}
    assert len(drawn) == len(lines)
    assert set(drawn) == set(range(len(judged)))
    for place, verdict in enumerate(judged["verdict"]):
        assert drawn[place].get_label() == verdict
        side = {"reproduced": 1, "contradicted": -1}.get(verdict)
        assert side is None or side * np.asarray(drawn[place].get_xdata()).item() > 0
    for corner in fig.get_tightbbox().transformed(fig.dpi_scale_trans).get_points():
        assert fig.bbox.padded(1).contains(*corner)
    plt.close(fig)
