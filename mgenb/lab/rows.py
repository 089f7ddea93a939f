"""Results as rows: measured part by part, kept as they come, and read again without measuring.

A *part* is a dict of names to plain values (a network, a base, a reading), and what is measured on it is a list of
rows, one a measurement. In the run's own folder a finished part is `<stem>.parts/<key>.json`, so that a run that was
killed goes on where it stopped. When all planned parts are in, three files hold them:

`<stem>.csv`          the rows, in the order of the plan, each with the columns of its part
`<stem>.parts.json`   the types of the columns, checksums of all, and for each part its data, weights and seconds
`<stem>.npz`          arrays that a figure needs, named `<key of the part>.<name>`; only where there are some

Two runs on one machine write the same CSV to the byte: what differs from run to run stands with the parts.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from mgenb import digest
from mgenb.errors import MgenbError
from mgenb.executor import each

SCHEMA = 1
LARGEST = 1_000_000  # bytes of a CSV
KINDS = {"integer": "int", "floating": "float", "boolean": "bool", "string": "str"}  # as pandas and as we call them
FROM_TEXT = {"str": str, "int": int, "float": float, "bool": {"True": True, "False": False}.__getitem__}
FROM_TEXT["float?"] = lambda text: float(text or "nan")  # a column in which numbers are missing

Part = Mapping[str, Any]
Function = Callable[[dict[str, Any]], Any]  # see `measure` for what it may return
Facts = Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """Which experiment rows belong to: the notebook's stem, its VERSION, and the seed of the run."""

    stem: str
    version: int
    seed: int


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of the planned parts that are there.

    frame: a row a measurement. parts: a row a part, in the order of the plan: its columns and what is known of it.
    planned: how many parts the plan has.
    """

    experiment: Experiment
    frame: pd.DataFrame
    parts: pd.DataFrame
    arrays: Mapping[str, np.ndarray]
    planned: int

    @property
    def unfinished(self) -> str:
        """Return "7 of 12 parts", or "" when all are in."""
        return "" if len(self.parts) == self.planned else f"{len(self.parts)} of {self.planned} parts"

    def of(self, what: str, *methods: str) -> pd.DataFrame:
        """Return the rows of one measurement, as the column `what` names it, of some methods or of all."""
        chosen = self.frame[self.frame["what"] == what]
        return chosen[chosen["method"].isin(methods)] if methods else chosen


def measure(
    parts: Sequence[Part],
    function: Function,
    *,
    experiment: Experiment,
    folder: Path,
    facts: Facts,
    executor: Executor | None = None,
) -> Rows:
    """Measure the parts that are not in `folder` yet, write all rows there, and return them as they are read.

    `function(part)` returns rows (dicts, or a DataFrame), or rows and arrays, or these and facts, as a tuple.
    `facts(part)` returns what stands with a part: "data" and "weights" are hashes of what it rests on, and with them
    the part itself, the notebook, its VERSION and the seed make the key under which it is found again; "nets" names
    the networks that have these weights. The executor measures parts side by side, without one they are
    measured here in turn; each with one thread, and it is kept as soon as it is done.
    """
    plain = [{name: _plain(name, value) for name, value in part.items()} for part in parts]
    if twice := next((part for part in plain if plain.count(part) > 1), None):
        raise MgenbError(f"the plan of {experiment.stem} has the part {twice} twice")
    kept = folder / f"{experiment.stem}.parts"
    there = frozenset(file.stem for file in kept.glob("*.json"))
    files: dict[int, Path] = {}
    for number, (key, stored, arrays) in each(partial(_measured, function, experiment, facts, there), plain, executor):
        files[number] = kept / f"{key}.json"
        if stored:
            keep(files[number], stored, arrays)
    write([files[number] for number in range(len(plain))], experiment, folder)
    return read(folder / f"{experiment.stem}.csv")


def _measured(
    function: Function, experiment: Experiment, facts: Facts, there: Set[str], part: dict[str, Any]
) -> tuple[str, dict[str, Any], Mapping[str, np.ndarray]]:
    """Return a part's key, its rows and what stands with them, and its arrays; nothing but the key where it is `there`.

    It runs where the executor has it, on another machine perhaps: the one who asks writes the files.
    """
    from mgenb.devices import one_thread  # imports torch

    with one_thread():  # with more of them sums have another order
        about = dict(facts(dict(part)))
        rests = {name: about.get(name) for name in ("data", "weights")}
        key = digest.key_of({**asdict(experiment), "schema": SCHEMA, "part": part, **rests})
        if key in there:
            return key, {}, {}
        began = perf_counter()
        made, arrays, more = unpacked(function(dict(part)))
        about |= {"key": key, **more, "seconds": round(perf_counter() - began, 2)}
    named = {f"{key}.{name}": np.asarray(array) for name, array in arrays.items()}
    return key, {"part": part, "rows": _tidy(made, part), "about": about}, named


def keep(file: Path, stored: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a part ("part", "rows", "about") and its arrays; the rows come last: with them it is there."""
    from mgenb.store import write_atomic, write_json

    if arrays:
        write_atomic(beside := file.with_suffix(".npz"), partial(save_arrays, arrays))
        stored = {**stored, "files": {".npz": digest.file_hash(beside)}}
    write_json(file, digest.sealed(stored), sort_keys=False)  # their order is that of the columns


