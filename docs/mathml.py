"""Equations as MathML, which browsers draw by themselves: no script, and nothing that is fetched."""

import re
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

SIZES = re.compile(r' (?:min|max)size="[^"]*"')  # without them a bracket is as high as what it holds


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="equation">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _mathml(latex: str, display: str) -> str:
    """Return the equation; what a reader without eyes for it hears is the LaTeX, as the alternative text."""
    made = SIZES.sub("", convert(latex, display=display))
    return made.replace("<math ", f'<math alttext="{escape(latex)}" ', 1)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
