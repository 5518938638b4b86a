"""Section on the results of ``ndm evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from ndm.evaluation import mean_and_error, row_name
from ndm.evaluation.results import MIXTURE
from ndm.report.blocks import Figure, Gallery, Section, Table, Text, with_error
from ndm.report.drawing import axes, colour, dash, svg
from ndm.report.findings import Findings
from ndm.report.grouping import about, groups, legend
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    part = Section("evaluation", "Evaluation")
    for s in subjects:
        if s.evaluation is None:
            part.blocks.append(
                Text(
                    Markup(
                        "{} has not been evaluated. Run <code>ndm evaluate {}</code>, with the path to its folder, "
                        "and create the report again."
                    ).format(s.name, s.name)
                )
            )
    for group in groups([s for s in subjects if s.evaluation is not None]):
        bounds = [s for s in group if _bounds(s)]
        if any(len([r for r in _bounds(s) if r.get("steps")]) > 1 for s in bounds):
            part.blocks.append(
                Gallery(
                    [Figure(_by_steps(bounds), "", f"Bound by the number of steps{about(group, subjects)}")],
                    "Bound by the number of steps T of the reverse process; horizontal lines: continuous time. "
                    "Dots: the posterior's variance; squares: another variance (calibrated or learned), which is "
                    "better at few steps. Bars are standard errors.",
                    legend(bounds),
                )
            )
        part.blocks.append(_evaluation_table(group))
        part.blocks += _differences(group)
    return part


def _rows(s: Subject, quantity: str | None = None) -> list[dict[str, Any]]:
    rows = (s.evaluation or {}).get("rows", [])
    return [r for r in rows if quantity is None or r.get("quantity") == quantity]


def _bounds(s: Subject) -> list[dict[str, Any]]:
    """Return the bounds with a value."""
    return [r for r in _rows(s, "bound") if r["value"] is not None]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("quantity"), row.get("steps"), row.get("variance"), row.get("unit")


def _tables(group: Sequence[Subject]) -> list[dict[tuple[Any, ...], dict[str, Any]]]:
    """Return the rows of each run by key."""
    return [{_key(row): row for row in _rows(s)} for s in group]


def _evaluation_table(group: Sequence[Subject]) -> Table:
    tables = _tables(group)
    keys = list(dict.fromkeys(key for table in tables for key in table))
    lines = []
    for key in keys:
        rows = [table.get(key) for table in tables]
        cells = [with_error(row["value"], row.get("stderr")) if row else "–" for row in rows]
        first = next(row for row in rows if row)
        kind = str(first.get("kind") or "–").replace(" -log", " −log")
        counts = " and ".join(dict.fromkeys(_examples(row) for row in rows if row))
        lines.append([row_name(first), *cells, first.get("unit") or "–", counts, kind])
    splits = {str((s.evaluation or {}).get("about", {}).get("split", "")) for s in group} - {""}
    where = f" on the {' and '.join(sorted(splits))} split" if splits else ""
    columns = ["", *(s.name for s in group), "unit", "examples", "kind"]
    return Table(
        f"Results of ndm evaluate{where}",
        columns,
        lines,
        "Bounds: lower is better. Log-likelihoods in bits/dim: lower is better; in nats: higher is better.",
        [None, *(s.index for s in group)],
        left=(columns.index("unit"), columns.index("kind")),
    )


def _examples(row: Mapping[str, Any]) -> str:
    """Format the number of examples of a value, and the number excluded."""
    left_out = f" ({row['not_finite']} not finite)" if row.get("not_finite") else ""
    return f"{row.get('examples', '–')}{left_out}"


def _differences(group: Sequence[Subject]) -> list[Table]:
    """Return the differences from the first run, for values available in both."""
    first, *others = group
    of_first, *of_others = _tables(group)
    keys = [key for key in of_first if key[0] != MIXTURE and any(key in table for table in of_others)]
    if not keys:
        return []
    cells = [
        [_difference(first, s, of_first[key], table.get(key)) for s, table in zip(others, of_others, strict=True)]
        for key in keys
    ]
    kinds = {kind for line in cells for _, kind in line} - {""}
    mixed = len(kinds) > 1
    return [
        Table(
            ", ".join([f"Difference from {first.name}, as evaluated", *([] if mixed else kinds)]),
            ["", *(s.name for s in others), "unit"],
            [
                [
                    row_name(of_first[key]),
                    *(f"{text}, unpaired" if mixed and kind == "unpaired" else text for text, kind in line),
                    of_first[key].get("unit") or "–",
                ]
                for key, line in zip(keys, cells, strict=True)
            ],
            " ".join(sentence for kind, sentence in _HOW.items() if kind in kinds),
            [None, *(s.index for s in others)],
            left=(len(group),),
        )
    ]


_HOW = {
    "paired": "Paired: mean over the same examples, evaluated with the same seed; the standard error is that of the "
    "differences. A difference of less than two standard errors may be due to chance. The variation between training "
    "seeds is not included.",
    "unpaired": "Unpaired: values of the same examples are not available for both runs (they are in evaluation.npz, if "
    "split, seed and number of examples are the same), so the standard error is that of two independent averages; the "
    "paired one is usually much smaller.",
}


def _difference(
    first: Subject, second: Subject, row: Mapping[str, Any], other: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Return second minus first, and ``paired`` or ``unpaired`` for its standard error, or an empty string."""
    if other is None or other["value"] is None or row["value"] is None:
        return "–", ""
    change = other["value"] - row["value"]
    if row.get("stderr") is None or other.get("stderr") is None:
        return with_error(change, None, signed=True), ""
    name, settings = row_name(row), [(s.evaluation or {}).get("about", {}) for s in (first, second)]
    same = all(settings[0].get(key, 0) == settings[1].get(key, 1) for key in ("split", "seed"))
    a, b = first.per_example.get(name), second.per_example.get(name)
    same &= _equal(first.places.get(name), second.places.get(name))
    if same and a is not None and b is not None and len(a) == len(b):
        change = b.double() - a.double()
        return with_error(*mean_and_error(change[change.isfinite()]), signed=True), "paired"
    return with_error(change, math.hypot(row["stderr"], other["stderr"]), signed=True), "unpaired"


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two values use the same examples; both may be unknown, as in older evaluations."""
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _by_steps(group: Sequence[Subject]) -> Markup:
    with axes("steps T", _bounds(group[0])[0].get("unit", "")) as (figure, ax):
        ax.set_xscale("log")
        for s in group:
            rows = _bounds(s)
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
