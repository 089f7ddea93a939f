"""The command line: what it refuses before it starts anything, what it prints, and its exit codes."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from mgenb import claims
from mgenb.cli import main as cli
from mgenb.lab import catalog, doctor, execute, scoreboard

ROOT = Path(__file__).parents[2]
STEM = "03_importance_mask"
PARAMETERS = (
    'profile: str = "quick"\nseed: int = 0\nz: float = None  # size\nnetworks_file: str = None\nval: int = None'
)
RECORD = """
import json, os, pathlib
out = pathlib.Path(os.environ["MGENB_OUT"])
claims = [{"id": "mge.fig7.mask_unimportant", "verdict": "contradicted", "token": TOKEN}]
result = {"claims": claims, "mechanism": {"kept": True}}
record = {"stem": STEM, "profile": profile, "result": result, "figures": [STEM + "-a.png"]}
result["settings"] = {"seen": [seed, z, networks_file, val]}
(out / (STEM + ".json")).write_text(json.dumps(record))
(out / (STEM + "-a.png")).write_bytes(b"a figure")
print("mechanism kept: True")
print(TOKEN)
"""
TOKEN = "mge.fig7.mask_unimportant: contradicted [quick, sample]"


def write_notebook(root: Path, *cells: str) -> Path:
    code = [f"STEM, TOKEN = {STEM!r}, {TOKEN!r}", *cells]
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[first, *(nbformat.v4.new_code_cell(cell) for cell in code)])
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = root / "notebooks" / f"{STEM}.ipynb"
    nbformat.write(nb, path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGENB_OUT", raising=False)
    write_notebook(tmp_path, RECORD)
    return tmp_path


def mgenb(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["mgenb", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return int(stopped.value.code or 0), printed.out, printed.err


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda *arguments: mgenb(capsys, monkeypatch, *arguments)


def test_help_answers_within_a_second():
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "mgenb.cli", "--help"], capture_output=True)
        after = os.times()  # the processor's time: that of the clock hangs on what else runs
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
        assert done.returncode == 0
    assert statistics.median(seconds) < 1


@pytest.mark.parametrize("command", ["list", "run", "check", "refresh", "claims", "doctor"])
def test_every_command_shows_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: mgenb {command}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "03", "-p", "sed=1"], "unknown parameter of 03_importance_mask: 'sed'; did you mean 'seed'?"),
        (["run", "03", "-p", "seed=1.5"], "seed is '1.5'; right is a whole number of at least 0"),
        (["run", "03", "-p", "z=small"], "z is 'small'; right is a number of at least 0"),
        (["run", "03", "-p", "z=nan"], "z is 'nan'; right is a number of at least 0"),
        (["run", "03", "-p", "val=0"], "val is '0'; right is a whole number of at least 1"),
        (["run", "03", "-p", "device=cuda:99"], "device 'cuda:99' cannot be used here"),
        (["run", "03", "-p", "networks_file=none.toml"], "none.toml cannot be read"),
        (["run", "11", "-p", "finish=1"], "finish is '1'; right is true or false"),
        (["run", "05", "-p", "networks=lenet/mnst"], "unknown network 'lenet/mnst'; did you mean 'lenet/mnist'?"),
        (["run", "08", "-p", "kappas=0, x"], "kappas is '0, x'; right is a list of numbers of at least 0"),
        (["run", "03", "-p", "profile=cpu"], "given by --profile alone"),
        (["run", "03", "-p", "seed"], "'seed' is not name=value"),
        (["run", "03", "-p", "seed=1", "-p", "seed=2"], "given twice"),
        (["run", "03", "--jobs", "two"], "jobs is 'two'; right is a whole number of at least 1"),
        (["run", "03", "--scheduler", "here"], "the scheduler is 'here'; right is an address"),
        (["run", "03", "--jobs", "2", "--scheduler", "tcp://here:1"], "right is one of the two"),
        (["run", "03", "--profile", "quik"], "unknown profile 'quik'; did you mean 'quick'?"),
        (["run", "03_importance_mas"], "did you mean '03_importance_mask'?"),
        (["run", "03", "--out", "notebooks"], "would be overwritten"),
        (["run", "all"], "00_start_here.ipynb is missing"),
        (["refresh", "03", "--profile", "fast"], "unknown profile 'fast'"),
        (["claims", "--paper", "mgee"], "unknown paper 'mgee'"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(project, call, monkeypatch, arguments, told):
    monkeypatch.setattr(execute, "execute", lambda job: pytest.fail("something was started"))
    code, _, err = call(*arguments)
    assert code == 2
    assert err.startswith("mgenb: ")
    assert told in err
    assert err.count("\n") == 1


def test_all_takes_only_parameters_that_every_notebook_has(project, call, monkeypatch):
    for notebook in catalog.notebooks():
        if notebook.stem != STEM:
            path = project / "notebooks" / f"{notebook.stem}.ipynb"
            path.write_text((project / "notebooks" / f"{STEM}.ipynb").read_text().replace("z: float", "y: float"))
    monkeypatch.setattr(execute, "execute", lambda job: execute.Outcome(job, 1.0))
    code, out, _ = call("run", "all", "-p", "seed=1")
    assert code == 0
    assert out.count(": 1 s, no record") == len(catalog.notebooks())
    code, _, err = call("run", "all", "-p", "z=1")
    assert code == 2
    assert "unknown parameter of 00_start_here: 'z'" in err


def test_run_writes_notebook_record_and_figures(project, call):
    (project / "notebooks" / "img").mkdir()
    (project / "notebooks" / "img" / "drawing.png").write_bytes(b"a drawing")
    (project / "own.toml").write_text("[networks]")  # a relative path means the caller's folder, not the notebook's
    code, out, _ = call("run", "03", "-p", "seed=7", "-p", "z=1e-3", "-p", "networks_file=own.toml", "-p", "val=100")
    (folder,) = (project / "runs").iterdir()
    assert folder.name.startswith("quick-")  # what is not the profile's, and no more: val=100 is
    assert "val=" not in folder.name
    assert "seed=7,z=0.001" in folder.name or folder.name[-9] == "-"  # long names end in a hash
    assert code == 0
    seen = json.loads((folder / f"{STEM}.json").read_text())["result"]["settings"]["seen"]
    assert seen == [7, 0.001, str(project / "own.toml"), 100]
    assert (folder / f"{STEM}-a.png").exists()
    assert (folder / "img" / "drawing.png").exists()  # for links of the executed notebook
    assert out.splitlines()[0].endswith("1 contradicted")
    last = out.splitlines()[-1]
    assert last.startswith(f"look at {folder}: 1 executed notebooks; open ")
    assert str(folder / f"{STEM}.ipynb") in last
    assert nbformat.read(folder / f"{STEM}.ipynb", 4).cells[-1].outputs[0].text == f"mechanism kept: True\n{TOKEN}\n"


def test_a_failing_notebook_gives_one_clear_message(project, call):
    write_notebook(project, RECORD, "raise ValueError('no\\nluck')")
    code, out, err = call("run", "03", "--out", "there")
    assert code == 1
    assert out.splitlines()[0] == f"{STEM}: ValueError: no luck"
    half = project / "there" / f"unfinished-{STEM}" / f"{STEM}.ipynb"
    assert out.splitlines()[1].endswith(str(half))
    assert "Traceback" not in out + err
    assert half.exists()


def test_refresh_updates_notebook_and_figures_and_tells_the_tokens(project, call):
    figures = project / "figures" / "quick"
    figures.mkdir(parents=True)
    (figures / f"{STEM}-gone.png").write_bytes(b"no longer made")
    (figures / "01_frequency_sensitivity-kept.png").write_bytes(b"of another notebook")
    path = write_notebook(project, RECORD, "import sys\nprint('warning', file=sys.stderr)")
    code, out, _ = call("refresh", "03")
    assert code == 0
    assert out.splitlines() == [f"{STEM}:", "  + mechanism kept: True", f"  + {TOKEN}", "VERDICTS.md: written anew"]
    names = {file.name for file in figures.iterdir()}
    assert names == {f"{STEM}-a.png", f"{STEM}.json", "01_frequency_sensitivity-kept.png"}
    nb = nbformat.read(path, 4)
    assert set(nb.metadata) == {"kernelspec", "language_info"}
    kept = "name version mimetype codemirror_mode pygments_lexer nbconvert_exporter file_extension"
    assert set(nb.metadata.language_info) == set(kept.split())  # else JupyterLab would add it
    assert [cell.execution_count for cell in nb.cells] == [1, 2, 3, 4]
    assert [dict(cell.metadata) for cell in nb.cells] == [{"tags": ["parameters"]}, {}, {}, {}]
    assert nb.cells[-1].outputs == []
    before = path.read_bytes()
    assert call("refresh", "03")[1] == f"{STEM}: no token changed\n"
    assert path.read_bytes() == before


def test_refresh_of_a_failing_notebook_touches_nothing(project, call):
    path = write_notebook(project, RECORD, "1 / 0")
    before = path.read_bytes()
    code, _, err = call("refresh", "03")
    assert code == 2
    assert "ZeroDivisionError: division by zero" in err
    assert path.read_bytes() == before
    assert not (project / "figures").exists() or not any((project / "figures").rglob("*.*"))


def test_refresh_with_another_profile_leaves_the_notebook(project, call):
    path = project / "notebooks" / f"{STEM}.ipynb"
    before = path.read_bytes()
    code, out, _ = call("refresh", "03", "--profile", "cpu")
    assert code == 0
    assert f"+ {TOKEN}" in out
    assert path.read_bytes() == before
    assert json.loads((project / "figures" / "cpu" / f"{STEM}.json").read_text())["profile"] == "cpu"


def test_refresh_of_all_ends_with_the_notebooks_that_show_what_the_records_say(project, call, monkeypatch):
    order = []
    monkeypatch.setattr(execute, "refresh", lambda notebook, profile: order.append(notebook.stem) or [])
    assert call("refresh")[0] == 0
    assert sorted(order) == [notebook.stem for notebook in catalog.notebooks()]
    assert order[-2:] == list(catalog.READ_RECORDS)


def test_a_run_without_parameters_does_not_wait_for_torch(project):
    code = "import sys; from mgenb.lab import execute; execute.plan('03', 'quick', [], None); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.fixture
def two_records(project, recorded):
    for profile, verdict in (("quick", "inconclusive"), ("cpu", "contradicted")):
        path = project / "figures" / profile / f"{STEM}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(recorded(verdict, profile, test_uses=[{}]).to_json()))


@pytest.mark.usefixtures("two_records")
def test_list_shows_cost_and_records(call):
    code, out, _ = call("list")
    assert code == 0
    assert all(notebook.title in out for notebook in catalog.notebooks())
    assert "record     quick, 2026-01-02: 1 inconclusive" in out
    assert "record     cpu, 2026-01-02: 1 contradicted" in out
    assert "record     none is committed" in out


@pytest.mark.usefixtures("two_records")
def test_claims_shows_the_verdict_of_the_best_evidence_by_role(call):
    code, out, _ = call("claims", "--paper", "mge", "--audit")
    line = next(line for line in out.splitlines() if line.startswith("mge.fig7.mask_unimportant "))
    assert code == 0
    assert line.endswith("contradicted [cpu]")
    central, detail, control, check = map(out.index, scoreboard.PARTS.values())
    assert central < out.index("mge.fig6.high_worse_than_low ") < detail < out.index("mge.table2.mnist.lenet.trained ")
    assert detail < out.index(line) < control < out.index("mge.fig7.mask_beats_magnitude ") < check
    counted = out[out.index("\nrole ") :].splitlines()
    assert {row.split()[0] for row in counted if row.strip()} >= {"central", "control", "detail"}
    assert "mge.setting" not in out
    assert f"{STEM} (cpu): the test split was used 1 time" in out


@pytest.mark.usefixtures("two_records")
def test_claims_in_markdown_holds_all_central_claims_and_no_other(project, call, recorded):
    central = [claim.statement for claim in claims.load() if claim.role == "central"]
    rows = call("claims", "--markdown")[1].splitlines()[2:]
    assert sorted(row.split(" | ")[1].rpartition(" (")[0] for row in rows) == sorted(central)
    assert all(row.startswith("| **not tested** | ") and "nothing was run" in row for row in rows)
    made = recorded("contradicted", claim="mge.fig5.decays", stem="02_zero_filling")
    (project / "figures" / "cpu" / "02_zero_filling.json").write_text(json.dumps(made.to_json()))
    (line,) = (row for row in call("claims", "--markdown")[1].splitlines() if "| **contradicted** |" in row)
    assert line.startswith("| **contradicted** | Filling a quarter of ")
    assert "| `cpu` lenet on mnist | [02](notebooks/02_zero_filling.ipynb) |" in line


def test_refresh_and_analyse_keep_readme_and_verdicts_md_current(project, call):
    (project / "README.md").write_text("<!-- mgenb claims --markdown -->\nold\n<!-- end -->\n")
    assert call("refresh", "03")[1].splitlines()[-2:] == ["VERDICTS.md: written anew", "README.md: written anew"]
    assert (project / "README.md").read_text().splitlines()[1] == call("claims", "--markdown")[1].splitlines()[0]
    (project / "VERDICTS.md").write_text("typed")
    assert call("analyse")[1] == "VERDICTS.md: written anew\n"
    assert (project / "VERDICTS.md").read_text().startswith("# Verdicts\n")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"schema": 0}, "older form"),
        ({"registry": "0" * 16}, "other registry entries"),
        ({"version": 2}, "by version 2 of the experiment, today's is 1"),
    ],
)
def test_a_stale_record_is_shown_as_stale_everywhere(project, call, recorded, changed, why):
    for profile, given in (("quick", {}), ("cpu", changed)):
        path = project / "figures" / profile / f"{STEM}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(recorded("contradicted", profile, **given).to_json()))
    listed = call("list")[1]
    assert why in next(line for line in listed.splitlines() if "STALE, no evidence" in line)
    out = call("claims", "--paper", "mge", "--audit")[1]
    line = next(line for line in out.splitlines() if line.startswith("mge.fig7.mask_unimportant "))
    assert line.endswith("contradicted [quick]")
    assert f"{STEM} (cpu): stale: " in out
    (project / "figures" / "quick" / f"{STEM}.json").unlink()
    out = call("claims", "--paper", "mge")[1]
    line = next(line for line in out.splitlines() if line.startswith("mge.fig7.mask_unimportant "))
    assert line.endswith("stale [cpu]")
    assert "stale" in next(line for line in out.splitlines() if line.startswith("role "))


def test_a_damaged_record_is_one_sentence(project, call):
    path = project / "figures" / "quick" / f"{STEM}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    code, _, err = call("list")
    assert code == 2
    assert "is not a record" in err


def test_doctor_names_versions_device_data_and_cache(call, monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path))
    monkeypatch.delenv("MGENB_DATA", raising=False)
    code, out, _ = call("doctor")
    assert code == 0
    for told in (
        "torch ",
        "torchattacks 3.3.0",
        "device ",
        "data mnist: ",
        "data omniglot: ",
        f"cache {tmp_path}",
    ):
        assert told in out


def test_doctor_recognises_torch_and_torchvision_that_do_not_fit(call, monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "import_module", broken)
    code, out, _ = call("doctor")
    assert code == 1
    assert "BROKEN: torch and torchvision do not load" in out
    assert "torchvision was built for another torch" in out
    assert "pip install" in out


def test_doctor_tells_a_data_folder_that_is_not_there(call, monkeypatch):
    monkeypatch.setenv("MGENB_DATA", "no/such/folder")
    code, out, _ = call("doctor")
    assert code == 1
    assert "BROKEN: MGENB_DATA names no/such/folder" in out


def test_check_is_the_exit_code_of_nbval_and_hygiene(project, call, monkeypatch):
    monkeypatch.setattr(execute, "nbval", lambda root, paths: [sys.executable, "-c", "raise SystemExit(5)"])
    code, out, _ = call("check", "03")
    assert code == 5
    assert f"{STEM}.ipynb: code cell 1: execution count None, not 1" in out
    assert f"`git checkout notebooks/{STEM}.ipynb`" in out.splitlines()[-1]
    assert "`mgenb refresh 03`" in out.splitlines()[-1]


def test_the_paper_profile_without_a_gpu_is_run_only_when_asked_for(project, call, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = call("run", "03", "--profile", "paper", "--out", "there")
    assert code == 2
    assert "03_importance_mask " in out
    assert err == "mgenb: the paper profile without a GPU is run only when asked for: give --yes, or --profile cpu\n"
    assert not (project / "there").exists()
    assert call("run", "03", "--profile", "paper", "--out", "there", "--yes")[0] == 0


def test_another_project_is_no_checkout(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "other"')
    monkeypatch.chdir(tmp_path)
    assert catalog.project_root() == ROOT


ANALYSED = """
import os, pathlib
rows = os.environ.get("MGENB_ANALYSE")
if rows is None:
    (out / (STEM + ".csv")).write_text("a,b")
    (out / (STEM + ".parts.json")).write_text("{}")
