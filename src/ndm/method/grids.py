r"""The grid of T steps with the lowest bound for a trained model.

A model trained in continuous time can be run in any T steps t_0 = 0 < t_1 < ... < t_T = 1, and its diffusion term is a
sum of step costs. With the best reverse variance the step from t down to s costs

    c(s, t) = 1/2 sum_k log(1 + E[e_k^2]),    e = (true mean - predicted mean) / sqrt(v)

(method, section 3), or d/2 log(1 + E[||e||^2] / d) if the variance is isotropic. The best grid with points among M + 1
candidates is therefore a shortest path, found exactly by dynamic programming: Watson, Ho, Norouzi and Chan, *Learning
to Efficiently Sample from Diffusion Probabilistic Models*, arXiv 2106.03802, who use the posterior's variance.

The denoiser's network is evaluated once per candidate. The curve of x is evaluated for each pair of candidates, and so
is a curve of x_hat if the reverse process needs F(x_hat). The search is therefore slow if F has a large network.
The bound is valid for every grid. Its tightness depends on the grid, and so on the data the grid was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_labels, as_tensor
from ndm._internal.precision import residual_path
from ndm._internal.random import Randomness, normal_like
from ndm.method.latents import given_latent
from ndm.method.moments import Moments
from ndm.method.process import Process, frozen
from ndm.method.schedules import per_example
from ndm.method.steps import DiscreteStep
from ndm.method.variances import check_calibration, coordinates_of

__all__ = ["SPACINGS", "cheapest_path", "even_grid", "gamma_grid", "grid_from", "optimal_grid", "pair_moments"]


#: The named spacings: even in time, even in gamma (:meth:`ndm.Schedule.even_in_gamma`), and the best steps.
SPACINGS = ("time", "gamma", "optimal")


def even_grid(steps: int, like: Tensor) -> Tensor:
    """i / T for i = 0..T, (T + 1,), in the precision of ``like``."""
    return torch.arange(steps + 1, dtype=like.dtype, device=like.device) / steps


def gamma_grid(process: Process, steps: int) -> Tensor:
    """The times of T steps that are even in gamma, (T + 1,), float64, from 0 to 1; see
    :meth:`ndm.Schedule.even_in_gamma`.
    """
    times = process.schedule.even_in_gamma(steps)
    times[0], times[-1] = 0, 1  # the noise levels at the ends do not change
    return times


def candidates_for(steps: int) -> int:
    """The default number of steps of the even grid from which a grid of T steps is chosen."""
    return max(40, 2 * steps)


def labelled(batches: Any) -> Iterator[tuple[Tensor, Values | None]]:
    """Yield data (B, \\*shape) and labels (B,) or None from tensors, from (data, labels) pairs, or from one tensor.

    NumPy arrays and DataFrames are accepted as tensors.

    Raises:
        ValueError: the argument is neither data nor an iterable of batches.
    """
    if isinstance(batches, (Tensor, np.ndarray)) or hasattr(batches, "to_numpy"):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, (str, Mapping)):
        raise ValueError(
            "The data must be a tensor, an array, a DataFrame, a list of batches or a DataLoader, got "
            f"{type(batches).__name__}; for a data set of ndm pass data.train."
        )
    for batch in batches:
        data, labels = batch, None
        if isinstance(batch, (tuple, list)) and batch and not isinstance(batch[0], (int, float)):
            data, labels = (batch[0], batch[1]) if len(batch) == 2 else (batch[0], None)
        yield as_tensor(data), labels


def optimal_grid(
    process: Process,
    batches: Iterable,
    steps: int,
    covariance: str = "isotropic",
    *,
    candidates: int | None = None,
    generator: Randomness = None,
) -> Tensor:
    r"""The times of the T steps whose bound is lowest, given the best reverse variance for each of them.

    Args:
        process: the model; it is not changed.
        batches: tensors (B, \*shape), or pairs of a tensor and its class labels, as from a DataLoader; or one tensor. A
            few hundred examples are enough.
        steps: T.
        covariance: the form of the variance: ``isotropic``, ``diagonal``, ``frequency``, or ``full``, which is treated
            as diagonal.
        candidates: M: the times are chosen among i / M; by default max(40, 2 T). M (M + 1) / 2 pairs are evaluated.
        generator: for the noise.

    Returns:
        (T + 1,), float64, increasing from 0 to 1: a ``spacing`` for :meth:`ndm.NDM.calibrate`.

    Raises:
        ValueError: there are no data, the covariance is unknown, ``steps`` is below one, or there are fewer candidates
            than steps.
    """
    number = candidates_for(steps) if candidates is None else candidates
    check_calibration(steps, covariance)
    if number < steps:
        raise ValueError(f"A grid of {steps} steps needs at least as many candidates, got {number}.")
    total: Moments | None = None
    for data, labels in labelled(batches):
        found = pair_moments(process, data, number, covariance, labels=labels, generator=generator)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("An optimal grid needs at least one batch of data, got none.")
    return grid_from(total, data[0].numel(), number, steps, covariance)


@torch.no_grad()
def pair_moments(
    process: Process,
    data: Values,
    candidates: int,
    covariance: str = "isotropic",
    *,
    labels: Values | None = None,
    generator: Randomness = None,
) -> Moments:
    r"""The second moments of the reverse process's errors e for steps between all pairs of candidates.

    Moments of several batches add up, so several processes can share the work.

    Args:
        process: the model; it is not changed.
        data: (B, \*shape).
        candidates: M.
        covariance: ``isotropic`` keeps only the mean over the dimensions.
        labels: class labels, (B,).
        generator: for the noise.

    Returns:
        Moments of M (M + 1) / 2 steps, ordered by t and then s, with d dimensions (one if isotropic).

    Raises:
        ValueError: the batch fails the check of :func:`ndm.method.bounds.bound`.
    """
    x = process.to_model(data)
    labels = as_labels(process, labels, len(x))
    with frozen(process), residual_path(x.device):
        isotropic = covariance == "isotropic"
        moments = Moments(candidates * (candidates + 1) // 2, 1 if isotropic else x[0].numel(), full=False)
        labels, _ = given_latent(process, x, labels, generator)
        curve, index = process.curve(x, labels), torch.ones(len(x), dtype=torch.long, device=x.device)
        times = even_grid(candidates, x)
        for pair, (i, j) in enumerate(_pairs(candidates)):
            step = process.step(times[i].expand(len(x)), times[j].expand(len(x)), index, None)
            at = DiscreteStep(step)
            value = at.path_value(curve)
            if i == 0:  # a new t: evaluate the network once for all s
                noise = normal_like(x, generator)
                estimate = process.denoiser.estimate(process.perturbed(x, value, noise, step.t), step.t, labels)
            gap = process.mismatch(value, noise, x, estimate, at, labels)
            e = per_example(step.scale, gap) * value.standardized(gap)
            e = coordinates_of(covariance, process.coordinates).into(e).flatten(1)
            # Moments squares its input, so the root mean square represents all dimensions.
            moments.add(pair, e.square().mean(1, keepdim=True).sqrt() if isotropic else e)
    return moments


def grid_from(moments: Moments, dimensions: int, candidates: int, steps: int, covariance: str) -> Tensor:
    """The best grid of T steps, (T + 1,), float64, from the moments of all pairs of M candidates.

    Args:
        moments: the moments from :func:`pair_moments`.
        dimensions: d, of one example.
        candidates: M.
        steps: T.
        covariance: the same as for the moments.
    """
    log_ratio = torch.log1p(moments.squares())
    cost = dimensions * log_ratio[:, 0] if covariance == "isotropic" else log_ratio.sum(1)
    costs = torch.full((candidates + 1, candidates + 1), math.inf, dtype=torch.float64)
    for (i, j), value in zip(_pairs(candidates), (cost / 2).tolist(), strict=True):
        costs[i, j] = value
    return even_grid(candidates, costs)[cheapest_path(costs, steps)]


def cheapest_path(costs: Tensor, steps: int) -> list[int]:
    """The path 0 = i_0 < i_1 < ... < i_T = M with the least sum of costs[i_k, i_{k+1}], by dynamic programming.

    Args:
        costs: (M + 1, M + 1), from the row to the column; infinite where there is no edge.
        steps: T, at most M.

    Example:
        >>> costs = torch.tensor([[9, 1, 4, 9], [9, 9, 1, 5], [9, 9, 9, 1], [9, 9, 9, 9]]).double()
        >>> cheapest_path(costs, 2), cheapest_path(costs, 3)
        ([0, 2, 3], [0, 1, 2, 3])
    """
    reached = torch.full((len(costs),), math.inf, dtype=torch.float64)  # the lowest cost to reach each point in n steps
    reached[0] = 0.0
    came_from = []
    for _ in range(steps):
        reached, before = (reached[:, None] + costs).min(0)
        came_from.append(before)
    path = [len(costs) - 1]
    for before in reversed(came_from):
        path.append(int(before[path[-1]]))
    return path[::-1]


def _pairs(candidates: int) -> Iterator[tuple[int, int]]:
    """The indices (i, j) of s and t, i < j, ordered by t and then s."""
    return ((i, j) for j in range(1, candidates + 1) for i in range(j))
