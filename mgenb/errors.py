"""Errors that a user can act on: one sentence that names the value and what would be right."""

import difflib
import math
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_type_hints


class MgenbError(Exception):
    """Something the user can put right; the command line prints it without a traceback."""


class SealedSplitError(MgenbError):
    """The test split was asked for outside its one door, `run.final_test`."""


def at_home(path: str | Path, where: str = "") -> Path:
    """Return a path with the user's home in place of `~`; MgenbError, which says `where` to mend it, where none is."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MgenbError(f"{path} lies in a home folder that cannot be found: give a path without ~{where}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the most similar known word, or '' when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(kind: str, value: str, known: Iterable[str]) -> str:
    """Return `value` when it is one of `known`, else raise an MgenbError that lists them."""
    known = list(known)
    if value not in known:
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise MgenbError(f"unknown {kind} {value!r}{hint or ';'} known: {', '.join(known)}")
    return value


def demand(settings: object, of: str = "", **right: Iterable[str] | int | float | tuple[float, float]) -> None:
    """Check fields of `settings`: names by those that are known, numbers by the least that is right, or (least, most).

    Where the least is an int, so must be the number; where it is a float, any finite number will do. Fields that are
    texts or truth values by their annotation are checked unasked.
    Raises MgenbError for the first field that is wrong, and calls it 'field' or, with `of`, 'field of ...'.
    """
    for field, kind in get_type_hints(type(settings)).items():
        if kind in (bool, str) and not isinstance(value := getattr(settings, field), kind):
            raise MgenbError(f"{field} is {value!r}; right is {'a text' if kind is str else 'True or False'}")
    for field, known in right.items():
        value, name = getattr(settings, field), f"{field} of {of}" if of else field
        bounds: tuple[Any, ...] = (known, math.inf) if isinstance(known, int | float) else tuple(known)
        if isinstance(bounds[0], str):
            choose(name, value, bounds)
        else:
            check(name, value, *bounds)


def check(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Raise MgenbError unless `value` is a number from `least` to `most`; where `least` is an int, a whole number."""
    whole = isinstance(least, int)
    kind, word, below = (Integral, "a whole number", math.inf) if whole else (Real, "a number", sys.float_info.max)
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not (number and least <= value <= most and value < below):  # type: ignore[operator]
        limit = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise MgenbError(f"{name} is {value!r}; right is {word} {limit}")
