"""What a page is made of: sections of paragraphs, figures and tables. The template says how each looks."""

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

#: How many runs have a colour of their own; after these the colours begin again.
COLOURS = 6

#: Line styles, as SVG dash patterns in units of the line's width, so that no reader depends on colours.
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")


@dataclass(frozen=True)
class Text:
    """A paragraph: plain text, or :class:`markupsafe.Markup`."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Figure:
    """A picture with a caption.

    Attributes:
        body: SVG or HTML.
        caption: what it shows and how it is read.
        title: what stands above it.
        broad: it takes all of the width there is.
    """

    body: Markup
    caption: str
    title: str = ""
    broad: bool = False


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a name, and the run whose colour and line it has (None: grey)."""

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
    """Figures side by side where there is room, with one legend and one caption for all."""

    figures: Sequence[Figure]
    caption: str = ""
    legend: Sequence[Entry] = ()
    kind: str = "gallery"


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what it is.
        head: the columns' names, (c,).
        rows: (r, c).
        note: how it is read.
        runs: for each column the run it belongs to, which gives its head a colour; None where it belongs to none.
        words: the cells are words, not numbers, and may be broken.
        left: the columns of a table of numbers that are words.
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
    """A long text, shown when it is asked for."""

    summary: str
    text: str
    kind: str = "folded"


@dataclass
class Section:
    """A part of the page.

    Attributes:
        slug: its anchor.
        title: its heading.
        blocks: what it consists of.
    """

    slug: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def with_error(value: float | None, error: float | None, signed: bool = False) -> str:
    """A number with its standard error as :func:`ndm.evaluation.results.rounded` writes it, with proper minus signs; a
    dash if there is no number.

    Example:
        >>> with_error(2.08741, 0.0874), with_error(-0.1, None), with_error(0.5, 0.0000012, signed=True)
        ('2.087 ± 0.087', '−0.1', '+0.5000 ± < 0.0001')
    """
    return "–" if value is None else minus(rounded(value, error, signed))


def minus(number: str) -> str:
    """A number with a minus sign in place of a hyphen."""
    return number.replace("-", "−")
