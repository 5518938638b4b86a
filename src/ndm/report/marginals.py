"""Columns of a table with cells of any kind, drawn one by one and in pairs: bars, histograms, points."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from ndm.method.columns import Column
from ndm.report.blocks import Figure
from ndm.report.drawing import MUTED, colour, dash, grid_of_axes, label_of, limits, numbers, svg
from ndm.report.subjects import Subject
from ndm.report.tables import cells_as_text

__all__ = ["columns_in_pairs", "columns_one_by_one"]

#: Columns drawn one by one and in pairs; bars of a column, without that of missing cells; bins of a histogram.
DRAWN, PAIRED, BARS, BINS = 12, 3, 8, 30


def columns_one_by_one(subject: Subject, samples: Tensor, data: Tensor | None) -> Figure:
    """The share of rows by value, for each column.

    Args:
        subject: the run.
        samples: (N, C).
        data: test rows, (M, C), or None.
    """
    assert subject.encoding is not None
    table = subject.encoding.table[:DRAWN]
    x, reference = numbers(samples), None if data is None else numbers(data)
    lines = -(-len(table) // 2)
    with grid_of_axes(lines, min(2, len(table)), height=0.4 + 1.4 * lines) as (figure, every):
        for ax in every.flat[len(table) :]:
            ax.axis("off")
        for i, (column, ax) in enumerate(zip(table, every.flat, strict=False)):
            draw = _bars if _few(column) else _histogram
            draw(subject, ax, i, x[:, i], None if reference is None else reference[:, i])
            ax.set_title(label_of(column.name))
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.tick_params(labelsize=7.5)
        said = f"Share of rows by value of the columns {', '.join(column.name for column in table)}."
        return Figure(svg(figure, f"{said} Samples of {subject.name} over test rows."), "", "Column by column")


def _few(column: Column) -> bool:
    return column.kind == "categorical" or (column.rest is None and len(column.levels) <= BARS)


def _bars(s: Subject, ax: Axes, i: int, x: np.ndarray, reference: np.ndarray | None) -> None:
    """Bars of the most frequent levels, of all others together, and of missing cells."""
    assert s.encoding is not None
    column = s.encoding.table[i]
    levels = np.arange(column.atoms - column.missing) if column.kind == "categorical" else np.array(column.levels)
    frequent = np.argsort(-np.array(column.counts[: len(levels)]), kind="stable")[:BARS]
    shown = levels[np.sort(frequent)]
    names = [row[0] for row in cells_as_text(s.encoding.restricted([i]), shown[:, None].astype(float))]
    rest = [name for name, is_there in {"others": len(levels) > BARS, "missing": column.missing}.items() if is_there]

    def shares(values: np.ndarray) -> list[float]:
        own = [(values == level).mean() for level in shown]
        absent = np.isnan(values).mean()
        return [*own, *({"others": 1 - absent - sum(own), "missing": absent}[name] for name in rest)]

    at = np.arange(len(names) + len(rest))
    _pair_of_bars(s, ax, at, 0.8, shares(x), None if reference is None else shares(reference))
    ax.set_xticks(at, [label_of(name, 9) for name in [*names, *rest]])
    ax.tick_params(axis="x", length=0, rotation=30 if len(at) > 4 else 0)


def _histogram(s: Subject, ax: Axes, i: int, x: np.ndarray, reference: np.ndarray | None) -> None:
    """Bins of the values, and on the right a bar of missing cells."""
    assert s.encoding is not None
    low, high = limits(x if reference is None else reference)
    edges = np.linspace(low, high, BINS + 1)
    width = edges[1] - edges[0]
    middles = (edges[1:] + edges[:-1]) / 2
    holes = s.encoding.table[i].missing
    at = np.append(middles, high + 2 * width) if holes else middles

    def shares(values: np.ndarray) -> list[float]:
        found = np.histogram(values[~np.isnan(values)], edges)[0] / len(values)
        return [*found, *([np.isnan(values).mean()] if holes else [])]

    _pair_of_bars(s, ax, at, width, shares(x), None if reference is None else shares(reference))
    if holes:
        ax.set_xticks([tick for tick in ax.get_xticks() if low <= tick <= high])
        ax.annotate("missing", (at[-1], 0), (0, -3), textcoords="offset points", ha="center", va="top", fontsize=7)


def _pair_of_bars(
    s: Subject, ax: Axes, at: np.ndarray, width: float, samples: list[float], data: list[float] | None
) -> None:
    if data is not None:
        ax.bar(at, data, width, color=MUTED, alpha=0.35)
    ink = colour(s.index)
    ax.bar(at, samples, width, facecolor="none", edgecolor=ink, linestyle=dash(s.index), lw=1.2)


def columns_in_pairs(subject: Subject, samples: Tensor, data: Tensor | None) -> Figure | None:
    """Points of pairs of a few columns, those with many values first; None for a table of one column."""
    encoding = subject.encoding
    assert encoding is not None
    order = sorted(range(len(encoding.table)), key=lambda i: (encoding.table[i].rest is None, _few(encoding.table[i])))
    few = sorted(order[:PAIRED])
    pairs = [(i, j) for i in few for j in few if i < j]
    if not pairs:
        return None
    every_rows = [(None if data is None else numbers(data), MUTED), (numbers(samples), colour(subject.index))]
    side = 2 if len(pairs) > 1 else 1
    with grid_of_axes(side, side, height=4.0) as (figure, every):
        for ax in every.flat[len(pairs) :]:
            ax.axis("off")
        for ax, (i, j) in zip(every.flat, pairs, strict=False):
            for rows, ink in every_rows:
                if rows is not None:
                    a, b = _jittered(encoding.table[i], rows[:, i], i), _jittered(encoding.table[j], rows[:, j], j)
                    ax.plot(a, b, "o", color=ink, markersize=1.6, alpha=0.6, markeredgewidth=0)
            frame = next(rows for rows, _ in every_rows if rows is not None)
            ax.set(xlim=limits(frame[:, i]), ylim=limits(frame[:, j]))
            names = [encoding.names[k] for k in (i, j)]
            ax.set(xlabel=label_of(names[0], 14), ylabel=label_of(names[1], 14))
        said = f"in pairs of the columns {', '.join(encoding.names[i] for i in few)}"
        return Figure(svg(figure, f"Samples of {subject.name} over test rows, {said}."), "", "In pairs")


def _jittered(column: Column, values: np.ndarray, seed: int) -> np.ndarray:
    """Values for drawing: levels are moved by less than half of their distance, so that equal ones are visible."""
    if column.rest is not None:
        return values
    gap = 1.0 if column.kind == "categorical" else float(np.diff(column.levels).min(initial=np.inf))
    return values + np.random.default_rng(seed).uniform(-0.35, 0.35, values.shape) * (gap if np.isfinite(gap) else 1.0)
