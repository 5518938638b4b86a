"""The source of every module as a page, and a link to its lines from what is documented.

Sphinx's own extension for it knows one name for a module; here what a module holds may be documented as ndm.X.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.application import Sphinx

import ndm

FOLDER = Path(ndm.__file__).parent


def page_of(file: Path) -> str:
    """The name of a source file's page, such as source/ndm/model."""
    return "source/" + file.relative_to(FOLDER.parent).with_suffix("").as_posix()


def place_of(module: str, name: str) -> tuple[Path, int] | None:
    """The file and the line in which a name of a module is defined; None for what is no class, function or property."""
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = inspect.getattr_static(value, part, None) if inspect.isclass(value) else getattr(value, part, None)
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    value = getattr(value, "fget", None) or getattr(value, "func", None) or value
    try:
        value = inspect.unwrap(value)
        file, (_, line) = inspect.getsourcefile(value), inspect.getsourcelines(value)
    except (TypeError, OSError):
        return None
    return (Path(file), line) if file and Path(file).is_relative_to(FOLDER) else None


def _link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.format != "html":
        return
    for signature in doctree.findall(addnodes.desc_signature):
        if signature.get("module") and (place := place_of(signature["module"], signature["fullname"])):
            uri = app.builder.get_relative_uri(docname, page_of(place[0])) + f"#line-{place[1]}"
            text = nodes.inline("", "[source]", classes=["viewcode-link"])
            signature += nodes.reference("", "", text, internal=True, refuri=uri)


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    formatter = HtmlFormatter(linenos="inline", lineanchors="line", anchorlinenos=True, wrapcode=True)
    for file in sorted(FOLDER.rglob("*.py")):
        title = ".".join(file.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__")
        body = highlight(file.read_text(encoding="utf-8"), PythonLexer(), formatter)
        yield page_of(file), {"title": title, "body": f"<h1>{title}</h1>{body}"}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", _link)
    app.connect("html-collect-pages", _pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
