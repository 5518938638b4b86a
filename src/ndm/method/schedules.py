r"""Noise schedules: map time t in [0, 1] to alpha(t), sigma(t) and gamma(t) = log(sigma^2 / alpha^2).

t = 0 is data, t = 1 is noise, and gamma (minus the log signal-to-noise ratio) never decreases. Variance-preserving
schedules have alpha^2 = sigmoid(-gamma) and sigma^2 = sigmoid(gamma) (Kingma et al., *Variational Diffusion Models*,
arXiv 2107.00630, section 3.2).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ndm.method.parts import Part

__all__ = [
    "CosineSchedule",
    "DDPMSchedule",
    "GradientWeight",
    "LinearSchedule",
    "NoiseLevel",
    "OTSchedule",
    "Schedule",
    "per_example",
]

#: Bisections of [0, 1] in the search for a time: to the precision of float64.
BISECTIONS = 53

#: A time this close to an end point is treated as the end point.
ROUNDING = 1e-12


def per_example(a: Tensor, like: Tensor) -> Tensor:
    """Add trailing axes of size one to ``a``, one number per example, so that it broadcasts against ``like``.

    Args:
        a: (..., B).
        like: (B, \\*shape).

    Returns:
        (..., B, 1, ..., 1) with as many ones as ``shape`` has axes.
    """
    return a.reshape(a.shape + (1,) * (like.ndim - 1))


@dataclass(frozen=True)
class NoiseLevel:
    """The noise level of a batch of examples; each field has shape (B,).

    Attributes:
        alpha: the signal's factor.
        sigma: the noise's standard deviation, positive.
        gamma: log(sigma^2 / alpha^2).
        dgamma: d gamma / dt, zero where the schedule is clipped.
        dlog_sigma: d log sigma / dt.
        shared: whether all examples have the same noise level; networks then embed it once.
    """

    alpha: Tensor
    sigma: Tensor
    gamma: Tensor
    dgamma: Tensor
    dlog_sigma: Tensor
    shared: bool = False

    def map(self, function: Callable[[Tensor], Tensor]) -> NoiseLevel:
        """The noise level whose tensors are ``function`` of these."""
        return NoiseLevel(
            alpha=function(self.alpha),
            sigma=function(self.sigma),
            gamma=function(self.gamma),
            dgamma=function(self.dgamma),
            dlog_sigma=function(self.dlog_sigma),
        )


@dataclass
class GradientWeight:
    """A factor of each example's gradient that is known only after the forward pass.

    Attributes:
        value: (B,); None until it is known.
    """

    value: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """The gradient, (B,), times the factor: a hook for :meth:`torch.Tensor.register_hook`.

        Raises:
            RuntimeError: the factor has not been set.
        """
        if self.value is None:
            raise RuntimeError(
                "The weight of the schedule's gradient is not set: compute the bound before the backward pass."
            )
        return gradient * self.value


class Schedule(Part):
    """Base class of schedules. Subclasses define gamma and d gamma / dt; this class computes the noise level."""

    @abstractmethod
    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma(t) and d gamma / dt, both (B,), for t of shape (B,)."""

    def forward(self, t: Tensor) -> NoiseLevel:
        """The noise level at the times ``t``, shape (B,), in [0, 1]; computed in the precision of ``t``."""
        level = self.level_at(*self.gamma(t))
        return replace(level, shared=True) if t.stride() == (0,) else level

    def level_at(self, gamma: Tensor, dgamma: Tensor | None = None) -> NoiseLevel:
        """The noise level at a given gamma: variance preserving (VDM, section 3.2).

        A schedule with other alpha and sigma overrides this method, not ``forward``.

        Args:
            gamma: (B,).
            dgamma: d gamma / dt, (B,); None means 1, so that the derivatives are with respect to gamma.

        Raises:
            ValueError: the schedule overrides ``forward``, so its noise level is not known as a function of gamma.
        """
        if dgamma is None:
            if type(self).forward is not Schedule.forward:
                raise ValueError(
                    f"{type(self).__name__} overrides forward, but its noise levels are needed as functions of gamma: "
                    "override level_at(gamma, dgamma) instead."
                )
            dgamma = torch.ones_like(gamma)
        alpha_squared = torch.sigmoid(-gamma)
        return NoiseLevel(
            alpha=alpha_squared.sqrt(),
            sigma=torch.sigmoid(gamma).sqrt(),
            gamma=gamma.contiguous(),  # forward mode does not support expanded tensors
            dgamma=dgamma,
            dlog_sigma=alpha_squared * dgamma / 2,  # d log sigma / d gamma = alpha^2 / 2
            shared=gamma.stride() == (0,),
        )

    def at_random(self, t: Tensor, weight: GradientWeight) -> NoiseLevel:
        """Like ``forward``, at the random times over which the bound's integrand is averaged in continuous time.

        The expectation depends on the schedule only through its end points; the variance depends on all of it. A
        trained schedule may minimise the variance.

        Args:
            t: (B,).
            weight: must contain the integrand at t, (B,), in nats per dimension, before the backward pass.
        """
        return self(t)

    #: The index of the last noise level of a table's; None for a schedule that is not given by a table.
    last_index: int | None = None

    @property
    def spacing(self) -> str:
        """The default spacing of a sampler's steps: even in ``time`` or in ``gamma`` (:meth:`even_in_gamma`)."""
        return "time"

    def train_in_steps(self) -> None:
        """Prepare for training in discrete time, in T steps that are even in this schedule's time."""

    def end_points(self) -> tuple[float, float]:
        """The current gamma(0) and gamma(1)."""
        with torch.no_grad():
            gamma, _ = self.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64, device=self._device()))
        return gamma[0].item(), gamma[1].item()

    @torch.no_grad()
    def even_in_gamma(self, steps: int) -> Tensor:
        """The times of T steps of equal length in gamma, the log noise-to-signal ratio.

        Args:
            steps: T.

        Returns:
            (T + 1,), float64, increasing from 0 to 1. If the schedule is clipped, its constant ends are left out: the
            first time is then the last one with gamma(0), and the last time is the first one with gamma(1).

        Raises:
            ValueError: ``steps`` is below one.

        Example:
            >>> LinearSchedule().even_in_gamma(4)
            tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
        """
        if steps < 1:
            raise ValueError(f"The number of steps must be at least 1, got {steps}.")
        low, high = self.end_points()
        wanted = torch.linspace(low, high, steps + 1, dtype=torch.float64, device=self._device())
        last = torch.arange(steps + 1, device=wanted.device) == steps
        times = self._times_of(wanted, last & (wanted >= high))
        # Removes rounding errors at the ends if nothing is clipped.
        return torch.where(times < ROUNDING, 0.0, torch.where(times > 1 - ROUNDING, 1.0, times))

    def time_at(self, gamma: Tensor) -> Tensor:
        """The time t at which the noise level is gamma, (B,): the inverse of :meth:`gamma`, in [0, 1].

        Where a schedule is clipped it is the time nearest to the noise levels in between. By default it is found by
        bisection and can be differentiated with respect to gamma.

        Example:
            >>> schedule = CosineSchedule()
            >>> schedule.time_at(schedule(torch.tensor([0.25, 0.75])).gamma)
            tensor([0.2500, 0.7500])
        """
        low, high = self.end_points()
        wanted = gamma.double().clamp(low, high)
        with torch.no_grad():
            found = self._times_of(wanted, wanted >= high)
        reached, slope = self.gamma(found)
        rate = torch.where(slope > 0, 1 / slope, torch.zeros_like(slope)).detach()
        # The difference is zero up to rounding, and has the derivative of the inverse.
        return (found + rate * (wanted - reached)).to(gamma.dtype)

    def _times_of(self, wanted: Tensor, first: Tensor) -> Tensor:
        """The last time with a gamma of at most ``wanted``, float64 (P,), by bisection; where ``first``, bool (P,), is
        true the first one with at least ``wanted``.
        """
        before, after = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(BISECTIONS):  # works for every schedule, since gamma never decreases
            middle = (before + after) / 2
            gamma, _ = self.gamma(middle)
            late = torch.where(first, gamma >= wanted, gamma > wanted)
            before, after = torch.where(late, before, middle), torch.where(late, middle, after)
        return (before + after) / 2

    def endpoint_parameters(self) -> list[nn.Parameter]:
        """The parameters of the end points, which may have their own learning rate; empty if they are fixed."""
        return []

    def _device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def check_range(gamma_min: float, gamma_max: float) -> None:
    if not (math.isfinite(gamma_min) and math.isfinite(gamma_max) and gamma_min < gamma_max):
        raise ValueError(
            f"gamma_min must be below gamma_max and both finite, got gamma_min={gamma_min}, gamma_max={gamma_max}: "
            "gamma is the log noise-to-signal ratio, low at the data and high at the noise."
        )


