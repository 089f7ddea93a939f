"""What runs leave behind: a folder for each set of parameters, all of a run or nothing, one run at a time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from mgenb.errors import MgenbError
from mgenb.lab import catalog, execute, record, stage

STEM = "03_importance_mask"
FIRST = """
import json, os, pathlib, sys, time
out = pathlib.Path(os.environ["MGENB_OUT"])
(out / "03_importance_mask-a.png").write_text(f"figure of {z}")
"""
LAST = """
record = {"stem": "03_importance_mask", "profile": profile, "figures": ["03_importance_mask-a.png"]}
record["result"] = {"claims": [], "mechanism": {"z": z}}
(out / "03_importance_mask.json").write_text(json.dumps(record))
print("mechanism z:", z)
"""


def write_notebook(root: Path, *cells: str) -> None:
    parameters = 'profile: str = "quick"\nz: float = 0.0'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (parameters, *cells)])
    nb.cells[0].metadata.tags = ["parameters"]
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nb, root / "notebooks" / f"{STEM}.ipynb")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with one notebook, which writes a figure and a record that tell `z`."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "mgenb"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGENB_OUT", raising=False)
    write_notebook(tmp_path, FIRST, LAST)
    return tmp_path


def started(root: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mgenb.cli", *arguments]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*given: str) -> execute.Outcome:
    """Run the notebook from this process, into the folder that is its own."""
    (job,) = execute.plan("03", "quick", given, None)
    return execute.execute(job)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


def test_each_set_of_parameters_has_a_folder_of_its_own(project):
    runs = project / "runs"
    assert catalog.output_dir("cpu") == runs / "cpu"
    assert catalog.output_dir("quick", {"t": "0.5"}) == runs / "quick-t=0.5"
    assert catalog.output_dir("quick", {"t": 0.5, "seed": 1}) == catalog.output_dir("quick", {"seed": 1, "t": 0.5})
    given = ["a/b", "a_b", "a b", "x" * 99, "x" * 98]
    names = {catalog.output_dir("quick", {"dataset": value}).relative_to(runs).name for value in given}
    assert len(names) == len(given)
    assert max(map(len, names)) < 80


def test_mgenb_out_is_exactly_the_folder(project, monkeypatch):
    monkeypatch.setenv("MGENB_OUT", str(project / "mine"))
    assert catalog.output_dir("quick", {"t": 0.5}) == project / "mine"


def test_two_runs_at_once_give_what_each_gives_alone(project):
    alone = {}
    for z in ("1.5", "2.5"):
        assert run(f"z={z}").error == ""
        alone[z] = contents((project / "runs" / f"quick-z={z}").rename(project / z))
    assert alone["1.5"][f"{STEM}-a.png"] != alone["2.5"][f"{STEM}-a.png"]
    both = [started(project, "run", "03", "-p", f"z={z}") for z in ("1.5", "2.5")]
    for process, z in zip(both, ("1.5", "2.5"), strict=True):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.splitlines()[-1].startswith(f"look at {project / 'runs' / f'quick-z={z}'}: ")
        assert "encryption" not in err  # a kernel that listens at a port warns of that
        together = contents(project / "runs" / f"quick-z={z}")
        for name in (f"{STEM}-a.png", f"{STEM}.json"):
            assert together[name] == alone[z][name]


def test_a_second_run_into_the_same_folder_is_told_who_is_at_work(project):
    write_notebook(project, FIRST, "time.sleep(60)")
    first = started(project, "run", "03")
    try:
        wait_for(project / "runs" / "quick" / f"unfinished-{STEM}" / f"{STEM}-a.png", first)
        with pytest.raises(MgenbError, match=f"process {first.pid} is at work in {project / 'runs' / 'quick'}"):
            run()
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=300)


def test_a_failing_run_leaves_what_was_there(project):
    folder = project / "runs" / "quick"
    assert run().error == ""
    before = contents(folder)
    assert set(before) == {f"{STEM}{end}" for end in (".ipynb", ".json", "-a.png")}
    write_notebook(project, FIRST.replace("figure", "other"), "1 / 0", LAST)
    assert run().error == "ZeroDivisionError: division by zero"
    assert contents(folder) == before
    write_notebook(project, FIRST.replace("figure", "other").replace("a.png", "b.png"), LAST)
    assert run().error == ""
    assert set(contents(folder)) == {f"{STEM}{end}" for end in (".ipynb", ".json", "-b.png")}
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def test_a_stopped_run_goes_on_from_its_parts_and_a_finished_one_too(project):
    count = """
