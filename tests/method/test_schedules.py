"""Every schedule equals its definition, and its derivatives equal finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import ndm
from ndm.method.schedules import per_example

SCHEDULES = {
    "linear": lambda: ndm.LinearSchedule(-11.0, 4.0),
    "cosine": lambda: ndm.CosineSchedule(),
    "cosine, no offset, clipped": lambda: ndm.CosineSchedule(0.0, -5.0, 6.0),
    "ddpm": lambda: ndm.DDPMSchedule(),
    "ot": lambda: ndm.OTSchedule(),
    "learned": lambda: with_random_logits(ndm.LearnedSchedule(-12.3, 4.1, knots=5)),
    "learned ends": lambda: with_random_logits(ndm.LearnedSchedule(-12.3, 4.1, learn_endpoints=True)),
}
every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def with_random_logits(schedule: ndm.LearnedSchedule) -> ndm.LearnedSchedule:
    with torch.no_grad():
        for p in schedule.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return schedule


def gamma_at(schedule: ndm.Schedule, t) -> torch.Tensor:
    with torch.no_grad():
        return schedule(torch.as_tensor(t, dtype=torch.float64)).gamma


# ---- each equals its definition


def test_linear_equals_its_definition() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    level = ndm.LinearSchedule(-7.0, 3.0)(t)
    torch.testing.assert_close(level.gamma, -7 + 10 * t, rtol=0, atol=1e-14)
    np.testing.assert_allclose(level.alpha**2, 1 / (1 + np.exp(-7 + 10 * t.numpy())), rtol=1e-14)


@pytest.mark.parametrize("offset", [0.0, 0.008, 0.1])
def test_cosine_equals_its_formula(offset: float) -> None:
    t = np.linspace(0.02, 0.98, 49)
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2 / np.cos(offset / (1 + offset) * np.pi / 2) ** 2
    level = ndm.CosineSchedule(offset)(torch.from_numpy(t))
    np.testing.assert_allclose(level.alpha**2, f, rtol=1e-12)
    np.testing.assert_allclose(level.sigma**2, 1 - f, rtol=1e-12)


def test_cosine_equals_diffusers() -> None:
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()  # float32
    k = np.arange(1, 999)  # the last beta is capped there
    ours = ndm.CosineSchedule()(torch.from_numpy(k / 1000)).alpha ** 2
    np.testing.assert_allclose(ours, theirs[k - 1], rtol=2e-4, atol=1e-9)


def test_ddpm_equals_the_product_of_its_betas_at_every_step() -> None:
    exact = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    level = ndm.DDPMSchedule()(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(level.alpha**2, exact, rtol=1e-8)
    np.testing.assert_allclose(level.sigma**2, 1 - exact, rtol=3e-6)  # 1e-4 at first, a difference of logs near 5e5
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod.numpy()  # float32
    np.testing.assert_allclose(level.alpha**2, theirs, rtol=5e-5)


def test_ddpm_with_other_betas() -> None:
    exact = np.cumprod(1 - np.linspace(0.01, 0.3, 20))
    level = ndm.DDPMSchedule(0.01, 0.3, 20)(torch.arange(1, 21, dtype=torch.float64) / 20)
    np.testing.assert_allclose(level.alpha**2, exact, rtol=1e-11)


def test_ot_is_the_straight_path_inside() -> None:
    t = torch.linspace(0.002, 0.998, 400, dtype=torch.float64)
    level = ndm.OTSchedule()(t)
    torch.testing.assert_close(level.alpha, 1 - t, rtol=1e-12, atol=0)
    torch.testing.assert_close(level.sigma, t, rtol=1e-12, atol=0)
    torch.testing.assert_close(level.dlog_sigma, 1 / t, rtol=1e-12, atol=0)


def test_learned_equals_its_definition() -> None:
    schedule = with_random_logits(ndm.LearnedSchedule(-12.0, 4.0, knots=3)).double()
    weights = schedule.logits.detach().softmax(0).numpy()
    t, centres = np.linspace(0, 1, 21), (np.arange(3) + 0.5) / 3

    def rise(at):
        return 1 / (1 + np.exp(-6 * (at - centres)))

    m = [weights[0] * u + weights[1:] @ ((rise(u) - rise(0)) / (rise(1) - rise(0))) for u in t]
    np.testing.assert_allclose(gamma_at(schedule, t), -12 + 16 * np.array(m), rtol=1e-6)


# ---- what holds for all of them


@every_schedule
def test_gamma_is_minus_the_log_signal_to_noise_ratio(make) -> None:
    level = make()(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(2 * (level.sigma.log() - level.alpha.log()), level.gamma, rtol=0, atol=1e-10)


@every_schedule
def test_all_but_ot_preserve_the_variance(make) -> None:
    level = make()(torch.linspace(0, 1, 101, dtype=torch.float64))
    total = level.alpha**2 + level.sigma**2
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12) != isinstance(make(), ndm.OTSchedule)


@every_schedule
def test_derivatives_equal_central_differences(make) -> None:
    schedule, h = make().double(), 1e-5
    t = torch.linspace(0.03, 0.97, 95, dtype=torch.float64)
    with torch.no_grad():
        low, level, high = schedule(t - h), schedule(t), schedule(t + h)
    inside = (low.gamma > schedule.end_points()[0]) & (high.gamma < schedule.end_points()[1])
    assert inside.sum() > 50
    dgamma, dlog_sigma = (high.gamma - low.gamma) / (2 * h), (high.sigma.log() - low.sigma.log()) / (2 * h)
    torch.testing.assert_close(level.dgamma[inside], dgamma[inside], rtol=2e-5, atol=1e-4)
    torch.testing.assert_close(level.dlog_sigma[inside], dlog_sigma[inside], rtol=2e-5, atol=1e-4)
    assert (level.dgamma[inside] > 0).all()


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_never_decreases_and_nothing_is_infinite(make, dtype) -> None:
    with torch.no_grad():
        level = make()(torch.linspace(0, 1, 4001, dtype=dtype))
    for field in (level.alpha, level.sigma, level.gamma, level.dgamma, level.dlog_sigma):
        assert field.shape == (4001,)
        assert field.dtype == dtype
        assert field.isfinite().all()
    assert (level.alpha > 0).all()
    assert (level.sigma > 0).all()
    assert (level.dgamma >= 0).all()
    assert level.gamma.diff().min() > (-1e-5 if dtype == torch.float32 else -1e-9)  # rounding only
    assert level.gamma[-1] - level.gamma[0] > 5


@pytest.mark.parametrize(("make", "clipped"), [(ndm.OTSchedule, 0.9995), (ndm.CosineSchedule, 0.9999)])
def test_a_clipped_schedule_stands_still(make, clipped: float) -> None:
    level = make()(torch.tensor([clipped, 1.0], dtype=torch.float64))
    assert level.gamma.tolist() == [13.3, 13.3]
    assert level.dgamma.tolist() == [0.0, 0.0]
    assert level.dlog_sigma.tolist() == [0.0, 0.0]


@every_schedule
def test_end_points_are_gamma_at_the_ends(make) -> None:
    schedule = make()
    assert schedule.end_points() == pytest.approx(gamma_at(schedule, [0.0, 1.0]).tolist(), rel=1e-12)


@every_schedule
def test_levels_can_be_had_by_gamma(make) -> None:
    """The same ones as at the time, with derivatives by gamma."""
    schedule, t = make().double(), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    with torch.no_grad():
        at = schedule(t)
        level = schedule.level_at(at.gamma)
    for field in ("alpha", "sigma", "gamma"):
        torch.testing.assert_close(getattr(level, field), getattr(at, field))
    assert (level.dgamma == 1).all()
    moves = at.dgamma > 0
    torch.testing.assert_close(level.dlog_sigma[moves], (at.dlog_sigma / at.dgamma)[moves])


def test_a_schedule_whose_levels_are_its_own_must_know_them_by_gamma() -> None:
    class Mine(ndm.LinearSchedule):
        def forward(self, t: torch.Tensor) -> ndm.NoiseLevel:
            return super().forward(t)

    with pytest.raises(ValueError, match=r"Mine overrides forward.*override level_at"):
        Mine().level_at(torch.zeros(2))


@every_schedule
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_steps_that_are_even_in_gamma(make, steps: int) -> None:
    schedule = make()
    times = schedule.even_in_gamma(steps)
    assert times.dtype == torch.float64
    assert len(times) == steps + 1
    assert (times.diff() > 0).all()
    low, high = schedule.end_points()
    # Nothing moves outside of the steps, where a schedule is clipped.
    outside = torch.tensor([times[0] / 2, times[0], times[-1], (1 + times[-1]) / 2], dtype=torch.float64)
    assert schedule.gamma(outside)[0].tolist() == pytest.approx([low, low, high, high], abs=1e-4)
    expected = low + (high - low) * torch.arange(steps + 1, dtype=torch.float64) / steps
    # DDPM's gamma is a difference of logarithms near 5e5.
    torch.testing.assert_close(gamma_at(schedule, times), expected, rtol=0, atol=1e-4)


def test_no_steps_are_not_even_in_gamma() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        ndm.LinearSchedule().even_in_gamma(0)


# ---- the learned one

finite = st.floats(-30, 30, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-12, 12), min_size=5, max_size=5),
    low=finite,
    span=st.floats(0.1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_learned_is_monotone_and_keeps_its_end_points(logits, low, span, dtype) -> None:
    schedule = ndm.LearnedSchedule(low, low + span, knots=4)
    with torch.no_grad():
        schedule.logits.copy_(torch.tensor(logits))
        level = schedule(torch.linspace(0, 1, 201, dtype=dtype))
    assert level.gamma[0] == torch.tensor(low, dtype=dtype)
    assert level.gamma[-1] == torch.tensor(low + span, dtype=dtype)
    assert level.gamma.diff().min() >= -4e-7 * (abs(low) + span)
    assert (level.dgamma >= 0).all()


def test_learned_end_points_move_as_documented() -> None:
    schedule = ndm.LearnedSchedule(-12.0, 4.0, learn_endpoints=True).double()
    assert schedule.end_points() == (-12.0, 4.0)
    with torch.no_grad():
        schedule.end_shifts.copy_(torch.tensor([0.25, -0.5]))
    assert schedule.end_points() == pytest.approx((-12 + 8 * math.tanh(0.25), 4 + 3 * math.tanh(-0.5)), rel=1e-12)


@pytest.mark.parametrize("first", [-50.0, 50.0])
@pytest.mark.parametrize("last", [-50.0, 50.0])
@pytest.mark.parametrize(("low", "high", "reach"), [(-12.0, 4.0, 3.0), (-1.0, 2.0, 1.5)])
def test_wherever_the_end_points_go_they_stay_in_order_and_near_their_starts(
    first: float, last: float, low: float, high: float, reach: float
) -> None:
    schedule = ndm.LearnedSchedule(low, high, learn_endpoints=True)
    with torch.no_grad():
        schedule.end_shifts.copy_(torch.tensor([first, last]))
    gamma_0, gamma_1 = schedule.end_points()
    assert gamma_0 <= gamma_1
    assert abs(gamma_0 - low) <= (high - low) / 2
    assert abs(gamma_1 - high) <= reach


def test_the_end_points_depend_on_their_parameters_and_on_no_others() -> None:
    assert ndm.LinearSchedule().endpoint_parameters() == ndm.LearnedSchedule().endpoint_parameters() == []
    schedule = ndm.LearnedSchedule(-6.0, 5.0, learn_endpoints=True)
    own = schedule.endpoint_parameters()
    for p in schedule.parameters():
        before = schedule.end_points()
        with torch.no_grad():
            p.add_(torch.linspace(0.1, 0.3, p.numel()).view_as(p))
        assert (schedule.end_points() != before) is any(p is one for one in own)


def test_end_points_can_be_trained() -> None:
    schedule = ndm.LearnedSchedule(-13.3, 5.0, learn_endpoints=True)
    optimiser, t = torch.optim.Adam(schedule.parameters(), 0.02), torch.tensor([0.0, 1.0])
    for _ in range(150):
        optimiser.zero_grad()
        (schedule(t).gamma - torch.tensor([-10.0, 3.0])).square().sum().backward()
        optimiser.step()
    assert schedule.end_points() == pytest.approx((-10.0, 3.0), abs=0.1)


@pytest.mark.parametrize("field", ["alpha", "sigma", "gamma", "dgamma", "dlog_sigma"])
@pytest.mark.parametrize("learn_endpoints", [False, True])
def test_gradients_reach_every_parameter(field: str, learn_endpoints: bool) -> None:
    schedule = with_random_logits(ndm.LearnedSchedule(-6.0, 4.0, learn_endpoints=learn_endpoints)).double()
    t = torch.tensor([0.2, 0.37, 0.71], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.7, -0.4], dtype=torch.float64)

    def value() -> torch.Tensor:
        return (getattr(schedule(t), field) * weight).sum()

    value().backward()
    for p in schedule.parameters():
        for i in range(p.numel()):
            with torch.no_grad():
                p[i] += 1e-6
                high = value()
                p[i] -= 2e-6
                low = value()
                p[i] += 1e-6
            assert p.grad[i].item() == pytest.approx((high - low).item() / 2e-6, rel=1e-5, abs=1e-8)
        assert (p.grad != 0).all()


# ---- what is refused


@pytest.mark.parametrize(
    "make",
    [
        lambda: ndm.LinearSchedule(1.0, 1.0),
        lambda: ndm.LinearSchedule(2.0, 1.0),
        lambda: ndm.LinearSchedule(float("nan"), 1.0),
        lambda: ndm.LinearSchedule(-math.inf, 1.0),
        lambda: ndm.CosineSchedule(-0.1),
        lambda: ndm.CosineSchedule(gamma_min=5.0, gamma_max=4.0),
        lambda: ndm.OTSchedule(3.0, -3.0),
        lambda: ndm.DDPMSchedule(0.02, 1e-4),
        lambda: ndm.DDPMSchedule(0.0, 0.02),
        lambda: ndm.DDPMSchedule(1e-4, 1.0),
        lambda: ndm.DDPMSchedule(steps=1),
        lambda: ndm.DDPMSchedule(gamma_min=20.0),
        lambda: ndm.LearnedSchedule(5.0, -13.3),
        lambda: ndm.LearnedSchedule(knots=0),
    ],
)
def test_bad_arguments_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"gamma_m|offset|betas|steps|knot"):
        make()


def test_per_example_broadcasts_against_examples() -> None:
    like = torch.zeros(3, 2, 5)
    assert per_example(torch.ones(3), like).shape == (3, 1, 1)
    assert per_example(torch.ones(4, 3), like).shape == (4, 3, 1, 1)