def forget(folder: Path) -> None:
    """Delete kept parts, their rows first: killed in between, none is there without its arrays."""
    for file in folder.glob("*.json"):
        file.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def save_arrays(arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Write arrays of numbers or texts as .npz; MgenbError for others."""
    if bad := next((name for name, array in arrays.items() if array.dtype.hasobject), None):
        raise MgenbError(f"the array {bad!r} holds objects; right are numbers or texts, so that no pickle is written")
    with file.open("wb") as handle:
        np.savez_compressed(handle, **arrays)  # type: ignore[arg-type]


def _read_arrays(file: Path, known: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays in a .npz, whose checksum stands in what is `known` of it; none where none does."""
    if file.suffix not in known.get("files", {}):
        return {}
    _check(file, known)
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def unpacked(result: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any], Mapping[str, Any]]:
    """Return the rows, arrays and facts that a function gave, whatever of them it gave (see `measure`)."""
    made, arrays, facts = (*result, {}, {})[:3] if isinstance(result, tuple) else (result, {}, {})
    listed = made.to_dict("records") if isinstance(made, pd.DataFrame) else [dict(row) for row in made]
    return listed, arrays, facts


def _tidy(listed: list[dict[str, Any]], part: Part) -> list[dict[str, Any]]:
    """Return the rows as plain values; MgenbError where they are not tidy."""
    if not listed:
        raise MgenbError(f"the part {dict(part)} gave no rows; right is at least one")
    if clash := sorted(listed[0].keys() & part.keys()):
        raise MgenbError(f"rows have the column {clash[0]!r}, which the part has as well; rename one of them")
    _same_columns(listed)
    return [{name: _plain(name, value) for name, value in row.items()} for row in listed]


def _same_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    if odd := next((row.keys() ^ rows[0].keys() for row in rows if row.keys() != rows[0].keys()), None):
        raise MgenbError(f"rows differ in the columns {', '.join(sorted(odd))}; right is the same columns in all")


