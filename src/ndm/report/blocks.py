"""Elements of a page: sections of paragraphs, figures and tables, rendered by the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ndm.evaluation.results import rounded

__all__ = [
    "COLOURS",
    "DASHES",
    "Entry",
    "Figure",
    "Folded",
    "Gallery",
    "Section",
    "Table",
    "Text",
    "minus",
    "with_error",
]

#: Number of distinct run colours; further runs reuse them.
COLOURS = 6

#: Line styles, as SVG dash patterns in units of the line width, so that runs differ not only by colour.
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")


@dataclass(frozen=True)
class Text:
    """A paragraph: plain text, or :class:`markupsafe.Markup`."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Figure:
    """A figure with a caption.

    Attributes:
        body: SVG or HTML.
        caption: description of the figure.
        title: title above the figure.
        broad: whether it uses the full width.
    """

    body: Markup
    caption: str
    title: str = ""
    broad: bool = False


@dataclass(frozen=True)
class Entry:
    """A legend entry: a name, and the run that defines colour and line style (None: grey)."""

    name: str
    run: int | None

    @property
    def colour(self) -> str:
        return "var(--muted)" if self.run is None else f"var(--run-{self.run % COLOURS + 1})"

    @property
    def dash(self) -> str:
        return "1.5 1.5" if self.run is None else DASHES[self.run % len(DASHES)]


@dataclass(frozen=True)
class Gallery:
    """Figures side by side, if the width allows, with a common legend and caption."""

    figures: Sequence[Figure]
    caption: str = ""
    legend: Sequence[Entry] = ()
    kind: str = "gallery"


@dataclass(frozen=True)
class Table:
    """A table with row names in the first column.

    Attributes:
        caption: title of the table.
        head: column names, (c,).
        rows: cells, (r, c).
        note: explanation below the table.
        runs: for each column the index of its run, for the colour of its head, or None.
        words: whether the cells are text, which may be wrapped.
        left: text columns of a numeric table.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    runs: Sequence[int | None] = ()
    words: bool = False
    left: Sequence[int] = ()
    kind: str = "table"

    def entry(self, column: int) -> Entry | None:
        run = self.runs[column] if column < len(self.runs) else None
        return None if run is None else Entry("", run)


@dataclass(frozen=True)
class Folded:
    """A long text that is collapsed by default."""

    summary: str
    text: str
    kind: str = "folded"


@dataclass
class Section:
    """A part of the page.

    Attributes:
        slug: the anchor.
        title: the heading.
        blocks: the content.
    """

    slug: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def with_error(value: float | None, error: float | None, signed: bool = False) -> str:
    """Format a value and its error by :func:`ndm.evaluation.results.rounded`, with minus signs; a dash for None.

    Example:
        >>> with_error(2.08741, 0.0874), with_error(-0.1, None), with_error(0.5, 0.0000012, signed=True)
        ('2.087 ± 0.087', '−0.1', '+0.5000 ± < 0.0001')
    """
    return "–" if value is None else minus(rounded(value, error, signed))


def minus(number: str) -> str:
    """Replace hyphens of a number by minus signs."""
    return number.replace("-", "−")
