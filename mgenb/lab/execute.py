"""Run notebooks: check their parameters, execute them through papermill, refresh the committed ones."""

import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgenb import executor
from mgenb.errors import MgenbError, at_home
from mgenb.lab import catalog, stage
from mgenb.lab.record import Record, read

WIDGET = "application/vnd.jupyter.widget-view+json"
LONGEST_MESSAGE = 300
LONGEST_SOCKET_FOLDER = 90  # the address of a socket has at most 104 bytes, on Linux 108


@dataclass(frozen=True)
class Job:
    """One notebook to execute: its file and parameters, the folder for what it makes, and what its kernel inherits."""

    notebook: catalog.Notebook
    path: Path
    parameters: Mapping[str, Any]
    out: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.notebook.stem

    @property
    def executed(self) -> Path:
        """Where the executed notebook is when all went well."""
        return self.out / self.path.name

    @property
    def stage(self) -> Path:
        """Where the notebook runs; it stays there, with what it had made, when the run fails or is stopped."""
        return self.out / f"unfinished-{self.notebook.stem}"


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
        if self.error:
            half = self.job.stage / self.job.path.name
            return f"{self.job}: {self.error}" + (f"\n  the half-executed notebook is {half}" if half.exists() else "")
        return f"{self.job}: {self.seconds:.0f} s, {self.record.counted if self.record else 'no record'}"


def path_of(notebook: catalog.Notebook) -> Path:
    """Return the notebook's file; MgenbError when the checkout does not have it."""
    path = catalog.project_root() / "notebooks" / f"{notebook.stem}.ipynb"
    if not path.is_file():
        raise MgenbError(f"{path} is missing: restore it with git")
    return path


def plan(wanted: str, profile: str, given: Sequence[str], out: Path | None) -> list[Job]:
    """Return the jobs for 'all' or one notebook, with every name and value checked; nothing is started.

    `given` holds `name=value` strings. Raises MgenbError for an unknown notebook, for parameters that
    `parameters.check` refuses, and for a folder that cannot take the results.
    """
    chosen = catalog.notebooks() if wanted == "all" else (catalog.find(wanted),)
    texts, jobs = _pairs(given), list[Job]()
    for notebook in chosen:
        values, changed = _checked(notebook, profile, texts)
        folder = _resolved(at_home(out or catalog.output_dir(profile, changed)))
        if folder == (catalog.project_root() / "notebooks").resolve():
            raise MgenbError("--out is the notebooks folder, whose notebooks would be overwritten; give another")
        jobs.append(Job(notebook, path_of(notebook), {"profile": profile, **values}, folder))
    return jobs


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise MgenbError(f"{folder} is a link that leads back to itself: give another --out") from error