parts = out / "03_importance_mask.parts"
parts.mkdir(exist_ok=True)
(parts / f"{len(list(parts.iterdir()))}.json").write_text("a part")
(out / "03_importance_mask.csv").write_text(f"{len(list(parts.iterdir()))} rows")
"""
    folder = project / "runs" / "quick"
    write_notebook(project, FIRST, count, "1 / 0")
    assert run().error
    assert not list(folder.glob("*.csv"))
    write_notebook(project, FIRST, count, LAST)
    for rows in (2, 3):
        assert run().error == ""
        assert (folder / f"{STEM}.csv").read_text() == f"{rows} rows"
        assert len(list((folder / f"{STEM}.parts").iterdir())) == rows
    execute.refresh(catalog.find("03"), "quick")  # begins with nothing, and needs no parts beside the rows
    figures = project / "figures" / "quick"
    assert {path.name for path in figures.iterdir()} == {f"{STEM}{end}" for end in (".csv", ".json", "-a.png")}
    assert (figures / f"{STEM}.csv").read_text() == "1 rows"


@pytest.mark.parametrize("command", ["run", "refresh"])
def test_ctrl_c_is_one_sentence_and_ends_the_kernel(project, command):
    write_notebook(
        project, FIRST, f"pathlib.Path({str(project)!r}, 'pid').write_text(str(os.getpid()))", "time.sleep(60)"
    )
    before = (project / "notebooks" / f"{STEM}.ipynb").read_bytes()
    process = started(project, command, "03")
    wait_for(project / "pid", process)
    time.sleep(0.5)  # until it sleeps
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    (told,) = [line for line in err.splitlines() if not line.startswith(STEM)]
    assert told.startswith("mgenb: stopped; ")
    assert "the same command" in told
    with pytest.raises(ProcessLookupError):
        os.kill(int((project / "pid").read_text()), 0)
    assert (project / "notebooks" / f"{STEM}.ipynb").read_bytes() == before


def test_a_stage_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MgenbError, match="cannot write in"), stage.held(tmp_path / "file" / "stage"):
        pass


def test_a_move_that_is_not_possible_is_one_sentence_and_goes_on_later(tmp_path):
    folder, place = tmp_path / "stage", tmp_path / "a.json"
    (place / "in the way").mkdir(parents=True)
    with stage.held(folder):
        (folder / "a.json").write_text("new")
        with pytest.raises(MgenbError, match=r"could not move what is in .*a\.json"):
            stage.move_out(folder, {"a.json": place})
    (place / "in the way").rmdir()
    place.rmdir()
    with stage.held(folder):
        assert place.read_text() == "new"
        assert not (folder / "a.json").exists()


@pytest.mark.slow
def test_notebook_02_at_once_with_two_values_of_t(tmp_path, monkeypatch):
    """The record's result block, which holds all that was found, is that of the run alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = Path(__file__).parents[2]

    def begin(t: str, folder: str) -> subprocess.Popen:
        return started(root, "run", "02", "-p", f"t={t}", "--out", str(tmp_path / f"{folder}-{t}"))

    for t in ("0.5", "0.99"):
        process = begin(t, "alone")
        process.communicate()
        assert process.returncode == 0
    for process in [begin(t, "together") for t in ("0.5", "0.99")]:
        process.communicate()
        assert process.returncode == 0
    found = {
        (folder, t): record.read(tmp_path / f"{folder}-{t}" / "02_zero_filling.json").to_json()["result"]
        for folder in ("alone", "together")
        for t in ("0.5", "0.99")
    }
    assert found["alone", "0.5"] != found["alone", "0.99"]
    for t in ("0.5", "0.99"):
        assert found["together", t] == found["alone", t]


def test_the_record_moves_last_and_the_notebook_before_it(tmp_path, monkeypatch):
    folder, results = tmp_path / "stage", tmp_path / "results"
    folder.mkdir()
    for name in ("a.json", "a.ipynb", "a.parts.json", "a-x.png"):
        (folder / name).touch()
    moved, really = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, place: (moved.append(Path(place).name), really(source, place)))
    execute._publish(folder, "a", results, tmp_path / "a.ipynb")
    assert moved[0] == stage.MOVES
    assert sorted(moved[1:3]) == ["a-x.png", "a.parts.json"]
    assert moved[3:] == ["a.ipynb", "a.json"]