def clip(gamma: Tensor, dgamma: Tensor, gamma_min: float, gamma_max: float) -> tuple[Tensor, Tensor]:
    inside = (gamma > gamma_min) & (gamma < gamma_max)
    return gamma.clamp(gamma_min, gamma_max), torch.where(inside, dgamma, torch.zeros_like(dgamma))


class LinearSchedule(Schedule):
    """gamma(t) = gamma_min + (gamma_max - gamma_min) t: the log signal-to-noise ratio decreases linearly.

    Args:
        gamma_min: gamma at t = 0. The default is VDM's (arXiv 2107.00630, appendix B) for 8-bit images.
        gamma_max: gamma at t = 1.

    Raises:
        ValueError: gamma_min is not below gamma_max.
    """

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0) -> None:
        super().__init__()
        check_range(gamma_min, gamma_max)
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = torch.lerp(t.new_tensor(self.gamma_min), t.new_tensor(self.gamma_max), t)
        return gamma, torch.full_like(t, self.gamma_max - self.gamma_min)

    def time_at(self, gamma: Tensor) -> Tensor:
        return ((gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)).clamp(0, 1)


class CosineSchedule(Schedule):
    """alpha^2 = cos^2(a(t)) / cos^2(a(0)), a(t) = (pi / 2) (t + offset) / (1 + offset).

    Nichol and Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, arXiv 2102.09672, equation 17. gamma is
    clipped to [gamma_min, gamma_max] because it is infinite at both ends.

    Args:
        offset: the paper's s; 0 gives alpha = cos(pi t / 2), sigma = sin(pi t / 2).
        gamma_min: the lowest gamma.
        gamma_max: the highest gamma.

    Raises:
        ValueError: gamma_min is not below gamma_max, or the offset is negative.
    """

    def __init__(self, offset: float = 0.008, gamma_min: float = -13.3, gamma_max: float = 13.3) -> None:
        super().__init__()
        check_range(gamma_min, gamma_max)
        if offset < 0:
            raise ValueError(f"The offset of a cosine schedule must not be negative, got {offset}.")
        self.offset = offset
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rate = math.pi / 2 / (1 + self.offset)
        a_0 = rate * self.offset
        a = rate * (t + self.offset)
        # cos^2 a_0 - cos^2 a = sin(a - a_0) sin(a + a_0), and the left-hand side would cancel near t = 0; a - a_0
        # equals rate t, which is never rounded below zero.
        gamma = torch.log(torch.sin(rate * t) * torch.sin(a + a_0)) - 2 * torch.log(torch.cos(a).abs())
        dgamma = rate * (1 / torch.tan(rate * t) + 1 / torch.tan(a + a_0) + 2 * torch.tan(a))
        return clip(gamma, dgamma, self.gamma_min, self.gamma_max)


