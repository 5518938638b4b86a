"""Curves and points as inline SVG that uses the colour variables and the font of the page.

Matplotlib draws with placeholder colours (ink, muted, one per run), which :func:`svg` replaces by CSS variables, so
that drawings work in light and dark mode. A drawing is about as wide as a phone; wider pages show several side by side.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ndm.report.blocks import COLOURS, DASHES

__all__ = [
    "DRAWN",
    "INK",
    "MUTED",
    "axes",
    "colour",
    "dash",
    "grid_of_axes",
    "label_of",
    "limits",
    "numbers",
    "svg",
    "swatch",
]

#: Placeholder colours for CSS variables, unlikely to occur otherwise.
INK, MUTED = "#0a0b01", "#0a0b02"
_RUN = "#0a0c0{}"
_VARIABLES = {INK: "--ink", MUTED: "--muted"}
_VARIABLES |= {_RUN.format(i + 1): f"--run-{i + 1}" for i in range(COLOURS)}

#: Maximum number of table columns drawn.
DRAWN = 6

WIDTH, HEIGHT = 4.9, 3.0  # inches of 72 units

_STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.size": 10.5,
    "grid.color": MUTED,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.5,
    "path.simplify": True,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9.5,
}


def colour(run: int) -> str:
    """Return the colour of a run."""
    return _RUN.format(run % COLOURS + 1)


def dash(run: int) -> str | tuple[int, tuple[float, ...]]:
    """Return the matplotlib line style of a run."""
    pattern = tuple(float(n) for n in DASHES[run % len(DASHES)].split())
    return (0, pattern) if pattern else "-"


def numbers(x: Tensor) -> np.ndarray:
    """Convert a tensor to a float64 NumPy array."""
    return x.detach().double().cpu().numpy()


@contextmanager
def grid_of_axes(
    rows: int, columns: int, height: float = HEIGHT, **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """Create a figure with several axes, (rows, columns)."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore the user's settings
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


@contextmanager
def axes(x: str, y: str, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Create a figure with one pair of axes, a light horizontal grid and these labels."""
    with grid_of_axes(1, 1, height) as (figure, every):
        ax = every[0, 0]
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.grid(axis="y", alpha=0.5)
        ax.set_axisbelow(True)
        yield figure, ax


def svg(figure: Figure, label: str) -> Markup:
    """Convert a figure to an ``svg`` element, inside the context that created it.

    Args:
        figure: the figure.
        label: text alternative.
    """
    with matplotlib.rc_context({"svg.hashsalt": "ndm"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", text, flags=re.DOTALL)
    mark = hashlib.sha256((label + text).encode()).hexdigest()[:8]
    text = re.sub(r"<[^>]*>", lambda tag: _tidy(tag[0], mark), text)
    opening = f'<svg role="img" aria-label="{escape(label)}"'
    return Markup(re.sub(r"\n\s*\n+", "\n", text.replace("<svg", opening, 1)).strip())


def _tidy(tag: str, mark: str) -> str:
    """Rewrite a tag: colours and font of the page, unique ids, and numbers with two decimals."""
    for placeholder, variable in _VARIABLES.items():
        tag = tag.replace(placeholder, f"var({variable})")
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)  # the format depends on the matplotlib version
    tag = re.sub(r" ?font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r'(?<= id=")', f"{mark}-", tag)
    tag = re.sub(r"(?<=url\(#)", f"{mark}-", tag)
    tag = re.sub(r'xlink:href="#', f'href="#{mark}-', tag)
    if tag.startswith("<svg"):
        tag = re.sub(r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"', "", tag)
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag)


def swatch(variable: str, pattern: str) -> Markup:
    """Return a line sample for legends."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><line x1="1" y1="4" x2="25" y2="4" '
        'style="stroke: {}; stroke-width: 2; stroke-dasharray: {}"/></svg>'
    ).format(variable, " ".join(str(2 * float(n)) for n in pattern.split()) or "none")


def limits(x: np.ndarray, share: float = 0.12) -> tuple[float, float]:
    """Return axis limits for x, without non-finite values and a few outliers."""
    x = x[np.isfinite(x)]
    low, high = np.quantile(x, [0.002, 0.998]) if x.size else (0.0, 0.0)
    margin = share * (high - low) or 1.0
    return low - margin, high + margin


def label_of(name: str, room: int = 24) -> str:
    """Escape math markup in a name for matplotlib, and truncate it."""
    return (name if len(name) <= room else name[: room - 1] + "…").replace("$", r"\$")
