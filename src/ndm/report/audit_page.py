"""An audit as an HTML page."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ndm.evaluation import Audit
from ndm.evaluation.auditing.tables import AuditTable, lead, notes, tables
from ndm.report.blocks import Figure, Gallery, Section, Table, Text, minus
from ndm.report.drawing import INK, axes, colour, svg
from ndm.report.page import render_page
from ndm.storage.atomic import atomic_write

__all__ = ["audit_page"]


def audit_page(audit: Audit, out: str | os.PathLike[str], *, name: str) -> Path:
    """Write an audit as a self-contained HTML page, atomically; a file of that name is replaced.

    Args:
        audit: the audit.
        out: output file.
        name: the name of the model, for the title.

    Returns:
        ``out``.

    Raises:
        OSError: the file cannot be written.
    """
    seed = audit.about["seed"]
    page = render_page(
        _sections(audit), title=name, lead=lead(audit), footer=f"Made by ndm audit {version('ndm')} with seed {seed}.",
        kind="ndm audit",
    )  # fmt: skip
    with atomic_write(out) as file:
        file.write(page.encode())
    return Path(out)


def _sections(audit: Audit) -> list[Section]:
    said = {
        "warnings": ("Warnings", audit.warnings),
        "quote": ("What to quote", audit.quote),
        "advice": ("What would lower it", audit.advice or ["Nothing that was looked at."]),
    }
    first = [Section(slug, title, [*map(Text, words)]) for slug, (title, words) in said.items() if words]
    numbers = Section("numbers", "The numbers")
    for table in tables(audit):
        numbers.blocks.append(_block(table))
        if table.title.startswith("The diffusion term"):
            numbers.blocks.append(Gallery([Figure(_drawing(audit), "")], "The table above; bars are standard errors."))
    last = Section("left-out", "Left out", [*map(Text, notes(audit))])
    return [*first, numbers, *([last] if last.blocks else [])]


def _block(table: AuditTable) -> Table:
    rows = [[minus(cell) if _is_number(cell) else cell for cell in row] for row in table.rows]
    return Table(table.title, table.head, rows, table.note, left=table.words)


def _is_number(cell: str) -> bool:
    return cell[:2].strip("-+").isdecimal()


def _drawing(audit: Audit) -> Markup:
    """The diffusion term by noise level."""
    values = [row.diffusion for row in audit.levels]
    low = np.array([row.low for row in audit.levels])
    width = np.array([row.high for row in audit.levels]) - low
    with axes("γ, log noise-to-signal ratio", audit.unit) as (figure, ax):
        ax.bar(low, [v.value for v in values], 0.94 * width, align="edge", facecolor=(colour(0), 0.6))
        middle, errors = low + 0.47 * width, [v.stderr for v in values]
        ax.errorbar(middle, [v.value for v in values], errors, fmt="none", ecolor=INK, elinewidth=0.9)
        said = ", ".join(f"{v.value:.3g} from {a:.1f}" for a, v in zip(low, values, strict=True))
        return svg(figure, f"The diffusion term by noise level: {said}.")
