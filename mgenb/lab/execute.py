"""Run notebooks: check their parameters, execute them through papermill, refresh the committed ones."""

import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgenb.errors import MgenbError, nearest
from mgenb.lab import catalog
from mgenb.lab.record import Record, read

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
VERDICT = r"[\w.*-]+(?: \(\d+ \w+ claims\))?: (?:reproduced|contradicted|inconclusive|not tested)(?: \[[^\]]*\])?"
TOKEN = re.compile(f"(?:{VERDICT}|mechanism .+: .+)")
LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Job:
    """One notebook to execute: the file it is in, its parameters and the folder for what it makes."""

    notebook: catalog.Notebook
    path: Path
    parameters: Mapping[str, Any]
    out: Path
    rows: Path | None = None  # a folder with rows that are read; None: measure

    @property
    def executed(self) -> Path:
        """Where the executed notebook is written."""
        return self.out / self.path.name


@dataclass(frozen=True)
class Outcome:
    """How a job ended: wall time, its record when it went well, else what was wrong."""

    job: Job
    seconds: float
    record: Record | None = None
    error: str = ""

    @property
    def line(self) -> str:
        """One line for the screen, two when the notebook failed."""
        stem = self.job.notebook.stem
        if self.error:
            return f"{stem}: {self.error}\n  the half-executed notebook is {self.job.executed}"
        return f"{stem}: {self.seconds:.0f} s, {self.record.counted if self.record else 'no record'}"


def path_of(notebook: catalog.Notebook) -> Path:
    """Return the notebook's file; MgenbError when the checkout does not have it."""
    path = catalog.project_root() / "notebooks" / f"{notebook.stem}.ipynb"
    if not path.is_file():
        raise MgenbError(f"{path} is missing: restore it with git")
    return path


def plan(wanted: str, profile: str, given: Sequence[str], out: Path | None) -> list[Job]:
    """Return the jobs for 'all' or one notebook, with every name and value checked; nothing is started.

    `given` holds `name=value` strings. Raises MgenbError for an unknown notebook, profile or parameter, for
    a value of the wrong type, and for a folder that cannot take the results.
    """
    chosen = catalog.notebooks() if wanted == "all" else (catalog.find(wanted),)
    for notebook in chosen:
        notebook.defaults(profile)
    folder = (out or catalog.output_dir(profile)).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise MgenbError(f"{folder} is a file; give a folder with --out")
    if folder == (catalog.project_root() / "notebooks").resolve():
        raise MgenbError("--out is the notebooks folder, whose notebooks would be overwritten; give another")
    pairs = _pairs(given)
    jobs = []
    for notebook in chosen:
        path = path_of(notebook)
        jobs.append(Job(notebook, path, {"profile": profile, **_checked(path, pairs)}, folder))
    return jobs


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise MgenbError(f"parameter {text!r} is not name=value, as in -p seed=1")
        if name == "profile":
            raise MgenbError(f"the profile is given by --profile {value}, not by -p")
        if name in pairs:
            raise MgenbError(f"parameter {name!r} is given twice")
        pairs[name] = value
    return pairs


