"""Errors that a user can act on: one sentence that names the value and what would be right."""

import difflib
from collections.abc import Iterable


class MgenbError(Exception):
    """Something the user can put right; the command line prints it without a traceback."""


class SealedSplitError(MgenbError):
    """The test split was asked for outside its one door, `run.final_test`."""


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
