"""The parts of the `paper` profile: what each notebook plans, how one part is measured, and how parts come together.

A notebook is asked for its plan by running its cells, without a kernel, up to where it hands parts to `run.measure`.
"""

import io
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mgenb.lab import catalog, execute, experiment, rows

# in order of worth: Fig. 5, Fig. 6, Fig. 7, Fig. 9, the text on weights, Table II; seconds that a part takes while
# others run beside it
WORTH = {"02": 120.0, "01": 150.0, "03": 60.0, "08": 120.0, "04": 150.0, "06": 200.0}
WORTH |= {"12": 600.0, "11": 600.0, "13": 900.0}  # MeGA's, of which nothing was tried yet


class Planned(Exception):
    """Raised in place of measuring."""


@dataclass(frozen=True)
class Plan:
    """What a notebook hands to `run.measure`; `run` is what the run adds to each part."""

    parts: tuple[dict[str, Any], ...]
    function: Callable[[dict[str, Any]], Any]
    experiment: rows.Experiment
    run: dict[str, Any]


@cache
def plan(number: str, profile: str, device: str) -> Plan:
    """Return the plan of a notebook under a profile."""
    notebook, found = catalog.find(number), list[Plan]()

    def measure(parts: Sequence[dict[str, Any]], function: Callable[..., Any], *, version: int) -> None:
        run = names["run"]
        of_run = {"seed": run.seed, "profile": profile, "device": str(run.device), "retrain": False}
        found.append(Plan(tuple(parts), function, rows.Experiment(notebook.stem, version, run.seed), of_run))
        raise Planned

    names: dict[str, Any] = {"display": lambda *shown: None}  # which a kernel has
    for cell in json.loads(execute.path_of(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    exec("".join(cell["source"]), names)
            except Planned:
                break
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {"profile": profile, "device": device}
            if "run" in names:
                names["run"].measure = measure
    return found[0]


def in_order(
    profile: str, device: str, only: Iterable[str], datasets: Sequence[str] | None = None
) -> Iterator[tuple[str, int]]:
    """Yield (notebook, number of the part): one base network of each network, then more, by worth.

    With `datasets` only parts of these.
    """
    every = []
    for worth, number in enumerate(only):
        seen: dict[tuple[str, str], int] = {}
        for index, part in enumerate(plan(number, profile, device).parts):
            place = part["arch"], part["dataset"]
            if datasets is not None and place[1] not in datasets:
                continue
            seen[place] = seen.get(place, -1) + 1
            every.append((seen[place] > 0, worth, seen[place], index, number))
    for *_, index, number in sorted(every):
        yield number, index


def measured(out: Path, profile: str, device: str, task: tuple[str, int]) -> tuple[tuple[str, int], float, str]:
    """Measure one part into a folder of its own; return the task, its seconds, and what went wrong, "" if nothing."""
    number, index = task
    try:
        planned = plan(number, profile, device)
        folder = out / planned.experiment.stem / f"{index:03}"
        made = experiment.measure([planned.parts[index]], planned.function, planned.experiment, planned.run, folder)
        return task, float(made.parts["seconds"].iloc[0]), ""
    except Exception:
        return task, 0.0, traceback.format_exc()


def _stored(planned: Plan, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Return where `folder` has the rows of a plan, and what stands with their parts; none of another version."""
    csv = folder / f"{planned.experiment.stem}.csv"
    current = csv.exists() and rows.read(csv).experiment == planned.experiment
    return csv, json.loads(csv.with_suffix(".parts.json").read_text())["parts"] if current else []


def _place(part: dict[str, Any]) -> tuple[Any, ...]:
    return part["dataset"], part["arch"], next(part[of] for of in experiment.NUMBERED if of in part)


def there(profile: str, folder: Path) -> set[tuple[str, int]]:
    """Return which parts of the plans `folder` has rows of already.

    Where one of several parts on a base network is missing, all of them are: another card trains other weights.
    """
    found = set()
    for number in WORTH:
        planned = plan(number, profile, "cpu")
        done = [stored["part"] for stored in _stored(planned, folder)[1]]
        missing = {_place(part) for part in planned.parts if part not in done}
        found |= {(number, index) for index, part in enumerate(planned.parts) if _place(part) not in missing}
    return found


def join(brought: Path, folder: Path, profile: str, work: Path) -> Iterator[str]:
    """Put the parts that were brought back and those in `folder` together there; yield what each notebook now has.

    Those in `folder` on networks that were brought back with other weights go.
    """
    for number in WORTH:
        planned = plan(number, profile, "cpu")
        stem, by_part, weights = planned.experiment.stem, dict[str, Path](), dict[str, str]()
        files = [*brought.glob(f"{stem}/*/{stem}.parts/*.json"), *_apart(*_stored(planned, folder), work / stem)]
        for file in files:
            made = json.loads(file.read_text())
            if weights.setdefault(made["about"]["nets"], made["about"]["weights"]) == made["about"]["weights"]:
                by_part[_name(made["part"])] = file
        chosen = [by_part[name] for name in map(_name, planned.parts) if name in by_part]
        if chosen:
            rows.write(chosen, planned.experiment, folder, len(planned.parts))
            yield f"{stem}: {len(chosen)} of {len(planned.parts)} parts"


def _name(part: dict[str, Any]) -> str:
    return json.dumps(part, sort_keys=True)


def _apart(csv: Path, parts: Sequence[dict[str, Any]], folder: Path) -> Iterator[Path]:
    """Take joined rows apart again: each of the parts as it was when it was measured."""
    if not parts:
        return
    joined, begins = rows.read(csv), 0
    folder.mkdir(parents=True, exist_ok=True)
    for stored in parts:
        own = joined.frame.iloc[begins : begins + stored["rows"]].drop(columns=list(stored["part"]))
        begins += stored["rows"]
        listed = [{n: None if v != v else v for n, v in row.items()} for row in own.to_dict("records")]
        file = folder / f"{stored['about']['key']}.json"
        arrays = {n: a for n, a in joined.arrays.items() if n.startswith(stored["about"]["key"])}
        rows.keep(file, {"part": stored["part"], "rows": listed, "about": stored["about"]}, arrays)
        yield file
