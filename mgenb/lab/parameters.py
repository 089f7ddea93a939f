"""The one check of a notebook's parameters: before a kernel starts, and in the notebook itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgenb import devices
from mgenb.errors import MgenbError, nearest
from mgenb.lab import catalog
from mgenb.lab.networks import KEYS, Network, chosen
from mgenb.lab.values import checked

COMMON = {"seed": 0, "device": "auto", "retrain": False}


@dataclass(frozen=True)
class Parameters:
    """Everything that a run is started with.

    settings: the profile's, but for those that were given; networks: what the setting of this name names, or the one
    that the settings describe; given: the values that were given, as they are checked; changed: seed and settings that
    are not the profile's; retrain: base networks are trained anew, though they are shipped or in the cache.
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
    """Return the parameters of a run; None is not given, and takes the profile's value. See `values.checked`.

    Raises MgenbError for an unknown profile, name, device, dataset or network, and for a value that is not right.
    """
    defaults = notebook.defaults(profile)
    known = {**COMMON, **defaults, **({"networks_file": ""} if "networks" in defaults else {})}
    values = {}
    for name, value in given.items():
        if name not in known:
            hint = nearest(name, known) or ";"
            raise MgenbError(f"{notebook.stem} has no parameter {name!r}{hint} known: {', '.join(known)}")
        values[name] = checked(name, value, int if defaults.get(name) == "all" else type(known[name]))
    values = {name: value for name, value in values.items() if value is not None}
    if "networks_file" in values:
        values["networks_file"] = str(Path(values["networks_file"]).expanduser().resolve())
    settings = {name: values.get(name, default) for name, default in defaults.items()}
    networks: tuple[Network, ...] = ()
    if "networks" in settings:
        networks = chosen(settings["networks"], profile, values.get("networks_file"))
    elif "arch" in settings:
        networks = (Network("", **{key: settings[key] for key in KEYS if key in settings}),)
    usual, full = {**COMMON, **defaults}, {**COMMON, **defaults, **values}
    changed = {name: full[name] for name in (*defaults, "seed") if full[name] != usual[name]}
    device = devices.device(full["device"])
    return Parameters(profile, full["seed"], device, settings, networks, values, changed, full["retrain"])


def as_text(value: Any) -> str:
    """Return a setting's value as it is printed."""
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)