class DDPMSchedule(Schedule):
    """DDPM's linear betas in continuous time: alpha(k / steps)^2 is the product of 1 - beta_j over j = 1..k.

    Ho et al., *Denoising Diffusion Probabilistic Models*, arXiv 2006.11239, section 4. Since the betas are linear in j,
    the product is a ratio of Gamma functions, d^k Gamma(A + 1) / Gamma(A + 1 - k) with d the increment of beta and
    A = (1 - beta_min) / d. That ratio is smooth in k and equals DDPM's alpha-bar at every integer k, so it defines the
    schedule at all times.

    Args:
        beta_min: the first beta.
        beta_max: the last beta.
        steps: the number of betas.
        gamma_min: the lowest gamma. DDPM's gamma is minus infinity at t = 0 and -9.2 at its first step.

    Raises:
        ValueError: the betas do not satisfy 0 < beta_min < beta_max < 1, there are fewer than two, or gamma_min is not
            below gamma(1).
    """

    def __init__(
        self, beta_min: float = 1e-4, beta_max: float = 0.02, steps: int = 1000, gamma_min: float = -13.3
    ) -> None:
        super().__init__()
        if not 0 < beta_min < beta_max < 1:
            raise ValueError(
                f"The betas must satisfy 0 < beta_min < beta_max < 1, got beta_min={beta_min}, beta_max={beta_max}."
            )
        if steps < 2:
            raise ValueError(f"A DDPM schedule needs at least 2 steps, got {steps}.")
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.steps = steps
        self.gamma_min = gamma_min
        check_range(gamma_min, self.end_points()[1])

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # The Gamma functions' logarithms are near 5e5 and their difference near 1e-4: this needs float64.
        k = t.double() * self.steps
        d = (self.beta_max - self.beta_min) / (self.steps - 1)
        a_plus_1 = k.new_tensor((1 - self.beta_min) / d + 1)
        log_alpha_squared = k * math.log(d) + torch.lgamma(a_plus_1) - torch.lgamma(a_plus_1 - k)
        slope = self.steps * (math.log(d) + torch.digamma(a_plus_1 - k))
        gamma = torch.log(torch.expm1(-log_alpha_squared).clamp(min=0))
        dgamma = slope / torch.expm1(log_alpha_squared)
        gamma, dgamma = clip(gamma, dgamma, self.gamma_min, math.inf)
        return gamma.to(t.dtype), dgamma.to(t.dtype)


