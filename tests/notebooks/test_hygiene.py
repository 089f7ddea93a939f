"""Every committed notebook is such that nbval compares it, and the check for that finds what is wrong."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from PIL import Image

from mgenb.lab import catalog, hygiene, parameters

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = 'profile: str = "quick"\nseed: int = 0  # of everything'


def small() -> Any:
    """Return a made-up notebook that has nothing wrong."""
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}, execution_count=1),
        nbformat.v4.new_code_cell("print('fine')", execution_count=2),
    ]
    cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="fine\n")]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nb


def problems(nb: Any, folder: Path) -> list[str]:
    path = folder / "made.ipynb"
    nbformat.write(nb, path)
    return hygiene.problems(path)


def printed(text: str) -> Callable[[Any], None]:
    return lambda nb: nb.cells[1].outputs[0].update(text=text)


def tagged(*tags: str) -> Callable[[Any], None]:
    return lambda nb: nb.cells[0].metadata.update(tags=list(tags))


def with_source(index: int, source: str) -> Callable[[Any], None]:
    return lambda nb: nb.cells[index].update(source=source)


def stderr(nb: Any) -> None:
    nb.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="warning"))


def error(nb: Any) -> None:
    nb.cells[1].outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[]))


MUTATIONS: dict[str, tuple[Callable[[Any], None], str]] = {
    "count missing": (lambda nb: nb.cells[1].update(execution_count=None), "execution count None, not 2"),
    "count out of order": (lambda nb: nb.cells[1].update(execution_count=3), "execution count 3, not 2"),
    "kernel": (lambda nb: nb.metadata.kernelspec.update(name="mine"), "not 'python3'"),
    "papermill in the notebook": (lambda nb: nb.metadata.update(papermill={}), "metadata of papermill"),
    "papermill in a cell": (lambda nb: nb.cells[1].metadata.update(papermill={}), "metadata of papermill"),
    "error": (error, "ended in ValueError"),
    "stderr": (stderr, "stderr is stored"),
    "home folder": (printed("in /home/me/mgenb\n"), "a path of a machine"),
    "windows folder": (printed("in C:\\Users\\me\n"), "a path of a machine"),
    "seconds": (printed("took 3 seconds\n"), "a time or speed"),
    "time": (printed("took 3.5s\n"), "a time or speed"),
    "speed": (printed("30 it/s\n"), "a time or speed"),
    "cut table": (printed("<td>The statement of a cl...</td>"), "a table is cut"),
    "long cell": (with_source(1, "print('fine')\n" + "a = 1\n" * 15), "16 lines, more than 15"),
    "no parameters cell": (tagged(), "0 cells are tagged parameters"),
    "no annotation": (with_source(0, "seed = 0"), "papermill cannot read 'seed = 0'"),
    "two equal signs": (with_source(0, "seed: int = 0  # seed=0"), "papermill cannot read"),
    "derived": (with_source(0, "seed: int = 0 + 1"), "papermill cannot read"),
    "unreadable type": (with_source(0, "seed: int | None = None"), "papermill cannot read"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_clean(path):
    assert hygiene.problems(path) == []


def test_the_catalogue_names_every_notebook():
    assert [path.stem for path in NOTEBOOKS] == [notebook.stem for notebook in catalog.notebooks()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_setting_of_a_profile_is_a_parameter_and_is_handed_on(path):
    defaults = catalog.find(path.stem).defaults("quick")
    declared = papermill.inspect_notebook(path)
    own = [*defaults, *(["networks_file"] if "networks" in defaults else [])]
    assert {"profile", *parameters.COMMON, *own} == declared.keys()
    source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    started = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and is_start(node.func)]
    first, *others = [{word.arg: ast.unparse(word.value) for word in node.keywords} for node in started]
    assert first == {name: name for name in declared}
    assert all(other["profile"] == "'quick'" for other in others)  # to explore in


def is_start(called: ast.expr) -> bool:
    return ast.unparse(called) == "lab.start"


@pytest.mark.parametrize("notebook", catalog.notebooks(), ids=lambda notebook: notebook.stem)
def test_what_the_profiles_say_passes_the_check(notebook):
    kinds = []
    for profile in catalog.PROFILES:
        defaults = notebook.defaults(profile)
        assert parameters.check(notebook, profile, defaults).settings == defaults
        kinds.append({name: type(value) for name, value in defaults.items() if name not in ("train", "val", "test")})
    assert kinds[0] == kinds[1] == kinds[2]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stripped_copy_is_reported(path, tmp_path):
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert any("execution count None" in problem for problem in problems(nb, tmp_path))


def test_a_clean_notebook_has_no_problems(tmp_path):
    assert problems(small(), tmp_path) == []


@pytest.mark.parametrize(("change", "told"), MUTATIONS.values(), ids=MUTATIONS)
def test_what_is_wrong_is_reported(change, told, tmp_path):
    nb = small()
    change(nb)
    assert any(told in problem for problem in problems(nb, tmp_path))


def test_skipped_and_ignored_cells_may_differ(tmp_path):
    nb = small()
    nb.cells[1].metadata.tags = ["nbval-ignore-output"]
    printed("took 3 s\n")(nb)
    assert problems(nb, tmp_path) == []
    nb.cells[1].update(execution_count=None, outputs=[])
    assert problems(nb, tmp_path) != []
    nb.cells[1].metadata.tags = ["nbval-skip"]
    assert problems(nb, tmp_path) == []


def test_the_second_cell_of_a_table_is_no_time(tmp_path):
    nb = small()
    printed("mega.fig2.curve.second: not tested [quick, sample]\n")(nb)
    assert problems(nb, tmp_path) == []


def test_images_may_hold_anything(tmp_path):
    nb = small()
    nb.cells[1].outputs.append(nbformat.v4.new_output("display_data", data={"image/png": "abc/tmp/abc="}))
    assert problems(nb, tmp_path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_begins_with_its_title(path: Path) -> None:
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {path.stem[:2]} · ")


def test_every_drawing_is_shown_with_alt_text_and_is_opaque() -> None:
    shown = set()
    for path in NOTEBOOKS:
        prose = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        for alt, file in re.findall(r"!\[(.*?)\]\((.*?)\)", prose):
            assert len(alt) > 20, file
            shown.add(path.parent / file)
    assert shown == set((ROOT / "notebooks" / "img").iterdir())
    for file in shown:
        with Image.open(file) as image:
            assert image.width >= 1500
            assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255), file.name
