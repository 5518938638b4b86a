"""How the documentation is built: ``make docs``, which runs ``sphinx-build -W docs site``.

The docstrings are written for Sphinx (its roles, Google's sections), so Sphinx reads them. The site asks nothing of any
other server: system fonts, formulas as MathML, a search that runs in the browser.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

import ndm

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "ndm"
author = "the ndm authors"
copyright = "the ndm authors, MIT licence"  # noqa: A001
version = release = ndm.__version__
language = "en_GB"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    # those of docs/extensions
    "commands",
    "docstrings",
    "mathml",
    "notebooks",
    "public",
    "sources",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["extensions", "static"]
nitpicky = True  # a name in a docstring that leads nowhere is a warning, and `make docs` takes warnings for errors
nitpick_ignore = [
    ("py:class", "collections.abc.Callable"),  # in aliases of types
    ("py:class", "torch.nn.modules.module.Module"),  # likewise
    ("py:class", "torch.Tensor"),
    ("py:class", "ndm.tabular.conditional_methods.ConditionalMethods"),  # a base without a page of its own
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_class_signature = "mixed"
napoleon_use_ivar = False
napoleon_attr_annotations = False  # the signature has them
napoleon_use_rtype = False
napoleon_custom_sections = ["Shapes"]
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"ndm {release}"
html_static_path = ["static"]
html_css_files = ["ndm.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would need a server: files cannot be fetched
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5d7a", "color-brand-content": "#0b5d7a"},
    "dark_css_variables": {"color-brand-primary": "#7cc7e0", "color-brand-content": "#7cc7e0"},
    "navigation_with_keys": True,
}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def _without_last_lines(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave out the empty line that ends an example, where doctest has to be told that the output ends."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def setup(app: Sphinx) -> None:
    app.connect("source-read", _without_last_lines)
