"""Where schedules move and where they stand still."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.method.clocks import gamma_at, has_slopes, inward
from ndm.method.schedules import Schedule

CLIPPED = {
    "cosine": ndm.CosineSchedule,
    "straight path": ndm.OTSchedule,
    "betas": ndm.DDPMSchedule,
    "clipped early": lambda: ndm.CosineSchedule(0.0, -5.0, 2.0),
}


class Power(Schedule):
    """gamma = -8 + 13 t^power: a slope of zero, or an infinite one, at t = 0."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def gamma(self, t):
        return -8 + 13 * t**self.power, 13 * self.power * t ** (self.power - 1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ndm.LinearSchedule(), True),
        (ndm.LearnedSchedule(learn_endpoints=True), True),
        (Power(1.0), True),
        (Power(2.0), False),
        (Power(0.5), False),
        *((make(), False) for make in CLIPPED.values()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_schedules_have_slopes_to_their_ends(schedule, expected):
    assert has_slopes(schedule, torch.zeros(1)) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", CLIPPED.values(), ids=CLIPPED)
def test_the_ends_are_moved_to_where_the_slope_is_that_of_the_inside(make, dtype):
    schedule = make()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=dtype)
    moved = inward(schedule, t)
    assert moved.dtype == dtype
    assert moved[1] == t[1]
    level, ends = schedule(moved), schedule(t)
    torch.testing.assert_close(level.gamma, ends.gamma, rtol=0, atol=2e-3 if dtype == torch.float32 else 2e-4)
    # gamma grows as the slope says on the way from there, by differences.
    h = torch.tensor([1e-3, 1e-5, -1e-3], dtype=torch.float64) * torch.minimum(moved, 1.0001 - moved).double()
    slopes = (schedule(moved.double() + h).gamma - schedule(moved.double()).gamma) / h
    torch.testing.assert_close(level.dgamma.double()[1:], slopes[1:], rtol=0.03, atol=0)
    assert level.dgamma[0] == pytest.approx(slopes[0].item(), rel=0.3)  # DDPM's is a difference of large numbers
    assert (level.dgamma > 0).all()


def test_schedules_that_move_keep_their_ends():
    t = torch.tensor([0.0, 0.5, 1.0])
    for schedule in (ndm.LinearSchedule(), ndm.LearnedSchedule()):
        assert torch.equal(inward(schedule, t), t)


def test_a_derivative_by_time_passes():
    t = torch.tensor([1.0], dtype=torch.float64)
    schedule = ndm.OTSchedule()
    found, slope = torch.func.jvp(lambda u: schedule(inward(schedule, u)).gamma, (t,), (torch.ones_like(t),))
    assert found.item() == pytest.approx(13.3, abs=1e-6)
    last = inward(schedule, t).item()
    assert slope.item() == pytest.approx(2 / (last * (1 - last)), rel=1e-9)


def test_gamma_is_in_double_precision():
    times = torch.tensor([0.25, 0.5])
    assert gamma_at(ndm.LinearSchedule(-8.0, 8.0), times).tolist() == [-4.0, 0.0]
    assert gamma_at(ndm.LinearSchedule(), times).dtype == torch.float64
