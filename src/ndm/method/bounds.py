r"""The variational bound of a process, in discrete and in continuous time.

The bound of NDM (arXiv 2310.08337, section 3; method, sections 3 and 4):

    -log p(x) <= L_prior + L_rec + L_diff

    L_prior = KL( q(z_1 | x) || N(0, I) )
    L_rec   = E[ -log p(x | z_0) ]
    L_diff  = T E_i[ KL_i ]                                                             i ~ U{1..T}
            = 1/2 E_t[ gamma' e^{-gamma} ((1 + eta^2)^2 / 4 eta^2) || y - y_hat ||^2 ]  t ~ U[0, 1], for T to infinity
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_labels, as_tensor, check_steps
from ndm._internal.precision import residual_path
from ndm._internal.random import Randomness, below_one, low_discrepancy, normal_like
from ndm.method import decoding
from ndm.method.encoding import TableEncoding
from ndm.method.latents import given_latent
from ndm.method.mixed import MixedDecoder
from ndm.method.mixed_denoiser import WANTED, MixedDenoiser
from ndm.method.process import Process
from ndm.method.schedules import GradientWeight, NoiseLevel, per_example
from ndm.method.steps import ContinuousTime, DiscreteStep

__all__ = ["BoundTerms", "bound"]


@dataclass(frozen=True)
class BoundTerms:
    """The terms of the bound on -log p(data), each (B,), in nats.

    Attributes:
        diffusion: L_diff, an unbiased one-sample estimate.
        prior: L_prior, exact; with a latent, that of z_1 and c.
        reconstruction: L_rec; exact for a Gaussian decoder, a one-sample estimate for a discretised one. For data in
            original units it includes the Jacobian of the standardisation.
        dimensions: d, the number of dimensions of one example.
        auxiliary: an additional training loss that is not part of the bound (a direct denoiser's head for E[F | z]);
            zero for most models.
        columns: for a table and on request, the bound of each column, (B, C), whose sum is the total.
        latent: for a model with a latent c, the part of the prior that is KL( q(c | x) || p(c) ), (B,).
    """

    diffusion: Tensor
    prior: Tensor
    reconstruction: Tensor
    dimensions: int
    auxiliary: Tensor
    columns: Tensor | None = None
    latent: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The bound on -log p(data), (B,), in nats."""
        return self.diffusion + self.prior + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per dimension, (B,): total / (d log 2)."""
        return self.total / (self.dimensions * math.log(2))


def bound(
    process: Process,
    data: Values,
    steps: int | None = None,
    *,
    labels: Values | None = None,
    times: Values | None = None,
    generator: Randomness = None,
    check: bool = True,
    states: Tensor | None = None,
    by_column: bool = False,
) -> BoundTerms:
    r"""Compute the terms of the bound for each example, with one pass through the networks.

    In continuous time the expectation of these terms depends on the schedule only through its end points. A
    :class:`~ndm.LearnedSchedule` therefore gets a gradient that lowers their variance instead.

    Computations use the precision (at least float32) and the device of the networks' weights, not those of the data.
    Under ``torch.autocast`` only the networks run in the autocast precision.

    Args:
        process: the model.
        data: (B, \\*shape): floating-point data, or integers 0..K-1 for a K-level decoder; a tensor, a NumPy array, a
            DataFrame or nested lists.
        steps: T; None for continuous time.
        labels: class labels, (B,), for a conditional denoiser, 0..K-1 for its K classes; for a model with a latent c,
            (B, size), for the bound of -log p(x | c).
        times: evaluation times in [0, 1), (B,); by default low-discrepancy random times. With ``steps``, time u selects
            step floor(T u) + 1.
        generator: for the times and the noise; or a :class:`~ndm._internal.random.Share` of one.
        check: validate the data's shape, the labels, and that no value is NaN, infinite or off the decoder's levels.
        states: for a table, the states of the columns, (B, C): the bound is that of the wanted columns given the given
            ones (:mod:`ndm.method.conditionals`). By default those of the model.
        by_column: for a table in continuous time, also the bound of each column.

    Raises:
        ValueError: ``steps`` is not an integer or is below 1, the times are not B or one is outside [0, 1), the data or
            the labels are invalid, or the model's weights are in half precision.
    """
    if steps is not None:
        check_steps(steps)
    if by_column and (steps is not None or not isinstance(process.standardize, TableEncoding)):
        raise ValueError("The bound of each column is for a table with an encoding, in continuous time.")
    x = process.to_model(data, check)
    labels = as_labels(process, labels, len(x), check)
    if times is not None:
        times = as_tensor(times, "times")
        if times.shape != (len(x),) or not ((times >= 0) & (times < 1)).all():
            raise ValueError(f"The times must be {len(x)} numbers in [0, 1), one per example.")
    with residual_path(x.device):
        return _bound(process, x, steps, labels, times, generator, _states_of(process, states, x), by_column)


def _states_of(process: Process, states: Tensor | None, x: Tensor) -> Tensor | None:
    """The states of the columns, (B, C), on the device of x; None for the density of all columns."""
    denoiser = process.denoiser
    if not isinstance(denoiser, MixedDenoiser):
        if states is not None:
            raise ValueError("States of columns are for a model of a table with a MixedDenoiser.")
        return None
    states = denoiser.default_states(len(x)) if states is None else states
    return None if states is None else states.to(x.device)


def _bound(
    process: Process,
    x: Tensor,
    steps: int | None,
    labels: Tensor | None,
    times: Tensor | None,
    generator: Randomness,
    states: Tensor | None = None,
    by_column: bool = False,
) -> BoundTerms:
    labels, draw = given_latent(process, x, labels, generator)
    whole, mask = x, None
    if states is not None:
        assert isinstance(process.denoiser, MixedDenoiser)
        mask = process.denoiser.coordinates_in(states, WANTED)
        x = x * mask
    u = low_discrepancy(x.shape[0], x, generator) if times is None else below_one(times.to(x))
    noise = normal_like(x, generator)

    ends = process.schedule(u.new_tensor([0.0, 1.0]))
    level_0, level_1 = _end(ends, 0, x), _end(ends, 1, x)
    weight = GradientWeight()
    if steps is None:
        level = process.schedule.at_random(u, weight)
        at: DiscreteStep | ContinuousTime = ContinuousTime(level, process.volatility(level.gamma))
    else:
        at = DiscreteStep(process.grid_step((u * steps).long() + 1, steps, x))

    curve = process.curve(x, labels)
    value, (displacement_0, displacement_1) = at.path_value_and(curve, torch.stack([level_0.gamma, level_1.gamma]))
    z = process.perturbed(x, value, noise, at.level)
    if states is None:
        estimate = process.denoiser.estimate(z, at.level, labels)
    else:
        assert isinstance(process.denoiser, MixedDenoiser)
        estimate = process.denoiser.estimate(z, at.level, labels, states, whole)
    gap = value.standardized(process.mismatch(value, noise, x, estimate, at, labels))
    gap = gap if mask is None else gap * mask

    if isinstance(at, DiscreteStep):
        assert steps is not None
        e = per_example(at.step.scale, gap) * gap
        diffusion = steps * process.covariance(at.step, estimate).kl(e)
    else:
        diffusion = _weight(at) * (gap**2).flatten(1).sum(1)
        weight.value = diffusion.detach() / x[0].numel()
    if estimate.transformed_loss is None:
        auxiliary = torch.zeros_like(diffusion)
    else:
        auxiliary = estimate.transformed_loss(x + value.displacement, value.scaled(noise))
    prior = _prior(x + displacement_1, level_1, mask)
    noise = normal_like(x, generator)
    columns = None
    if by_column:
        assert isinstance(process.standardize, TableEncoding)
        columns = _reconstruction_by_column(process, whole, displacement_0, noise, level_0)
        columns = columns if states is None else columns * (states == WANTED)
        reconstruction = columns.sum(1)
        assert isinstance(at, ContinuousTime)
        columns = columns + process.standardize.sum_by_column(_weight(at)[:, None] * gap**2 + prior)
    else:
        reconstruction = _reconstruction(process, whole, displacement_0, noise, level_0, states, labels)
    return BoundTerms(
        diffusion=diffusion,
        prior=prior.flatten(1).sum(1) + (0.0 if draw is None else draw.kl),
        reconstruction=reconstruction,
        dimensions=x[0].numel(),
        auxiliary=auxiliary,
        columns=columns,
        latent=None if draw is None else draw.kl,
    )


def _end(ends: NoiseLevel, which: int, x: Tensor) -> NoiseLevel:
    """The schedule's end point ``which`` (0 or 1) as a noise level of every example."""
    return ends.map(lambda a: a[which].expand(x.shape[0]))


def _weight(at: ContinuousTime) -> Tensor:
    """The weight of the squared error in L_diff in continuous time, (B,)."""
    eta_squared, level = at.eta**2, at.level
    weight = level.dgamma * torch.exp(-level.gamma) * (1 + eta_squared) ** 2 / (4 * eta_squared)
    return weight / 2


def _reconstruction(
    process: Process,
    x: Tensor,
    displacement: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    states: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    """L_rec in the units of the data, (B,); of the wanted columns only, if there are states."""
    if states is None:
        return decoding.expected_nll(process, x, displacement, noise, level, labels) - process.log_det(x)
    return (_reconstruction_by_column(process, x, displacement, noise, level) * (states == WANTED)).sum(1)


def _reconstruction_by_column(
    process: Process, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel
) -> Tensor:
    """L_rec of each column of a table in its own units, (B, C)."""
    encoding, decoder = process.standardize, process.decoder
    assert isinstance(encoding, TableEncoding)
    if not isinstance(decoder, MixedDecoder):  # all columns are real: each is a coordinate
        decoder = MixedDecoder(encoding.layouts())
    every = decoder.expected_by_column(x, displacement, noise, level)
    return every - encoding.log_det_by_column(x).to(every)


def _prior(f_1: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
    """KL( N(alpha_1 F(x, 1), sigma_1^2 I) || N(0, I) ) of each coordinate, (B, \\*shape); 0 outside of the mask."""
    variance = per_example(level.sigma, f_1) ** 2
    kl = variance + per_example(level.alpha, f_1) ** 2 * f_1**2 - 1 - variance.log()
    return (kl if mask is None else kl * mask) / 2
