"""A noise schedule that is trained with the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ndm.method.schedules import GradientWeight, NoiseLevel, Schedule, check_range

__all__ = ["LearnedSchedule"]


class LearnedSchedule(Schedule):
    """A monotone schedule trained with the model: gamma = gamma_0 + (gamma_1 - gamma_0) m(t), m(0) = 0, m(1) = 1.

    m is a convex combination, with softmax weights, of t and of ``knots`` sigmoids at evenly spaced centres, each
    rescaled to run from 0 to 1. So m increases for all weights, and the end points are exact. (VDM, arXiv 2107.00630,
    section 5 and appendix H, uses a monotone network instead.)

    In continuous time the bound does not depend on m (VDM, section 5.1), but the variance of its estimate does, and m
    is trained to lower it: each example's gradient with respect to m is multiplied by its diffusion loss, in nats per
    dimension, which gives the gradient of half the square (VDM, appendix I). The bound's own gradient with respect to m
    is zero on average, so it would only add noise to m. In discrete time the bound depends on m, and trains it.

    Steps that are even in a low-variance time are too few at the noise levels that matter for sampling, so samplers use
    steps that are even in gamma (:attr:`ndm.Schedule.spacing`). For a model that is trained in T steps, and so only at
    their noise levels, pass ``minimize_variance=False`` or call :meth:`train_in_steps`, as ``ndm train`` does.

    The bound always depends on the end points. With ``learn_endpoints`` they are trained too, each within a limited
    distance of its initial value: gamma_0 by at most half the range, gamma_1 by at most :attr:`REACH`. In continuous
    time the bound decreases in gamma_1 without limit, but by less and less. An optimiser that normalises gradients,
    such as Adam, would increase gamma_1 too far, and more and more of the times t would carry no training signal.
    gamma_0 has an optimum, but its gradient is noisy: at a high learning rate it can drift to values where the levels
    of the data cannot be distinguished and the denoiser is no longer trained at lower noise.

    Args:
        gamma_min: gamma at t = 0; the initial value if the end points are learned.
        gamma_max: gamma at t = 1, likewise.
        learn_endpoints: train the end points as well.
        knots: the number of sigmoids.
        minimize_variance: train m to minimise the variance in continuous time, and use sampler steps that are even in
            gamma. If false, m is trained on the bound, and the steps are even in time.

    Raises:
        ValueError: gamma_min is not below gamma_max, or ``knots`` is below 1.
    """

    #: The largest change of a learned gamma_1 from ``gamma_max``; half the range if that is less. The prior term of the
    #: bound is up to 0.003 nats per dimension of unit variance at gamma_max = 5, and 0.0002 at gamma_max = 8.
    REACH = 3.0

    def __init__(
        self,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        learn_endpoints: bool = False,
        knots: int = 16,
        minimize_variance: bool = True,
    ) -> None:
        super().__init__()
        check_range(gamma_min, gamma_max)
        if knots < 1:
            raise ValueError(f"A learned schedule needs at least one knot, got {knots}.")
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max
        self.learn_endpoints = learn_endpoints
        self.knots = knots
        self.minimize_variance = minimize_variance
        weights = torch.full((knots + 1,), 0.5 / knots)
        weights[0] = 0.5  # half of m is initially t itself, so the initial schedule is nearly linear
        self.logits = nn.Parameter(weights.log())
        # gamma_0's, then gamma_1's, in units of their reach. Adam changes a parameter by about the learning rate per
        # step, which would be too slow for a value near -13.
        self.end_shifts = nn.Parameter(torch.zeros(2)) if learn_endpoints else None

    @property
    def spacing(self) -> str:
        return "gamma" if self.minimize_variance else "time"

    def train_in_steps(self) -> None:
        """Train m on the bound and use sampler steps that are even in time, as with ``minimize_variance=False``."""
        self.minimize_variance = False

    def endpoint_parameters(self) -> list[nn.Parameter]:
        return [] if self.end_shifts is None else [self.end_shifts]

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._between_ends(t, *self._monotone(t))

    def at_random(self, t: Tensor, weight: GradientWeight) -> NoiseLevel:
        m, slope = self._monotone(t)
        if self.minimize_variance:
            for part in (m, slope):
                if part.requires_grad:
                    part.register_hook(weight)
        return self.level_at(*self._between_ends(t, m, slope))

    def _argument_now(self, name: str, recorded: Any) -> Any:
        # train_in_steps may have changed it.
        return self.minimize_variance if name == "minimize_variance" else super()._argument_now(name, recorded)

    def _between_ends(self, t: Tensor, m: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and d gamma / dt from m(t) and dm/dt."""
        low, high = self._trained_end_points(t)
        # lerp and where keep the end points exact; a division of equal sums would do so only up to rounding.
        m = torch.where(t >= 1, torch.ones_like(m), torch.where(t <= 0, torch.zeros_like(m), m))
        return torch.lerp(low.expand_as(m), high.expand_as(m), m), (high - low) * slope

    def _trained_end_points(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = t.new_tensor(self.gamma_min), t.new_tensor(self.gamma_max)
        if self.end_shifts is None:
            return low, high
        half = (self.gamma_max - self.gamma_min) / 2
        first, last = torch.tanh(self.end_shifts.to(t.dtype))
        return low + half * first, high + min(self.REACH, half) * last

    def _monotone(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """m(t) and dm/dt, both (B,)."""
        weights = functional.softmax(self.logits.to(t.dtype), dim=0)
        # Created here so that they do not depend on the model's precision when it was built.
        centres = (torch.arange(self.knots, dtype=t.dtype, device=t.device) + 0.5) / self.knots
        sharpness = 2.0 * self.knots
        rise = torch.sigmoid(sharpness * (t[:, None] - centres))
        start, stop = torch.sigmoid(-sharpness * centres), torch.sigmoid(sharpness * (1 - centres))
        span = stop - start
        m = weights[0] * t + ((rise - start) / span) @ weights[1:]
        slope = weights[0] + (sharpness * rise * (1 - rise) / span) @ weights[1:]
        return m, slope
