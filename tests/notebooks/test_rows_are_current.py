"""Committed rows are what their notebook measures today, and committed records what analysis makes of them today.

`make test` has run every notebook just before (`mgenb check --out`), and says where in `MGENB_CHECKED`: what was
measured there is compared, so that nothing is measured twice. Without it each test runs its notebook itself.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from mgenb.lab import catalog, execute, record, rows

ROOT = Path(__file__).parents[2]
ROWS = [path for profile in catalog.PROFILES for path in sorted((ROOT / "figures" / profile).glob("*.csv"))]
QUICK = [path.stem for path in ROWS if path.parent.name == "quick"]
RECORDS = [  # of every notebook that stands on rows, its own or another's
    (path.with_name(f"{notebook.stem}.json"), path)
    for path in ROWS
    for notebook in catalog.notebooks()
    if notebook.measured_in == path.stem
]
CHECKED = ROOT / os.environ["MGENB_CHECKED"] if os.environ.get("MGENB_CHECKED") else None
SLOW = () if CHECKED else ("11_mega_fitness", "12_mega_pairs", "13_mega_hierarchy")
ALLOWED = 0.2  # percent points: two images in a thousand


def untimed(frame):
    """Without the columns whose name ends in "seconds": times are those of one machine, at one hour."""
    return frame[[name for name in frame if not name.endswith("seconds")]]


def run(stem: str, profile: str, out: Path, folder: Path | None = None) -> None:
    notebook = catalog.find(stem)
    given = {catalog.ANALYSE: str(folder)} if folder else {}
    job = execute.Job(notebook, execute.path_of(notebook), {"profile": profile}, out, given)
    outcome = execute.execute(job)
    assert not outcome.error, outcome.line


def first_difference(now, before):
    """Where the rows that are measured now part from the committed ones, in words."""
    if len(now) != len(before) or list(now) != list(before):
        return f"{len(before)} rows of {', '.join(before)} are committed, {len(now)} of {', '.join(now)} measured"
    for name in before:
        odd = now[name].ne(before[name]) & ~(now[name].isna() & before[name].isna())
        if odd.any():
            row, count = odd.idxmax(), f"the first of {odd.sum()} in {name!r}"
            return f"line {row + 2} says {before.at[row, name]!s}, measured is {now.at[row, name]!s}, {count}"
    return "the types of the columns are others"


@pytest.mark.parametrize(
    "stem", [pytest.param(stem, marks=pytest.mark.slow) if stem in SLOW else stem for stem in QUICK]
)
def test_measuring_again_gives_the_committed_rows(stem, tmp_path):
    if not CHECKED:
        run(stem, "quick", tmp_path)
    fresh, old = (rows.read(folder / f"{stem}.csv") for folder in (CHECKED or tmp_path, ROOT / "figures" / "quick"))
    cure = f"`mgenb refresh {stem[:2]}`, and a new VERSION where the experiment changed"
    assert fresh.experiment == old.experiment, f"measure the committed rows anew: {cure}"
    now, before = untimed(fresh.frame), untimed(old.frame)
    numbers = [name for name in before.select_dtypes("float") if name not in json.loads(old.parts.index[0])]
    # measured is the last number of a row, or all from the first that is a share on
    measured = numbers[next((place for place, name in enumerate(numbers) if "(%)" in name), -1) :]
    here = {torch.__version__, torch.backends.cpu.get_cpu_capability()}
    alike = {*old.parts["torch"], *old.parts["capability"]} == here
    exact = list(before if alike else before.columns.difference(measured))
    difference = first_difference(now[exact], before[exact])
    assert now[exact].equals(before[exact]), f"figures/quick/{stem}.csv, {difference}: {cure}"
    # on another processor single images may go over: one of the fewest that a share is of
    allowed = max(
        ALLOWED, 100 / min(about["counts"][split] for about in old.parts["described"] for split in ("val", "test"))
    )
    same = fresh.parts["weights"].eq(old.parts["weights"]).repeat(old.parts["rows"]).to_numpy()
    for name in measured:  # of other networks only the kind of rows is known
        shares = same & (("(%)" in name) | before["what"].str.contains("(%)", regex=False))
        apart = (now[name] - before[name])[shares].abs().max()
        assert not apart > allowed + 1e-6  # where there is no share it is no number


@pytest.mark.parametrize(("path", "drawn"), RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_record_is_what_analysis_gives_today(path, drawn, tmp_path):
    old, made = record.read(path), tmp_path
    assert old.stale == ""
    if path.parent.name == "quick" and CHECKED and (CHECKED / drawn.name).read_bytes() == drawn.read_bytes():
        made = CHECKED  # equal rows give equal records
    else:
        run(path.stem, path.parent.name, tmp_path, path.parent)
    new = record.read(made / path.name)
    assert new.to_json()["result"] == old.to_json()["result"]
    assert new.figures == old.figures
    assert made == CHECKED or not (made / drawn.name).exists()


def test_every_experiment_has_rows():
    tagged = {
        notebook.stem
        for notebook in catalog.notebooks()
        if any("experiment" in cell["metadata"].get("tags", []) for cell in _cells(notebook))
    }
    assert tagged == set(QUICK)


def _cells(notebook: catalog.Notebook) -> list[dict]:
    return json.loads(execute.path_of(notebook).read_text(encoding="utf-8"))["cells"]
