"""Formulas as MathML, made when the site is built: a browser then needs no script and no server to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(latex: str, display: bool, where: nodes.Node | None = None) -> str:
    """A formula as MathML, with its source for those who copy it.

    A command that the converter does not know is left in its output as it was; that is a warning.
    """
    found = convert(latex, display="block" if display else "inline")
    for unknown in sorted(set(re.findall(r"\\[A-Za-z]+", found))):
        logger.warning("MathML: %s is not understood in %r", unknown, latex, location=where)
    found = found.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')
    return found.replace("<math ", f'<math aria-label="{html.escape(latex, quote=True)}" ', 1)


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), False, node))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{mathml(node.astext(), True, node)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
