"""Section on the sampling trajectories from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ndm.report.blocks import Figure, Gallery, Section
from ndm.report.drawing import INK, MUTED, axes, colour, grid_of_axes, label_of, numbers, svg
from ndm.report.findings import Findings, numbers_of_steps
from ndm.report.pixels import picture, shades, shown
from ndm.report.tables import coordinate_names

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    part = Section("trajectories", "From noise to data")
    for kind, (draw, said) in _WAYS.items():
        if some := [f for f in findings if f.subject.kind == kind]:
            where = ", standardised" if any(f.subject.model.standardize is not None for f in some) else ""
            caption = f"Ancestral sampling, {numbers_of_steps(some)}. {said.format(units=where)}"
            part.blocks.append(Gallery([draw(f) for f in some], caption))
    return part


def _film(f: Findings) -> Figure:
    s, walk = f.subject, f.walk
    chosen = torch.linspace(0, len(walk.times) - 1, 10).round().long()
    rows = []
    for e in range(walk.data.shape[0]):
        states = walk.states[chosen, e]
        limits = states.flatten(1).abs().amax(1).clamp(min=1.0)
        rows.append([*shades(states, limits.reshape(-1, 1, 1, 1)), shown(walk.data[e], s.levels)])
    heads = [f"t = {t:.2f}" if i == 0 else f"{t:.2f}" for i, t in enumerate(walk.times[chosen].tolist())] + ["data"]
    label = f"{len(rows)} samples of {s.name} on their way from noise to data"
    return Figure(picture(rows, label, heads), "", s.name, broad=True)


def _lines(f: Findings) -> Figure:
    s, z = f.subject, numbers(f.walk.z.flatten(2))
    with axes("first coordinate of z", "second", height=3.9) as (figure, ax):
        for e in range(z.shape[1]):
            ax.plot(z[:, e, 0], z[:, e, 1], color=colour(s.index), lw=0.7, alpha=0.75)
        ax.plot(*z[0].T, "o", markerfacecolor="none", color=MUTED, markersize=4)
        ax.plot(*z[-1].T, "o", color=INK, markersize=3.2)
        ax.set_aspect("equal", adjustable="datalim")
        body = svg(figure, f"{z.shape[1]} samples of {s.name} as lines from noise to data.")
    return Figure(body, "", f"{s.name}: trajectories of {z.shape[1]} samples")


def _columns_over_time(f: Findings) -> Figure:
    s, walk = f.subject, f.walk
    z, t, names = numbers(walk.z.flatten(2)), numbers(walk.times), s.column_names()
    if s.kind == "table" and s.encoding is not None:
        given = getattr(s.model.denoiser, "given", None) or []
        names = coordinate_names(s.encoding, [i for i in range(len(names)) if i not in given])
    drawn = min(z.shape[2], 3)
    with grid_of_axes(drawn, 1, height=0.5 + 1.2 * drawn, sharex=True) as (figure, every):
        for i, ax in enumerate(every.flat):
            for e in range(z.shape[1]):
                ax.plot(t, z[:, e, i], color=colour(s.index), lw=0.6, alpha=0.7)
            ax.set_ylabel(label_of(names[i], 14))
        ax.invert_xaxis()
        ax.set_xlabel("t")
        body = svg(figure, f"The columns {', '.join(names[:drawn])} of {z.shape[1]} samples of {s.name} over time.")
    return Figure(body, "", f"{s.name}: {z.shape[1]} samples")


#: Drawing function and caption for each kind of data.
_WAYS: dict[str, tuple[Callable[[Findings], Figure], str]] = {
    "image": (
        _film,
        (
            "Each row is one sample, from noise (left) to data (right), at ten of the steps: z/α, each picture "
            "scaled to its own range. Last: the decoded image. Different runs start from the same noise. An NDM's "
            "states are noisy versions of F(x, γ), so they may not look like noisy data."
        ),
    ),
    "plane": (
        _lines,
        (
            "Each line is the state z of one sample, from noise (open circle) to the least noisy state (filled "
            "circle); every step adds some noise. Different runs start from the same noise. "
            "Coordinates are the model's{units}."
        ),
    ),
    "columns": (
        _columns_over_time,
        (
            "The first columns, from noise, t = 1 on the left, to data, t = 0 on the right. Each line is one "
            "sample's state z; different runs start from the same noise. Coordinates are the model's{units}."
        ),
    ),
    "table": (
        _columns_over_time,
        (
            "The first coordinates, from noise, t = 1 on the left, to data, t = 0 on the right. Each line is one "
            "sample's state z; different runs start from the same noise. A category, a recurring value and a missing "
            "cell are codes of one or several coordinates, and a value is a coordinate in standardised units."
        ),
    ),
}
