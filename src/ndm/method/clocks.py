"""Where the noise level moves as a schedule runs, and where it stands still."""

from __future__ import annotations

import torch
from torch import Tensor

from ndm.method.schedules import BISECTIONS, Schedule

__all__ = ["gamma_at", "has_slopes", "inward"]


@torch.no_grad()
def gamma_at(schedule: Schedule, times: Tensor) -> Tensor:
    """gamma at times, (P,), in float64."""
    return schedule.gamma(times.double())[0]


@torch.no_grad()
def has_slopes(schedule: Schedule, like: Tensor) -> bool:
    """Whether d gamma / dt is positive and finite at t = 0 and t = 1, which it is not where a schedule is clipped.

    Args:
        schedule: the schedule.
        like: a tensor on the schedule's device.
    """
    gammas, slopes = schedule.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64, device=like.device))
    if gammas.isnan().any():
        return True  # of a model that has diverged, whose samples are NaN whatever they are solved in
    return bool(((slopes > 0) & slopes.isfinite()).all())


@torch.no_grad()
def inward(schedule: Schedule, t: Tensor) -> Tensor:
    """The times t, (B,), with 0 and 1 replaced by the first and last time at which gamma moves.

    A clipped schedule has no slope at its very ends. What runs along it has one there, the limit from the inside.

    Example:
        >>> import ndm
        >>> schedule = ndm.OTSchedule(gamma_min=-8.0, gamma_max=8.0)
        >>> schedule(torch.tensor([1.0])).dgamma, schedule(inward(schedule, torch.tensor([1.0]))).dgamma > 100
        (tensor([0.]), tensor([True]))
    """
    first, last = t <= 0, t >= 1
    if not (first | last).any():
        return t
    ends = t.new_tensor([0.0, 1.0])
    still = schedule.gamma(ends)[1] == 0
    inside, outside = torch.full_like(ends, 0.5), ends
    for _ in range(BISECTIONS if still.any() else 0):
        middle = (inside + outside) / 2
        moves = schedule.gamma(middle)[1] > 0
        inside, outside = torch.where(moves, middle, inside), torch.where(moves, outside, middle)
    # Added and not put in t's place, so that a derivative by t passes.
    shift = torch.where(still, inside - ends, torch.zeros_like(ends))
    return t + first * shift[0] + last * shift[1]
