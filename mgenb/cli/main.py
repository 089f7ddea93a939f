"""The command `mgenb`. What is slow to load is imported inside the commands, so that --help is quick."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgenb.cli import merge, pool
from mgenb.cli.options import Jobs, Scheduler
from mgenb.errors import MgenbError, choose
from mgenb.lab import catalog, stage

if TYPE_CHECKING:
    from mgenb.lab import execute

app = typer.Typer(
    help="Two papers that make networks without training, re-examined claim by claim. Start: mgenb run all",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(pool.app, name="pool")
app.command()(merge.merge)

Profile = Annotated[str, typer.Option(help="Defaults to run with: quick, cpu or paper.")]
Numbers = Annotated[
    list[str] | None, typer.Argument(metavar="[NN]...", help="Numbers or stems; all where none is given.")
]


@app.callback()
def _before_any_command() -> None:
    """Bring a refresh that was killed to its end, so that no command sees half of it."""
    with suppress(MgenbError):  # outside a checkout there is none
        stage.tidy(catalog.refreshing())


@contextmanager
def _stopped_by_hand(how: str) -> Iterator[None]:
    """Make of Ctrl-C one sentence, which says how to go on, and exit code 130; also a decorator."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"mgenb: stopped; {how}", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line; an error that the user can put right is one sentence and exit code 2."""
    # OpenMP threads that spin while they wait cost up to fourteen times the run time where cores are shared; kernels
    # inherit it, and torch reads it when it is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except MgenbError as error:
        print(f"mgenb: {error}", file=sys.stderr)
        sys.exit(2)


@app.command("list")
def list_() -> None:
    """List notebooks with their cost and records.

    What each reproduces, what it costs in each profile, and the verdicts of its committed records.
    Example: mgenb list
    """
    from mgenb.lab import record

    records = record.committed()
    for notebook in catalog.notebooks():
        print(f"{notebook.stem.split('_')[0]}  {notebook.title}\n    reproduces {notebook.reproduces}")
        print("    cost       " + "; ".join(f"{name} {cost}" for name, cost in notebook.cost.items()))
        own = [made for made in records if made.stem == notebook.stem]
        for made in own:
            stale = f"; STALE, no evidence: {made.stale}" if made.stale else ""
            print(f"    record     {made.profile}, {made.context['finished'][:10]}: {made.counted}{stale}")
        if not own:
            print("    record     none is committed")


@app.command()
@_stopped_by_hand("earlier results are as they were, and the same command goes on from what is kept")
def run(
    which: Annotated[str, typer.Argument(metavar="NN|STEM|all", help="Number or stem of a notebook, or all.")],
    profile: Profile = "quick",
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter of the notebook; can be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; one in runs/ otherwise.")] = None,
    jobs: Jobs = None,
    scheduler: Scheduler = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run the paper profile without a GPU, too.")] = False,
) -> None:
    """Run notebooks with parameters of your own. Example: mgenb run 01 --profile cpu -p seed=1

    Names and types are checked before anything starts. Executed notebooks, figures and records go to --out.
    With --jobs several notebooks run side by side; of a single one its parts do.
    """
    from mgenb.lab import execute

    planned = execute.plan(which, profile, parameter or [], out)
    if profile == "paper" and not yes:
        _ask_without_gpu(planned)
    fine = []
    for outcome in execute.execute_all(planned, jobs, scheduler):
        print(outcome.line, flush=True)
        fine += [] if outcome.error else [outcome.job]
    first = f"; open {fine[0].executed} first" if fine else ""
    print(f"look at {planned[0].out}: {len(fine)} executed notebooks{first}")
    if len(fine) < len(planned):
        raise typer.Exit(1)


def _ask_without_gpu(planned: "Sequence[execute.Job]") -> None:
    """Say what the paper profile costs where there is no GPU, and go on only when told to."""
    import torch

    if torch.cuda.is_available():
        return
    costs = "; ".join(f"{job} {job.notebook.cost['paper']}" for job in planned)
    print(f"there is no GPU here, and the paper profile would take many times as long as with one: {costs}")
    if not sys.stdin.isatty():
        raise MgenbError("the paper profile without a GPU is run only when asked for: give --yes, or --profile cpu")
    typer.confirm("Run it all the same?", abort=True)


def _chosen(numbers: Sequence[str] | None) -> list[catalog.Notebook]:
    return catalog.in_turn(map(catalog.find, numbers) if numbers else catalog.notebooks())


