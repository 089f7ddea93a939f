"""What a committed notebook must be like for nbval to really compare it, on any machine."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TYPES = {"str", "int", "float", "bool", "list"}
LONGEST_CELL = 15
PLACE = re.compile(r"/(?:home|root|tmp|work|Users)/|\b[A-Z]:\\")
SPEED = re.compile(r"(?<!\.)\bseconds?\b|\bit/s\b|\d+(?:\.\d+)? ?(?:s|ms|it/s)\b")
# what a Python kernel says of its language
LANGUAGE = {"name", "version", "mimetype", "codemirror_mode", "pygments_lexer", "nbconvert_exporter", "file_extension"}
CUT = re.compile(r"\.\.\.</t[dh]>")


def problems(path: Path) -> list[str]:
    """Return what is wrong with a committed notebook, one line each; an empty list when nothing is."""
    import nbformat

    nb = nbformat.read(path, as_version=4)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    try:
        found = [*_notebook(nb), *_parameters(path, nb)]
        for number, cell in enumerate(code, start=1):
            found += [f"code cell {number}: {problem}" for problem in (*_source(cell, number), *_outputs(cell))]
    except SyntaxError as error:
        return [f"not plain Python: {(error.text or '').strip()!r}"]
    return found


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
    name = nb.metadata.get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"the kernel is {name!r}, not 'python3'"
    if missing := LANGUAGE - set(nb.metadata.get("language_info", {})):
        yield f"language_info lacks {', '.join(sorted(missing))}, which JupyterLab adds when it opens the notebook"
    if "papermill" in nb.metadata or any("papermill" in cell.metadata for cell in nb.cells):
        yield "metadata of papermill is left in it"


def _parameters(path: Path, nb: Any) -> Iterator[str]:
    """Every line of the one parameters cell must be `name: type = value`, and papermill must see it."""
    cells = [cell for cell in nb.cells if "parameters" in _tags(cell)]
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged parameters, not 1"
        return
    declared = parameters_of(path)
    for statement in ast.parse(cells[0].source).body:
        line = ast.unparse(statement)
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            yield f"parameters: {line!r} is not name: type = value"
        elif declared.get(statement.target.id) not in TYPES:
            yield f"parameters: papermill cannot read the name and type of {line!r}; has its line a second '='?"
        elif not isinstance(statement.value, ast.Constant):
            yield f"parameters: {line!r} is derived; right is one constant, None for what the profile says"


def parameters_of(path: Path) -> dict[str, str]:
    """Return name -> type name of the parameters that papermill finds in a notebook."""
    import papermill

    return {name: entry["inferred_type_name"] for name, entry in papermill.inspect_notebook(path).items()}


def _source(cell: Any, number: int) -> Iterator[str]:
    ast.parse(cell.source)
    lines = cell.source.splitlines()
    if len(lines) > LONGEST_CELL and "parameters" not in _tags(cell):
        yield f"{len(lines)} lines, more than {LONGEST_CELL}"
    if cell.source.rstrip().endswith(";"):
        yield "ends with ';', which nbval does not honour"
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
        for text in _texts(output):
            if place := PLACE.search(text):
                yield f"a path of a machine in the output: {place[0]!r}"
            if CUT.search(text):
                yield "a table is cut with '...'"
            if timed and (speed := SPEED.search(text)):
                yield f"a time or speed in checked output: {speed[0]!r}"


def _texts(output: Any) -> list[str]:
    """Return the texts of an output; an image is none, although its base64 may look like a path."""
    if output.output_type == "stream":
        return [output.text]
    return [str(data) for mime, data in output.get("data", {}).items() if not mime.startswith("image/")]