class OTSchedule(Schedule):
    """alpha = 1 - t, sigma = t: flow matching's straight path from data to noise.

    Lipman et al., *Flow Matching for Generative Modeling*, arXiv 2210.02747, section 4.1 (with sigma_min = 0 and time
    running from data to noise). gamma = 2 log(t / (1 - t)) is clipped to [gamma_min, gamma_max] to stay finite; within
    that range alpha and sigma are exact. Not variance preserving.

    Args:
        gamma_min: the lowest gamma.
        gamma_max: the highest gamma.

    Raises:
        ValueError: gamma_min is not below gamma_max.
    """

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 13.3) -> None:
        super().__init__()
        check_range(gamma_min, gamma_max)
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = 2 * (torch.log(t) - torch.log1p(-t))
        return clip(gamma, 2 / (t * (1 - t)), self.gamma_min, self.gamma_max)

    def level_at(self, gamma: Tensor, dgamma: Tensor | None = None) -> NoiseLevel:
        """The noise level at a given gamma, with alpha + sigma = 1; see :meth:`Schedule.level_at`."""
        dgamma = torch.ones_like(gamma) if dgamma is None else dgamma
        alpha, sigma = torch.sigmoid(-gamma / 2), torch.sigmoid(gamma / 2)
        return NoiseLevel(
            alpha=alpha, sigma=sigma, gamma=gamma.contiguous(), dgamma=dgamma, dlog_sigma=alpha * dgamma / 2
        )

    def time_at(self, gamma: Tensor) -> Tensor:
        return torch.sigmoid(gamma / 2)
