"""A refresh that is killed at any point leaves, for the next command, all of the old results or all of the new."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat

from mgenb.lab import record, stage

ROOT = Path(__file__).parents[2]
STEM = "03_importance_mask"
NOTEBOOK = """
import json, os, pathlib, time
out = pathlib.Path(os.environ["MGENB_OUT"])
(out / "03_importance_mask-a.png").write_text("new")
record = {"stem": "03_importance_mask", "profile": "quick", "figures": [], "context": {"finished": "2026-01-02"}}
record["result"] = {"claims": [], "mechanism": {"new": True}}
(out / "03_importance_mask.json").write_text(json.dumps(record))
print("mechanism new: True")
"""
# Kills its process just before the Nth event of which `counts` says true.
DIES = """
import os, signal, sys
from pathlib import Path
from mgenb.lab import stage
left = int(sys.argv.pop())
def hook(event, args):
    global left
    if counts(event, args):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
"""
MOVE = (
    DIES
    + """
def counts(event, args):
    writes = event == "open" and isinstance(args[1], str) and args[1][0] == "w"
    return writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
sys.addaudithook(hook)
folder = Path(".refresh/x")
places = {"x-a.png": "figures", "x.csv": "figures", "x.ipynb": "notebooks", "x.json": "figures"}
with stage.held(folder):
    for name in places:
        (folder / name).write_text("new")
    moves = {name: Path(place, name) for name, place in places.items()}
    stage.move_out(folder, moves, [Path("figures/x-old.png")])
"""
)
COMMAND = (
    DIES
    + """
def counts(event, args):
    return event == "os.rename" and ".refresh" in str(args[0])
sys.addaudithook(hook)
from mgenb.cli import main as cli
cli.main()
"""
)


def texts(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for folder in ("figures", "notebooks") for path in (root / folder).iterdir()}


def test_a_move_that_is_killed_anywhere_ends_as_old_or_new(tmp_path):
    new = dict.fromkeys(("x-a.png", "x.csv", "x.ipynb", "x.json"), "new")
    old = dict.fromkeys(("x-a.png", "x-old.png", "x.ipynb", "x.json"), "old")
    seen, torn, code = [], 0, -signal.SIGKILL
    while code:
        root = tmp_path / str(len(seen))
        for name in old:
            path = root / ("notebooks" if name.endswith(".ipynb") else "figures") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("old")
        code = subprocess.run([sys.executable, "-c", MOVE, str(len(seen) + 1)], cwd=root).returncode
        assert code in (0, -signal.SIGKILL)
        torn += texts(root) not in (old, new)
        with stage.held(root / ".refresh" / "x"):
            seen.append(texts(root))
        stage.tidy(root / ".refresh")
        assert texts(root) == seen[-1]
        assert not [path for path in (root / ".refresh").glob("*") if path.is_dir()]
    change = seen.index(new)
    assert seen == change * [old] + (len(seen) - change) * [new]
    assert change > 5
    assert torn  # else nothing was put right


def project(root: Path) -> Path:
    """Make a checkout with an old notebook, figure and record, all committed; return the notebook."""
    cells = [nbformat.v4.new_code_cell(code) for code in ('profile: str = "quick"', NOTEBOOK)]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.cells[0].metadata.tags = ["parameters"]
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    (root / "notebooks").mkdir(parents=True)
    (root / "figures" / "quick").mkdir(parents=True)
    (root / "pyproject.toml").write_text('name = "mgenb"')
    shutil.copy(ROOT / ".gitignore", root)
    nbformat.write(nb, root / "notebooks" / f"{STEM}.ipynb")
    (root / "figures" / "quick" / f"{STEM}-a.png").write_text("old")
    record = {"stem": STEM, "profile": "quick", "result": {"claims": [], "mechanism": {}}, "figures": []}
    record["context"] = {"finished": "2026-01-01"}
    (root / "figures" / "quick" / f"{STEM}.json").write_text(json.dumps(record))
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "old")
    return root / "notebooks" / f"{STEM}.ipynb"


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def refresh(root: Path, dies_before_rename: int = 0) -> int:
    command = [sys.executable, "-c", COMMAND, "refresh", "03", str(dies_before_rename)]
    return subprocess.run(command, cwd=root, capture_output=True).returncode


def test_killed_before_its_move_a_refresh_leaves_no_trace_in_git(tmp_path):
    project(tmp_path)
    assert refresh(tmp_path, 1) == -signal.SIGKILL
    assert list((tmp_path / ".refresh").rglob(f"{STEM}.json"))
    assert git(tmp_path, "status", "--porcelain") == ""
    subprocess.run([sys.executable, "-m", "mgenb.cli", "list"], cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    assert not list((tmp_path / ".refresh").rglob(f"{STEM}.json"))
    assert git(tmp_path, "status", "--porcelain") == ""


def test_killed_within_its_move_a_refresh_is_finished_by_the_next_command(tmp_path, printed):
    notebook = project(tmp_path)
    figures = tmp_path / "figures" / "quick"
    assert refresh(tmp_path, 3) == -signal.SIGKILL  # the journal, the figure; before the notebook
    assert (figures / f"{STEM}-a.png").read_text() == "new"
    assert "mechanism new: True" not in printed(nbformat.read(notebook, 4))
    subprocess.run([sys.executable, "-m", "mgenb.cli", "list"], cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    assert record.read(figures / f"{STEM}.json").context["finished"] == "2026-01-02"
    assert "mechanism new: True" in printed(nbformat.read(notebook, 4))
    changed = {line[3:] for line in git(tmp_path, "status", "--porcelain").splitlines()}
    assert changed == {f"notebooks/{STEM}.ipynb", f"figures/quick/{STEM}-a.png", f"figures/quick/{STEM}.json"}
