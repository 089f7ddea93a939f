"""Killed workers, notebooks side by side, Ctrl-C: nothing that was finished is lost, and one sentence says it."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import nbformat
import psutil
import pytest

from mgenb import executor
from mgenb.errors import MgenbError
from mgenb.lab import catalog, execute, rows

EXPERIMENT = rows.Experiment("02_zero_filling", 1, 0)
PARTS = [{"base": base} for base in range(5)]
STEMS = ["03_importance_mask", "04_weight_distribution", "06_accuracy_table"]


def deadly(flag, once):
    """Squares, but for 1, which kills its worker: once, or always."""

    def square(number):
        if number == 1 and not (once and flag.exists()):
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return number**2

    return square


def measure(folder, square, found=None):
    def facts(part):
        return {"data": "d", "weights": f"w{part['base']}"}

    def experiment(part):
        return [{"square": square(part["base"])}]

    return rows.measure(PARTS, experiment, experiment=EXPERIMENT, folder=folder, facts=facts, executor=found)


def kept(folder):
    return len(list((folder / f"{EXPERIMENT.stem}.parts").glob("*.json")))


@pytest.mark.parametrize("way", ["two", "cluster"])
def test_a_task_that_kills_its_worker_is_tried_once_more_and_named_then(way, tmp_path, request):
    asked = ("2", None) if way == "two" else (None, request.getfixturevalue("cluster"))
    with executor.workers(*asked) as found:
        squares = dict(executor.each(deadly(tmp_path / "flag", once=True), range(6), found))
        assert squares == {number: number**2 for number in range(6)}
        others = executor.each(deadly(tmp_path / "flag", once=False), range(6), found, "number")
        with pytest.raises(MgenbError, match="computed number 1 was killed") as named:
            list(others)
    assert "\n" not in str(named.value)


def test_what_was_finished_before_a_worker_was_killed_is_kept(tmp_path):
    with executor.workers("2") as found, pytest.raises(MgenbError, match=r"computed part {'base': 1} was killed"):
        measure(tmp_path, deadly(tmp_path / "flag", once=False), found)
    assert 3 <= kept(tmp_path) <= 4
    assert measure(tmp_path, lambda number: -1).frame["square"].isin([-1, 0, 4, 9, 16]).all()
    assert kept(tmp_path) == 5


SERVE = """
import time
from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    time.sleep(600)
"""


def test_a_lost_scheduler_is_one_sentence_and_finished_parts_stay(tmp_path):
    pytest.importorskip("distributed")
    (tmp_path / "serve.py").write_text(SERVE)
    quiet: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen([sys.executable, tmp_path / "serve.py"], **quiet)
    scheduler, address = server.pid, server.stdout.readline().strip()
    parts = tmp_path / f"{EXPERIMENT.stem}.parts"

    def square(number):  # it may name nothing of this module, which the scheduler cannot import
        if number == 3:
            while not any(parts.glob("*.json")):
                time.sleep(0.05)
            os.kill(scheduler, signal.SIGKILL)
            time.sleep(60)
        return number**2

    lost_in = pytest.raises(MgenbError, match="was lost; what is finished is kept")
    with lost_in as lost, executor.workers(None, address) as found:
        measure(tmp_path, square, found)
    assert "\n" not in str(lost.value)
    assert server.wait() == -signal.SIGKILL
    assert kept(tmp_path) >= 1
    assert measure(tmp_path, lambda number: number**2).frame["square"].tolist() == [0, 1, 4, 9, 16]


def write_notebook(root, stem, *cells):
    first = nbformat.v4.new_code_cell('profile: str = "quick"', metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nb, root / "notebooks" / f"{stem}.ipynb")


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "mgenb"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGENB_OUT", raising=False)
    return tmp_path


MEETING = """
import json, os, pathlib, time
out = pathlib.Path(os.environ["MGENB_OUT"])
mine, other = (out.parent.parent / name for name in (MINE, OTHER))
mine.write_text(json.dumps({name: os.environ.get(name) for name in ("MGENB_JOBS", "OMP_NUM_THREADS")}))
deadline = time.monotonic() + 300
while not other.exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
"""


def test_notebooks_run_side_by_side_and_one_that_fails_stops_no_other(project, monkeypatch):
    monkeypatch.setenv("MGENB_JOBS", "7")
    write_notebook(project, STEMS[0], "1 / 0")
    for mine, other in (STEMS[1:], STEMS[:0:-1]):
        write_notebook(project, mine, f"MINE, OTHER = {mine!r}, {other!r}", MEETING)
    jobs = [job for stem in STEMS for job in execute.plan(stem, "quick", [], project / "out")]
    outcomes = {str(outcome.job): outcome.error for outcome in execute.execute_all(jobs, "2", None)}
    assert outcomes == {STEMS[0]: "ZeroDivisionError: division by zero", STEMS[1]: "", STEMS[2]: ""}
    for stem in STEMS[1:]:
        assert (project / "out" / f"{stem}.ipynb").exists()
        assert json.loads((project / stem).read_text()) == {"MGENB_JOBS": "", "OMP_NUM_THREADS": "1"}


START = """
import pathlib, time
from mgenb import lab
file = pathlib.Path("tiny.toml")
how = 'dataset = "mnist", arch = "lenet", recipe = "mge-adam", epochs = 1, images = 200, floor = 0.0'
file.write_text(f"[networks]\\ntiny = {{ {how} }}")
tiny = {"bases": 6, "networks": ["tiny"], "networks_file": str(file)}
run = lab.start("03_importance_mask", profile=profile, seed=0, device="cpu", **tiny)
"""
CELL = """
def experiment(part):
    data, (net,) = lab.load(part), lab.trained(part)
    with open(LOG, "a") as log:
        log.write(f"{part['base']}\\n")
    time.sleep(1)
    return [{"sum": sum(weight.sum().item() for weight in net.parameters())}]
