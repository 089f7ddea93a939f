"""The registry: every number and every sentence of the papers that can be judged, read from mge.toml and mega.toml.

A `[[claim]]` is one entry. A `[[table]]` is a grid: its `axes` span the ids, `cells` holds what differs from cell to
cell. `[points.NAME]` is one thing that a paper leaves open, with its levels; `[readings.NAME]` is a set of readings,
each a level for every point that matters, on which claims are judged (see `mgenb.claims`).
"""

import hashlib
import itertools
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from mgenb.errors import MgenbError, choose, nearest

PAPERS = ("mge", "mega")
KINDS = ("value", "comparison", "equivalence", "noninferiority", "ratio", "bound", "existence", "setting")
NUMBER_KINDS = ("value", "ratio")  # a printed number: judged at the paper's own scale only
ROLES = ("central", "detail", "check", "control")
STANDS = ("printed", "text", "silent", "open")
DIRECTIONS = {"bound": ("below", "above")}
SCALE_KEYS = ("dataset", "arch", "size", "images", "models")
MOST_CORE = 6


@dataclass(frozen=True)
class Reading:
    """One way to read what a paper leaves open: a level for each point.

    core: made of what is printed or said (and of our defaults where the paper is silent) alone; others are *open*, and
    differ from a core reading in one point. options: what the method is called with.
    """

    name: str
    core: bool
    choices: Mapping[str, str] = field(hash=False)
    options: Mapping[str, Any] = field(hash=False)


AS_STATED = Reading("as stated", core=True, choices={}, options={})  # of a claim that nothing is left open for


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, or a control of ours.

    `margin` and `paper_value` are in `unit`; a `relative` margin is a share of the paper's value. `kind` is one of
    KINDS; a "setting" is an input of an experiment and is never judged. `role`: what it weighs, one of ROLES.
    `scale` says what the claim is about (keys of SCALE_KEYS; "any" where the sentence names none, a missing key where
    the paper does not say; dataset "none" where it is of an architecture alone). `direction` is "below" or "above" for
    a bound. `readings`: those on which it is judged. `novelty`: models that hardly differ from their base prove
    nothing. `family`: claims of one notebook and family are corrected together; what follows from other claims has one
    of its own. `place`: where a cell stands in its table, axis -> value. `dash`: the paper prints a dash, and the bound
    is what it says a dash means. `ours`: the paper gives a word, and the number that we read it as stands in
    `paper_value`. `versions`: the version of the paper that says so, where not all do.
    """

    id: str
    paper: str
    where: str
    statement: str
    kind: str
    role: str
    notebook: str
    unit: str = ""
    margin: float = 0.0
    relative: bool = False
    paper_value: float | None = None
    direction: str = ""
    scale: Mapping[str, Any] = field(default_factory=dict, hash=False)
    place: Mapping[str, str] = field(default_factory=dict, hash=False)
    readings: tuple[Reading, ...] = (AS_STATED,)
    novelty: bool = False
    family: str = ""
    dash: bool = False
    ours: bool = False
    versions: str = ""
    notes: str = ""

    @property
    def counted(self) -> bool:
        """Whether the claim is about an architecture alone, which no data and no training change."""
        return self.scale.get("dataset") == "none"

    @property
    def control(self) -> bool:
        """Whether it is ours: it passes or fails, and the paper is not contradicted."""
        return self.role == "control"

    @property
    def printed_value(self) -> str:
        """The paper's number as a table shows it; "-" for its dash, "" where it has none."""
        return "-" if self.dash else "" if self.ours or self.paper_value is None else f"{self.paper_value:.10g}"

    @property
    def table(self) -> str:
        """The table whose cell it is, as "mge.table2"; "" where it is a sentence of its own."""
        return self.id.removesuffix("." + ".".join(self.place.values())) if self.place else ""

    def reading(self, name: str) -> Reading:
        """Return the registered reading of this name; MgenbError names the nearest."""
        by_name = {reading.name: reading for reading in self.readings}
        if name not in by_name:
            hint = nearest(name, by_name) or f"; registered: {', '.join(by_name)}"
            raise MgenbError(f"{self.id} has no reading {name!r}{hint}")
        return by_name[name]


