r"""Solution of the reverse ODE and SDE of a model, from noise to data, for every schedule.

If the slope of gamma is positive and finite up to both ends, the equations are solved in the schedule's time t.
Otherwise, as for clipped schedules, dgamma/dt is zero at the ends and very large next to them. The steps then end at
the same noise levels, but the slope is not used:

* The ODE is solved on flow matching's path (Lipman et al., arXiv 2210.02747), which is equivalent to that of every
  other schedule up to a change of time and scale (Karras et al., arXiv 2206.00364, section 3). With
  lambda = sigma / (alpha + sigma) = sigmoid(gamma / 2) and u = z / (alpha + sigma)

      du/dlambda = (u - y) / lambda,

  y as in :mod:`ndm.method.process`, x_hat for the identity. With alpha = 1 - t and sigma = t that is (z - x_hat) / t.
  It is bounded, its Euler step is DDIM's, and every step is exact if y is constant.
* The SDE's steps at the ends, and those for which Euler-Maruyama steps would be unstable, are exact steps for a y that
  is constant over the step (as in Lu et al., arXiv 2211.01095, section 5):

      z_s = c z_t + (alpha_s - c alpha_t) y + sigma_s sqrt(1 - e^{-eta^2 h}) noise,
      c = sigma_s / sigma_t e^{-eta^2 h / 2},  h = gamma_t - gamma_s.

  The last Euler-Maruyama step would also leave its noise in the sample.
* Adaptive solvers solve the SDE in gamma, in which its coefficients are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ndm._internal.random import normal_like
from ndm.inference.solvers import solve_adaptive, solve_fixed, solve_sde
from ndm.method.clocks import gamma_at, has_slopes, inward
from ndm.method.process import Process
from ndm.method.schedules import NoiseLevel, Schedule, per_example
from ndm.method.steps import DiscreteStep
from ndm.method.variances import Step

__all__ = ["followed_at", "ode_adaptive", "ode_states", "sde_by_torchsde", "sde_states"]

#: The number of returned states of an adaptive solver.
POINTS = 100


def followed_at(schedule: Schedule, points: int, like: Tensor) -> Tensor:
    """The times of the returned states of an adaptive solver, (points + 1,), float64, increasing from 0 to 1.

    They are evenly spaced in time, or in gamma if the schedule is clipped.
    """
    if has_slopes(schedule, like):
        return torch.linspace(0, 1, points + 1, dtype=torch.float64)
    return schedule.even_in_gamma(points)


def ode_states(
    process: Process, z: Tensor, grid: Tensor, solver: str, labels: Tensor | None = None
) -> Iterator[Tensor]:
    r"""The states of the reverse ODE at all times of a grid but the first, with one solver step for each.

    Args:
        process: the model.
        z: the state at the first time, (B, \*shape).
        grid: (T + 1,), decreasing from 1 to 0.
        solver: a key of :data:`ndm.inference.solvers.FIXED_STEP_ODE`.
        labels: class labels, (B,).

    Yields:
        (B, \*shape), T times.
    """
    if has_slopes(process.schedule, z):

        def drift(t: Tensor, state: Tensor) -> Tensor:
            return process.drift(state, t, labels, eta=0.0)

        yield from solve_fixed(drift, z, pairwise(grid.to(z)), solver)
        return
    path = _StraightPath(process, labels)
    clock = path.clock(grid, z)
    states = solve_fixed(path.velocity, z / path.scale(clock[0]), pairwise(clock), solver)
    for u, after in zip(states, clock[1:], strict=True):
        yield u * path.scale(after)


def ode_adaptive(
    process: Process,
    z: Tensor,
    rtol: float,
    atol: float,
    labels: Tensor | None = None,
    points: int = 1,
) -> Tensor:
    r"""Solve the reverse ODE with adaptive steps from z at t = 1, (B, \*shape). Returns the final state, or the states
    at ``points`` times of :func:`followed_at`, without its last one: (points, B, \*shape), the final state last.

    Raises:
        RuntimeError: the solver failed.
    """
    if has_slopes(process.schedule, z):

        def drift(t: Tensor, state: Tensor) -> Tensor:
            return process.drift(state, t, labels, eta=0.0)

        return solve_adaptive(drift, z, 1.0, 0.0, rtol, atol, points).states
    path = _StraightPath(process, labels)
    clock = path.clock(process.schedule.even_in_gamma(points).flip(0), z)
    start, stop = clock[0].item(), clock[-1].item()
    states = solve_adaptive(path.velocity, z / path.scale(clock[0]), start, stop, rtol, atol, clock[1:]).states
    return torch.stack([u * path.scale(after) for u, after in zip(states, clock[1:], strict=True)])


class _StraightPath:
    """The reverse ODE on flow matching's path: u = z / (alpha + sigma), lambda = sigma / (alpha + sigma)."""

    def __init__(self, process: Process, labels: Tensor | None) -> None:
        self.process, self.labels = process, labels
        self.low, self.high = process.schedule.end_points()

    def clock(self, times: Tensor, like: Tensor) -> Tensor:
        """lambda at times, (P,)."""
        return torch.sigmoid(gamma_at(self.process.schedule, times) / 2).to(like)

    def scale(self, clock: Tensor) -> Tensor:
        """alpha + sigma at lambda, of the same shape."""
        level = self.process.schedule.level_at(self._gamma(clock))
        return level.alpha + level.sigma

    def velocity(self, clock: Tensor, u: Tensor) -> Tensor:
        r"""du/dlambda at lambda, (B,), and u, (B, \*shape)."""
        level = self.process.schedule.level_at(self._gamma(clock))
        y, _ = self.process.heading(u * per_example(level.alpha + level.sigma, u), level, self.labels, eta=0.0)
        return (u - y) / per_example(clock, u)

    def _gamma(self, clock: Tensor) -> Tensor:
        return (2 * torch.logit(clock)).clamp(self.low, self.high)  # removes rounding errors


