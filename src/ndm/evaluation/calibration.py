"""Distributed calibration of reverse variances and time grids on training examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ndm._internal.distributed import all_reduce, rank, world_size
from ndm._internal.random import seed_of
from ndm.data.choosing import Some, part_of
from ndm.evaluation.per_example import BLOCK, device_of
from ndm.method.calibration import AUTO, calibrated_variance, cheapest, error_moments, kinds_of
from ndm.method.coordinates import DATA, Coordinates
from ndm.method.grids import candidates_for, gamma_grid, grid_from, pair_moments
from ndm.method.variances import CalibratedVariance, Moments, PosteriorVariance
from ndm.model import NDM

__all__ = ["Calibrated", "calibrated", "own_variance", "with_variance"]

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


class Calibrated(NamedTuple):
    """A fitted reverse variance, and the name of its covariance."""

    kind: str
    variance: CalibratedVariance


def calibrated(
    model: NDM, part: Some, labels: Tensor | None, steps: int, names: Sequence[str], seed: int, spacing: str
) -> dict[str, Calibrated]:
    """Fit reverse variances of these kinds for T steps in one pass over the examples, shared among processes.

    Args:
        model: the model.
        part: the examples.
        labels: their class labels, (n,).
        steps: T.
        names: ``isotropic``, ``diagonal``, ``frequency``, ``full``, or ``auto``
            (:func:`ndm.method.calibration.calibrate`).
        seed: seed of the noise.
        spacing: spacing of the steps: uniform in ``time`` or in ``gamma``, or ``optimal`` (up to T = 100).

    Returns:
        What was fitted for each name.
    """
    of_names = {name: kinds_of(model, name, part[:1].shape[1:], steps) for name in names}
    times = None
    if spacing == "gamma":
        times = gamma_grid(model, steps)
    elif spacing == "optimal" and steps <= LARGEST_GRID:
        if len(of_names.get(AUTO, ())) > 1:  # the grid is for one covariance
            of_names[AUTO] = (_fitted(model, part, labels, steps, {AUTO: of_names[AUTO]}, seed, None)[AUTO].kind,)
        times = _best_grid(model, part, labels, steps, [kind for kinds in of_names.values() for kind in kinds], seed)
    return _fitted(model, part, labels, steps, of_names, seed, times)


def _fitted(
    model: NDM,
    part: Some,
    labels: Tensor | None,
    steps: int,
    of_names: Mapping[str, Sequence[str]],
    seed: int,
    times: Tensor | None,
) -> dict[str, Calibrated]:
    """The cheapest of the kinds of each name, fitted for steps of these times."""
    like = part[:1].to(device_of(model))
    kinds = dict.fromkeys(kind for some in of_names.values() for kind in some)
    variances = {kind: calibrated_variance(model, like, steps, kind, grid=times) for kind in kinds}

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> dict[Coordinates, Moments]:
        return error_moments(model, x, steps, kinds, labels=y, generator=generator, grid=times)

    moments = _moments(model, part, labels, seed, found)
    for variance in variances.values():
        variance.fit(moments[variance.coordinates])
    best = {name: cheapest({kind: variances[kind] for kind in some}) for name, some in of_names.items()}
    return {name: Calibrated(kind, variances[kind]) for name, kind in best.items()}


def _best_grid(model: NDM, part: Some, labels: Tensor | None, steps: int, kinds: Sequence[str], seed: int) -> Tensor:
    """The best grid of T steps for one of these covariances, the first in a fixed order."""
    covariance = next((name for name in ("frequency", "diagonal", "full") if name in kinds), "isotropic")
    candidates = candidates_for(steps)

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> dict[Coordinates, Moments]:
        return {DATA: pair_moments(model, x, candidates, covariance, labels=y, generator=generator)}

    some = part_of(len(part), GRID_EXAMPLES, seed)
    moments = _moments(model, Some(part, some), None if labels is None else labels[some], seed, found)
    return grid_from(moments[DATA], part[:1].numel(), candidates, steps, covariance)


def _moments(
    model: NDM,
    part: Some,
    labels: Tensor | None,
    seed: int,
    found: Callable[[Tensor, Tensor | None, torch.Generator], dict[Coordinates, Moments]],
) -> dict[Coordinates, Moments]:
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
                moments = {key: _of_process(i, some) for key, some in here.items()}
                total = moments if total is None else {key: total[key] + more for key, more in moments.items()}
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
