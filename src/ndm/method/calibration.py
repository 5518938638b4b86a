r"""Calibration of the reverse variance of T steps: W = v (I + E[e e^T]), from the errors e of a trained model on data.

The expected cost of a step is then half the sum of log(1 + lambda) over the eigenvalues lambda of E[e e^T], in the
coordinates and with the covariance of :class:`ndm.method.variances.CalibratedVariance` (Analytic-DPM,
arXiv 2201.06503; method, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_labels, as_tensor
from ndm._internal.precision import residual_path
from ndm._internal.random import Randomness, normal_like
from ndm.method.coordinates import DATA, Coordinates
from ndm.method.grids import SPACINGS, even_grid, gamma_grid, labelled, optimal_grid
from ndm.method.latents import given_latent
from ndm.method.moments import MOST_NUMBERS, Moments, folds_for
from ndm.method.process import Process, frozen
from ndm.method.schedules import per_example
from ndm.method.steps import DiscreteStep
from ndm.method.transforms.curve import Curve
from ndm.method.variances import COVARIANCES, CalibratedVariance, Step, check_calibration, check_grid, coordinates_of

__all__ = ["AUTO", "calibrate", "calibrated_variance", "cheapest", "error_moments", "kinds_of"]

#: The covariance that is chosen for the data.
AUTO = "auto"


@torch.no_grad()
def calibrate(
    process: Process,
    batches: Iterable,
    steps: int,
    covariance: str = AUTO,
    *,
    rank: int | None = None,
    spacing: str | Tensor = "time",
    generator: Randomness = None,
) -> CalibratedVariance:
    r"""Fit the best reverse variance for T steps in one pass over data with a trained model (method, section 3).

    Every example is used once at every step. For T in the hundreds, a subset of the data is enough. With few examples,
    a diagonal covariance is shrunk towards an isotropic one, and a full one towards a diagonal one, by the amount that
    is best on held-out examples (:mod:`ndm.method.moments`). Using more than n examples can gain at most about d / 2n
    nats per step for a diagonal covariance and d^2 / 4n for a full one, and much less for small steps. With
    ``spacing="optimal"`` an additional pass over the data finds the best T steps
    (:func:`ndm.method.grids.optimal_grid`), and with ``auto`` for images another one the covariance.

    Args:
        process: the model; it is not changed.
        batches: tensors (B, \*shape), or pairs of a tensor and its class labels, as from a DataLoader; or one tensor.
            NumPy arrays and DataFrames are accepted as tensors.
        steps: T.
        covariance: ``isotropic``, ``diagonal``, ``frequency`` (for images) or ``full``; ``auto`` for the one of
            ``diagonal`` and ``frequency`` that costs less for images of more than one row and column, and
            ``isotropic`` for other data and where T times the number of dimensions is above 50 million. With a
            :class:`ndm.FrequencyNoise` ``diagonal`` is of frequencies, so ``diagonal`` and ``frequency`` are the same.
        rank: the rank of a full covariance; see :class:`~ndm.method.variances.CalibratedVariance`.
        spacing: the spacing of the steps: even in ``time`` or in ``gamma`` (:meth:`ndm.Schedule.even_in_gamma`),
            ``optimal``, or their times, (T + 1,), increasing from 0 to 1.
        generator: for the noise.

    Raises:
        ValueError: there are no data, a batch fails the check of :func:`ndm.method.bounds.bound`, the covariance or the
            spacing is unknown, or it is ``optimal`` and the data can be iterated over only once.
    """
    check_calibration(steps, covariance, (AUTO, *COVARIANCES))
    times = None
    if not isinstance(spacing, str):
        times = as_tensor(spacing, "times of the steps").double().flatten()
        check_grid(times.tolist(), steps)
    elif spacing not in SPACINGS:
        raise ValueError(
            f"There is no spacing {spacing!r}; choose one of {', '.join(SPACINGS)}, or give the times of the steps."
        )
    elif spacing == "gamma":
        times = gamma_grid(process, steps)
    elif spacing == "optimal":
        if isinstance(batches, Iterator):
            raise ValueError(
                'spacing="optimal" reads the data more than once: pass a tensor, a list or a DataLoader, no iterator.'
            )
        if covariance == AUTO:
            covariance = _fitted(process, batches, steps, covariance, rank, None, generator).covariance
        times = optimal_grid(process, batches, steps, covariance, generator=generator)
    return _fitted(process, batches, steps, covariance, rank, times, generator)


def _fitted(
    process: Process,
    batches: Iterable,
    steps: int,
    covariance: str,
    rank: int | None,
    times: Tensor | None,
    generator: Randomness,
) -> CalibratedVariance:
    """The best variance of this covariance for steps of these times; None for even ones."""
    variances: dict[str, CalibratedVariance] = {}
    total: dict[Coordinates, Moments] | None = None
    shape: Sequence[int] = ()
    for data, labels in labelled(batches):
        if not variances:
            x, shape = process.to_model(data), data.shape[1:]  # checks the data first
            kinds = kinds_of(process, covariance, x.shape[1:], steps)
            variances = {kind: calibrated_variance(process, data, steps, kind, rank, times) for kind in kinds}
        if data.shape[1:] != shape:
            raise ValueError(f"All examples must have one shape, got {tuple(shape)} and {tuple(data.shape[1:])}.")
        total = error_moments(
            process, data, steps, variances, labels=labels, generator=generator, grid=times, more=total
        )
    if total is None:
        raise ValueError("Calibration needs at least one batch of data, got none.")
    for variance in variances.values():
        variance.fit(total[variance.coordinates])
    return variances[cheapest(variances)]


def kinds_of(process: Process, covariance: str, shape: Sequence[int], steps: int) -> tuple[str, ...]:
    """The covariances among which this one is chosen for examples of this shape: itself, unless it is ``auto``."""
    if covariance != AUTO:
        return (covariance,)
    if len(shape) != 3 or min(shape[1:]) == 1 or steps * math.prod(shape) > MOST_NUMBERS:
        return ("isotropic",)
    return ("diagonal", "frequency") if process.coordinates is DATA else ("frequency",)


def cheapest(variances: dict[str, CalibratedVariance]) -> str:
    """The name of the variance with the lowest expected cost, half the sum of log(w / v), on its own data."""
    if len(variances) == 1:
        return next(iter(variances))
    return min(variances, key=lambda name: variances[name].log_ratio.sum().item())


def calibrated_variance(
    process: Process, data: Values, steps: int, covariance: str, rank: int | None = None, grid: Tensor | None = None
) -> CalibratedVariance:
    """The unfitted variance that :func:`calibrate` fits, for data of shape (B, \\*shape)."""
    if covariance == "frequency" and process.coordinates is not DATA:
        covariance = "diagonal"  # which is of frequencies already
    like = process.to_model(as_tensor(data)[:1], check=False)
    times = None if grid is None else grid.double().tolist()
    return CalibratedVariance(steps, covariance, like.shape[1:], rank, times).to(like)


@torch.no_grad()
def error_moments(
    process: Process,
    data: Values,
    steps: int,
    covariances: Collection[str] = ("diagonal",),
    *,
    labels: Values | None = None,
    generator: Randomness = None,
    grid: Tensor | None = None,
    more: dict[Coordinates, Moments] | None = None,
) -> dict[Coordinates, Moments]:
    r"""The second moments of the errors of the reverse process at every step, from one batch.

    Moments of several batches add up, so several processes can share a calibration.

    Args:
        process: the model; it is not changed.
        data: (B, \*shape).
        steps: T.
        covariances: those to calibrate; with ``full`` among them the matrices are kept.
        labels: class labels, (B,).
        generator: for the noise.
        grid: the times of the steps, (T + 1,); None for even ones, even if the model has its own.
        more: moments of earlier batches, to which those of this one are added.

    Returns:
        The moments in each of the coordinates of the covariances; for ``isotropic`` alone those of one dimension, which
        represents all of them.

    Raises:
        ValueError: the batch fails the check of :func:`ndm.method.bounds.bound`.
    """
    x = process.to_model(data)
    labels = as_labels(process, labels, len(x))
    only_mean = set(covariances) == {"isotropic"}
    d, moments = 1 if only_mean else x[0].numel(), more
    if moments is None:
        moments = {}
        for coordinates in dict.fromkeys(coordinates_of(name, process.coordinates) for name in covariances):
            full = "full" in covariances and coordinates is DATA
            moments[coordinates] = Moments(steps, d, full, folds_for(steps, d, full))
    with frozen(process), residual_path(x.device):
        times = even_grid(steps, x) if grid is None else grid
        labels, _ = given_latent(process, x, labels, generator)
        curve = process.curve(x, labels)
        for i in range(1, steps + 1):
            step = process.grid_step(torch.full((x.shape[0],), i, device=x.device), steps, x, grid=times)
            e = _error(process, step, x, curve, labels, generator)
            if only_mean:  # Moments squares its input, so the root mean square represents all dimensions
                e = e.flatten(1).double().square().mean(1, keepdim=True).sqrt()
            for coordinates, found in moments.items():
                found.add(i - 1, e if only_mean else coordinates.into(e).flatten(1))
    return moments


def _error(
    process: Process, step: Step, x: Tensor, curve: Curve, labels: Tensor | None, generator: Randomness
) -> Tensor:
    """One sample of e = Dmu / sqrt(v) for each example, (B, \\*shape)."""
    at = DiscreteStep(step)
    value, noise = at.path_value(curve), normal_like(x, generator)
    z = process.perturbed(x, value, noise, step.t)
    gap = process.mismatch(value, noise, x, process.denoiser.estimate(z, step.t, labels), at, labels)
    return per_example(step.scale, gap) * value.standardized(gap)
