"""Networks by name: which architecture is trained on which data and how (`networks.toml`, or a file of your own)."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mgenb.errors import MgenbError, nearest
from mgenb.lab import catalog
from mgenb.lab.values import checked

KEYS = {"dataset": str, "arch": str, "recipe": str, "epochs": int, "floor": float, "images": int}


@dataclass(frozen=True)
class Network:
    """One network on one dataset: how it is trained, and below which validation accuracy it proves nothing.

    images: so many for training, a fifth for validation, a fifth for test; None: as many as the notebook takes.
    """

    name: str
    dataset: str
    arch: str
    recipe: str
    epochs: int
    floor: float
    images: int | None = None

    def __str__(self) -> str:
        """Return "lenet on mnist"."""
        return f"{self.arch} on {self.dataset}"

    @property
    def place(self) -> tuple[str, str]:
        """Where the evidence from its trained copies comes from: dataset and architecture."""
        return self.dataset, self.arch


def chosen(names: list[str], profile: str, file: str | None = None) -> tuple[Network, ...]:
    """Return the networks with these names as `profile` trains them; `file` may add some to those that are known.

    Raises MgenbError for a name that is not known, and for an entry that is wrong.
    """
    entries, folder = _entries(files("mgenb.lab").joinpath("networks.toml").read_text(encoding="utf-8")), Path.cwd()
    if file:
        try:
            own, folder = _entries(Path(file).read_text(encoding="utf-8")), Path(file).parent
        except (OSError, ValueError) as error:
            raise MgenbError(f"networks_file {file} cannot be read: {error}") from error
        if both := sorted(own.keys() & entries.keys()):
            raise MgenbError(f"networks_file {file} names {both[0]!r}, which is known already; give it another name")
        entries |= own
    found = []
    for name in names:
        if name not in entries:
            hint = nearest(str(name), entries) or f"; known: {', '.join(entries)}"
            raise MgenbError(f"networks has {name!r}{hint}")
        found.append(_network(name, entries[name], profile, folder))
    places = [str(network) for network in found]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise MgenbError(f"networks has {twice} twice; right is one of each architecture on each dataset")
    return tuple(found)


def _entries(text: str) -> dict[str, Any]:
    entries = tomllib.loads(text).get("networks")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError('right are tables [networks."name"]')
    return entries


def _network(name: str, entry: dict[str, Any], profile: str, folder: Path) -> Network:
    fields = {key: value for key, value in entry.items() if key not in catalog.PROFILES} | entry.get(profile, {})
    if unknown := [*(fields.keys() - KEYS.keys()), *(KEYS.keys() - fields.keys() - {"images"})]:
        raise MgenbError(
            f"network {name!r}: look at {unknown[0]}; its keys are {', '.join(KEYS)} (images can be left out)"
        )
    try:
        return Network(name, **{key: checked(key, value, KEYS[key], folder) for key, value in fields.items()})
    except MgenbError as error:
        raise MgenbError(f"network {name!r}: {error}") from None
