"""The schedules of models that were trained by other programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ndm.method.schedules import Schedule, check_range, clip

__all__ = ["TableSchedule", "VPSchedule"]


class TableSchedule(Schedule):
    r"""A schedule given by N noise levels: alpha^2 = alphas_cumprod[k], sigma^2 = 1 - alpha^2 at t = k / (N - 1).

    DDPM's alpha-bar (arXiv 2006.11239, equation 4), of any betas. gamma is linear in t between two levels. t = 0 is the
    first noise level of the table, DDPM's z_1, so a network is not evaluated outside of the levels it was trained on.
    The bound in T = N - 1 steps has DDPM's steps.

    Args:
        alphas_cumprod: (N,), decreasing, between 0 and 1; for example ``scheduler.alphas_cumprod`` of diffusers.

    Raises:
        ValueError: there are fewer than two levels, or they do not decrease between 1 and 0.

    Example:
        >>> schedule = TableSchedule([0.9, 0.5, 0.1])
        >>> schedule(torch.tensor([0.0, 0.5, 1.0])).alpha ** 2
        tensor([0.9000, 0.5000, 0.1000])
    """

    last_index: int

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        super().__init__()
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"A TableSchedule needs at least 2 noise levels, got shape {tuple(table.shape)}.")
        if not ((table > 0) & (table < 1)).all():
            raise ValueError(
                "The alphas_cumprod of a TableSchedule must lie between 0 and 1, neither of them included: at 0, a "
                "zero terminal signal-to-noise ratio, gamma is infinite."
            )
        gammas = torch.log1p(-table) - table.log()
        if not (gammas.diff() > 0).all():
            raise ValueError("The alphas_cumprod of a TableSchedule must decrease from the data to the noise.")
        self.alphas_cumprod = table.tolist()
        self.last_index = len(table) - 1
        self._gammas = {torch.device("cpu"): gammas}  # by device; not a buffer, which would follow model.float()

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gammas, place = self._table(t.device), t.double() * self.last_index
        # Times within rounding errors of a level's are taken to be that level's.
        whole = place.detach().round()
        near = (place.detach() - whole).abs() <= 2 * torch.finfo(t.dtype).eps * self.last_index
        place = torch.where(near, place + (whole - place.detach()), place)
        k = place.detach().floor().clamp(0, self.last_index - 1).long()
        rise = gammas[k + 1] - gammas[k]
        return (gammas[k] + rise * (place - k)).to(t.dtype), (rise * self.last_index).to(t.dtype)

    def time_at(self, gamma: Tensor) -> Tensor:
        gammas, wanted = self._table(gamma.device), gamma.double()
        k = torch.searchsorted(gammas, wanted.detach().contiguous(), right=True).sub(1).clamp(0, self.last_index - 1)
        place = k + (wanted - gammas[k]) / (gammas[k + 1] - gammas[k])
        return (place / self.last_index).clamp(0, 1).to(gamma.dtype)

    def _argument_now(self, name: str, recorded: Any) -> Any:
        return self.alphas_cumprod  # which may have been given as a tensor

    def _table(self, device: torch.device) -> Tensor:
        """gamma of each level, float64 (N,)."""
        if device not in self._gammas:
            self._gammas[device] = self._gammas[torch.device("cpu")].to(device)
        return self._gammas[device]


class VPSchedule(Schedule):
    r"""score_sde's variance-preserving SDE: alpha^2 = exp(-B(t)), B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    Song et al., *Score-Based Generative Modeling through SDEs*, arXiv 2011.13456, appendix B, equation 29. gamma is
    clipped at gamma_min; that of the paper's smallest time of evaluation, 1e-5, is -13.8.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        gamma_min: the lowest gamma.

    Raises:
        ValueError: 0 < beta_min <= beta_max does not hold, or gamma_min is not below gamma(1).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, gamma_min: float = -13.3) -> None:
        super().__init__()
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"The betas must satisfy 0 < beta_min <= beta_max, got {beta_min} and {beta_max}.")
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.gamma_min = gamma_min
        check_range(gamma_min, self.end_points()[1])

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.beta_max - self.beta_min
        total = t * (self.beta_min + slope / 2 * t)  # B
        # log((1 - e^{-B}) / e^{-B}), which does not overflow for large B
        gamma = total + torch.log(-torch.expm1(-total))
        return clip(gamma, (self.beta_min + slope * t) / -torch.expm1(-total), self.gamma_min, math.inf)

    def time_at(self, gamma: Tensor) -> Tensor:
        slope, total = self.beta_max - self.beta_min, torch.nn.functional.softplus(gamma.double())
        # The root of the quadratic, without cancellation.
        t = 2 * total / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * total))
        return t.clamp(0, 1).to(gamma.dtype)
