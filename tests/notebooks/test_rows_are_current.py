"""Committed rows are what their notebook measures today, and committed records what analysis makes of them today."""

import json
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
SLOW = ("11_mega_fitness", "12_mega_pairs", "13_mega_hierarchy")
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


@pytest.mark.parametrize(
    "stem", [pytest.param(stem, marks=pytest.mark.slow) if stem in SLOW else stem for stem in QUICK]
)
def test_measuring_again_gives_the_committed_rows(stem, tmp_path):
    run(stem, "quick", tmp_path)
    fresh, old = (rows.read(folder / f"{stem}.csv") for folder in (tmp_path, ROOT / "figures" / "quick"))
    assert fresh.experiment == old.experiment, "measure the committed rows anew: `mgenb refresh`"
    now, before = untimed(fresh.frame), untimed(old.frame)
    numbers = [name for name in before.select_dtypes("float") if name not in json.loads(old.parts.index[0])]
    # measured is the last number of a row, or all from the first that is a share on
    measured = numbers[next((place for place, name in enumerate(numbers) if "(%)" in name), -1) :]
    what = before.columns.difference(measured)
    assert now[what].equals(before[what])
    here = {torch.__version__, torch.backends.cpu.get_cpu_capability()}
    if {*old.parts["torch"], *old.parts["capability"]} == here:
        assert now.equals(before)
    same = fresh.parts["weights"].eq(old.parts["weights"]).repeat(old.parts["rows"]).to_numpy()
    for name in measured:  # of other networks only the kind of rows is known
        shares = same & (("(%)" in name) | before["what"].str.contains("(%)", regex=False))
        apart = (now[name] - before[name])[shares].abs().max()
        assert not apart > ALLOWED  # where there is no share it is no number


@pytest.mark.parametrize(("path", "drawn"), RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_record_is_what_analysis_gives_today(path, drawn, tmp_path):
    old = record.read(path)
    assert old.stale == ""
    run(path.stem, path.parent.name, tmp_path, path.parent)
    new = record.read(tmp_path / path.name)
    assert new.to_json()["result"] == old.to_json()["result"]
    assert new.figures == old.figures
    assert not (tmp_path / drawn.name).exists()


def test_every_experiment_has_rows():
    tagged = {
        notebook.stem
        for notebook in catalog.notebooks()
        if any("experiment" in cell["metadata"].get("tags", []) for cell in _cells(notebook))
    }
    assert tagged == set(QUICK)


def _cells(notebook: catalog.Notebook) -> list[dict]:
    return json.loads(execute.path_of(notebook).read_text(encoding="utf-8"))["cells"]
