r"""What docstrings leave unsaid to be readable in a terminal, said to Sphinx.

An indented block after an empty line is a formula, and keeps its lines. ``\*shape`` is written with two backslashes in
raw strings too. And "method, section 3" is a section of the page on the method.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

#: The end of a paragraph, an empty line, and a line that is indented further and is no list, example or directive.
_FORMULA = re.compile(r"^(?P<indent> *)(?P<line>\S.*[^:\s]:?)\n\n(?=(?P=indent) {4}(?! |>>>|- |\* |\.\. ))", re.M)

#: A mention of the method's page.
_METHOD = re.compile(r"\bmethod, (?=sections? \d|section$)")


def keep_formulas(text: str) -> str:
    """Make literal blocks of the indented ones.

    Example:
        >>> print(keep_formulas("With v:\\n\\n    a = b\\n    c = d").replace("\\n\\n", "\\n"))
        With v:
        .. code-block:: text
            a = b
            c = d
    """
    return _FORMULA.sub(r"\g<indent>\g<line>\n\n\g<indent>.. code-block:: text\n\n", text)


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    # Not in indented lines, which may be a formula's.
    lines[:] = [line if line.startswith(" ") else _METHOD.sub(":doc:`method </method>`, ", line) for line in lines]
    lines[:] = keep_formulas("\n".join(lines)).replace(r"\\*", r"\*").split("\n")
    if what in ("attribute", "data", "property"):
        lines[0] = f": {lines[0]}"  # or napoleon would take what stands before a colon for a type


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
