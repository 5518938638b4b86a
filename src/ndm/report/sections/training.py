"""Section on the logged training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from ndm.report.blocks import Figure, Gallery, Section, Table, Text, minus
from ndm.report.drawing import axes, colour, dash, svg
from ndm.report.findings import Findings
from ndm.report.grouping import about, groups, legend
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    part = Section("training", "Training")
    for s in subjects:
        if not s.logged:
            part.blocks.append(Text(f"The folder of {s.name} has no metrics.csv, so there are no training curves."))
    for group in groups([s for s in subjects if s.logged]):
        figures = [Figure(_curves(group, "steps"), "", f"Bound by steps{about(group, subjects)}")]
        if timed := [s for s in group if s.clock[1:]]:
            figures.append(Figure(_curves(timed, "seconds"), "", f"Bound by seconds{about(timed, subjects)}"))
        figures += [
            Figure(_end_points(group, name), "", f"{title} in training")
            for name, title in (("gamma_0", "γ₀"), ("gamma_1", "γ₁"))
            if any(s.curve(f"train/{name}") for s in group)
        ]
        part.blocks.append(
            Gallery(
                figures,
                "The bound on −log p, which is minimised. Thin: training batches. Thick, "
                "with dots: validation examples, with averaged weights and standard error. If the validation curve "
                "rises while the thin one falls, the model overfits. Seconds are those of the training steps alone, "
                "and depend on the computer and its load. Values above the frame, at the beginning of the training, "
                "are cut off.",
                legend(group),
            )
        )
        part.blocks.append(_pace(group))
    return part


def _curves(group: Sequence[Subject], by: str) -> Markup:
    ends: list[float] = []
    with axes("training steps" if by == "steps" else "seconds of training steps", group[0].unit) as (figure, ax):
        for s in group:
            train, validation = s.curve("train/total"), s.curve("val/total")
            if train:
                ax.plot(getattr(train, by), train.values, color=colour(s.index), lw=0.8, alpha=0.7, ls=dash(s.index))
            if validation:
                errors = s.errors(validation)
                ends += [v - e for v, e in zip(validation.values, errors or [], strict=False) if math.isfinite(e)]
                ax.errorbar(
                    getattr(validation, by), validation.values, errors,
                    color=colour(s.index), ls=dash(s.index), lw=1.8, elinewidth=0.8, marker="o", markersize=3,
                )  # fmt: skip
            for curve in (train, validation):
                if curve:
                    later = curve.values[len(curve.values) // 5 :]
                    ends += [min(curve.values), max(later)]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        margin = 0.06 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)
        ax.set_xlim(left=0)
        said = "; ".join(f"{s.name} ends at {c.values[-1]:.4g}" for s in group if (c := s.curve("val/total")))
        return svg(figure, f"Bound in {group[0].unit} by {by} of training. Validation: {said or 'not logged'}.")


def _end_points(group: Sequence[Subject], name: str) -> Markup:
    with axes("training steps", "γ") as (figure, ax):
        for s in group:
            if curve := s.curve(f"train/{name}"):
                ax.plot(curve.steps, curve.values, color=colour(s.index), ls=dash(s.index))
        return svg(figure, f"The end point {name} of the schedule by training steps.")


def _pace(group: Sequence[Subject]) -> Table:
    rows = []
    for s in group:
        best = min(zip(c.values, c.steps, strict=True), default=None) if (c := s.curve("val/total")) else None
        pace = f"{1000 * s.clock[-1][1] / s.clock[-1][0]:.1f}" if s.clock[-1][0] else "–"
        last = s.curve("train/total")
        rows.append(
            [
                s.name,
                f"{s.steps:,}",
                pace,
                minus(f"{last.values[-1]:.4g}") if last else "–",
                s.last_validation or "–",
                minus(f"{best[0]:.4g} at step {best[1]:,.0f}") if best else "–",
            ]
        )
    head = ["run", "steps", "ms a step", "last batches", "last validation", "best validation"]
    return Table(f"The end of the training, {group[0].unit}", head, rows, "", [])
