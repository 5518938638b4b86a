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
    rescaled to run from 0 to 1. So m increases whatever the weights are, and the end points are kept to the last digit
    (VDM, arXiv 2107.00630, section 5 and appendix H, trains gamma by a monotone network).

    In continuous time the bound does not depend on m (VDM, section 5.1), only the variance of its estimate does, and m
    is trained to lower that: the gradient that an example sends to m is multiplied by its term of the diffusion loss,
    in nats per dimension, which makes it that of half the square (VDM, appendix I). The bound's own gradient would be
    noise around zero, and m would wander. In discrete time the bound depends on m, and trains it.

    A time that is made for low variance spends few of its even steps where samples are decided, so samplers take steps
    that are even in gamma (:attr:`ndm.Schedule.spacing`). For a model that is trained in T steps, and knows no noise
    levels but theirs, say ``minimize_variance=False`` or call :meth:`train_in_steps`, as ``ndm train`` does.

    The bound always depends on the end points, and with ``learn_endpoints`` they are trained too, each within a reach
    of where it starts: gamma_0 up to half the range either way, gamma_1 up to :attr:`REACH`. In continuous time the
    bound falls with gamma_1 for ever, by less and less, and an optimiser that divides gradients by their size, such as
    Adam, would follow it far beyond what it is worth, and spend ever more of the times t where there is nothing to
    learn.
    gamma_0 has an optimum, but its gradient is noisy: at a high learning rate it can walk off to where the levels of
    the data are no longer told apart and the denoiser sees nothing of the lower noise any more.

    Args:
        gamma_min: gamma at t = 0, or where it starts when the end points are learned.
        gamma_max: gamma at t = 1, likewise.
        learn_endpoints: train the end points as well.
        knots: the number of sigmoids.
        minimize_variance: train m for the variance in continuous time, and have samplers step evenly in gamma; without,
            its gradient is the bound's, and they step evenly in time.

    Raises:
        ValueError: gamma_min is not below gamma_max, or ``knots`` is below 1.
    """

    #: How far a learned gamma_1 may come from ``gamma_max``; half of the range, if that is less. At gamma_max = 5 the
    #: prior's part of the bound is up to 0.003 nats per dimension of unit variance, and 3 further up 0.0002.
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
        weights[0] = 0.5  # half of m is t itself to begin with, which keeps the start nearly linear
        self.logits = nn.Parameter(weights.log())
        # gamma_0's, then gamma_1's, in units of their reach. Adam moves a parameter by about its learning rate a step,
        # which would be too slow for a number near -13.
        self.end_shifts = nn.Parameter(torch.zeros(2)) if learn_endpoints else None

    @property
    def spacing(self) -> str:
        return "gamma" if self.minimize_variance else "time"

    def train_in_steps(self) -> None:
        """Leave m to the bound, and samplers at the times that it is trained at: as ``minimize_variance=False``."""
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
        # train_in_steps may have taken it back.
        return self.minimize_variance if name == "minimize_variance" else super()._argument_now(name, recorded)

    def _between_ends(self, t: Tensor, m: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and d gamma / dt, of m(t) and dm/dt."""
        low, high = self._trained_end_points(t)
        # lerp and where keep the end points exact, which a division of equal sums would do only up to rounding.
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
        # Made here, they are the same whatever precision the model was in when it was built.
        centres = (torch.arange(self.knots, dtype=t.dtype, device=t.device) + 0.5) / self.knots
        sharpness = 2.0 * self.knots
        rise = torch.sigmoid(sharpness * (t[:, None] - centres))
        start, stop = torch.sigmoid(-sharpness * centres), torch.sigmoid(sharpness * (1 - centres))
        span = stop - start
        m = weights[0] * t + ((rise - start) / span) @ weights[1:]
        slope = weights[0] + (sharpness * rise * (1 - rise) / span) @ weights[1:]
        return m, slope
