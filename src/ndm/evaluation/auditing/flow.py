"""The likelihood under the ODE: by dequantisation, and the integral of a density."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from ndm.data import SPLITS, Data
from ndm.evaluation.auditing.bounds import Part
from ndm.evaluation.auditing.options import AuditOptions
from ndm.evaluation.auditing.results import Integral, OdeRow, value_of
from ndm.evaluation.per_example import likelihood_per_example
from ndm.inference.likelihood import TOLERANCE
from ndm.model import NDM

__all__ = ["POINTS", "integral", "likelihoods"]

#: Points of each axis of the grid, by dimension; odd, so that every second point is a grid of the same ends.
POINTS = {1: 1025, 2: 97, 3: 33}

#: The grid extends beyond the data by this part of their range on each side.
MARGIN = 0.35


def likelihoods(model: NDM, part: Part, o: AuditOptions, scale: float) -> list[OdeRow]:
    """-log p of the examples under the ODE, by the dequantisations that fit the decoder.

    Args:
        model: a model with an ODE.
        part: the examples.
        o: samples, probes, divergence, tolerance, seed, batch size.
        scale: one nat in the unit of the results.
    """
    names: list[str | None] = [None]
    if model.decoder.discrete:
        names = [*(["uniform"] if model.decoder.levels is not None else []), "variational", "importance"]
    options: dict[str, Any] = {"probes": o.probes, "divergence": o.divergence, "samples": o.samples}
    if o.tolerance is not None:
        options["tolerance"] = o.tolerance
    rows = []
    for name in names:
        found, kind, nfe = likelihood_per_example(
            model, part.examples, labels=part.labels, seed=o.seed, batch_size=o.batch_size, dequantization=name,
            **options,
        )  # fmt: skip
        held = found["log_prob"].isfinite()
        errors = found["solver_error"][held]
        tolerance = o.tolerance or TOLERANCE * part.examples[:1].numel()
        unsolved = int((~held).sum()) + int((errors > tolerance).sum())
        error = errors.mean().item() * scale if len(errors) else math.nan
        value = value_of(-found["log_prob"] * scale)
        rows.append(OdeRow(name, kind or "no example could be solved", value, error, len(held), unsolved, nfe))
    return rows


def integral(model: NDM, data: Data, o: AuditOptions) -> Integral:
    """The integral of the ODE's density over a grid that covers the data and a margin, by the trapezoidal rule.

    Args:
        model: a model with an ODE of continuous data, of at most 3 dimensions.
        data: the data set, all splits of which are covered.
        o: tolerance, seed, batch size.
    """
    d, n = data.shape[0], POINTS[data.shape[0]]
    low, high = _box(data)
    axes = [torch.linspace(a, b, n, dtype=torch.float64) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    points = torch.cartesian_prod(*axes).reshape(-1, d)
    label = 0 if model.num_classes else None
    labels = None if label is None else torch.zeros(len(points), dtype=torch.long)
    options: dict[str, Any] = {} if o.tolerance is None else {"tolerance": o.tolerance}
    found, _, _ = likelihood_per_example(
        model, points, labels=labels, seed=o.seed, batch_size=max(o.batch_size, 1000), divergence="exact", **options
    )
    held = found["log_prob"].isfinite()
    density = torch.where(held, found["log_prob"].exp(), 0.0).reshape([n] * d)
    error = torch.where(held, found["solver_error"], 0.0).reshape([n] * d)
    value = _trapezoidal(density, axes)
    coarse = _trapezoidal(density[(slice(None, None, 2),) * d], [axis[::2] for axis in axes])
    relative = _trapezoidal(density * error, axes) / value if value > 0 else math.nan
    return Integral(
        value, abs(value - coarse), relative, n, low.tolist(), high.tolist(), int((~held).sum()), label
    )  # fmt: skip


def _box(data: Data) -> tuple[Tensor, Tensor]:
    """The lower and the upper ends of a box around all splits and the margin, float64 (d,)."""
    found = []
    for split in SPLITS:
        with contextlib.suppress(ValueError):  # the data set may lack a split
            found.append(data.examples(split)[:].double())
    x = torch.cat(found)
    low, high = x.amin(0), x.amax(0)
    room = MARGIN * torch.where(high > low, high - low, torch.ones_like(low))
    return low - room, high + room


def _trapezoidal(values: Tensor, axes: list[Tensor]) -> float:
    """The integral of values on a grid, (n, ...), over the box of its axes."""
    for axis in reversed(axes):
        values = torch.trapezoid(values, axis, dim=-1)
    return float(values)