@dataclass(frozen=True)
class Unjudged:
    """A sentence that is not judged: where it stands, what it says in our words, and why not."""

    where: str
    says: str
    why: str


@dataclass(frozen=True)
class Point:
    """One thing that a paper leaves open: what, and for each level how it stands, what it says, and its options."""

    what: str
    levels: Mapping[str, Mapping[str, Any]]

    @property
    def default(self) -> str:
        """The level that holds where a reading says no other: ours where the paper is silent, else the first."""
        silent = [name for name, level in self.levels.items() if level["stands"] == "silent"]
        return [*silent, *self.levels][0]


@cache
def load(paper: str | None = None) -> tuple[Claim, ...]:
    """Return the claims of `paper` ("mge" or "mega"), or of both, in the order of the files."""
    if paper is None:
        return tuple(claim for name in PAPERS for claim in load(name))
    return parse(choose("paper", paper, PAPERS), _text(paper))


@cache
def unjudged(paper: str) -> tuple[Unjudged, ...]:
    """Return the sentences of `paper` that are not judged."""
    return tuple(Unjudged(**entry) for entry in _data(paper)["unjudged"])


@cache
def points(paper: str) -> Mapping[str, Point]:
    """Return what `paper` leaves open, by name."""
    return {name: Point(**entry) for name, entry in _data(paper).get("points", {}).items()}


@cache
def names(paper: str) -> Mapping[str, str]:
    """Return what the values of axes are called in print."""
    return _data(paper).get("names", {})


def cells(table: str) -> list[Claim]:
    """Return the cells of a paper's table, as "mge.table2", in their order; MgenbError for an unknown table."""
    tables: dict[str, list[Claim]] = {}
    for claim in load():
        tables.setdefault(claim.table, []).append(claim)
    if not table or table not in tables:
        raise MgenbError(f"the registry has no table {table!r}{nearest(table, tables)}")
    return tables[table]


@cache
def _data(paper: str) -> dict[str, Any]:
    return tomllib.loads(_text(paper))


def _text(paper: str) -> str:
    return resources.files("mgenb.claims").joinpath(f"{paper}.toml").read_text(encoding="utf-8")


def parse(paper: str, text: str) -> tuple[Claim, ...]:
    """Return the claims of a registry file's text. Raises MgenbError, naming the entry, where it is wrong."""
    data = tomllib.loads(text)
    known = {name: Point(**entry) for name, entry in data.get("points", {}).items()}
    for name, point in known.items():
        for level, about in point.levels.items():
            choose(f"stands of {name}.{level}:", about["stands"], STANDS)
    sets = {name: tuple(_readings(name, entry, known)) for name, entry in data.get("readings", {}).items()}
    entries = list(data.get("claim", []))
    for table in data.get("table", []):
        entries += _expand(table, data.get("names", {}))
    claims = tuple(_claim(paper, entry, sets) for entry in entries)
    for claim_id, count in Counter(claim.id for claim in claims).items():
        if count > 1:
            raise MgenbError(f"claim {claim_id!r} stands twice in the registry")
    return claims


def get(claim_id: str) -> Claim:
    """Return the claim with this id; an unknown id raises MgenbError with the nearest known one."""
    claims = _by_id()
    if claim_id not in claims:
        raise MgenbError(f"unknown claim {claim_id!r}{nearest(claim_id, claims)}")
    return claims[claim_id]


def registry_hash(notebook: str) -> str:
    """Return 16 hexadecimal digits that change with whatever decides a verdict on a claim of the notebook."""
    deciding = ("id", "kind", "role", "margin", "relative", "paper_value", "direction", "scale", "novelty", "family")
    rows = [
        {name: getattr(claim, name) for name in deciding}
        | {"readings": [[reading.name, reading.core, dict(reading.options)] for reading in claim.readings]}
        for claim in load()
        if claim.notebook == notebook
    ]
    rows.sort(key=lambda row: str(row["id"]))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _by_id() -> dict[str, Claim]:
    return {claim.id: claim for claim in load()}