def _checked(notebook: catalog.Notebook, profile: str, texts: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """Return what was given and what is not the profile's; a profile's own values are right, as tests hold."""
    notebook.defaults(profile)  # refuses an unknown profile
    if not texts:
        return {}, {}
    from mgenb.lab import parameters  # imports torch, for seconds

    checked = parameters.check(notebook, profile, texts)
    return checked.given, checked.changed


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise MgenbError(f"parameter {text!r} is not name=value, as in -p seed=1")
        if name in ("profile", *pairs):
            raise MgenbError(f"parameter {name!r} is given twice; the profile is given by --profile alone")
        pairs[name] = value
    return pairs


def execute_all(jobs: Sequence[Job], processes: str | None, scheduler: str | None) -> Iterator[Outcome]:
    """Yield outcomes as they come: of several notebooks side by side in so many processes, one kernel each.

    Of a single notebook the parts are computed by the processes, and of each, in turn, by a cluster. See
    `executor.asked` for what may be given.
    """
    count, address = executor.asked(processes, scheduler)
    outside = count if len(jobs) > 1 else 0
    own = {executor.JOBS: str(count - outside or ""), executor.SCHEDULER: address}
    with executor.workers(str(outside or ""), "") as pool:
        for borrow in (False, True):  # who draws the rows of others waits for them
            now = [replace(job, environment=own) for job in jobs if bool(job.notebook.rows_of) == borrow]
            for _, outcome in executor.each(execute, now, pool, "notebook"):
                yield outcome


def execute(job: Job) -> Outcome:
    """Execute a notebook in a kernel of its own; what goes wrong in it is told by the outcome, not raised.

    It runs in a folder of its own, and only what a whole run made takes the place of what was there. The parts
    (`<stem>.parts/*`) that earlier runs measured, stopped ones too, are there for it to go on from. Raises
    MgenbError when another process runs the same notebook into the same folder.
    """
    stem = job.notebook.stem
    with stage.held(job.stage):
        for path in filter(Path.is_file, job.stage.glob(f"{stem}[-.]*")):
            path.unlink()  # what an earlier run left would pass for this run's
        for path in job.out.glob(f"{stem}.parts/*"):
            (job.stage / path.parent.name).mkdir(exist_ok=True)
            path.replace(job.stage / path.parent.name / path.name)
        print(f"{job} (about {job.notebook.cost[job.parameters['profile']]}) ...", file=sys.stderr)
        began = time.monotonic()
        try:
            error = _execute_in(job.stage, job.path, job.parameters, job.environment)
        except OSError as full:
            error = f"cannot write in {job.out}: {full.strerror}; choose another --out"
        seconds = time.monotonic() - began
        if error:
            return Outcome(job, seconds, error=error)
        made = job.stage / f"{stem}.json"
        record = read(made) if made.exists() else None
        drawings = job.path.parent / "img"
        if drawings.is_dir():  # the executed notebook shows them by relative links
            shutil.copytree(drawings, job.out / drawings.name, dirs_exist_ok=True)
        _publish(job.stage, stem, job.out, job.executed)
        return Outcome(job, seconds, record)


def _execute_in(folder: Path, path: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Execute a notebook into `folder`; return what went wrong, "" when nothing did."""
    # with it jsonschema would build a grammar of URIs at each start, for seconds
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    import papermill
    from nbclient.exceptions import DeadKernelError

    with _kernel({"MGENB_OUT": str(folder), **environment}) as kernel:
        try:
            how = {"cwd": path.parent, "progress_bar": sys.stderr.isatty()}
            how |= {"kernel_name": "python3", "kernel_manager_class": kernel, "coalesce_streams": True}
            # written after each cell only where one may take an hour: each time all figures are written anew
            how["request_save_on_cell_execute"] = parameters.get("profile", "quick") != "quick"
            papermill.execute_notebook(path, folder / path.name, dict(parameters), **how)
        except papermill.PapermillExecutionError as error:
            longest = None if error.ename == MgenbError.__name__ else LONGEST_MESSAGE  # what to do stands at its end
            return f"{error.ename}: {textwrap.shorten(error.evalue, longest or sys.maxsize, placeholder='...')}"
        except DeadKernelError:
            return "DeadKernelError: its process was killed, most often for want of memory"
    return ""


@contextmanager
def _kernel(environment: Mapping[str, str]) -> Iterator[type]:
    """Yield the class by which papermill starts a kernel, which measures unless `environment` says otherwise.

    It is spoken to through sockets in a folder of this user, not through ports of the machine, where there are such.
    """
    from jupyter_client.manager import AsyncKernelManager

    # OpenMP threads that spin while they wait cost up to fourteen times the run time where cores are shared
    inherited = {"OMP_WAIT_POLICY": "passive", **executor.MEMORY, **os.environ, catalog.ANALYSE: "", **environment}
    with tempfile.TemporaryDirectory(prefix="mgenb-", ignore_cleanup_errors=True) as folder:
        private = os.name == "posix" and len(folder) < LONGEST_SOCKET_FOLDER

        class Kernel(AsyncKernelManager):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options, **({"transport": "ipc", "ip": f"{folder}/kernel"} if private else {}))

            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
                await super().start_kernel(**options, env=inherited)

            async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
                # in the midst of a cell a kernel that is asked to end tells of its own troubles first
                by_hand = isinstance(sys.exception(), KeyboardInterrupt)
                await super().shutdown_kernel(now=now or by_hand, restart=restart)

        yield Kernel


def _publish(folder: Path, stem: str, results: Path, notebook: Path | None) -> None:
    """Put what a notebook made in the stage `folder` in place of what it had made in `results`.

    The executed notebook goes to `notebook`, or nowhere. It and then the record are the last to change.
    """
    files = filter(Path.is_file, (*folder.glob(f"{stem}.parts/*"), *folder.glob(f"{stem}[-.]*")))
    made = (path.relative_to(folder).as_posix() for path in files)
    names = sorted(made, key=lambda name: (name == f"{stem}.json", name == f"{stem}.ipynb"))
    places = {name: notebook if name == f"{stem}.ipynb" else results / name for name in names}
    earlier = [*results.glob(f"{stem}-*.png"), results / f"{stem}.json"]
    gone = [path for path in earlier if path.name not in places]
    stage.move_out(folder, {name: place for name, place in places.items() if place}, gone)


def clean(nb: Any) -> None:
    """Take out of an executed notebook what differs from run to run and from machine to machine, in place.

    All that the kernel says of its language stays: else JupyterLab would add it to a notebook that is only read.
    """
    names = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nb.metadata = type(nb.metadata)({"kernelspec": names, "language_info": nb.metadata.language_info})
    for cell in nb.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = type(nb.metadata)({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [output for output in outputs if WIDGET not in output.get("data", {})]


def refresh(notebook: catalog.Notebook, profile: str, *, measure: bool = True) -> list[str]:
    """Execute a notebook with a profile's defaults, and bring what is committed of it up to date.

    Rows, figures and record go to `figures/<profile>/`; the quick profile's outputs also into the notebook itself.
    Without `measure` it analyses the rows that are there. Nothing is touched when it fails. Returns the tokens that
    changed, as `- old` and `+ new`. Raises MgenbError when the notebook fails, or there are no rows to analyse.
    """
    import nbformat

    stem, path, quick = notebook.stem, path_of(notebook), profile == "quick"
    figures = catalog.project_root() / "figures" / profile
    if not measure and not (figures / f"{notebook.measured_in}.csv").is_file():
        raise MgenbError(f"{stem} has no rows in {figures}; make them with `mgenb refresh --profile {profile}`")
    stage.tidy(catalog.refreshing())
    folder = catalog.refreshing() / f"{profile}-{stem}"
    with stage.held(folder):
        environment = {} if measure else {catalog.ANALYSE: str(figures)}
        if error := _execute_in(folder, path, {} if quick else {"profile": profile}, environment):
            raise MgenbError(f"{stem} was left as it is; {error}")
        if quick:
            nb = nbformat.read(folder / path.name, as_version=4)
            clean(nb)
            (folder / path.name).write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
        record = figures / f"{stem}.json"
        old, new = read(record) if record.exists() else None, read(folder / record.name)
        if old and (old.to_json()["result"], old.figures) == (new.to_json()["result"], new.figures):
            shutil.copyfile(record, folder / record.name)  # they differ in when and where they were made alone
        shutil.rmtree(folder / f"{stem}.parts", ignore_errors=True)  # what is committed are the rows of all
        _publish(folder, stem, figures, path if quick else None)
    before, now = _tokens(old) if old else [], _tokens(new)
    return [f"- {line}" for line in before if line not in now] + [f"+ {line}" for line in now if line not in before]


def _tokens(record: Record) -> list[str]:
    """Return the tokens of a record as the notebook prints them."""
    facts = [f"mechanism {name}: {value}" for name, value in record.mechanism.items()]
    return facts + [claim["token"] for claim in record.claims]


def nbval(root: Path, paths: Sequence[Path]) -> list[str]:
    """Return the command that compares notebooks with their committed outputs, as this project does it.

    Several are compared side by side, in as many processes as there are cores.
    """
    chosen = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "900", "--nbval-sanitize-with"]
    sanitize = root / "tests" / "notebooks" / "sanitize.cfg"
    beside = ["-n", str(min(len(paths), os.cpu_count() or 1)), "--dist", "loadscope"] if len(paths) > 1 else []
    return [sys.executable, "-m", "pytest", "-q", *beside, *chosen, str(sanitize), *map(str, paths)]
