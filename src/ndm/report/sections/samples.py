"""Section on samples and data: images in a grid, points in the plane, columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ndm.data.choosing import evenly_spaced
from ndm.report.blocks import Entry, Figure, Gallery, Section
from ndm.report.drawing import DRAWN, MUTED, axes, colour, dash, grid_of_axes, label_of, limits, numbers, svg
from ndm.report.findings import POINTS_DRAWN, Findings, numbers_of_steps
from ndm.report.grouping import groups
from ndm.report.marginals import DRAWN as KINDS_DRAWN
from ndm.report.marginals import columns_in_pairs, columns_one_by_one
from ndm.report.pixels import nearly_square, picture, shown
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    part = Section("samples", "Samples beside data")
    for group in groups([f.subject for f in findings]):
        some = [f for f in findings if f.subject in group]
        if group[0].kind == "table":
            part.blocks += [_by_kinds(f) for f in some]
            continue
        if group[0].kind == "columns":
            part.blocks += [_by_columns(f) for f in some]
            continue
        draw, n = (_images, len(some[0].samples)) if group[0].kind == "image" else (_points, POINTS_DRAWN)
        data = _data(some)
        figures = (
            [] if data is None else [draw(group[0], data[evenly_spaced(len(data), n)], data, "test examples", None)]
        )
        count = n if data is None else min(n, len(data))  # equal numbers of both
        figures += [draw(f.subject, f.samples[:count], f.samples if data is None else data, "samples", f) for f in some]
        said = "Examples of the test split, and samples" if figures[len(some) :] else "Samples"
        said += f" by ancestral sampling with the model's own reverse variance, {numbers_of_steps(some)}. "
        if group[0].kind == "plane" and data is not None:
            said += _DIFFER + (_SPREAD if group[0].levels else "")
        elif any(s.classes for s in group):
            said += "For models with classes, the samples cycle through all classes."
        part.blocks.append(Gallery(figures, said.strip()))
    return part


_DIFFER = "Differences in shape are errors of the model, or of the sampler with so few steps."


_SPREAD = " Points are jittered, so that equal ones are visible."


def _data(some: Sequence[Findings]) -> Tensor | None:
    """Return test examples of runs with the same data, if any run could read them."""
    x = next((f.subject.examples for f in some if f.subject.examples is not None), None)
    return None if x is None else x[evenly_spaced(len(x), POINTS_DRAWN).to(x.device)].cpu()


def _first(s: Subject) -> str:
    return f" (the first {DRAWN} of {s.dimensions})" if s.dimensions > DRAWN else ""


def _images(s: Subject, x: Tensor, data: Tensor, what: str, f: Findings | None) -> Figure:
    named = what if f is None else f"{s.name}: {what}"
    return Figure(picture(nearly_square(shown(x, s.levels)), f"{len(x)} images, {named}"), "", named)


def _points(s: Subject, x: Tensor, data: Tensor, what: str, f: Findings | None) -> Figure:
    named = what if f is None else f"{s.name}: {what}"
    points, frame, names = _spread(x, s), _spread(data, s), s.column_names()
    with axes(label_of(names[0]), label_of(names[1]), height=3.9) as (figure, ax):
        ink = MUTED if f is None else colour(s.index)
        ax.plot(points[:, 0], points[:, 1], "o", color=ink, markersize=2.2, alpha=0.7, markeredgewidth=0)
        ax.set(xlim=limits(frame[:, 0]), ylim=limits(frame[:, 1]))
        return Figure(svg(figure, f"{len(points)} points, {named}."), "", named)


def _spread(x: Tensor, s: Subject) -> np.ndarray:
    """Return points, (N, 2); K-level points are jittered by less than half the distance to the next level."""
    points = numbers(x.flatten(1))
    if s.levels is None:
        return points
    return points + np.random.default_rng(0).uniform(-0.7, 0.7, points.shape) / s.levels


def _by_kinds(f: Findings) -> Gallery:
    s, data = f.subject, _data([f])
    pairs = columns_in_pairs(s, f.samples, data)
    many = f" (the first {KINDS_DRAWN} of {s.dimensions})" if s.dimensions > KINDS_DRAWN else ""
    return Gallery(
        [columns_one_by_one(s, f.samples, data), *([pairs] if pairs else [])],
        f"{'Grey: test rows; coloured: samples' if data is not None else 'Samples'} of {s.name} by ancestral sampling, "
        f"{numbers_of_steps([f])}. Each column by itself{many}: the share of rows by value, with missing cells as a "
        "bar of their own; then pairs of columns, without rows in which one of the two is missing. Points of columns "
        f"with levels are jittered. {_DIFFER if data is not None else ''}",
        [*([Entry("test rows", None)] if data is not None else []), Entry(s.name, s.index)],
    )


def _by_columns(f: Findings) -> Gallery:
    s = f.subject
    data = _data([f])
    return Gallery(
        _marginals(f, data),
        f"{'Grey: test examples; coloured: samples' if data is not None else 'Samples'} of {s.name} by ancestral "
        f"sampling with the model's own reverse variance, {numbers_of_steps([f])}, in the data's own units. Each "
        f"column by itself{_first(s)}, then the first columns in pairs. {_DIFFER if data is not None else ''}",
        [*([Entry("test examples", None)] if data is not None else []), Entry(s.name, s.index)],
    )


def _marginals(f: Findings, data: Tensor | None) -> list[Figure]:
    s, x = f.subject, numbers(f.samples.flatten(1))
    reference = x if data is None else numbers(data.flatten(1))
    names, drawn = s.column_names(), min(s.dimensions, DRAWN)
    rows = -(-drawn // 2)
    with grid_of_axes(rows, min(2, drawn), height=0.5 + 1.25 * rows) as (figure, every):
        for i, ax in enumerate(every.flat):
            if i >= drawn:
                ax.axis("off")
                continue
            bins = np.linspace(*limits(reference[:, i]), 31)
            if data is not None:
                ax.hist(reference[:, i], bins, density=True, color=MUTED, alpha=0.35)
            ax.hist(
                x[:, i], bins, density=True, histtype="step", color=colour(s.index), linestyle=dash(s.index), lw=1.4
            )
            ax.set_title(label_of(names[i]))
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
        title = f"Histograms of the columns {', '.join(names[:drawn])}: samples of {s.name} over test examples."
        figures = [Figure(svg(figure, title), "", "Column by column")]
    if s.dimensions < 2:
        return figures
    few = min(s.dimensions, 3)
    pairs = [(i, j) for i in range(few) for j in range(i + 1, few)]
    with grid_of_axes(2 if len(pairs) > 1 else 1, 2 if len(pairs) > 1 else 1, height=4.0) as (figure, every):
        for ax in every.flat[len(pairs) :]:
            ax.axis("off")
        for ax, (i, j) in zip(every.flat, pairs, strict=False):
            for points, ink in ((None if data is None else reference, MUTED), (x, colour(s.index))):
                if points is not None:
                    ax.plot(points[:, i], points[:, j], "o", color=ink, markersize=1.6, alpha=0.6, markeredgewidth=0)
            ax.set(xlim=limits(reference[:, i]), ylim=limits(reference[:, j]))
            ax.set(xlabel=label_of(names[i], 14), ylabel=label_of(names[j], 14))
        said = f"Samples of {s.name} over test examples, in pairs of the columns {', '.join(names[:few])}."
        figures.append(Figure(svg(figure, said), "", "In pairs"))
    return figures