def _readings(name: str, entry: Mapping[str, Any], known: Mapping[str, Point]) -> Iterator[Reading]:
    """Yield the readings of a set, core ones first. Raises MgenbError where one is not what it says it is."""
    core: Sequence[Mapping[str, str]] = entry["core"]
    if not 1 <= len(core) <= MOST_CORE:
        raise MgenbError(f"readings {name!r} have {len(core)} core readings; right are 1 to {MOST_CORE}")
    for choices in core:
        reading = _reading(choices, known, core=True)
        if odd := [point for point, level in choices.items() if known[point].levels[level]["stands"] == "open"]:
            raise MgenbError(f"core reading {reading.name!r} of {name!r} has the open level {choices[odd[0]]!r}")
        yield reading
    for changed in entry.get("open", ()):
        change = {point: level for point, level in changed.items() if point != "from"}
        if len(change) != 1:
            raise MgenbError(f"an open reading of {name!r} changes {len(change)} points; right is one")
        yield _reading({**core[int(changed["from"])], **change}, known, core=False)


def _reading(choices: Mapping[str, str], known: Mapping[str, Point], *, core: bool) -> Reading:
    options: dict[str, Any] = {}
    for name, level in choices.items():
        levels = known[choose("point", name, known)].levels
        options |= levels[choose(f"level of {name}:", level, levels)].get("options", {})
    return Reading(", ".join(choices.values()), core, dict(choices), options)


def _expand(table: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield one entry for each cell of a grid, ids `<table id>.<axis value>.<axis value>...`."""
    axes: dict[str, list[Any]] = table["axes"]
    cells = dict(table.get("cells", {}))
    datasets = table.get("places", {}).get("arch", {})
    common = {key: value for key, value in table.items() if key not in ("axes", "cells", "places")}
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values, strict=True))
        key = ".".join(str(value) for value in values)
        cell = cells.pop(key, {})
        if not isinstance(cell, dict):
            cell = {"paper_value": cell}
        shown = {axis: names.get(str(value), str(value).replace("_", " ")) for axis, value in place.items()}
        about = {axis: value for axis, value in place.items() if axis in SCALE_KEYS}
        if dataset := datasets.get(place.get("arch")):
            about["dataset"] = dataset
        entry = {**common, **cell, "id": f"{table['id']}.{key}"}
        entry["place"] = {axis: str(value) for axis, value in place.items()}
        entry["statement"] = table["statement"].format(**shown)
        entry["scale"] = {**table.get("scale", {}), **about}
        yield entry
    if cells:
        raise MgenbError(f"table {table['id']!r} has no place for the cells {', '.join(cells)}")


def _claim(paper: str, entry: Mapping[str, Any], sets: Mapping[str, tuple[Reading, ...]]) -> Claim:
    """Check an entry and fill in what follows from the rest."""
    name = entry.get("id", "?")
    unknown = set(entry) - {f.name for f in fields(Claim)}
    missing = {"id", "where", "statement", "kind", "role", "notebook"} - set(entry)
    if unknown or missing:
        raise MgenbError(f"claim {name!r}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    kind = choose(f"kind of claim {name!r}:", entry["kind"], KINDS)
    choose(f"role of claim {name!r}:", entry["role"], ROLES)
    if entry.get("direction", "") not in DIRECTIONS.get(kind, ("",)):
        raise MgenbError(f"claim {name!r}: direction {entry.get('direction', '')!r} does not fit a {kind}")
    for key in entry.get("scale", {}):
        choose(f"scale key of claim {name!r}:", key, SCALE_KEYS)
    if kind in (*NUMBER_KINDS, "bound") and "paper_value" not in entry:
        raise MgenbError(f"claim {name!r}: a {kind} needs a paper_value")
    numbers = {key: float(entry[key]) for key in ("margin", "paper_value") if key in entry}
    if not 0 <= numbers.get("margin", 0.0) < float("inf"):
        raise MgenbError(f"claim {name!r}: its margin is {numbers['margin']}; right is a number of at least 0")
    chosen = {}
    if "readings" in entry:
        chosen["readings"] = sets[choose(f"readings of {name!r}:", entry["readings"], sets)]
    return Claim(**{**entry, **numbers, **chosen, "paper": paper, "scale": dict(entry.get("scale", {}))})
