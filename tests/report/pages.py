"""A page as a reader finds it: its words, tables and sections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib

SVG = "{http://www.w3.org/2000/svg}"
NAME = "<script>alert(1)<b>"
SECTIONS = [
    "summary", "training", "bound", "evaluation", "samples", "transformation", "trajectories", "noise", "configuration"
]  # fmt: skip


PAGES = ["pair", "images", "mixed"]


def parse(path: Path) -> Element:
    """The page's tree; strict: an error in the HTML is an exception."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(path.read_text(encoding="utf-8"))


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tables(root: Element) -> dict[str, list[list[str]]]:
    """The page's tables by their titles, as rows of text, the head first."""
    titles = {e.get("id"): words(e) for e in root.iter("h3") if e.get("id")}
    return {
        titles[t.get("aria-labelledby")]: [[words(c) for c in row if c.tag in ("th", "td")] for row in t.iter("tr")]
        for t in root.iter("table")
    }


def section(root: Element, slug: str) -> Element:
    return next(e for e in root.iter("section") if e.get("id") == slug)


Only = Callable[..., None]
