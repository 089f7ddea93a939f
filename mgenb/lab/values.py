"""One setting's value: what a command line's text means, and which types and ranges are right."""

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mgenb import data, nets, training
from mgenb.claims.registry import PAPERS
from mgenb.errors import MgenbError, choose

LIMITS = ("val", "test")  # of images: a number, or all there are
SHARES = ("t", "share", "floor")
MAY_BE_ZERO = ("seed", "first_seed", "open_bases", "val_classes", "mutations", "fusions", "tune_epochs", "wide_bases")
CHOICES: dict[str, Collection[str]] = {
    "arch": nets.ARCHITECTURES,
    "recipe": training.RECIPES,
    "paper": ("both", *PAPERS),
}
RIGHT = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list, as in [0, 1]"}


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
        return (
            lambda values: bool(values) and all(map(_is_kappa, values)),
            "a list of numbers of at least 0, as in [0, 2, 5]",
        )
    if wanted not in (int, float):
        return lambda value: value != [], RIGHT[wanted]
    least = 0 if wanted is float or name in MAY_BE_ZERO else 1
    most = 1 if name in SHARES else math.inf
    span = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
    words = f"{RIGHT[wanted]} {span}" + (', or "all"' if name in LIMITS else "")
    return lambda value: least <= value <= most and math.isfinite(value), words


def _is_kappa(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
