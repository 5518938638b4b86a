"""Section on the columns of a table: shares of the bound, the most unlikely rows, calibration of conditionals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ndm.report.blocks import Figure, Gallery, Section, Table, minus, with_error
from ndm.report.drawing import MUTED, axes, colour, dash, label_of, svg
from ndm.report.findings import Findings
from ndm.report.grouping import groups, legend
from ndm.report.subjects import Subject
from ndm.report.tables import TableFindings, cells_as_text

__all__ = ["section"]

#: Rows and columns of the table of unlikely rows; columns in the figure of the shares; bins of a transform.
ROWS, COLUMNS, BARS, BINS = 8, 12, 20, 10


def section(findings: Sequence[Findings]) -> Section:
    part = Section("columns", "Columns of the table")
    measured = [f for f in findings if f.table is not None and f.table.shares is not None]
    for group in groups([f.subject for f in measured]):
        some = [f for f in measured if f.subject in group]
        part.blocks += [_share_figure(some), _share_table(some)]
    part.blocks += [_unlikely(f.subject, f.table) for f in measured if f.table is not None]
    calibrated = [f for f in measured if f.table is not None and f.table.pit]
    if calibrated:
        part.blocks.append(_calibration(calibrated))
    return part


def _shares(f: Findings) -> np.ndarray:
    assert f.table is not None
    assert f.table.shares is not None
    return f.table.shares


def _share_figure(some: Sequence[Findings]) -> Gallery:
    names = some[0].subject.column_names()
    first = _shares(some[0]).mean(0)
    order = np.argsort(-first, kind="stable")[:BARS]
    height = 0.8 / len(some)
    with axes("nats", "", height=0.9 + 0.22 * len(order)) as (figure, ax):
        for k, f in enumerate(some):
            mean = _shares(f).mean(0)[order]
            at = -np.arange(len(order)) - (k - (len(some) - 1) / 2) * height
            ink, line = colour(f.subject.index), dash(f.subject.index)
            ax.barh(at, mean, 0.86 * height, facecolor=(ink, 0.6), edgecolor=ink, linestyle=line, lw=1.0)
        ax.axvline(0, color=MUTED, lw=0.7)
        ax.set_yticks(-np.arange(len(order)), [label_of(names[i]) for i in order])
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        said = ", ".join(f"{names[i]} {first[i]:.3g}" for i in order)
        body = svg(figure, f"Each column's share of the bound of {some[0].subject.name}, in nats: {said}.")
    left_out = f" The {BARS} of {len(names)} columns with the largest share." if len(names) > BARS else ""
    return Gallery(
        [Figure(body, "", "Each column's share of the bound, nats")],
        "The bound on −log p of a row is the sum of these shares. The share of a real column depends on its unit, and "
        "may be negative; that of a category is at least 0. A column that the others determine costs little, but the "
        "split among columns that depend on each other is not unique." + left_out,
        legend([f.subject for f in some]),
    )


def _share_table(some: Sequence[Findings]) -> Table:
    encoding = some[0].subject.encoding
    assert encoding is not None
    rows = []
    for i, column in enumerate(encoding.table):
        cells = [with_error(_shares(f)[:, i].mean(), _error(_shares(f)[:, i])) for f in some]
        rows.append([column.name, column.kind, *cells])
    sums = [_shares(f).sum(1) for f in some]
    rows.append(["sum, the bound", "", *(with_error(total.mean(), _error(total)) for total in sums)])
    head = ["column", "kind", *(f.subject.name for f in some)]
    runs = [None, None, *(f.subject.index for f in some)]
    note = f"Means over {len(sums[0])} test rows, in continuous time."
    return Table("Shares of the bound by column, nats", head, rows, note, runs, left=(1,))


def _error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _unlikely(s: Subject, found: TableFindings | None) -> Table:
    assert s.encoding is not None
    assert s.examples is not None
    assert found is not None
    assert found.shares is not None
    total = found.shares.sum(1)
    rows = np.argsort(-total, kind="stable")[:ROWS]
    excess = found.shares - found.shares.mean(0)
    shown = np.sort(np.argsort(-excess[rows].max(0), kind="stable")[:COLUMNS])
    texts = cells_as_text(s.encoding, s.examples[rows.tolist()].double().cpu().numpy())
    lines = []
    for row, cells in zip(rows, texts, strict=True):
        worst = int(excess[row].argmax())
        why = f"{s.encoding.names[worst]}, {minus(f'{excess[row, worst]:+.1f}')}"
        lines.append([str(found.places[row]), minus(f"{total[row]:.1f}"), why, *(cells[i] for i in shown)])
    some = f" {COLUMNS} of {len(s.encoding.table)} columns are shown." if len(shown) < len(s.encoding.table) else ""
    return Table(
        f"The most unlikely test rows of {s.name}",
        ["row of the test split", "bound, nats", "column above its mean", *(s.encoding.names[i] for i in shown)],
        lines,
        f"The {len(lines)} of {len(total)} test rows with the highest bound on −log p, with their cells as in the "
        "file. “Column above its mean”: the column whose share exceeds its mean share by most, and the excess in "
        f"nats. The bound of a row is estimated at random noise levels, so the order has an error.{some}",
        words=True,
    )


def _calibration(some: Sequence[Findings]) -> Gallery:
    figures = [
        _transform(f.subject, name, values) for f in some if f.table is not None for name, values in f.table.pit.items()
    ]
    return Gallery(
        figures,
        "Calibration of p(column | all other columns): the share of test rows by the probability that the model gives "
        "to values below the true one (probability integral transform, randomised for values that recur). A calibrated "
        "model has equal bars, the grey line, up to chance: about 95% of its bars lie in the grey band. High bars on "
        "both sides: the model's intervals are too narrow; high bars in the middle: too wide.",
        legend([f.subject for f in some]),
    )


def _transform(s: Subject, name: str, values: np.ndarray) -> Figure:
    counts = np.histogram(values, np.linspace(0, 1, BINS + 1))[0]
    share, error = counts / len(values), math.sqrt((1 - 1 / BINS) / BINS / len(values))
    with axes("probability of lower values", "share of rows") as (figure, ax):
        at = (np.arange(BINS) + 0.5) / BINS
        ax.axhspan(max(0.0, 1 / BINS - 1.96 * error), 1 / BINS + 1.96 * error, color=MUTED, alpha=0.2, lw=0)
        ax.axhline(1 / BINS, color=MUTED, lw=0.8)
        ax.bar(at, share, 1 / BINS, facecolor=(colour(s.index), 0.5), edgecolor=colour(s.index), lw=1.0)
        ax.set_xlim(0, 1)
        said = ", ".join(f"{v:.2f}" for v in share)
        body = svg(figure, f"Probability integral transform of {name} by {s.name}, shares of {BINS} bins: {said}.")
    return Figure(body, "", f"{s.name}: {name} given the others, {len(values)} rows")