@app.command()
@_stopped_by_hand("nothing was changed, and the same command begins anew")
def check(
    numbers: Numbers = None,
    out: Annotated[Path | None, typer.Option(help="Folder in which what they make is kept: rows, records.")] = None,
) -> None:
    """Run notebooks and compare with their committed outputs (nbval). Example: mgenb check 01 03

    Then tells what would keep nbval from comparing: cells without counts or outputs, times, paths.
    """
    from mgenb.executor import WORKER
    from mgenb.lab import execute, hygiene

    root = catalog.project_root()
    paths = [execute.path_of(notebook) for notebook in _chosen(numbers)]
    with tempfile.TemporaryDirectory() as temporary:
        made = str(out.resolve() if out else temporary)
        environment = {**os.environ, "MGENB_OUT": made, **(WORKER if len(paths) > 1 else {})}
        code = subprocess.run(execute.nbval(root, paths), cwd=root, env=environment, check=False).returncode
    problems = [(path, problem) for path in paths for problem in hygiene.problems(path)]
    for path, problem in problems:
        print(f"{path.name}: {problem}")
    print(f"hygiene of {len(paths)} notebooks: {len(problems) or 'no'} problems")
    if code or problems:
        print(hygiene.cure(list(dict(problems))))
        raise typer.Exit(code or 1)


@app.command()
@_stopped_by_hand("the notebook at hand is as it was, and the same command begins it anew")
def refresh(
    numbers: Numbers = None,
    profile: Profile = "quick",
    bases: Annotated[bool, typer.Option("--bases", help="The shipped base networks instead: train them anew.")] = False,
) -> None:
    """Bring committed outputs up to date. Example: mgenb refresh 01

    The quick profile writes the notebook's outputs, figures and record; the others figures and record only.
    VERDICTS.md and the README's table follow. Prints which tokens changed.
    """
    from mgenb.lab import execute, shipping

    if bases:
        print("\n".join(file.name for file in shipping.refresh()))
        return
    choose("profile", profile, catalog.PROFILES)
    for notebook in _chosen(numbers):
        _show_changes(notebook.stem, execute.refresh(notebook, profile))
    _publish_verdicts()


@app.command()
def analyse(numbers: Numbers = None, profile: Profile = "quick") -> None:
    """Make figures, verdicts and records anew from committed rows. Example: mgenb analyse 02 --profile cpu

    Nothing is measured, so it takes seconds: for an edited registry, or a figure drawn otherwise. Where no number is
    given, all notebooks that have rows. Prints which tokens changed.
    """
    from mgenb.lab import execute

    folder = catalog.project_root() / "figures" / choose("profile", profile, catalog.PROFILES)
    for notebook in _chosen(numbers):
        if numbers or (folder / f"{notebook.measured_in}.csv").exists():
            _show_changes(notebook.stem, execute.refresh(notebook, profile, measure=False))
    _publish_verdicts()


def _show_changes(stem: str, changed: Sequence[str]) -> None:
    print("\n  ".join([f"{stem}: {'' if changed else 'no token changed'}".rstrip(), *changed]), flush=True)


def _publish_verdicts() -> None:
    from mgenb.lab import scoreboard

    for name in scoreboard.publish(catalog.project_root()):
        print(f"{name}: written anew")


@app.command()
def claims(
    paper: Annotated[str | None, typer.Option(help="Only this paper: mge or mega.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Also what a sceptic would ask about the records.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Only the central claims, as a table in Markdown.")
    ] = False,
) -> None:
    """Show every claim of the papers with its best verdict. Example: mgenb claims --paper mge"""
    from mgenb.lab import record, scoreboard, tables

    records = record.committed()
    frame = scoreboard.table(records, paper)
    if markdown:
        print(scoreboard.markdown(frame))
    else:
        judged = frame[frame["kind"] != "setting"].assign(verdict=frame["outcome"])
        for role, title in scoreboard.PARTS.items():
            of = judged[judged["role"] == role]
            print(f"{title}\n\n{tables.text(of[['where', 'paper value', 'measured', 'verdict']])}\n")
        print(tables.text(scoreboard.counts(frame, "role")))
    if audit:
        print("\n".join(["", *(record.audit(records) or ["nothing to question: no records"])]))


@app.command()
def doctor() -> None:
    """Say what is installed, found and missing, and how to get it. Example: mgenb doctor"""
    from mgenb.lab import doctor as looking

    broken = 0
    for fine, line in looking.findings():
        broken += not fine
        print(line if fine else f"BROKEN: {line}", flush=True)
    print(f"{broken} problems: see the lines with BROKEN" if broken else "all that is needed is here")
    raise typer.Exit(min(broken, 1))
