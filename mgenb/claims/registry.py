"""The registry: every number and every comparative sentence of the papers, read from mge.toml and mega.toml.

A `[[claim]]` is one entry. A `[[table]]` is a grid: its `axes` span the ids, `cells` holds what differs from
cell to cell. A number that has not been read from the paper is left out, and the entry says
`transcribed = false`: nothing is filled in from memory.
"""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from mgenb.errors import MgenbError, choose, nearest

PAPERS = ("mge", "mega")
KINDS = ("value", "comparison", "equivalence", "ratio", "bound", "trend", "existence", "setting")
NUMBER_KINDS = ("value", "ratio", "bound")
DIRECTIONS = {"bound": ("below", "above"), "trend": ("increase",)}
SCALE_KEYS = ("dataset", "arch", "size", "images", "models")


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    `margin` and `paper_value` are in `unit`. `kind` is one of KINDS; a "setting" is an input of an
    experiment and is never judged. `scale` says what the claim is about (keys of SCALE_KEYS; "any" where
    the sentence names none, a missing key where it is not known; dataset "none" where it is of an architecture
    alone). `direction` is "below" or "above" for
    a bound, "increase" for a trend, else "". `transcribed` is False where the number, or the wording of a
    sentence, has not been read from the paper.
    """

    id: str
    paper: str
    where: str
    statement: str
    kind: str
    notebook: str
    unit: str = ""
    margin: float = 0.0
    paper_value: float | None = None
    direction: str = ""
    scale: Mapping[str, Any] = field(default_factory=dict, hash=False)
    transcribed: bool = True
    notes: str = ""

    @property
    def counted(self) -> bool:
        """Whether the claim is about an architecture alone, which no data and no training change."""
        return self.scale.get("dataset") == "none"

    @property
    def printed_value(self) -> str:
        """The paper's number; "not transcribed" where it has one that was not read, "" where it needs none."""
        if self.paper_value is not None:
            return f"{self.paper_value:g}"
        numbered = self.kind in (*NUMBER_KINDS, "setting")
        return "not transcribed" if numbered and not self.transcribed else ""

    @property
    def origin(self) -> str:
        """Who says so: "paper", "inferred from a figure" (its wording was not read), or "our control"."""
        if "(control)" in self.where:  # which the paper does not make
            return "our control"
        return "paper" if self.transcribed or self.kind in NUMBER_KINDS else "inferred from a figure"


@cache
def load(paper: str | None = None) -> tuple[Claim, ...]:
    """Return the claims of `paper` ("mge" or "mega"), or of both, in the order of the files."""
    if paper is None:
        return tuple(claim for name in PAPERS for claim in load(name))
    choose("paper", paper, PAPERS)
    text = resources.files("mgenb.claims").joinpath(f"{paper}.toml").read_text(encoding="utf-8")
    return parse(paper, text)


def parse(paper: str, text: str) -> tuple[Claim, ...]:
    """Return the claims of a registry file's text. Raises MgenbError, naming the entry, where it is wrong."""
    data = tomllib.loads(text)
    cells = (_expand(table, data.get("names", {})) for table in data.get("table", []))
    claims = tuple(_claim(paper, entry) for entry in itertools.chain(data.get("claim", []), *cells))
    ids = [claim.id for claim in claims]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise MgenbError(f"claim {twice!r} stands twice in the registry")
    return claims


def get(claim_id: str) -> Claim:
    """Return the claim with this id; an unknown id raises MgenbError with the nearest known one."""
    claims = {claim.id: claim for claim in load()}
    if claim_id not in claims:
        raise MgenbError(f"unknown claim {claim_id!r}{nearest(claim_id, claims)}")
    return claims[claim_id]


def registry_hash(notebook: str) -> str:
    """Return 16 hexadecimal digits that change with whatever decides a verdict on a claim of the notebook."""
    deciding = ("id", "kind", "margin", "paper_value", "direction", "transcribed", "scale")
    judged = sorted((claim for claim in load() if claim.notebook == notebook), key=lambda claim: claim.id)
    rows = [{name: getattr(claim, name) for name in deciding} for claim in judged]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def _expand(table: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield one entry for each cell of a grid, ids `<table id>.<axis value>.<axis value>...`."""
    cells = dict(table.get("cells", {}))
    common = {key: value for key, value in table.items() if key not in ("axes", "cells")}
    for values in itertools.product(*table["axes"].values()):
        place = dict(zip(table["axes"], values, strict=True))
        key = ".".join(map(str, values))
        cell = cells.pop(key, {})
        entry = {**common, **(cell if isinstance(cell, dict) else {"paper_value": cell}), "id": f"{table['id']}.{key}"}
        shown = {axis: names.get(str(value), value) for axis, value in place.items()}
        entry["statement"] = table["statement"].format(**shown)
        entry["scale"] = table.get("scale", {}) | {axis: place[axis] for axis in SCALE_KEYS if axis in place}
        yield entry
    if cells:
        raise MgenbError(f"table {table['id']!r} has no place for the cells {', '.join(cells)}")


def _claim(paper: str, entry: Mapping[str, Any]) -> Claim:
    """Check an entry and fill in what follows from the rest."""
    name = entry.get("id", "?")
    unknown = set(entry) - {f.name for f in fields(Claim)}
    missing = {"id", "where", "statement", "kind", "notebook"} - set(entry)
    if unknown or missing:
        raise MgenbError(f"claim {name!r}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    kind = choose(f"kind of claim {name!r}:", entry["kind"], KINDS)
    if entry.get("direction", "") not in DIRECTIONS.get(kind, ("",)):
        raise MgenbError(f"claim {name!r}: direction {entry.get('direction', '')!r} does not fit a {kind}")
    for key in entry.get("scale", {}):
        choose(f"scale key of claim {name!r}:", key, SCALE_KEYS)
    has_number = "paper_value" in entry
    transcribed = entry.get("transcribed", has_number or kind not in (*NUMBER_KINDS, "setting"))
    if transcribed and not has_number and kind in NUMBER_KINDS:
        raise MgenbError(f"claim {name!r}: a {kind} without paper_value is not transcribed")
    numbers = {key: float(entry[key]) for key in ("margin", "paper_value") if key in entry}
    return Claim(**{**entry, **numbers, "paper": paper, "transcribed": transcribed})
