"""Slopes of a schedule, and the times at which it is clipped."""

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
    """Whether d gamma / dt is positive and finite at t = 0 and t = 1. It is not if the schedule is clipped there.

    Args:
        schedule: the schedule.
        like: a tensor on the schedule's device.
    """
    gammas, slopes = schedule.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64, device=like.device))
    if gammas.isnan().any():
        return True  # the model has diverged: its samples are NaN with any solver variable
    return bool(((slopes > 0) & slopes.isfinite()).all())


@torch.no_grad()
def inward(schedule: Schedule, t: Tensor) -> Tensor:
    """The times t, (B,), with 0 and 1 replaced by the first and last time at which gamma changes.

    A clipped schedule has zero slope at its ends. The drift there is the limit from inside the interval.

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
    # Added instead of replaced, so that derivatives with respect to t are kept.
    shift = torch.where(still, inside - ends, torch.zeros_like(ends))
    return t + first * shift[0] + last * shift[1]