def sde_states(
    process: Process,
    z: Tensor,
    grid: Tensor,
    eta: float | None,
    labels: Tensor | None,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    r"""The states of the reverse SDE at all times of a grid but the first, with one step for each.

    Euler-Maruyama steps, z_s = z_t - (t - s) drift + sqrt(t - s) g noise, except those that this module takes without
    slopes.

    Args:
        process: the model.
        z: the state at the first time, (B, \*shape).
        grid: (T + 1,), decreasing from 1 to 0.
        eta: the volatility; None for the model's own.
        labels: class labels, (B,).
        generator: for the noise.

    Yields:
        (B, \*shape), T times.
    """
    schedule, rows = process.schedule, len(z)
    gammas, (low, high) = gamma_at(schedule, grid), schedule.end_points()
    clipped, last = not has_slopes(schedule, z), len(grid) - 2
    steps = zip(pairwise(grid.to(z)), pairwise(gammas.tolist()), strict=True)
    for i, ((t, s), (gamma, gamma_s)) in enumerate(steps):
        if gamma > gamma_s:  # else the schedule is constant
            level, length = schedule(t.expand(rows)), t - s
            y, used = process.heading(z, level, labels, eta)
            pull = (level.dlog_sigma + used**2 * level.dgamma / 2) * length  # Euler's step is z (1 - pull) + ...
            noise = normal_like(z, generator)
            at_an_end = i in (0, last) or gamma >= high or gamma_s <= low
            if clipped and (at_an_end or not (pull <= 2).all()):
                after = schedule.level_at(torch.full_like(level.gamma, gamma_s))
                step = Step.of_sde(after, level, used, process.largest_share)
                spread = process.spread(z, DiscreteStep(step), labels)
                noise = process.coordinates.scaled(noise, spread)
                z = process.step_mean(z, y, step) + per_example(step.v.sqrt(), z) * noise
            else:
                weight = level.alpha * level.dgamma * (1 + used**2) / 2 * length
                g = process.diffusion_at(z, level, labels, eta) * length.sqrt()
                noise = per_example(g, z) * noise if g.ndim == 1 else process.coordinates.back(g * noise)
                z = per_example(1 - pull, z) * z + per_example(weight, z) * y + noise
        yield z


def sde_by_torchsde(
    process: Process,
    z: Tensor,
    steps: int | None,
    solver: str,
    rtol: float,
    atol: float,
    eta: float | None,
    labels: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    r"""The states of the reverse SDE from a torchsde solver, (steps or 100, B, \*shape), the final state last.

    They are at the times of :func:`followed_at`. See :func:`ndm.inference.solvers.solve_sde` for the arguments.
    """
    schedule, (low, high), own_time = process.schedule, process.schedule.end_points(), has_slopes(process.schedule, z)

    def level_at(t: Tensor) -> NoiseLevel:
        if own_time:
            return schedule(inward(schedule, t))
        # The time variable is linear in gamma.
        return schedule.level_at(low + (high - low) * t, torch.full_like(t, high - low))

    # The noise is diagonal, as the solver needs it, in the process's coordinates.
    into, back = process.coordinates.into, process.coordinates.back

    def drift(t: Tensor, state: Tensor) -> Tensor:
        return into(process.drift_at(back(state), level_at(t), labels, eta))

    def diffusion(t: Tensor, state: Tensor) -> Tensor:
        return process.diffusion_at(state, level_at(t), labels, eta)

    states = solve_sde(drift, diffusion, into(z), steps, solver, rtol, atol, generator)
    return torch.stack([back(state) for state in states])
