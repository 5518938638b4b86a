r"""Plots: samples, the learned transformation over noise levels, reverse trajectories, the bound against the steps.

Every function writes one file and does not change matplotlib's state: no display is needed, and the user's own figures,
for example in a notebook, are not affected. Images are (N, C, H, W) with C 1 or 3 and values about [-1, 1]; vectors,
(N, d), are drawn as points of their first two dimensions, single numbers as a histogram.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from ndm.evaluation import Evaluation
from ndm.inference.sampling import sample
from ndm.method.process import Process

__all__ = ["bound_by_steps", "save_grid", "side_by_side", "trajectories", "transformation"]

Path = str | os.PathLike[str]


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of the given size in inches and its axes, (rows, columns), created without pyplot."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Figure, path: Path | BinaryIO) -> None:
    kind = None if isinstance(path, (str, os.PathLike)) else "png"
    figure.savefig(path, format=kind, dpi=150, bbox_inches="tight")


def _show(axes: Axes, image: Tensor, limit: float = 1.0, colours: str = "gray") -> None:
    """Show one image, (C, H, W), without ticks."""
    picture = image.detach().float().cpu().permute(1, 2, 0).clamp(-limit, limit)
    if picture.shape[-1] == 3:
        axes.imshow((picture.numpy() / limit + 1) / 2)
    else:
        axes.imshow(picture[..., 0].numpy(), cmap=colours, vmin=-limit, vmax=limit)
    axes.set_xticks([])
    axes.set_yticks([])


def _grid(images: Tensor) -> Tensor:
    """Combine images, (N, C, H, W), in a nearly square grid, (C, rows (H + 1), columns (W + 1)), with grey lines."""
    images = functional.pad(images, (0, 1, 0, 1), value=0.0)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    n, c, height, width = images.shape
    padded = torch.cat([images, images.new_full((rows * columns - n, c, height, width), -1.0)])
    return padded.reshape(rows, columns, c, height, width).permute(2, 0, 3, 1, 4).reshape(c, rows * height, -1)


def _draw(axes: Axes, x: Tensor) -> None:
    if x.ndim == 4:
        _show(axes, _grid(x))
        return
    points = x.flatten(1).cpu().numpy()
    if points.shape[1] == 1:
        axes.hist(points[:, 0], bins=50, density=True)
        return
    axes.scatter(points[:, 0], points[:, 1], s=2, alpha=0.6)
    axes.set_aspect("equal")


def save_grid(x: Tensor, path: Path | BinaryIO, levels: int | None = None) -> None:
    """Plot samples: images in a grid, vectors as points.

    Args:
        x: (N, C, H, W) or (N, d).
        path: the PNG file, or a file object open for writing.
        levels: K of K-level data; its lowest and highest levels are drawn as black and white.
    """
    x = x.detach().float()
    if x.ndim == 4 and levels:
        x = x * levels / (levels - 1)
    side_by_side({"": x}, path)


def side_by_side(panels: Mapping[str, Tensor], path: Path | BinaryIO) -> None:
    """Plot several sets of samples side by side with their names, each (N, C, H, W) or (N, d)."""
    figure, axes = _panels(1, len(panels), (4 * len(panels), 4))
    for ax, (name, x) in zip(axes[0], panels.items(), strict=True):
        _draw(ax, x)
        ax.set_title(name)
    _save(figure, path)


@torch.no_grad()
def transformation(model: Process, x: Tensor, path: Path, points: int = 9) -> None:
    """Plot F(x, gamma) of some images over noise levels, with F(x, gamma) - x in colour below each row.

    Args:
        model: the model.
        x: images, (N, C, H, W).
        path: the file.
        points: the number of noise levels, evenly spaced between the schedule's end points.
    """
    low, high = model.schedule.end_points()
    gamma = torch.linspace(low, high, points, device=x.device, dtype=x.dtype)
    curve = model.transform(x)
    moved = curve.displacement(gamma[:, None].expand(points, len(x)))  # (points, N, C, H, W)
    f, largest = x + moved, max(moved.abs().max().item(), 1e-6)
    figure, axes = _panels(2 * len(x), points, (1.1 * points, 2.3 * len(x) + 0.6))
    for i in range(len(x)):
        for p in range(points):
            _show(axes[2 * i, p], f[p, i], limit=f.abs().max().item())
            _show(axes[2 * i + 1, p], moved[p, i].mean(0, keepdim=True), limit=largest, colours="RdBu_r")
        axes[2 * i, 0].set_ylabel("F(x, γ)")
        axes[2 * i + 1, 0].set_ylabel("F - x")
    for p in range(points):
        axes[0, p].set_title(f"γ = {gamma[p]:.1f}", fontsize=9)
    figure.suptitle(f"The transformation over noise levels, data left, noise right; F - x is within ±{largest:.2g}")
    _save(figure, path)


def trajectories(
    models: Mapping[str, Process], shape: Sequence[int], path: Path, steps: int = 100, seed: int = 0
) -> None:
    """Plot the paths of two ancestral samples of each model from noise to data: z / alpha at ten times.

    Args:
        models: models by name; all start from the same noise.
        shape: the shape of one image, (C, H, W).
        path: the file.
        steps: the number of sampling steps.
        seed: the seed of the noise.
    """
    examples, columns = 2, 10
    rows = examples * len(models)
    figure, axes = _panels(rows, columns, (1.1 * columns, 1.2 * rows))
    for m, (name, model) in enumerate(models.items()):
        generator = torch.Generator().manual_seed(seed)
        states = sample(model, examples, shape, steps=steps, generator=generator, spacing="time", trajectory=True)
        chosen = torch.linspace(0, len(states) - 1, columns).round().long()
        for e in range(examples):
            row = axes[examples * m + e]
            for column, i in enumerate(chosen.tolist()):
                _show(row[column], states[i, e], limit=max(1.0, states[i, e].abs().max().item()))
                if m == e == 0:
                    row[column].set_title("data" if i > steps else f"t = {1 - i / steps:.2f}", fontsize=9)
        axes[examples * m, 0].set_ylabel(name, fontsize=8)
    _save(figure, path)


def bound_by_steps(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Plot the bound against the number of steps, one line per model and reverse variance, with standard errors."""
    figure, ((ax,),) = _panels(1, 1, (6, 4))
    unit = ""
    for colour, (name, evaluation) in enumerate(evaluations.items()):
        bounds = [row for row in evaluation.rows if row["quantity"] == "bound" and row["value"] is not None]
        unit = bounds[0]["unit"] if bounds else unit
        for style, variance in zip("-:", dict.fromkeys(r["variance"] for r in bounds if r["variance"]), strict=False):
            rows = [r for r in bounds if r["variance"] == variance]
            ax.errorbar(
                [r["steps"] for r in rows], [r["value"] for r in rows], [r["stderr"] or 0.0 for r in rows],
                label=f"{name}, {variance}", color=f"C{colour}", linestyle=style, marker="o", markersize=3,
            )  # fmt: skip
        for row in bounds:
            if row["steps"] is None:
                ax.axhline(row["value"], color=f"C{colour}", linewidth=0.7, label=f"{name}, continuous time")
    ax.set_xscale("log")
    ax.set_xlabel("steps T")
    ax.set_ylabel(f"bound on -log p, {unit}")
    ax.legend(fontsize=8)
    _save(figure, path)
