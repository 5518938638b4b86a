r"""The forward and reverse process formed by schedule, transformation, denoiser, decoder, variance and volatility.

Forward (method, section 2; NDM, arXiv 2310.08337, section 3):

    q(z_t | x)      = N( alpha_t F(x, t), sigma_t^2 I )
    q(z_s | z_t, x) = N( c z_t + alpha_s gain y, v I ),     y = F(x, t) + slope

With learned noise, std(x, t) replaces sigma_t, and y has one more term (:mod:`ndm.method.noise`).

The reverse process depends on x only through y. For a step, slope = (F(x, s) - F(x, t)) / gain. As the step tends to
zero, slope tends to -2 / (1 + eta^2) dF/dgamma, and the same formulas hold in continuous time. The reverse process is
therefore defined by an estimate of y: F(x_hat, t) + slope(x_hat) as in the paper, or a network's own (DiffEnc, arXiv
2310.19789).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ndm._internal.precision import residual_path
from ndm.method.abbreviations import as_part
from ndm.method.clocks import inward
from ndm.method.compatibility import check_fit
from ndm.method.coordinates import DATA, Coordinates
from ndm.method.decoders import Decoder
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.encoding import TableEncoding
from ndm.method.latents import Latent
from ndm.method.noise import Noise
from ndm.method.schedules import NoiseLevel, Schedule, per_example
from ndm.method.standardization import Standardize
from ndm.method.steps import ContinuousTime, DiscreteStep, Kernel, PathEvaluator
from ndm.method.transforms.curve import Curve, PathValue, Transform
from ndm.method.units import InUnits
from ndm.method.variances import LARGEST_SHARE, Covariance, PosteriorVariance, ReverseVariance, Step

__all__ = ["Process", "frozen"]


@contextmanager
def frozen(model: Process) -> Iterator[None]:
    """Put the model in eval mode without gradients for its parameters; restore both on exit."""
    was_training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for parameter in trained:
            parameter.requires_grad_(True)


@runtime_checkable
class Ranged(Protocol):
    """A part that maps gamma to [0, 1] and therefore needs the schedule's end points."""

    def set_gamma_range(self, gamma_min: float, gamma_max: float) -> None: ...


