"""Tables as notebooks show them: nothing is cut, text stands left and wraps, numbers stand right."""

import hashlib
import re
import textwrap
from itertools import zip_longest
from typing import Any

import pandas as pd
from IPython import get_ipython

WIDTH = 40  # characters at which a cell of text wraps
MOST_ROWS = 1000  # of a table that is shown whole
NUMBER = re.compile(r"(?:[-+]?(?:[\d.,]+|inf|nan)(?:e[-+]?\d+)?(?: ?%| \[.*\])?|None)?", re.IGNORECASE)


def use_tables() -> None:
    """Show every table of this kernel so; where there is no kernel nothing is done."""
    if (shell := get_ipython()) is None:
        return
    formatters = shell.display_formatter.formatters
    formatters["text/html"].for_type(pd.DataFrame, html)
    formatters["text/plain"].for_type(pd.DataFrame, lambda frame, printer, cycle: printer.text(text(frame)))


def html(frame: pd.DataFrame) -> str:
    """Return the table in HTML; equal tables give equal text."""
    with pd.option_context("display.max_colwidth", None):
        body = frame.to_html(max_rows=MOST_ROWS)
    name = f"T{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    count = frame.shape[1]
    places = [count - k for k in range(count) if not _is_number(frame.iloc[:, k])]  # from the end: an index may span
    left = ", ".join([f"#{name} tbody th", *(f"#{name} :is(td, thead th):nth-last-child({place})" for place in places)])
    rules = [
        f"#{name} :is(td, th) {{vertical-align: top; white-space: normal}}",
        f"#{name} :is(td, thead th) {{text-align: right}}",
        f"{left} {{text-align: left}}",
    ]
    return "\n".join(["<style scoped>", *rules, "</style>", body.replace("<table ", f'<table id="{name}" ', 1)])


def text(frame: pd.DataFrame) -> str:
    """Return the table in plain text, as a terminal and nbval see it."""
    if len(frame) > MOST_ROWS:
        return repr(frame)
    names = [name or "" for name in frame.index.names]
    index = frame.index.to_frame(index=False, name=names if len(names) > 1 else names[0])
    columns = [part.iloc[:, k] for part in (index, frame) for k in range(part.shape[1])]
    blocks = [[line.split("\n") for line in (_heading(column), *_cells(column))] for column in columns]
    widths = [max(len(line) for block in column for line in block) for column in blocks]
    sides = [str.rjust if _is_number(column) else str.ljust for column in columns]
    rows = [zip_longest(*row, fillvalue="") for row in zip(*blocks, strict=True)]
    padded = ([pad(*cell) for pad, *cell in zip(sides, line, widths, strict=True)] for row in rows for line in row)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _heading(column: "pd.Series[Any]") -> str:
    names = column.name if isinstance(column.name, tuple) else (column.name,)
    return "\n".join(map(str, names))


def _is_number(column: "pd.Series[Any]") -> bool:
    """Whether a column holds numbers, or texts that are numbers with their intervals."""
    return pd.api.types.is_numeric_dtype(column) or all(NUMBER.fullmatch(str(cell)) for cell in column)


def _cells(column: "pd.Series[Any]") -> list[str]:
    if pd.api.types.is_numeric_dtype(column) and len(column):
        return [line.strip() for line in column.to_string(index=False, header=False).split("\n")]
    return [textwrap.fill("" if cell is None else str(cell), WIDTH, break_long_words=False) for cell in column]
