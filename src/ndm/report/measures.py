r"""Measurements of the model of a run for the report.

The bound's diffusion term is an integral over noise levels (method, section 4):

    L_diff = integral from gamma_0 to gamma_1 of l(gamma) d gamma,
    l(gamma) = 1/2 e^{-gamma} ((1 + eta^2)^2 / 4 eta^2) E || y - y_hat ||^2,

and :func:`noise_profile` estimates l. Random numbers are drawn on the CPU, and depend only on the seed and on the index
of the example. Pages are therefore reproducible, and runs use the same noise for the same examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ndm._internal.precision import residual_path
from ndm._internal.random import below_one, normal_like, seed_of
from ndm.inference.sampling import sample
from ndm.method.denoisers import Estimate
from ndm.method.latents import given_latent
from ndm.method.process import frozen
from ndm.method.schedules import Schedule
from ndm.method.steps import DiscreteStep
from ndm.method.variances import (
    CalibratedVariance,
    Diagonal,
    LearnedVariance,
    LowRank,
    PosteriorVariance,
    PredictedVariance,
    Step,
)
from ndm.model import NDM

__all__ = ["Profile", "Walk", "noise_profile", "steps_of_interest", "time_of", "variance_ratio", "walk"]

#: Batch size.
BLOCK = 128

#: Maximum number of steps at which a reverse variance is evaluated.
MOST_STEPS = 250

#: Identifiers of the random number streams.
PROFILE, RATIO, WALK = 1, 2, 3


@dataclass(frozen=True)
class Profile:
    """The bound of some examples by noise level, in nats.

    Attributes:
        edges: edges of the intervals of gamma, (P + 1,).
        density: unbiased estimate of the mean of l(gamma) for each example and interval, (N, P).
        prior: prior term, (N,).
        reconstruction: reconstruction term, (N,), averaged over P samples of z_0 if it is estimated.
    """

    edges: Tensor
    density: Tensor
    prior: Tensor
    reconstruction: Tensor

    @property
    def widths(self) -> Tensor:
        return self.edges.diff()

    @property
    def centres(self) -> Tensor:
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def diffusion(self) -> Tensor:
        """L_diff of each example, (N,): the integral of the density."""
        return self.density @ self.widths

    @property
    def total(self) -> Tensor:
        """The bound on -log p of each example, (N,)."""
        return self.diffusion + self.prior + self.reconstruction


def time_of(schedule: Schedule, gamma: Tensor) -> Tensor:
    """Compute the times, float64 (M,), at which a schedule reaches the noise levels gamma, (M,), by bisection."""
    gamma = gamma.double()
    low, high = torch.zeros_like(gamma), torch.ones_like(gamma)
    for _ in range(52):  # float64 precision
        middle = (low + high) / 2
        below = schedule.gamma(middle)[0] < gamma
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@torch.no_grad()
def noise_profile(
    model: NDM,
    data: Tensor,
    labels: Tensor | None = None,
    *,
    points: int = 32,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Profile:
    r"""Compute the continuous-time bound of examples by noise level.

    [gamma_0, gamma_1] is divided into intervals of equal width. In each interval every example is evaluated once, at a
    uniformly drawn level.

    Args:
        model: the model.
        data: examples in the data's units, (N, \*shape).
        labels: class labels, (N,).
        points: number of intervals, P.
        seed: seed of the levels and the noise.
        tick: function called after each interval.
    """
    edges = torch.linspace(*model.schedule.end_points(), points + 1, dtype=torch.float64)
    density = torch.zeros(len(data), points, dtype=torch.float64)
    ends = torch.zeros(2, len(data), dtype=torch.float64)
    for p in range(points):
        for block, rows in enumerate(_blocks(len(data))):
            some, y = data[rows], None if labels is None else labels[rows]
            generator = torch.Generator().manual_seed(seed_of(seed, PROFILE, block, p))
            u = torch.rand(len(some), generator=generator, dtype=torch.float64)
            t = time_of(model.schedule, (edges[p] + u * (edges[p + 1] - edges[p])).to(data.device))
            t = below_one(t.to(some))
            with frozen(model):
                terms = model.bound(some, None, labels=y, times=t, generator=generator, check=False)
            slope = model.schedule(t).dgamma.double()
            inside = slope > 0  # a rounded time may be in the clipped part of the schedule
            found = torch.where(inside, terms.diffusion.double() / torch.where(inside, slope, 1.0), 0.0)
            density[rows, p] = found.cpu()
            ends[:, rows] += torch.stack([terms.prior, terms.reconstruction]).double().cpu() / points
        tick()
    return Profile(edges, density, *ends)


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


@torch.no_grad()
def variance_ratio(
    model: NDM, x: Tensor, steps: int, labels: Tensor | None = None, seed: int = 0
) -> tuple[list[float], list[float]] | None:
    r"""Compute the geometric mean of w / v, reverse over posterior variance, at each of T steps.

    Args:
        model: the model.
        x: examples in the model's units, (N, \*shape); the mean is over examples and dimensions.
        steps: T.
        labels: class labels, (N,).
        seed: seed of the noise.

    Returns:
        gamma_t and w / v of the non-empty steps, starting at the data; None if the kind of variance does not provide
        it.
    """
    levels, ratios = [], []
    with frozen(model), residual_path(x.device):
        for i in range(1, steps + 1):
            step = model.grid_step(torch.full((len(x),), i, device=x.device), steps, x)
            if not (step.gain != 0).all():
                continue
            generator = torch.Generator().manual_seed(seed_of(seed, RATIO, steps, i))
            covariance = model.covariance(step, _estimate(model, x, step, labels, generator))
            if isinstance(covariance, Diagonal):
                log_ratio = covariance.log_ratio.expand_as(x).mean()
            elif isinstance(covariance, LowRank):
                d, rank = x[0].numel(), covariance.basis.shape[1]
                log_ratio = (covariance.log_ratio[i - 1].sum() + (d - rank) * covariance.rest[i - 1]) / d
            else:
                return None
            levels.append(step.t.gamma[0].item())
            ratios.append(log_ratio.exp().item())
    return levels, ratios


def _estimate(model: NDM, x: Tensor, step: Step, labels: Tensor | None, generator: torch.Generator) -> Estimate:
    """Return the denoiser's estimate for noisy x; most variances only need its shape, without a network evaluation."""
    if str(step.steps) in model.calibrations or isinstance(model.reverse_variance, _WITHOUT_NETWORK):
        return Estimate(mean=x, residual=lambda target, displacement, noise: target - x)
    labels, _ = given_latent(model, x, labels, generator)
    value = DiscreteStep(step).path_value(model.curve(x, labels))
    return model.denoiser.estimate(model.perturbed(x, value, normal_like(x, generator), step.t), step.t, labels)


