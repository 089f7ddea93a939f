"""Docstrings are plain prose with `names`; here they become what reStructuredText calls so."""

import re
from collections.abc import Iterator, Sequence

from sphinx.application import Sphinx

CODE = re.compile(r"(`+[^`]+`+)")
MARKUP = re.compile(r"([\\*_|])")
FIELD = re.compile(r"([a-z_\d]+(?:, [a-z_\d]+)*): ")  # "name: what it is", at the beginning of a line


def _rewrite(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    lines[:] = [_literal(line) for line in _listed(lines)]


def _literal(line: str) -> str:
    """Return a line with what stands between backticks as code, and everything else as it is written."""
    pieces = CODE.split(line)
    pieces[1::2] = [f"``{piece.strip('`')}``" for piece in pieces[1::2]]
    pieces[0::2] = [MARKUP.sub(r"\\\1", piece) for piece in pieces[0::2]]
    return "".join(pieces)


def _listed(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines with names that are explained line by line as a list; a longer explanation goes on below."""
    inside, before = False, "the first line is a sentence"
    for line in lines:
        field = FIELD.match(line) if inside or not before else None
        inside = bool(field) or (inside and bool(line))
        yield f"- `{field[1]}`: {line[field.end() :]}" if field else f"  {line.strip()}" if inside else line
        before = line


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
