"""Reverse variances and grids that are fitted to some training examples for an evaluation, by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ndm._internal.distributed import all_reduce, shard
from ndm._internal.random import seed_of
from ndm.data.choosing import Some, part_of
from ndm.evaluation.per_example import BLOCK, device_of
from ndm.method.bounds import calibrated_variance, error_moments
from ndm.method.grids import candidates_for, gamma_grid, grid_from, pair_moments
from ndm.method.variances import CalibratedVariance, Moments, PosteriorVariance
from ndm.model import NDM

__all__ = ["calibrated", "own_variance", "with_variance"]

#: The largest number of steps that an optimal grid is looked for: there is little left to win beyond, and the pairs of
#: times that have to be looked at are four times as many for twice the steps.
LARGEST_GRID = 100

#: Examples that an optimal grid is chosen by.
GRID_EXAMPLES = 500


@contextmanager
def with_variance(model: NDM, name: str, steps: int | None, calibrated: CalibratedVariance | None) -> Iterator[None]:
    """The model with the reverse variance ``name`` for the time being."""
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
    """The best reverse variances of these kinds for T steps, from one pass over some examples, shared among processes.

    Args:
        model: the model.
        part: the examples.
        labels: their classes, (n,).
        steps: T.
        names: ``isotropic``, ``diagonal``, ``full``.
        seed: of the noise.
        spacing: of the steps: even in ``time``, even in ``gamma``, or ``optimal``, which is looked for up to T = 100.
    """
    times = None
    if spacing == "gamma":
        times = gamma_grid(model, steps)
    elif spacing == "optimal":
        times = _best_grid(model, part, labels, steps, names, seed)
    like = part[:1].to(device_of(model))
    variances = {name: calibrated_variance(model, like, steps, name, grid=times) for name in names}

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> Moments:
        return error_moments(model, x, steps, "full" in names, labels=y, generator=generator, grid=times)

    moments = _moments(model, part, labels, seed, found)
    for variance in variances.values():
        variance.fit(moments)
    return variances


def _best_grid(
    model: NDM, part: Some, labels: Tensor | None, steps: int, names: Sequence[str], seed: int
) -> Tensor | None:
    """The best grid of T steps for reverse variances of these kinds; None, for even steps, where there are too many."""
    if steps > LARGEST_GRID:
        return None
    covariance = "isotropic" if set(names) <= {"isotropic"} else "diagonal"
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
    """The moments that are found in each block of some examples, added up, the blocks shared among the processes."""
    device, moments = device_of(model), None
    with with_variance(model, "posterior", None, None):  # which has no part in the errors
        for block in shard(-(-len(part) // BLOCK)):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            y = None if labels is None else labels[rows].to(device)
            here = found(part[rows].to(device), y, torch.Generator(device).manual_seed(seed_of(seed, block)))
            moments = here if moments is None else moments + here
    if moments is None:  # there are more processes than blocks: take part in the sum, with nothing
        moments = found(part[:1].to(device), None if labels is None else labels[:1].to(device), torch.Generator(device))
        moments.count, moments.sums = torch.zeros_like(moments.count), torch.zeros_like(moments.sums)
    moments.count, moments.sums = all_reduce(moments.count), all_reduce(moments.sums)
    return moments


def own_variance(model: NDM) -> str:
    """The name of the model's own reverse variance: posterior, learned, predicted, or a class name."""
    name = type(model.reverse_variance).__name__
    return name.removesuffix("Variance").lower() if name.endswith("Variance") else name
