"""What a committed notebook must be like for nbval to really compare it, on any machine."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LONGEST_CELL = 15
PLACE = re.compile(r"/(?:home|root|tmp|work|Users)/|\b[A-Z]:\\")
SPEED = re.compile(r"(?<!\.)\bseconds?\b|\bit/s\b|\d+(?:\.\d+)? ?(?:s|ms|it/s)\b")
# what papermill can read, and a form can show; a second '=' in the line, even in its comment, hides it from papermill
CONSTANT = r'None|True|False|-?[\d.]+|"[^"]*"'
PARAMETER = re.compile(rf"\w+: (?:str|int|float|bool|list) = (?:{CONSTANT})(?: +#[^=]*)?|#.*|")
CUT = re.compile(r"\.\.\.</t[dh]>")


def problems(path: Path) -> list[str]:
    """Return what is wrong with a committed notebook, one line each; an empty list when nothing is."""
    import nbformat

    nb = nbformat.read(path, as_version=4)
    wrong = [*_notebook(nb), *_parameters(nb)]
    for number, cell in enumerate((cell for cell in nb.cells if cell.cell_type == "code"), start=1):
        wrong += [f"code cell {number}: {problem}" for problem in (*_source(cell, number), *_outputs(cell))]
    return wrong


def cure(paths: Sequence[Path]) -> str:
    """Return one sentence that says how notebooks with problems become clean again."""
    files = " ".join(f"notebooks/{path.name}" for path in paths) or "notebooks/NN_topic.ipynb"
    numbers = " ".join(path.stem.split("_")[0] for path in paths) or "NN"
    return (
        f"`git checkout {files}` drops what JupyterLab saved, and every other change since the last commit; "
        f"`mgenb refresh {numbers}` keeps your changes and makes the outputs anew"
    )


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _notebook(nb: Any) -> Iterator[str]:
    if (name := nb.metadata.get("kernelspec", {}).get("name")) != "python3":
        yield f"the kernel is {name!r}, not 'python3'"
    if "papermill" in nb.metadata or any("papermill" in cell.metadata for cell in nb.cells):
        yield "metadata of papermill is left in it"


def _parameters(nb: Any) -> Iterator[str]:
    cells = [cell for cell in nb.cells if "parameters" in _tags(cell)]
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged parameters, not 1"
    for line in "\n".join(cell.source for cell in cells).splitlines():
        if not PARAMETER.fullmatch(line):
            yield f"parameters: papermill cannot read {line!r}; right is `name: type = constant`, with no other '='"


def _source(cell: Any, number: int) -> Iterator[str]:
    lines = cell.source.splitlines()
    if len(lines) > LONGEST_CELL and "parameters" not in _tags(cell):
        yield f"{len(lines)} lines, more than {LONGEST_CELL}"
    if cell.execution_count != number and "nbval-skip" not in _tags(cell):
        yield f"execution count {cell.execution_count}, not {number}: nbval does not compare a cell without one"


def _outputs(cell: Any) -> Iterator[str]:
    # The registry's own sentences may speak of seconds: they are the papers', not this machine's.
    timed = not {"nbval-skip", "nbval-ignore-output"} & set(_tags(cell)) and "paper_says(" not in cell.source
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"ended in {output.ename}"
        if output.get("name") == "stderr":
            yield "stderr is stored"
        text = _text(output)
        if place := PLACE.search(text):
            yield f"a path of a machine in the output: {place[0]!r}"
        if CUT.search(text):
            yield "a table is cut with '...'"
        if timed and (speed := SPEED.search(text)):
            yield f"a time or speed in checked output: {speed[0]!r}"


def _text(output: Any) -> str:
    """Return what an output says; an image says nothing, although its base64 may look like a path."""
    data = output.get("data", {}).items()
    return "\n".join([output.get("text", ""), *(str(value) for mime, value in data if not mime.startswith("image/"))])
