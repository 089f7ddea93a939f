"""The record of a run: what was found, and under which registry and experiment, as JSON of a known form.

A record is *stale*, and no evidence, when its form is older than today's, when an entry of its notebook in the
registry has changed (all claims of a notebook are judged as one family, so one entry touches the others), or when its
rows were measured by another VERSION of the experiment. A notebook without an experiment of its own is at VERSION 1.
That the code behind a VERSION has not changed is held by tests, which measure again and analyse again.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from mgenb import digest
from mgenb.errors import MgenbError
from mgenb.lab import catalog

SCHEMA = 3  # 2: readings stand with their claim; 3: with a checksum
OUTSIDE = ("schema", "stem", "profile", "figures", "context")  # the rest is the result: no time, path or version in it
NEEDED = ("stem", "profile", "claims")  # even of an older form


@dataclass(frozen=True)
class Record:
    """What one run of a notebook found.

    version: of its experiment. registry: `claims.registry_hash` of its notebook. claims: `Verdict.to_json` of each.
    context: machine, time and what else differs between two runs.
    """

    schema: int
    stem: str
    profile: str
    figures: list[str]
    context: dict[str, Any]
    seed: int
    version: int
    registry: str
    settings: dict[str, Any]
    networks: list[dict[str, Any]]
    margins: dict[str, float]
    claims: list[dict[str, Any]]
    mechanism: dict[str, Any]
    tables: dict[str, Any]
    data: list[dict[str, Any]]
    bases: list[dict[str, Any]]
    test_uses: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data with a checksum; what two runs have in common stands in "result"."""
        values = dict(vars(self))
        return digest.sealed({name: values.pop(name) for name in OUTSIDE} | {"result": values})

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Record":
        """Return the record that `to_json` wrote; MgenbError says which key of the file `where` is wrong, and how, or
        that it was changed.

        Of an older form keys may be missing: they are empty.
        """
        if not isinstance(value, dict) or not isinstance(value.get("result"), dict):
            raise MgenbError(f"{where} is not a record (it has no result); make it again with `mgenb run`")
        known = {"schema": 0, **value, **value["result"]}
        if not isinstance(known["schema"], int) or known["schema"] > SCHEMA:
            raise MgenbError(f"{where} has schema {known['schema']!r}; right is at most {SCHEMA}: update mgenb")
        if known["schema"] == SCHEMA:
            digest.unsealed(value, where)
        else:
            known = {name: kind() for name, kind in _kinds().items() if name not in NEEDED} | known
        for name, kind in _kinds().items():
            if not isinstance(known.get(name), kind):
                fault = f"is {known[name]!r}" if name in known else "is missing"
                raise MgenbError(f"{where} is not a record ({name} {fault}; right is a {kind.__name__}): make it again")
        return cls(**{name: known[name] for name in _kinds()})

    @property
    def label(self) -> str:
        """Return `02_zero_filling (cpu)`."""
        return f"{self.stem} ({self.profile})"

    @property
    def counted(self) -> str:
        """Return how many verdicts of each kind there are, as `2 contradicted, 1 reproduced`."""
        return counted(claim["verdict"] for claim in self.claims) or "no verdicts"

    @property
    def stale(self) -> str:
        """Return why the record is no evidence today; "" when it is."""
        from mgenb import claims  # loads slowly, as below

        if self.schema < SCHEMA:
            return f"a record of an older form (schema {self.schema}, today {SCHEMA})"
        if self.registry != claims.registry_hash(self.stem):
            return "judged by other registry entries than today's"
        if self.version != (today := catalog.version(self.stem)):
            return f"measured by version {self.version} of the experiment, today's is {today}"
        return ""


def counted(verdicts: Iterable[str]) -> str:
    """Return how many verdicts of each kind there are, as `2 contradicted, 1 reproduced`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(verdicts).items()))


def _kinds() -> dict[str, type]:
    return {name: get_origin(kind) or kind for name, kind in get_type_hints(Record).items()}  # list of list[str]


def read(path: Path) -> Record:
    """Return the record in a file; MgenbError says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MgenbError(f"{path} is not a record ({error}); make it again with `mgenb run`") from error
    return Record.from_json(value, str(path))


def committed() -> list[Record]:
    """Return the records in `figures/<profile>/`, in the order of profiles and stems; MgenbError for one elsewhere."""
    folder = catalog.project_root() / "figures"
    files = [path for profile in catalog.PROFILES for path in sorted((folder / profile).glob("*.json"))]
    made = {path: read(path) for path in files if not path.name.endswith(".parts.json")}
    for path, record in made.items():
        if (record.profile, record.stem) != (path.parent.name, path.stem):
            raise MgenbError(f"{path} is the record of {record.label}: delete it and make it with `mgenb refresh`")
    return list(made.values())


def audit(records: list[Record]) -> list[str]:
    """Return what a sceptic would ask about the records, one line each.

    Lists stale records and their margins that changed, uses of the test split, and claims on which readings
    differ.
    """
    from mgenb import claims

    today = {claim.id: claim.margin for claim in claims.load()}
    return [f"{record.label}: {line}" for record in records for line in _questions(record, today)]


def _questions(record: Record, today: dict[str, float]) -> list[str]:
    lines = [f"stale: {record.stale}"] if record.stale else []
    for name, margin in record.margins.items():
        if name not in today:
            lines.append(f"claim {name} is no longer in the registry")
        elif margin != today[name]:
            lines.append(f"margin of {name} was {margin:g}, the registry says {today[name]:g}")
    if uses := len(record.test_uses):
        lines.append(f"the test split was used {uses} time{'s' if uses > 1 else ''}")
    for row in record.claims:
        verdicts = [reading["verdict"] for reading in row.get("readings", ())]
        if len(set(verdicts)) > 1:
            lines.append(f"{row['id']} differs between readings: {counted(verdicts)}")
    return lines
