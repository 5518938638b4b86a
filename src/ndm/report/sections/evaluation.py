"""What ``ndm evaluate`` has found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ndm.report.blocks import Figure, Gallery, Section, Table, Text, with_error
from ndm.report.drawing import axes, colour, dash, svg
from ndm.report.findings import Findings
from ndm.report.subjects import Subject, about, groups, legend

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    part = Section("evaluation", "Evaluation")
    for s in subjects:
        if s.evaluation is None:
            part.blocks.append(
                Text(
                    Markup(
                        "{} has not been evaluated. <code>ndm evaluate {}</code>, with the path to its folder, does "
                        "it, and the next report shows the figures."
                    ).format(s.name, s.name)
                )
            )
    for group in groups([s for s in subjects if s.evaluation is not None]):
        bounds = [s for s in group if _rows(s, "bound")]
        if any(len([r for r in _rows(s, "bound") if r.get("steps")]) > 1 for s in bounds):
            part.blocks.append(
                Gallery(
                    [Figure(_by_steps(bounds), "", f"Bound by the number of steps{about(group, subjects)}")],
                    "How the bound falls with the number of steps T of the reverse process; horizontal: continuous "
                    "time. Dots: the posterior's variance; squares: another, calibrated or learned one, which loses "
                    "less at few steps. Bars are standard errors.",
                    legend(bounds),
                )
            )
        part.blocks.append(_evaluation_table(group))
    return part


def _rows(s: Subject, quantity: str | None = None) -> list[dict[str, Any]]:
    rows = (s.evaluation or {}).get("rows", [])
    return [r for r in rows if quantity is None or r.get("quantity") == quantity]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("quantity"), row.get("steps"), row.get("variance"), row.get("unit")


def _evaluation_table(group: Sequence[Subject]) -> Table:
    tables = [{_key(row): row for row in _rows(s)} for s in group]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    two = len(group) == 2
    lines = []
    for key in keys:
        rows = [table.get(key) for table in tables]
        cells = [with_error(row["value"], row.get("stderr")) if row else "–" for row in rows]
        first = next(row for row in rows if row)
        kind = str(first.get("kind") or "–").replace(" -log", " −log")
        counts = " and ".join(dict.fromkeys(str(row.get("examples", "–")) for row in rows if row))
        lines.append(
            [_name(first), *cells, *([_unpaired(*rows)] if two else []), first.get("unit") or "–", counts, kind]
        )
    names = [s.name for s in group]
    splits = {str((s.evaluation or {}).get("about", {}).get("split", "")) for s in group} - {""}
    where = f" on the {' and '.join(sorted(splits))} split" if splits else ""
    columns = ["", *names, *(["difference, unpaired"] if two else []), "unit", "examples", "kind"]
    said = "Bounds: lower is better. Log-likelihoods in bits/dim: lower is better; in nats: higher is better."
    return Table(
        f"What ndm evaluate has found{where}",
        columns,
        lines,
        f"{said} {_UNPAIRED.format(second=names[1], first=names[0])}" if two else said,
        [None, *(s.index for s in group)],
        left=(columns.index("unit"), columns.index("kind")),
    )


_UNPAIRED = (
    "The difference is {second} minus {first}. evaluation.json keeps no values of single examples, so its standard "
    "error is that of two independent averages; on the same examples the paired one, as in the summary, is usually "
    "much smaller."
)


def _name(row: Mapping[str, Any]) -> str:
    """What a row is about: quantity, number of steps, reverse variance."""
    if row.get("quantity") != "bound":
        return str(row.get("quantity"))
    steps = f"T = {row['steps']}" if row.get("steps") else "continuous time"
    return ", ".join(["bound", steps, *([str(row["variance"])] if row.get("variance") else [])])


def _unpaired(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str:
    if not first or not second:
        return "–"
    errors = [row.get("stderr") for row in (first, second)]
    error = None if None in errors else math.hypot(*(e for e in errors if e is not None))
    return with_error(second["value"] - first["value"], error, signed=True)


def _by_steps(group: Sequence[Subject]) -> Markup:
    with axes("steps T", _rows(group[0], "bound")[0].get("unit", "")) as (figure, ax):
        ax.set_xscale("log")
        for s in group:
            rows = _rows(s, "bound")
            for variance in dict.fromkeys(r.get("variance") for r in rows if r.get("steps")):
                some = [r for r in rows if r.get("steps") and r.get("variance") == variance]
                ax.errorbar(
                    [r["steps"] for r in some], [r["value"] for r in some], [r.get("stderr") or 0.0 for r in some],
                    color=colour(s.index), ls=dash(s.index), elinewidth=0.9, markersize=4,
                    marker="o" if variance == "posterior" else "s",
                )  # fmt: skip
            for row in rows:
                if row.get("steps") is None:
                    ax.axhline(row["value"], color=colour(s.index), ls=dash(s.index), lw=0.8)
        return svg(
            figure, f"Bound by the number of steps of {', '.join(s.name for s in group)}; the table has the numbers."
        )
