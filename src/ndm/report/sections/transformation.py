"""Section on the transformation of examples by noise level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from ndm.data.choosing import evenly_spaced
from ndm.method.transforms import Identity
from ndm.report.blocks import Entry, Figure, Gallery, Section, Text, minus
from ndm.report.drawing import DRAWN, MUTED, axes, colour, dash, grid_of_axes, label_of, limits, numbers, svg
from ndm.report.findings import Findings
from ndm.report.grouping import legend
from ndm.report.pixels import diverging, picture, shades
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    part = Section("transformation", "The transformation F")
    still = [f.subject for f in findings if isinstance(f.subject.model.transform, Identity)]
    if still:
        part.blocks.append(
            Text(f"{', '.join(s.name for s in still)}: F(x, γ) = x at every noise level, the identity: a conventional "
                 "diffusion model.")
        )  # fmt: skip
    moving = [f for f in findings if f.subject not in still]
    for f in moving:
        if f.subject.x is None:
            part.blocks.append(Text(f"{f.subject.name}: F is not shown, because there are no test examples."))
    moving = [f for f in moving if f.subject.x is not None]
    if not moving:
        return part
    part.blocks.append(
        Gallery(
            [Figure(_displacement(moving), "", "How far F moves the data")],
            "The length of F(x, γ) − x over that of x (root mean squares over test examples and dimensions), by "
            "noise level; 0 is the identity. Dotted and grey: the noise of the same level, σ/α = e^(γ/2), over the "
            "length of x. A displacement below this line is smaller than the noise.",
            [*legend([f.subject for f in moving]), Entry("noise of the same level", None)],
        )
    )
    for f in moving:
        draw = {"image": _image_rows, "plane": _moved_points, "columns": _column_displacement}.get(
            f.subject.kind, _column_displacement
        )
        part.blocks.append(draw(f.subject))
    return part


@torch.no_grad()
def displacement(subject: Subject, gamma: Tensor, n: int) -> tuple[Tensor, Tensor]:
    r"""Return n evenly spaced examples, (n, \*shape), and their F - x at noise levels gamma, (P,): (P, n, \*shape).

    Both are in the model's units.
    """
    assert subject.x is not None
    x = subject.x[evenly_spaced(len(subject.x), n).to(subject.x.device)]
    levels = gamma.to(x)[:, None].expand(len(gamma), len(x))
    moved = [subject.model.transform(x).displacement(level) for level in levels]  # one at a time: large images
    return x.cpu(), torch.stack(moved).cpu()


def _displacement(moving: Sequence[Findings]) -> Markup:
    said = []
    with axes("γ, log noise-to-signal ratio", "|F − x| / |x|") as (figure, ax):
        top = 0.0
        for f in moving:
            s = f.subject
            gamma = s.levels_of_noise(33)
            x, moved = displacement(s, gamma, 64)
            length = x.double().square().mean().sqrt()
            ratio = numbers(moved.double().flatten(1).square().mean(1).sqrt() / length)
            ax.plot(numbers(gamma), ratio, color=colour(s.index), ls=dash(s.index))
            ax.plot(numbers(gamma), numbers(torch.exp(gamma / 2) / length), color=MUTED, ls=(0, (1.5, 1.5)), lw=1)
            top = max(top, ratio[np.isfinite(ratio)].max(initial=0.0))
            said.append(f"{s.name} up to {ratio.max():.3g} at γ = {gamma[ratio.argmax()]:.1f}")
        ax.set_ylim(0, 1.1 * top or 1.0)
        return svg(figure, f"Length of F − x over the length of x by noise level: {'; '.join(said)}.")


def _image_rows(s: Subject) -> Gallery:
    gamma = s.levels_of_noise(9)
    x, moved = displacement(s, gamma, 3)
    f, largest = x + moved, max(moved.abs().max().item(), 1e-6)
    limit = f.abs().max().item()
    rows: list[list[Tensor | None]] = []
    sides = []
    for i in range(len(x)):
        rows.append([shades(x[i], limit), *shades(f[:, i], limit)])
        rows.append([None, *diverging(moved[:, i], largest)])
        sides += ["F", "F − x"]
    heads = ["x", *(minus(f"γ = {g:.1f}" if i == 0 else f"{g:.1f}") for i, g in enumerate(gamma.tolist()))]
    label = f"The transformation of {len(x)} test examples by {s.name} at {len(gamma)} noise levels"
    return Gallery(
        [Figure(picture(rows, label, heads, sides), "", f"{s.name}: F(x, γ) over noise levels", broad=True)],
        "First column: the example x, which equals F(x, γ) for a conventional model. Other columns: F(x, γ) from low "
        "noise (left) to high noise (right), and below it F − x: blue is negative, red positive, white zero. The "
        f"colour range of F − x is ±{largest:.2g}; the range of F, from black to white, is ±{limit:.2g}; that of the "
        "data is ±1.",
    )


def _moved_points(s: Subject) -> Gallery:
    gamma = s.levels_of_noise(4)
    x, moved = displacement(s, gamma, 150)
    at, to = numbers(x.flatten(1)), numbers((x + moved).flatten(2))
    both = np.concatenate([at[None], to])
    with grid_of_axes(2, 2, height=4.9, sharex=True, sharey=True) as (figure, every):
        for ax, g, there in zip(every.flat, gamma.tolist(), to, strict=True):
            ax.plot(*np.stack([at, there, np.full_like(at, np.nan)], 1).reshape(-1, 2).T, color=MUTED, lw=0.5)
            ax.plot(*at.T, "o", color=MUTED, markersize=1.8, markeredgewidth=0)
            ax.plot(*there.T, "o", color=colour(s.index), markersize=2.4, markeredgewidth=0)
            ax.set_title(minus(f"γ = {g:.1f}"))
            ax.set(xlim=limits(both[..., 0]), ylim=limits(both[..., 1]))
        body = svg(figure, f"Where F of {s.name} moves {len(at)} test examples, at four noise levels.")
    return Gallery(
        [Figure(body, "", f"{s.name}: displacement of points by F")],
        "Grey: test examples x. Coloured: F(x, γ), connected to x by a line. Noise levels from low to high. "
        f"Coordinates are the model's{s.standardised}.",
        [Entry("x", None), Entry("F(x, γ)", s.index)],
    )


def _column_displacement(s: Subject) -> Gallery:
    gamma = s.levels_of_noise(33)
    _, moved = displacement(s, gamma, 64)
    square = moved.double().flatten(2).square().mean(1)  # (P, d)
    if s.encoding is not None:
        square = s.encoding.sum_by_column(square)  # of a code's coordinates
    size, names = numbers(square.sqrt()), s.column_names()
    chosen = np.sort(np.argsort(-size.max(0))[:DRAWN])
    styles = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
    with axes("γ, log noise-to-signal ratio", "root mean square of F − x", height=3.3) as (figure, ax):
        for style, i in zip(styles, chosen, strict=False):
            ax.plot(numbers(gamma), size[:, i], ls=style, color=colour(s.index), lw=1.3, label=label_of(names[i]))
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=8, handlelength=3)
        said = ", ".join(f"{names[i]} up to {size[:, i].max():.2g}" for i in chosen)
        body = svg(figure, f"How far F of {s.name} moves each column: {said}.")
    some = f" The {DRAWN} of {s.dimensions} columns with the largest displacement." if s.dimensions > DRAWN else ""
    return Gallery(
        [Figure(body, "", f"{s.name}: column by column")],
        f"Displacement of each column by noise level, in the model's units{s.standardised}. 0 is the identity.{some}",
    )
