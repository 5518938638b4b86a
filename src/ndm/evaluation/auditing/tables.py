"""The tables of an audit, for its page and its text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ndm.evaluation.auditing.results import Audit, Value
from ndm.evaluation.results import rounded

__all__ = ["AuditTable", "lead", "notes", "plain_text", "tables"]

#: The number of columns of the text.
WIDTH = 110


@dataclass(frozen=True)
class AuditTable:
    """A table: title, column names, rows of cells, a note, and the columns of words."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = (0,)


def lead(audit: Audit) -> str:
    """What was measured, in one sentence."""
    a = audit.about
    whole = a["examples"] == a["split_examples"]
    which = f"all {a['examples']:,} examples" if whole else _random(a["examples"], a["split_examples"])
    return (
        f"{a['data']}, {a['split']} split: {which}, "
        f"{a['times']} noise levels of each, seed {a['seed']}. {a['schedule']} with gamma from {a['gamma_0']:.4g} to "
        f"{a['gamma_1']:.4g}, {a['decoder']}. Values are in "
        f"{'bits per dimension' if audit.unit == 'bits/dim' else 'nats per example'}, with standard errors over the "
        "examples."
    )


def _random(n: int, whole: int) -> str:
    return f"{n:,} random examples of {whole:,}"


def tables(audit: Audit) -> list[AuditTable]:
    """All tables that are not empty."""
    return [*_bounds(audit), *_levels(audit), *_ends(audit), *_ode(audit), *_integral(audit)]


def notes(audit: Audit) -> list[str]:
    """What is left out, and why."""
    return [f"The {what}: {why}." for what, why in audit.left_out.items()]


def _cell(value: Value) -> str:
    if math.isnan(value.value):
        return "-"
    return rounded(value.value, value.stderr)


def _bounds(audit: Audit) -> Iterator[AuditTable]:
    rows = [
        [
            "continuous" if row.steps is None else str(row.steps),
            row.variance or "-",
            *map(_cell, (row.total, row.prior, row.reconstruction, row.diffusion)),
        ]
        for row in audit.bounds
    ]
    left = sum(row.not_finite for row in audit.bounds)
    kind = audit.about["calibrated_variance"]
    each = {"diagonal": " and dimension", "frequency": " and frequency"}.get(kind, "")
    note = f"calibrated: the best variance of each step{each}, from training examples."
    if left:
        most = max(row.not_finite for row in audit.bounds)
        note += f" Examples without a finite bound, up to {most:,} in a row, are left out."
    yield AuditTable(
        f"The bound by term, {audit.unit}",
        ["T", "variance", "bound", "prior", "reconstruction", "diffusion"], rows, note, (0, 1),
    )  # fmt: skip


def _levels(audit: Audit) -> Iterator[AuditTable]:
    rows = [[f"{r.low:.2f} to {r.high:.2f}", _cell(r.diffusion), f"{r.share:.0%}"] for r in audit.levels]
    if rows:
        yield AuditTable(
            f"The diffusion term by noise level, {audit.unit}", ["gamma", "diffusion", "share"], rows,
            "gamma is the log noise-to-signal ratio, low at the data. In continuous time.",
        )  # fmt: skip


def _ends(audit: Audit) -> Iterator[AuditTable]:
    rows = [
        [
            f"{r.gamma_0:.4g}" + (" (own)" if r.own else ""),
            r.decoder,
            *map(_cell, (r.total, r.reconstruction, r.diffusion)),
            "" if r.own else rounded(r.saving.value, r.saving.stderr, signed=True),
        ]
        for r in audit.ends
    ]
    if rows:
        yield AuditTable(
            f"The schedule's end with the same networks, continuous time, {audit.unit}",
            ["gamma_0", "decoder", "bound", "reconstruction", "diffusion", "saving"], rows,
            "Each row is a valid model. The saving is the difference from the model's own bound, by example.", (0, 1),
        )  # fmt: skip


def _ode(audit: Audit) -> Iterator[AuditTable]:
    rows = [
        [r.name, _cell(r.value), f"{r.solver_error:.2g}", str(r.examples), str(r.unsolved), f"{r.nfe:,}"]
        for r in audit.ode
    ]
    if rows:
        yield AuditTable(
            f"-log p under the ODE, another model with the same network, {audit.unit}",
            ["number", "-log p", "solver error", "examples", "unsolved", "drifts"], rows,
            "The solver error is the mean of the stated errors. drifts: evaluations of the drift.",
        )  # fmt: skip


def _integral(audit: Audit) -> Iterator[AuditTable]:
    found = audit.integral
    if found is None:
        return
    axes = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(found.low, found.high, strict=True))
    label = "" if found.label is None else f" of class {found.label}"
    note = f"{found.points} points for each axis ({axes}); the error of the grid is the change from every second point."
    if found.unsolved:
        note += f" At {found.unsolved:,} points the density could not be computed and is taken as 0."
    yield AuditTable(
        f"The integral of the ODE's density{label}, which should be 1",
        ["integral", "error of the grid", "relative error of the solver"],
        [[f"{found.value:.4f}", f"{found.grid_error:.2g}", f"{found.solver_error:.2g}"]], note, (),
    )  # fmt: skip


def plain_text(audit: Audit) -> str:
    """The page as plain text."""
    parts = [_wrapped(lead(audit))]
    for table in tables(audit):
        parts.append("\n".join([table.title, *_aligned(table), *([_wrapped(table.note)] if table.note else [])]))
    for title, sentences in (
        ("Warnings", audit.warnings),
        ("What to quote", audit.quote),
        ("What would lower it", audit.advice or ["Nothing that was looked at."]),
        ("Left out", notes(audit)),
    ):
        if sentences:
            parts.append("\n".join([*([title] if title else []), *(_wrapped(s, "- ") for s in sentences)]))
    return "\n\n".join(parts)


def _wrapped(text: str, mark: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)


def _aligned(table: AuditTable) -> list[str]:
    """The lines of a table: words to the left, numbers to the right."""
    lines = [list(table.head), *map(list, table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in table.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
