"""The one check of a notebook's parameters: before a kernel starts, and in the notebook itself.

Of each setting it tells what a command line's text means, and which types and ranges are right.
Networks are named: which architecture is trained on which data and how stands in `networks.toml`, or in a file of the
user's own.
"""

import json
import math
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from mgenb import data, devices, nets, training
from mgenb.claims.registry import PAPERS
from mgenb.errors import MgenbError, at_home, choose
from mgenb.lab import catalog

COMMON = {"seed": 0, "device": "auto", "retrain": False}
NETWORK = {"dataset": str, "arch": str, "recipe": str, "epochs": int, "floor": float, "images": int}
LIMITS = ("val", "test")  # of images: a number, or all there are
SHARES = ("t", "share", "floor")
MAY_BE_ZERO = ("seed", "first_seed", "open_bases", "val_classes", "mutations", "fusions", "tune_epochs", "wide_bases")
CHOICES: dict[str, Collection[str]] = {"arch": nets.ARCHITECTURES, "recipe": training.RECIPES}
CHOICES["paper"] = ("both", *PAPERS)
RIGHT = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list, as in [0, 1]"}


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


@dataclass(frozen=True)
class Parameters:
    """Everything that a run is started with.

    settings: the profile's, but for those that were given; networks: what the setting of this name names, if there
    is one; given: the values that were given, as they are checked; changed: seed and settings that are not the
    profile's; retrain: base networks are trained anew, though they are shipped or in the cache.
    """

    profile: str
    seed: int
    device: torch.device
    settings: dict[str, Any]
    networks: tuple[Network, ...]
    given: dict[str, Any]
    changed: dict[str, Any]
    retrain: bool = False

    @property
    def by_hand(self) -> str:
        """What is not the profile's, as "t=0.99": whatever may move a verdict is named."""
        return ", ".join(f"{name}={as_text(value)}" for name, value in self.changed.items())


def check(notebook: catalog.Notebook, profile: str, given: Mapping[str, Any]) -> Parameters:
    """Return the parameters of a run; None is not given, and takes the profile's value. See `checked`.

    Raises MgenbError for an unknown profile, name, device, dataset or network, and for a value that is not right.
    """
    defaults = notebook.defaults(profile)
    known = {**COMMON, **defaults, **({"networks_file": ""} if "networks" in defaults else {})}
    values = {}
    for name, value in given.items():
        choose(f"parameter of {notebook.stem}:", name, known)
        value = checked(name, value, int if defaults.get(name) == "all" else type(known[name]))
        if value is not None:
            values[name] = value
    if "networks_file" in values:
        values["networks_file"] = str(at_home(values["networks_file"]).resolve())
    usual, full = {**COMMON, **defaults}, {**COMMON, **defaults, **values}
    settings = {name: full[name] for name in defaults}
    networks = chosen(settings.get("networks", []), profile, values.get("networks_file"))
    changed = {name: full[name] for name in (*defaults, "seed") if full[name] != usual[name]}
    device = devices.device(full["device"])
    return Parameters(profile, full["seed"], device, settings, networks, values, changed, full["retrain"])


def as_text(value: Any) -> str:
    """Return a setting's value as it is printed."""
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def chosen(names: list[str], profile: str, file: str | None = None) -> tuple[Network, ...]:
    """Return the networks with these names as `profile` trains them; `file` may add some to those that are known.

    Raises MgenbError for a name that is not known, and for an entry that is wrong.
    """
    entries, folder = _entries(files("mgenb.lab").joinpath("networks.toml").read_text(encoding="utf-8")), Path.cwd()
    if file:
        try:
            own, folder = _entries(Path(file).read_text(encoding="utf-8")), Path(file).parent
        except (OSError, ValueError, RecursionError) as error:
            raise MgenbError(f"networks_file {file} cannot be read ({error}): give another file") from error
        if both := sorted(own.keys() & entries.keys()):
            raise MgenbError(f"networks_file {file} names {both[0]!r}, which is known already; give it another name")
        entries |= own
    networks = [_network(choose("network", name, entries), entries[name], profile, folder) for name in names]
    places = [str(network) for network in networks]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise MgenbError(f"networks has {twice} twice; right is one of each architecture on each dataset")
    return tuple(networks)


def _entries(text: str) -> dict[str, Any]:
    entries = tomllib.loads(text).get("networks")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError('right are tables [networks."name"]')
    return entries


def _network(name: str, entry: dict[str, Any], profile: str, folder: Path) -> Network:
    fields = {key: value for key, value in entry.items() if key not in catalog.PROFILES} | entry.get(profile, {})
    try:
        if odd := sorted((fields.keys() ^ NETWORK.keys()) - {"images"}):
            raise MgenbError(f"look at {odd[0]}; its keys are {', '.join(NETWORK)} (images can be left out)")
        return Network(name, **{key: checked(key, value, NETWORK[key], folder) for key, value in fields.items()})
    except MgenbError as error:
        raise MgenbError(f"network {name!r}: {error}") from None


def checked(name: str, value: Any, wanted: type, folder: Path | None = None) -> Any:
    """Return `value` as the setting `name` has it, of type `wanted`; text stands for what it says, as "[0, 1]" does.

    None, and the text "null", mean that nothing was given: None. A relative path of images starts at `folder`, else
    at the working directory. Raises MgenbError that names the value and what is right.
    """
    given = value
    value = _read(value, wanted) if isinstance(value, str) else value
    if value is None or (name in LIMITS and value == "all"):
        return value
    if (wanted is int and isinstance(value, float) and value.is_integer()) or (wanted is float and type(value) is int):
        value = wanted(value)
    in_range, right = _rule(name, wanted)
    if type(value) is not wanted or not in_range(value):
        raise MgenbError(f"{name} is {given!r}; right is {right}")
    if name == "dataset":
        return data.named(str(value), folder or Path.cwd())
    return choose(name, str(value), CHOICES[name]) if name in CHOICES else value


def _read(text: str, wanted: type) -> Any:
    if text in ("null", "None"):
        return None
    if wanted is str:
        return text
    try:
        value = json.loads(text.lower() if wanted is bool else text)
    except ValueError:
        value = text
    if wanted is list and not isinstance(value, list):
        return [_read(part.strip(), object) for part in text.split(",")]
    return value


def _rule(name: str, wanted: type) -> tuple[Callable[[Any], bool], str]:
    """Return what must hold of a value of type `wanted`, and the same in words."""
    if name == "kappas":
        right = "a list of numbers of at least 0, as in [0, 2, 5]"
        return lambda values: bool(values) and all(map(_is_kappa, values)), right
    if wanted not in (int, float):
        return lambda value: value != [], RIGHT[wanted]
    least = 0 if wanted is float or name in MAY_BE_ZERO else 1
    most = 1 if name in SHARES else math.inf
    span = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
    words = f"{RIGHT[wanted]} {span}" + (', or "all"' if name in LIMITS else "")
    return lambda value: least <= value <= most and math.isfinite(value), words


def _is_kappa(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
