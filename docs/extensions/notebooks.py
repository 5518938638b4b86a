"""The notebooks of examples/notebooks as pages, with the outputs that are stored in them; nothing is run.

Each becomes docs/notebooks/NAME.md before the pages are read. The folder is the builder's: it is emptied first.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


def to_markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures in it by their file names."""
    pieces: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = _text(cell["source"]).strip()
        if not source:
            continue
        if cell["cell_type"] == "markdown":
            pieces.append(source)
        elif cell["cell_type"] == "code":
            pieces.append(_fenced(source, "python"))
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/png" in data:
                    file = f"{name}-{len(pictures) + 1}.png"
                    pictures[file] = base64.b64decode(_text(data["image/png"]))
                    pieces.append(f"![what the cell above drew]({file})")
                elif text := _text(output.get("text") or data.get("text/plain") or "").rstrip():
                    pieces.append(_fenced(text, "text"))
    return "\n\n".join(pieces) + "\n", pictures


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(FOLDER.glob("*.ipynb")):
        folder.mkdir(exist_ok=True)
        markdown, pictures = to_markdown(json.loads(path.read_text(encoding="utf-8")), path.stem)
        (folder / f"{path.stem}.md").write_text(markdown, encoding="utf-8")
        for name, content in pictures.items():
            (folder / name).write_bytes(content)


class Notebooks(SphinxDirective):
    """A list of the pages that were made of notebooks."""

    def run(self) -> list[nodes.Node]:
        if not any(FOLDER.glob("*.ipynb")):
            return self.parse_text_to_nodes("There are none in this copy.")
        return self.parse_text_to_nodes("```{toctree}\n:glob:\n:maxdepth: 1\n\nnotebooks/*\n```")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("notebooks", Notebooks)
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