def _checked(path: Path, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of `pairs`, each of the type that the parameters cell of the notebook declares."""
    declared = parameters_of(path)
    values = {}
    for name, text in pairs.items():
        if name not in declared:
            known = [other for other in declared if other != "profile"]
            hint = nearest(name, known) or ";"
            raise MgenbError(f"{path.stem} has no parameter {name!r}{hint} known: {', '.join(known)}")
        values[name] = _parse(name, text, declared[name])
    return values


def parameters_of(path: Path) -> dict[str, str]:
    """Return name -> type name of the parameters that papermill finds in a notebook."""
    import papermill

    return {name: entry["inferred_type_name"] for name, entry in papermill.inspect_notebook(path).items()}


def _parse(name: str, text: str, wanted: str) -> Any:
    if wanted == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if wanted == "bool" or (wanted == "float" and not math.isfinite(float(text))):
            raise ValueError(text)
        return TYPES[wanted](text)
    except ValueError:
        right = {"int": "a whole number", "float": "a number", "bool": "true or false"}[wanted]
        raise MgenbError(f"{name} is {text!r}; right is {right} ({wanted})") from None


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    """Set where the job's kernel, which inherits it, writes and whether it measures, for a while."""
    before = dict(os.environ)
    os.environ["MGENB_OUT"] = str(job.out)
    os.environ.pop(catalog.ANALYSE, None)
    if job.rows:
        os.environ[catalog.ANALYSE] = str(job.rows)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def execute(job: Job) -> Outcome:
    """Execute a notebook in a kernel of its own; what goes wrong in it is told by the outcome, not raised."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MgenbError(f"cannot make {job.out}: {error.strerror}; give another folder with --out") from error
    record = job.out / f"{job.notebook.stem}.json"
    record.unlink(missing_ok=True)  # the one of an earlier run would pass for this run's
    began, error_text = time.monotonic(), ""
    try:
        with _environment(job):
            papermill.execute_notebook(
                job.path,
                job.executed,
                dict(job.parameters),
                kernel_name="python3",
                cwd=job.path.parent,
                progress_bar=sys.stderr.isatty(),
            )
    except papermill.PapermillExecutionError as error:
        error_text = f"{error.ename}: {_short(error.evalue)}"
    except DeadKernelError:
        error_text = "DeadKernelError: its process was killed, most often for want of memory"
    seconds = time.monotonic() - began
    if error_text or not record.exists():
        return Outcome(job, seconds, error=error_text)
    return Outcome(job, seconds, read(record))


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 3] + "..."


def where_to_look(outcomes: Sequence[Outcome]) -> str:
    """Return the closing line: the folder, what it holds of this run, and what to open first."""
    fine = [outcome for outcome in outcomes if not outcome.error]
    out = outcomes[0].job.out
    if not fine:
        return f"nothing was finished; look at {out}"
    records = [outcome.record for outcome in fine if outcome.record is not None]
    figures = sum(len(record.figures) for record in records)
    made = f"{len(fine)} executed notebooks, {figures} figures, {len(records)} records"
    return f"look at {out}: {made}; open {fine[0].job.executed} first"


def tokens(nb: Any) -> list[str]:
    """Return the verdict and mechanism lines that the cells of a notebook printed, in order."""
    lines: list[str] = []
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                lines += [line for line in output.text.splitlines() if TOKEN.fullmatch(line)]
    return lines


def clean(nb: Any) -> None:
    """Take out of an executed notebook what differs from run to run and from machine to machine, in place."""
    names = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nb.metadata = type(nb.metadata)({"kernelspec": names, "language_info": {"name": "python"}})
    for cell in nb.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = type(nb.metadata)({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = _kept(cell.outputs)


def _kept(outputs: Sequence[Any]) -> list[Any]:
    """Drop stderr and live widgets, and join what stderr had cut in two."""
    kept: list[Any] = []
    for output in outputs:
        stream = output.output_type == "stream"
        widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
        if widget or (stream and output.name == "stderr"):
            continue
        if stream and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def refresh(notebook: catalog.Notebook, profile: str, *, measure: bool = True) -> list[str]:
    """Execute a notebook with a profile's defaults, and bring what is committed of it up to date.

    Rows, figures and record go to `figures/<profile>/`; the quick profile's outputs also into the notebook itself.
    Without `measure` the rows are those that are there, and the rest is made anew from them. Nothing is touched when
    it fails. Returns the tokens that changed, as `- old` and `+ new`. Raises MgenbError when the notebook fails.
    """
    import nbformat

    path, figures = path_of(notebook), catalog.project_root() / "figures" / profile
    parameters = {} if profile == "quick" else {"profile": profile}
    if not measure and not (figures / f"{notebook.stem}.csv").is_file():
        raise MgenbError(
            f"{notebook.stem} has no rows in {figures}; make them with `mgenb refresh --profile {profile}`"
        )
    with tempfile.TemporaryDirectory() as temporary:
        outcome = execute(Job(notebook, path, parameters, Path(temporary), None if measure else figures))
        if outcome.error:
            raise MgenbError(f"{notebook.stem} was left as it is; {outcome.error}")
        nb = nbformat.read(outcome.job.executed, as_version=4)
        record = figures / f"{notebook.stem}.json"
        old = tokens(nbformat.read(path, as_version=4)) if profile == "quick" else _recorded(record)
        if profile == "quick":
            clean(nb)
            _write(path, nb)
        _replace(notebook.stem, Path(temporary), figures)
    new = tokens(nb) if profile == "quick" else _recorded(record)
    return [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]


def _write(path: Path, nb: Any) -> None:
    import nbformat

    from mgenb.store import write_atomic  # imports torch

    text = nbformat.writes(nb) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _recorded(path: Path) -> list[str]:
    """Return the tokens of a record, as the notebook prints them; none where there is no record."""
    if not path.exists():
        return []
    record = read(path)
    facts = [f"mechanism {name}: {value}" for name, value in record.mechanism.items()]
    return facts + [claim["token"] for claim in record.claims]


def _replace(stem: str, made: Path, folder: Path) -> None:
    """Put the rows, where it measured, the figures and the record of a notebook in place of those in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = (made / f"{stem}{end}" for end in (".npz", ".csv", ".parts.json"))
    new = [*filter(Path.exists, measured), *made.glob(f"{stem}-*.png"), *made.glob(f"{stem}.json")]
    for old in folder.glob(f"{stem}-*.png"):
        if old.name not in {path.name for path in new}:
            old.unlink()
    for path in new:
        if path.suffix != ".json" or _tells_more(path, folder / path.name):
            shutil.copyfile(path, folder / path.name)


def _tells_more(new: Path, old: Path) -> bool:
    """Whether a JSON is not the record that is there, but for when and where it was made."""
    if new.name.endswith(".parts.json") or not old.exists():
        return True
    made, before = read(new), read(old)
    return (made.to_json()["result"], made.figures) != (before.to_json()["result"], before.figures)


def nbval(root: Path, paths: Sequence[Path]) -> list[str]:
    """Return the command that compares notebooks with their committed outputs, as this project does it."""
    chosen = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "900"]
    sanitize = root / "tests" / "notebooks" / "sanitize.cfg"
    command = [sys.executable, "-m", "pytest", "-q", *chosen, "--nbval-sanitize-with", str(sanitize)]
    return command + [str(path) for path in paths]
