r"""DPM-Solver++ 2M and SDE-DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, algorithm 2 and section 5), for every F.

For an x_hat that is constant over a step from t to s, the reverse SDE has an exact solution, whatever F is:

    z_s = c z_t + alpha_s F(x_hat, s) - c alpha_t F(x_hat, t) + sigma_s sqrt(1 - e^{-eta^2 h}) noise,
    c = sigma_s / sigma_t e^{-eta^2 h / 2},  h = gamma_t - gamma_s.

A step of the first order takes the x_hat of its start. A step of the second order takes that of its middle, from the
line in gamma through the estimates of this step and of the one before, whose length in gamma is h':

    x_hat(middle) = x_hat_t + h / (2 h') (x_hat_t - x_hat_before).

Both evaluate the denoiser once, and F's curve at t and s. The first step is of the first order, and so is a step that
is more than twice as long as the one before, for which the line is too short: for a clipped schedule in even times the
last one is. For the identity with eta = 0 this is DPM-Solver++ 2M, and with eta = 1 SDE-DPM-Solver++ 2M. A direct
denoiser has no x_hat: its y, constant in the same sense (method, section 5), is extrapolated instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ndm._internal.precision import residual_path
from ndm._internal.random import normal_like
from ndm.method.clocks import gamma_at
from ndm.method.process import Process
from ndm.method.schedules import NoiseLevel, per_example
from ndm.method.steps import DiscreteStep
from ndm.method.variances import Step

__all__ = ["multistep_states"]

#: A step may be of the second order if it is at most this many times as long as the one before.
LONGER = 2


def multistep_states(
    process: Process,
    z: Tensor,
    grid: Tensor,
    eta: float | None,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    r"""The states of the reverse SDE, or of the ODE, at all times of a grid but the first, with one step for each.

    Steps over which the schedule is constant change nothing.

    Args:
        process: the model.
        z: the state at the first time, (B, \*shape).
        grid: (T + 1,), decreasing from 1 to 0.
        eta: the volatility; None for the model's own, 0 for the ODE, which draws no noise.
        labels: class labels, (B,).
        generator: for the noise.

    Yields:
        (B, \*shape), T times.

    Raises:
        ValueError: the reverse process is direct, has no estimate of F, and eta is not the model's own.
    """
    before: tuple[Tensor, float] | None = None
    for gamma, gamma_s in pairwise(gamma_at(process.schedule, grid).tolist()):
        length = gamma - gamma_s
        if length > 0:
            level, after = (process.schedule.level_at(z.new_full((len(z),), g)) for g in (gamma, gamma_s))
            step = Step.of_sde(after, level, process.volatility_at(level, eta), process.largest_share)
            estimate = middle = _estimate(process, z, level, labels, eta)
            if before is not None and length <= LONGER * before[1]:
                middle = estimate + length / (2 * before[1]) * (estimate - before[0])
            before = estimate, length
            z = process.step_mean(z, _y(process, middle, z, step, labels), step)
            if eta != 0:
                spread = process.spread(z, DiscreteStep(step), labels)
                noise = process.coordinates.scaled(normal_like(z, generator), spread)
                z = z + per_example(step.v.sqrt(), z) * noise
        yield z


def _estimate(process: Process, z: Tensor, level: NoiseLevel, labels: Tensor | None, eta: float | None) -> Tensor:
    r"""What is extrapolated, (B, \*shape): x_hat, or y of a direct denoiser."""
    if process.denoiser.direct:
        return process.heading(z, level, labels, eta)[0]
    with residual_path(z.device):
        return process.denoiser(z, level, labels)


def _y(process: Process, estimate: Tensor, z: Tensor, step: Step, labels: Tensor | None) -> Tensor:
    r"""y over a step, (B, \*shape), of what is extrapolated."""
    if process.denoiser.direct:
        return estimate
    with residual_path(estimate.device):
        return process.y_of(estimate, z, DiscreteStep(step), labels)
