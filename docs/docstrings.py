"""Docstrings are plain prose with `names`, of which reStructuredText is told here."""

import re

from sphinx.application import Sphinx

CODE = re.compile(r"(`+[^`]+`+)")
MARKUP = re.compile(r"([\\*_|])")


def literal(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Set what stands between backticks as code, and take everything else as it is written."""
    for number, line in enumerate(lines):
        pieces = CODE.split(line)
        pieces[1::2] = [f"``{piece.strip('`')}``" for piece in pieces[1::2]]
        pieces[0::2] = [MARKUP.sub(r"\\\1", piece) for piece in pieces[0::2]]
        lines[number] = "".join(pieces)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", literal)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