print("read" if rows else "measured")
"""


def test_analyse_makes_all_but_the_rows_anew_and_only_where_there_are_some(project, call):
    path = write_notebook(project, RECORD, ANALYSED)
    folder = project / "figures" / "quick"
    code, _, err = call("analyse", "03")
    assert code == 2
    assert f"{STEM} has no rows in {folder}" in err
    assert call("analyse")[1] == "VERDICTS.md: written anew\n"  # no notebook has rows
    assert call("refresh", "03")[0] == 0
    (folder / f"{STEM}.csv").write_text("as it was")
    assert nbformat.read(path, 4).cells[-1].outputs[0].text == "measured\n"
    record = folder / f"{STEM}.json"
    before = record.read_text() + " "
    record.write_text(before)
    code, out, _ = call("analyse")
    assert (code, out) == (0, f"{STEM}: no token changed\n")
    assert nbformat.read(path, 4).cells[-1].outputs[0].text == "read\n"
    assert (folder / f"{STEM}.csv").read_text() == "as it was"
    assert record.read_text() == before  # it says the same
    record.write_text(before.replace("contradicted", "reproduced"))
    assert call("analyse", "03")[0] == 0
    assert json.loads(record.read_text())["result"]["claims"][0]["verdict"] == "contradicted"


def test_the_version_of_an_experiment_is_that_of_its_tagged_cell(project, recorded):
    path = write_notebook(project, "VERSION = 2", "VERSION = 3\n\n\ndef experiment(part):\n    return []")
    assert catalog.version(STEM) == 1
    nb = nbformat.read(path, 4)
    nb.cells[-1].metadata["tags"] = ["experiment"]
    nbformat.write(nb, path)
    assert catalog.version(STEM) == 3
    assert recorded(version=1).stale == "measured by version 1 of the experiment, today's is 3"
    assert recorded(version=3).stale == ""
    assert catalog.version("02_zero_filling") == 1  # which this project does not have