class Process(InUnits):
    """The forward marginals and posteriors, the reverse kernel, and the reverse SDE and ODE of a set of parts.

    Args:
        schedule: t -> noise level.
        transform: F(x, gamma).
        denoiser: x_hat, or y for a direct reverse process; any module called as denoiser(z, level) is accepted.
        decoder: p(x | z_0).
        reverse_variance: ``posterior``, ``large``, ``learned``, ``predicted``, ``range``, or an
            :class:`ndm.ReverseVariance`.
        volatility: eta, a positive number, or a module gamma (B,) -> eta (B,).
        standardize: the map from data in original units to x, a Standardize or, for a table of columns of several
            kinds, a TableEncoding; None for the identity.
        noise: the learned standard deviation of the forward process; None for sigma.
        latent: a latent variable given to the reverse process, and to the noise; None for none.

    Raises:
        ValueError: the parts are incompatible; the message says which.
    """

    def __init__(
        self,
        schedule: Schedule,
        transform: Transform,
        denoiser: nn.Module,
        decoder: Decoder | None = None,
        reverse_variance: str | ReverseVariance = "posterior",
        volatility: float | nn.Module = 1.0,
        standardize: Standardize | TableEncoding | None = None,
        noise: Noise | None = None,
        latent: Latent | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.transform = transform
        self.denoiser: BaseDenoiser = as_part("denoiser", denoiser)
        self.decoder: Decoder = as_part("decoder", decoder)
        self.reverse_variance: ReverseVariance = as_part("reverse_variance", reverse_variance)
        self.volatility: nn.Module = as_part("volatility", volatility)
        self.standardize = standardize
        self.noise = noise
        self.latent = latent
        check_fit(self)
        self._tell_ranges()

    def _tell_ranges(self) -> None:
        """Pass the schedule's end points to the parts that map gamma to [0, 1], and the schedule to the denoiser."""
        for part in (self.transform, self.denoiser, self.reverse_variance, self.volatility):
            if isinstance(part, Ranged):
                part.set_gamma_range(*self.schedule.end_points())
        self.denoiser.set_schedule(self.schedule)

    # ---- the forward process

    def step(self, s: Tensor, t: Tensor, index: Tensor, steps: int | None, eta: Tensor | float | None = None) -> Step:
        """The step from time t to time s, both (B,); eta overrides the model's volatility."""
        level_s, level_t = self.schedule(s), self.schedule(t)
        eta = self.volatility(level_t.gamma) if eta is None else torch.as_tensor(eta).to(t).expand_as(t)
        return Step.between(level_s, level_t, eta, index, steps, self.largest_share)

    @property
    def largest_share(self) -> float:
        """The largest v / sigma_s^2 of a step."""
        return LARGEST_SHARE if self.noise is None else self.noise.largest_share

    @property
    def coordinates(self) -> Coordinates:
        """Those in which the noise of the forward process is independent."""
        return DATA if self.noise is None else self.noise.coordinates

    def curve(self, x: Tensor, labels: Tensor | None = None) -> Curve:
        """The curve of x, (B, \\*shape), with its noise; labels, or the latent c, as for the denoiser."""
        curve = self.transform(x)
        if self.noise is not None:
            curve.noise = self.noise(x, self._ends(x), labels)
        return curve

    def perturbed(self, x: Tensor, value: PathValue, noise: Tensor, level: NoiseLevel) -> Tensor:
        """z_t = alpha F(x, t) + V std(x, t) noise for the curve's value at that level, all (B, \\*shape)."""
        mean = per_example(level.alpha, x) * (x + value.displacement)
        return mean + per_example(level.sigma, x) * value.scaled(noise)

    def calibrated(self, steps: int) -> bool:
        """Whether there is a reverse variance calibrated for T = ``steps``, with its own grid of steps."""
        return False

    def grid(self, steps: int) -> Tensor | None:
        """The times of the model's own T steps, (T + 1,), increasing from 0 to 1; None for even ones."""
        return None

    def grid_step(
        self,
        index: Tensor,
        steps: int,
        like: Tensor,
        eta: Tensor | float | None = None,
        grid: Tensor | None = None,
    ) -> Step:
        """Step number ``index`` (B,), 1..T, of T steps, in the precision of ``like``.

        The steps are those of ``grid``, (T + 1,), if it is given. Otherwise they are the model's own, which apply only
        to its own volatility: with another eta the steps are even.
        """
        index = index.to(like.device)
        if grid is None and eta is None:
            grid = self.grid(steps)
        if grid is None:
            t, s = index.to(like.dtype) / steps, (index - 1).to(like.dtype) / steps
        else:
            grid = grid.to(like)
            t, s = grid[index], grid[index - 1]
        return self.step(s, t, index, steps, eta)

    def marginal(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q(z_t | x): its mean alpha F(x, t), (B, \\*shape), and its standard deviation sigma, (B,), or with learned
        noise sigma e^h, (B, \\*shape), in its coordinates.
        """
        level, curve = self.schedule(t), self.curve(x, labels)
        mean = per_example(level.alpha, x) * curve(level.gamma)
        if curve.noise is None:
            return mean, level.sigma
        return mean, per_example(level.sigma, x) * curve.noise(level.gamma)[0].exp()

    def posterior(self, x: Tensor, z: Tensor, step: Step, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q(z_s | z_t, x): its mean, (B, \\*shape), and its variance v, (B,); (B, \\*shape) for a given noise, in
        its coordinates.
        """
        y, spread = self._y_and_spread(x, z, DiscreteStep(step), labels)
        v = step.v if spread is None else per_example(step.v, z) * spread**2
        return self.step_mean(z, y, step), v

    def spread(self, z: Tensor, at: PathEvaluator, labels: Tensor | None = None) -> Tensor | None:
        """The standard deviation of the reverse process in units of the schedule's, (B, \\*shape), for z of that shape,
        in the coordinates of the noise; None for 1.
        """
        if self.noise is None or not self.noise.given:
            return None
        value = at.noise_value(self.noise(z, self._ends(z), labels))
        return None if value.spread is None else value.spread.expand_as(z)

    def _ends(self, x: Tensor) -> Tensor:
        return self.schedule.gamma(x.new_tensor([0.0, 1.0]))[0]

    def step_mean(self, z: Tensor, y: Tensor, step: Step) -> Tensor:
        """The mean of z_s, c z_t + alpha_s gain y, for z_t and y, all (B, \\*shape)."""
        return per_example(step.c, z) * z + per_example(step.s.alpha * step.gain, z) * y

    # ---- the reverse process

    @property
    def has_ode(self) -> bool:
        """Whether the model has a reverse ODE, and with it a log-likelihood."""
        known = self.noise is None or self.noise.given
        return not self.denoiser.direct or (known and bool(getattr(self.denoiser, "ode", False)))

    def covariance(self, step: Step, estimate: Estimate) -> Covariance:
        """The reverse step's covariance over v."""
        return self.reverse_variance(step, estimate)

    def y_hat(self, z: Tensor, estimate: Estimate, at: PathEvaluator, labels: Tensor | None = None) -> Tensor:
        """The reverse process's estimate of y from z_t, (B, \\*shape)."""
        return estimate.mean if self.denoiser.direct else self.y_of(estimate.mean, z, at, labels)

    def y_of(self, x: Tensor, z: Tensor, at: PathEvaluator, labels: Tensor | None = None) -> Tensor:
        """y for data x and z_t, all (B, \\*shape)."""
        return self._y_and_spread(x, z, at, labels)[0]

    def _y_and_spread(
        self, x: Tensor, z: Tensor, at: PathEvaluator, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`y_of` and :meth:`spread` from one evaluation of the curve."""
        value = at.path_value(self.curve(x, labels))
        y = x + value.offset
        if value.tilt is not None:
            y = y - value.tilted(z / per_example(at.level.alpha, z) - x - value.displacement)
        return y, None if value.spread is None else value.spread.expand_as(z)

    def mismatch(
        self,
        value: PathValue,
        noise: Tensor,
        x: Tensor,
        estimate: Estimate,
        at: PathEvaluator,
        labels: Tensor | None = None,
    ) -> Tensor:
        """y - y_hat, (B, \\*shape), without cancellation, for z_t = alpha F(x, t) + std(x, t) noise.

        Args:
            value: the curve of x at this step or instant.
            noise: (B, \\*shape).
            x: (B, \\*shape).
            estimate: the denoiser's output for z_t.
            at: the step or the instant.
            labels: class labels, (B,), or the latent c.
        """
        noise = value.scaled(noise)  # in units of sigma
        if self.denoiser.direct:
            # The denoiser's residual is for F(x, t); y differs from it by the slope and the tilt.
            gap = estimate.residual(x + value.displacement, torch.zeros_like(x), noise) + value.slope
            return gap if value.tilt is None else gap - value.tilted(self._from_path(noise, at.level))
        residual = estimate.residual(x, value.displacement, noise)
        if value.tilt is None:
            return self.transform.difference(value, estimate.mean, residual, at.path_value)
        if value.spread is not None:  # the noise of x_hat is that of x
            other = at.path_value(self.transform(estimate.mean))
            gap = residual + (value.offset - other.offset)
            return gap + value.tilted(residual + (value.displacement - other.displacement))
        other = at.path_value(self.curve(estimate.mean, labels))
        assert other.tilt is not None
        gap = residual + (value.offset - other.offset) - (value.tilt - other.tilt) * self._from_path(noise, at.level)
        return gap + other.tilted(residual + (value.displacement - other.displacement))

    @staticmethod
    def _from_path(noise: Tensor, level: NoiseLevel) -> Tensor:
        """z / alpha - F(x, t) for the noise in units of sigma, (B, \\*shape)."""
        return per_example(level.sigma / level.alpha, noise) * noise

    def kernel(self, z: Tensor, step: Step, labels: Tensor | None = None, override: bool = False) -> Kernel:
        """p(z_s | z_t).

        Args:
            z: z_t, (B, \\*shape).
            step: from t to s.
            labels: class labels, (B,).
            override: the step's eta is not the model's own, so use v instead of the model's variance.
        """
        with residual_path(z.device):
            estimate, at = self.denoiser.estimate(z, step.t, labels), DiscreteStep(step)
            if self.denoiser.direct:
                y_hat, spread = estimate.mean, self.spread(z, at, labels)
            else:
                y_hat, spread = self._y_and_spread(estimate.mean, z, at, labels)
            if override and self.denoiser.direct:
                eta = self.volatility(step.t.gamma)
                own = Step.between(step.s, step.t, eta, step.index, step.steps, self.largest_share)
                y_hat = self._other_y(z, estimate, DiscreteStep(own), at, labels)
            covariance = PosteriorVariance()(step, estimate) if override else self.covariance(step, estimate)
            return Kernel(self.step_mean(z, y_hat, step), step.v, covariance, spread, self.coordinates)

    def drift(self, z: Tensor, t: Tensor, labels: Tensor | None = None, eta: Tensor | float | None = None) -> Tensor:
        r"""dz/dt of the reverse SDE with volatility eta, run from t = 1 to 0; the ODE's with eta = 0 (method, section
        5).

        dz = [ (sigma'/sigma + eta^2 gamma'/2) z - alpha gamma' (1 + eta^2)/2 y ] dt + g dw,
        g^2 = eta^2 sigma^2 gamma'.

        The drift is zero where a schedule is clipped. At t = 0 and t = 1 it is then the limit from inside the interval
        (:func:`ndm.method.clocks.inward`), which a solver's first step needs.

        Args:
            z: (B, \\*shape).
            t: (B,).
            labels: class labels, (B,).
            eta: None for the model's own volatility.

        Raises:
            ValueError: the reverse process is direct, has no estimate of F, and eta is not the model's own.
        """
        return self.drift_at(z, self.schedule(inward(self.schedule, t)), labels, eta)

    def drift_at(
        self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None, eta: Tensor | float | None = None
    ) -> Tensor:
        r"""Like :meth:`drift`, at a noise level, per unit of the variable of the level's derivatives.

        With ``schedule.level_at(gamma)`` it is dz/dgamma, which does not depend on the schedule between its end points.
        """
        with residual_path(z.device):
            y_hat, used = self.heading(z, level, labels, eta)
            z_factor = level.dlog_sigma + used**2 * level.dgamma / 2
            y_factor = level.alpha * level.dgamma * (1 + used**2) / 2
            return per_example(z_factor, z) * z - per_example(y_factor, z) * y_hat

    def heading(
        self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None, eta: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""The estimate of y used by :meth:`drift`, (B, \\*shape), and the volatility it is for, (B,)."""
        with residual_path(z.device):
            own, used = self.volatility(level.gamma), self.volatility_at(level, eta)
            estimate = self.denoiser.estimate(z, level, labels)
            at = ContinuousTime(level, used)
            if eta is not None and self.denoiser.direct:
                return self._other_y(z, estimate, ContinuousTime(level, own), at, labels), used
            return self.y_hat(z, estimate, at, labels), used

    def diffusion(
        self, z: Tensor, t: Tensor, labels: Tensor | None = None, eta: Tensor | float | None = None
    ) -> Tensor:
        """g of the reverse SDE, (B,), with the arguments of :meth:`drift`; (B, \\*shape) for a given noise, in its
        coordinates.
        """
        return self.diffusion_at(z, self.schedule(inward(self.schedule, t)), labels, eta)

    def diffusion_at(
        self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None, eta: Tensor | float | None = None
    ) -> Tensor:
        """Like :meth:`diffusion`, per unit of the variable of the level's derivatives."""
        used = self.volatility_at(level, eta)
        g = used * level.sigma * level.dgamma.sqrt()
        spread = self.spread(z, ContinuousTime(level, used), labels)
        return g if spread is None else per_example(g, z) * spread

    def volatility_at(self, level: NoiseLevel, eta: Tensor | float | None = None) -> Tensor:
        """eta, (B,), if it is given, else the model's own volatility at a noise level."""
        own = self.volatility(level.gamma)
        return own if eta is None else torch.as_tensor(eta).to(own).expand_as(own)

    def _other_y(
        self, z: Tensor, estimate: Estimate, own: PathEvaluator, at: PathEvaluator, labels: Tensor | None
    ) -> Tensor:
        """y of another volatility, that of ``at``, from a direct denoiser's for its own, with its estimate of F."""
        if self.noise is not None and not self.noise.given:
            raise ValueError(
                "A direct reverse process with a noise of x has no ODE and no volatility but its own: sample with "
                'method="sde" or "ancestral", or use a Denoiser.'
            )
        if estimate.transformed is None:
            raise ValueError(
                "A DirectDenoiser predicts F - dF/dgamma for its own volatility only; the ODE, DDIM and other "
                "volatilities also need F. Use DirectDenoiser(net, ode=True), whose network has one more head, and "
                'train again; or sample with method="sde" or "ancestral".'
            )
        f = estimate.transformed
        # Both gains of an empty step (of a clipped schedule) are zero, and its mean is z for every y.
        empty = at.gain == 0
        ratio = per_example(own.gain / torch.where(empty, 1.0, at.gain), f)
        if self.noise is None:
            return f + ratio * (estimate.mean - f)
        noise, from_path = self.noise(z, self._ends(z), labels), z / per_example(at.level.alpha, z) - f
        tilt = ratio * own.noise_value(noise).tilt - at.noise_value(noise).tilt
        return f + ratio * (estimate.mean - f) + self.coordinates.back(tilt * self.coordinates.into(from_path))