_WITHOUT_NETWORK = (PosteriorVariance, LearnedVariance, CalibratedVariance)


def steps_of_interest(model: NDM, trained: int | None = None) -> list[int]:
    """Return the numbers of steps at which to show the reverse variance: the calibrated ones, and 10 and 100; for a
    predicted variance, those of the training.
    """
    own = model.reverse_variance
    calibrated = [int(key) for key in model.calibrations if int(key) <= MOST_STEPS]
    if isinstance(own, CalibratedVariance):
        return sorted({own.steps, *calibrated})
    if isinstance(own, PredictedVariance) and trained is not None:
        return sorted({min(trained, MOST_STEPS), *calibrated})
    return sorted({10, 100, *calibrated})


@dataclass(frozen=True)
class Walk:
    """Trajectories of some samples from noise to data.

    Attributes:
        times: t, (S,), decreasing from 1 to 0.
        z: the states, initially standard normal, (S, B, \\*shape), in the model's units.
        states: z / alpha in the data's units, (S, B, \\*shape).
        data: the decoded samples, (B, \\*shape), in the data's units.
    """

    times: Tensor
    z: Tensor
    states: Tensor
    data: Tensor


def walk(
    model: NDM, n: int, shape: tuple[int, ...], labels: Tensor | None = None, *, steps: int = 100, seed: int = 0
) -> Walk:
    """Record the trajectories of n samples by ancestral sampling."""
    generator = torch.Generator().manual_seed(seed_of(seed, WALK))
    states = sample(
        model, n, shape, steps=steps, labels=labels, generator=generator, spacing="time", trajectory=True,
        progress=False,
    ).cpu()  # fmt: skip
    model_states = torch.stack([model.to_model(s, check=False) for s in states[:-1]])
    t = torch.linspace(1, 0, len(model_states))
    device = next(iter(model.parameters()), torch.empty(0)).device
    with torch.no_grad():
        alpha = model.schedule(t.to(device)).alpha.cpu()
    return Walk(t, alpha.reshape(-1, 1, *(1,) * len(shape)) * model_states, states[:-1], states[-1])