"""
MEASURE = "run.measure([run.part(base=base) for base in range(6)], experiment, version=1)"
ALL = """
import sys
from mgenb.cli import main
from mgenb.lab import catalog
every = catalog.notebooks()
catalog.notebooks = lambda: every[3:5]
sys.argv = ["mgenb", "run", "all", "--jobs", "2"]
main.main()
"""


def stopped(command, ready):
    """Press Ctrl-C once a command is ready; return its exit code, stdout and stderr when all of it has ended."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert len(family) >= 3
    assert not alive
    return process.returncode, out, err


def told(err):
    return [line for line in err.splitlines() if " (about " not in line]


def test_ctrl_c_with_two_jobs_is_one_sentence_and_the_same_command_goes_on(project):
    log = project / "log"
    parts = project / "runs" / "quick" / "unfinished-03_importance_mask" / "03_importance_mask.parts"
    write_notebook(project, "03_importance_mask", f"LOG = {str(log)!r}", START, CELL, MEASURE)
    mgenb = [sys.executable, "-m", "mgenb.cli", "run", "03"]
    code, out, err = stopped([*mgenb, "--jobs", "2"], lambda: len(list(parts.glob("*.json"))) >= 2)
    assert (code, out) == (130, "")
    assert len(told(err)) == 1, err
    (sentence,) = told(err)
    assert sentence.startswith("mgenb: stopped; ")
    done = len(list(parts.glob("*.json")))
    assert 2 <= done < 6
    log.write_text("")
    subprocess.run([*mgenb, "--jobs", "2"], check=True, capture_output=True)
    assert len(log.read_text().split()) == 6 - done
    subprocess.run([*mgenb, "--out", "alone"], check=True, capture_output=True)
    csv = "03_importance_mask.csv"
    assert (project / "alone" / csv).read_bytes() == (project / "runs" / "quick" / csv).read_bytes()


def test_ctrl_c_ends_notebooks_that_run_side_by_side(project):
    for notebook in catalog.notebooks()[3:5]:
        begun = f"import pathlib, time; pathlib.Path({str(project / notebook.stem)!r}).touch(); time.sleep(60)"
        write_notebook(project, notebook.stem, begun)
    ready = [project / notebook.stem for notebook in catalog.notebooks()[3:5]]
    code, out, err = stopped([sys.executable, "-c", ALL], lambda: all(path.exists() for path in ready))
    assert (code, out) == (130, "")
    assert len(told(err)) == 1, err
    (sentence,) = told(err)
    assert sentence.startswith("mgenb: stopped; ")