def _plain(name: str, value: Any) -> Any:
    """Return a cell as str, bool, int, finite float or None (a missing number)."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is not None and not isinstance(value, str | int | float):
        raise MgenbError(f"the column {name!r} holds {value!r}; right is one text, number or boolean a cell")
    if isinstance(value, float) and not math.isfinite(value):
        raise MgenbError(f"the column {name!r} holds {value}; right is a finite number, or None where there is none")
    return value


def write(files: Sequence[Path], experiment: Experiment, folder: Path, planned: int = 0) -> None:
    """Put parts, each as `measure` kept it, together in the three files; `planned`: how many there should be."""
    from mgenb.store import write_atomic, write_json, write_text

    parts = [_read_part(file) for file in files]
    rows = [{**stored["part"], **row} for stored in parts for row in stored["rows"]]
    _same_columns(rows)
    frame = pd.DataFrame(rows)
    text = frame.to_csv(index=False, lineterminator="\n")
    csv = folder / f"{experiment.stem}.csv"
    if len(text.encode()) > LARGEST:
        raise MgenbError(f"{csv} would be above {LARGEST:,} bytes; what is large belongs in the .npz")
    write_text(csv, text)
    arrays: dict[str, np.ndarray] = {}
    for file, part in zip(files, parts, strict=True):
        arrays |= _read_arrays(file.with_suffix(".npz"), part)
    if arrays:
        write_atomic(csv.with_suffix(".npz"), partial(save_arrays, arrays))
    head = {"schema": SCHEMA, **asdict(experiment), "planned": planned or len(parts), "columns": _columns(frame)}
    made = (csv, csv.with_suffix(".npz")) if arrays else (csv,)
    head["files"] = {file.suffix: digest.file_hash(file) for file in made}
    head["parts"] = [{"part": part["part"], "about": part["about"], "rows": len(part["rows"])} for part in parts]
    write_json(csv.with_suffix(".parts.json"), digest.sealed(head), sort_keys=False)


def _columns(frame: pd.DataFrame) -> dict[str, str]:
    """Return the type of each column; MgenbError where a column mixes texts, booleans and numbers."""
    columns = {}
    for name, column in frame.items():
        missing = bool(column.isna().any())
        inferred = "floating" if column.isna().all() else infer_dtype(column, skipna=False)
        kind = KINDS.get(inferred, "mixed") + "?" * missing
        if kind not in FROM_TEXT:
            raise MgenbError(f"the column {name!r} is {kind}; right is texts, booleans or numbers alone")
        columns[str(name)] = kind
    return columns


def read(path: Path) -> Rows:
    """Return the rows in the CSV at `path` with what stands beside it; MgenbError names what is wrong with them."""
    head = _read_json(path.with_suffix(".parts.json"))
    if head.get("schema") != SCHEMA:
        raise MgenbError(
            f"what stands beside {path} has schema {head.get('schema')}; right is {SCHEMA}: measure it again"
        )
    digest.unsealed(head, str(path.with_suffix(".parts.json")))
    _check(path, head)
    columns, experiment = head["columns"], Experiment(head["stem"], head["version"], head["seed"])
    listed = [{**stored["part"], **stored["about"], "rows": stored["rows"]} for stored in head["parts"]]
    parts = pd.DataFrame(listed, index=[_name(stored["part"]) for stored in head["parts"]])
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = pd.DataFrame({name: raw[name].map(FROM_TEXT[kind]) for name, kind in columns.items()})
    _check_weights(path, parts)
    return Rows(experiment, frame, parts, _read_arrays(path.with_suffix(".npz"), head), head["planned"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise MgenbError(f"{path} cannot be read ({error}); delete it and measure again") from error


def _read_part(file: Path) -> dict[str, Any]:
    """Return what `keep` wrote; MgenbError where it is another part's, or was changed."""
    stored = digest.unsealed(_read_json(file), str(file))
    if stored["about"]["key"] != file.stem:
        raise MgenbError(f"{file} is the part {stored['about']['key']}: delete it and measure again")
    return stored


def _check(file: Path, known: Mapping[str, Any]) -> None:
    if not file.is_file() or digest.file_hash(file) != known["files"][file.suffix]:
        raise MgenbError(f"{file} is not what was written there: delete {file.stem}.* and measure again")


def _check_weights(path: Path, parts: pd.DataFrame) -> None:
    """Refuse to pair rows of one network that had other weights elsewhere."""
    if {"nets", "weights"} <= set(parts):
        for name, hashes in parts.groupby("nets")["weights"]:
            if hashes.nunique() > 1:
                raise MgenbError(f"{path} has {name} with other weights in other parts: measure it anew in one place")


def select(rows: Rows, parts: Sequence[Part]) -> Rows:
    """Return the rows of the planned parts, in the order of the plan; MgenbError where none of them is there."""
    chosen = [name for name in map(_name, parts) if name in rows.parts.index]
    if not chosen:
        stem = rows.experiment.stem
        raise MgenbError(f"the rows of {stem} hold none of the {len(parts)} planned parts, as {parts[0]}: measure them")
    of_part = np.repeat(rows.parts.index, rows.parts["rows"])
    frame = pd.concat([rows.frame[of_part == name] for name in chosen], ignore_index=True)
    return replace(rows, frame=frame, parts=rows.parts.loc[chosen], planned=len(parts))


def _name(part: Part) -> str:
    return json.dumps({name: _plain(name, value) for name, value in part.items()}, sort_keys=True)
