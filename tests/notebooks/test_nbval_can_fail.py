"""nbval with the project's configuration passes what is true, and reports a token that was changed."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from mgenb.lab import execute, hygiene

ROOT = Path(__file__).parents[2]
CELLS = [
    "import sys\nimport matplotlib.pyplot as plt\nimport pandas as pd",
    "print('mge.made.up: contradicted [quick, sample]')",
    "print('a warning', file=sys.stderr)\nprint('mechanism kept: True')",
    "pd.DataFrame({'points lost': [1.5, 2.5]})",
    "print(object())",
    "plt.plot([1, 2])\nplt.show()",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project with the real configuration and one small executed notebook."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "conftest.py", root)
    (root / "tests" / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "notebooks" / "sanitize.cfg", root / "tests" / "notebooks")
    parameters = nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[parameters, *(nbformat.v4.new_code_cell(cell) for cell in CELLS)])
    NotebookClient(nb, kernel_name="python3").execute()
    execute.clean(nb)
    nbformat.write(nb, root / "made.ipynb")
    return root


def compare(root: Path, path: Path, out: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "MGENB_OUT": str(out)}
    command = [*execute.nbval(root, [path]), "--rootdir", str(root), "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """Write a changed copy of a notebook beside it."""
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            change(cell)
    copy = path.with_name("changed.ipynb")
    nbformat.write(nb, copy)
    return copy


def printing(old: str, new: str) -> Callable[[Any], None]:
    """Return a change of what cells are said to have printed."""

    def change(cell: Any) -> None:
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = output.text.replace(old, new)

    return change


def table(cell: Any) -> None:
    for output in cell.outputs:
        if "text/html" in output.get("data", {}):
            output.data["text/plain"] = output.data["text/plain"].replace("2.5", "2.6")


def drop(cell: Any) -> None:
    cell.outputs = []


def strip(cell: Any) -> None:
    cell.outputs, cell.execution_count = [], None


def test_true_outputs_pass_and_are_clean(made, tmp_path):
    done = compare(made, made / "made.ipynb", tmp_path)
    assert done.returncode == 0, done.stdout
    assert hygiene.problems(made / "made.ipynb") == []


@pytest.mark.parametrize(
    "change",
    [printing("contradicted", "reproduced"), printing("kept: True", "kept: False"), table, drop],
    ids=["verdict", "mechanism", "table", "outputs that are not there"],
)
def test_a_changed_output_fails(made, tmp_path, change):
    done = compare(made, changed(made / "made.ipynb", change), tmp_path)
    assert done.returncode == 1
    assert re.search(r"\d failed", done.stdout)


def test_a_stripped_copy_passes_nbval_but_not_hygiene(made, tmp_path):
    copy = changed(made / "made.ipynb", strip)
    assert compare(made, copy, tmp_path).returncode == 0
    assert any("execution count None" in problem for problem in hygiene.problems(copy))


@pytest.mark.slow
def test_a_changed_token_of_a_real_notebook_fails(made, tmp_path, printed):
    real = ROOT / "notebooks" / "03_importance_mask.ipynb"
    copy = shutil.copy(real, made / "real.ipynb")
    token = next(line for line in printed(nbformat.read(copy, 4)) if ": contradicted" in line)
    done = compare(made, changed(Path(copy), printing(token, token.replace("contradicted", "reproduced"))), tmp_path)
    assert done.returncode == 1
    assert "1 failed" in done.stdout
