"""The schedules of other programs equal their definitions, and every schedule's time is found again."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

import ndm
from tests.method.test_schedules import SCHEDULES

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
ALPHAS = [0.9, 0.6, 0.5, 0.02]


def table(betas: str, n: int = 1000) -> tuple[DDPMScheduler, ndm.TableSchedule]:
    scheduler = DDPMScheduler(n, beta_schedule=betas)
    return scheduler, ndm.TableSchedule(scheduler.alphas_cumprod)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", BETAS)
def test_a_table_adds_noise_as_diffusers_does_at_every_index(betas: str, dtype: torch.dtype) -> None:
    scheduler, schedule = table(betas)
    index = torch.arange(1000)
    x, noise = torch.randn(2, 1000, 3, dtype=dtype)
    level = schedule(index.to(dtype) / 999)
    ours = level.alpha[:, None] * x + level.sigma[:, None] * noise
    torch.testing.assert_close(ours, scheduler.add_noise(x, noise, index), rtol=1e-5, atol=1e-5)
    exact = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(level.gamma.double(), torch.log((1 - exact) / exact), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(schedule.time_at(level.gamma) * 999, index.to(dtype), rtol=0, atol=2e-3)


def test_a_table_is_linear_in_gamma_between_its_levels() -> None:
    schedule = ndm.TableSchedule(ALPHAS)
    gammas = [math.log((1 - a) / a) for a in ALPHAS]
    assert schedule.end_points() == pytest.approx((gammas[0], gammas[-1]))
    gamma, slope = schedule.gamma(torch.tensor([0.25 / 3, 1.5 / 3, 2.9 / 3], dtype=torch.float64))
    expected = [0.75 * gammas[0] + 0.25 * gammas[1], (gammas[1] + gammas[2]) / 2, 0.1 * gammas[2] + 0.9 * gammas[3]]
    assert gamma.tolist() == pytest.approx(expected)
    assert slope.tolist() == pytest.approx([3 * (gammas[i + 1] - gammas[i]) for i in range(3)])


def test_a_table_is_saved_to_the_last_digit_and_does_not_change_precision(tmp_path) -> None:
    schedule = table("squaredcos_cap_v2")[1]
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(torch.nn.Identity()))
    rebuilt = ndm.TableSchedule(**schedule.config()["init_args"])
    t = torch.rand(100, dtype=torch.float64)
    assert torch.equal(rebuilt.gamma(t)[0], schedule.gamma(t)[0])
    assert torch.equal(model.float().schedule.gamma(t)[0], rebuilt.gamma(t)[0])


def test_the_index_of_a_table_reaches_the_network() -> None:
    schedule, seen = table("linear")[1], []
    denoiser = ndm.Denoiser(lambda z, k: seen.append(k) or z, "eps", time="index")
    model = ndm.NDM(schedule, ndm.Identity(), denoiser)
    index = torch.tensor([0, 1, 57, 500, 998, 999], dtype=torch.float64)
    denoiser(torch.randn(6, 2, dtype=torch.float64), schedule(index / 999))
    torch.testing.assert_close(seen[-1], index, rtol=0, atol=1e-8)
    denoiser(torch.randn(2, 2, dtype=torch.float64), schedule(torch.tensor([0.5, 99.25]).double() / 999))
    torch.testing.assert_close(seen[-1], torch.tensor([0.5, 99.25]).double(), rtol=0, atol=1e-8)
    assert model.log_prob(torch.randn(2, 2, dtype=torch.float64)).isfinite().all()
    every = torch.cat(seen)
    assert every.min() >= 0
    assert every.max() <= 999


def test_vp_equals_its_definition() -> None:
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    level = ndm.VPSchedule()(t)
    # score_sde, sde_lib.py, VPSDE.marginal_prob
    log_mean = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    torch.testing.assert_close(level.alpha, log_mean.exp())
    torch.testing.assert_close(level.sigma, (1 - (2 * log_mean).exp()).sqrt())
    h = 1e-6
    slope = (ndm.VPSchedule().gamma(t + h)[0] - ndm.VPSchedule().gamma(t - h)[0]) / (2 * h)
    torch.testing.assert_close(level.dgamma, slope, rtol=1e-6, atol=1e-6)


EVERY = SCHEDULES | {"vp": ndm.VPSchedule, "table": lambda: ndm.TableSchedule(ALPHAS)}


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_the_time_of_a_noise_level_is_found_again(make) -> None:
    schedule = make()
    t = torch.linspace(0.2, 0.8, 13, dtype=torch.float64)
    gamma, slope = schedule.gamma(t)
    gamma = gamma.detach().requires_grad_()
    found = schedule.time_at(gamma)
    torch.testing.assert_close(found, t, rtol=0, atol=1e-9)
    (rate,) = torch.autograd.grad(found.sum(), gamma)
    torch.testing.assert_close(rate, 1 / slope.detach(), rtol=1e-6, atol=1e-9)
    low, high = schedule.end_points()
    outside = schedule.time_at(torch.tensor([low - 1, high + 1], dtype=torch.float64)).detach()
    assert outside[0] < 0.1
    assert outside[1] > 0.9
    assert ((outside >= 0) & (outside <= 1)).all()


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0.5], "at least 2 noise levels"),
        ([[0.5, 0.1]], "at least 2 noise levels"),
        ([0.5, 0.0], "zero terminal"),
        ([1.0, 0.5], "between 0 and 1"),
        ([0.5, math.nan], "between 0 and 1"),
        ([0.5, 0.5], "must decrease"),
        ([0.1, 0.5], "must decrease"),
    ],
)
def test_bad_tables_are_refused(alphas, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ndm.TableSchedule(alphas)


def test_bad_betas_of_the_vp_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="0 < beta_min <= beta_max"):
        ndm.VPSchedule(2.0, 1.0)
    with pytest.raises(ValueError, match="gamma_min must be below"):
        ndm.VPSchedule(gamma_min=20.0)
