"""Distributed calibration of reverse variances and time grids on training examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ndm._internal.distributed import all_reduce, rank, world_size
from ndm._internal.random import seed_of
from ndm.data.choosing import Some, part_of
from ndm.evaluation.per_example import BLOCK, device_of
from ndm.method.bounds import calibrated_variance, error_moments
from ndm.method.coordinates import Coordinates
from ndm.method.grids import candidates_for, gamma_grid, grid_from, pair_moments
from ndm.method.variances import CalibratedVariance, Moments, PosteriorVariance
from ndm.model import NDM

__all__ = ["calibrated", "calibrated_best", "own_variance", "with_variance"]

#: Maximum number of steps for which an optimal grid is computed: the gain is small beyond, and the number of pairs of
#: times is quadratic in the steps.
LARGEST_GRID = 100

#: Number of examples for computing an optimal grid.
GRID_EXAMPLES = 500


@contextmanager
def with_variance(model: NDM, name: str, steps: int | None, calibrated: CalibratedVariance | None) -> Iterator[None]:
    """Context manager that temporarily gives the model the reverse variance ``name``."""
    own, calibrations = model.reverse_variance, dict(model.calibrations.items())
    try:
        model.uncalibrate()
        if name == "posterior":
            model.reverse_variance = PosteriorVariance()
        elif calibrated is not None:
            model.calibrations[str(steps)] = calibrated
        yield
    finally:
        model.reverse_variance = own
        model.uncalibrate()
        model.calibrations.update(calibrations)


def calibrated(
    model: NDM, part: Some, labels: Tensor | None, steps: int, names: Sequence[str], seed: int, spacing: str
) -> dict[str, CalibratedVariance]:
    """Fit reverse variances of these kinds for T steps in one pass over the examples, shared among processes.

    Args:
        model: the model.
        part: the examples.
        labels: their class labels, (n,).
        steps: T.
        names: ``isotropic``, ``diagonal``, ``frequency``, ``full``.
        seed: seed of the noise.
        spacing: spacing of the steps: uniform in ``time`` or in ``gamma``, or ``optimal`` (up to T = 100).
    """
    times = None
    if spacing == "gamma":
        times = gamma_grid(model, steps)
    elif spacing == "optimal":
        times = _best_grid(model, part, labels, steps, names, seed)
    like = part[:1].to(device_of(model))
    variances = {name: calibrated_variance(model, like, steps, name, grid=times) for name in names}
    of_frequencies = {name: variance for name, variance in variances.items() if name == "frequency"}
    for group in ({k: v for k, v in variances.items() if k not in of_frequencies}, of_frequencies):
        if group:
            found = _errors(model, steps, "full" in group, next(iter(group.values())).coordinates, times)
            moments = _moments(model, part, labels, seed, found)
            for variance in group.values():
                variance.fit(moments)
    return variances


def calibrated_best(
    model: NDM, part: Some, labels: Tensor | None, steps: int, kind: str | None, seed: int
) -> tuple[str, CalibratedVariance]:
    """Fit the reverse variance of even steps that costs least on the examples: for images ``diagonal`` or
    ``frequency``, for other data ``isotropic``.

    Args:
        kind: one of these, to fit that one; None to choose. For the other arguments see :func:`calibrated`.
    """
    shape = part[:1].shape[1:]
    kinds = ["diagonal", "frequency"] if len(shape) == 3 and min(shape[1:]) > 1 else ["isotropic"]
    variances = calibrated(model, part, labels, steps, kinds if kind is None else [kind], seed, "time")
    # The expected cost of a step is half the sum of log(w / v).
    best = min(variances, key=lambda name: variances[name].log_ratio.sum().item())
    return best, variances[best]


def _errors(
    model: NDM, steps: int, full: bool, coordinates: Coordinates, times: Tensor | None
) -> Callable[[Tensor, Tensor | None, torch.Generator], Moments]:
    """The moments of a block of examples, their labels and a generator."""

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> Moments:
        return error_moments(model, x, steps, full, labels=y, generator=generator, grid=times, coordinates=coordinates)

    return found


def _best_grid(
    model: NDM, part: Some, labels: Tensor | None, steps: int, names: Sequence[str], seed: int
) -> Tensor | None:
    """Compute the best grid of T steps for these reverse variances; None (uniform steps) if T is too large."""
    if steps > LARGEST_GRID:
        return None
    covariance = next((name for name in ("frequency", "diagonal", "full") if name in names), "isotropic")
    candidates = candidates_for(steps)

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> Moments:
        return pair_moments(model, x, candidates, covariance, labels=y, generator=generator)

    some = part_of(len(part), GRID_EXAMPLES, seed)
    moments = _moments(model, Some(part, some), None if labels is None else labels[some], seed, found)
    return grid_from(moments, part[:1].numel(), candidates, steps, covariance)


def _moments(
    model: NDM,
    part: Some,
    labels: Tensor | None,
    seed: int,
    found: Callable[[Tensor, Tensor | None, torch.Generator], Moments],
) -> Moments:
    """Sum the moments over blocks of examples, which are shared among the processes.

    They are added in the order of the blocks, so that the sum does not depend on the number of processes.
    """
    device, number, total = device_of(model), -(-len(part) // BLOCK), None
    with with_variance(model, "posterior", None, None):  # does not affect the errors
        for first in range(0, number, world_size()):
            block = min(first + rank(), number - 1)  # there may be more processes than blocks left
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            y = None if labels is None else labels[rows].to(device)
            here = found(part[rows].to(device), y, torch.Generator(device).manual_seed(seed_of(seed, block)))
            for i in range(min(world_size(), number - first)):
                moments = _of_process(i, here)
                total = moments if total is None else total + moments
    assert total is not None
    return total


def _of_process(i: int, moments: Moments) -> Moments:
    """The moments of one of the processes, in all of them."""
    found = copy.copy(moments)
    for name in ("count", "sums"):
        values = getattr(moments, name)
        setattr(found, name, all_reduce(values if i == rank() else torch.zeros_like(values)))
    return found


def own_variance(model: NDM) -> str:
    """Return the name of the model's reverse variance: posterior, learned, predicted, or a class name."""
    name = type(model.reverse_variance).__name__
    return name.removesuffix("Variance").lower() if name.endswith("Variance") else name
