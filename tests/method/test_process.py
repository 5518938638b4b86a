"""The forward and the reverse process against diffusers, each other, and exact Gaussian dynamics."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

import ndm
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.schedules import per_example
from ndm.method.steps import ContinuousTime, DiscreteStep
from ndm.method.variances import Step
from ndm.networks import ResidualMLP
from tests.method.processes import (
    ETAS,
    SHAPE,
    B,
    Exact,
    every_schedule,
    every_transform,
    f64,
    model,
    neural,
    times,
    wave,
)

# ---- diffusers


def in_double(scheduler):
    """diffusers' schedulers keep their betas in float32."""
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


OPTIONS = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False, "prediction_type": "sample"}


@pytest.mark.parametrize("k", [2, 10, 500, 999, 1000])
def test_a_step_equals_ddpm(k: int) -> None:
    scheduler = in_double(DDPMScheduler(**OPTIONS, variance_type="fixed_small"))
    process = model(ndm.DDPMSchedule(), ndm.Identity())
    z = torch.randn(B, *SHAPE, dtype=torch.float64)
    step = process.grid_step(torch.full((B,), k), 1000, z)
    kernel = process.kernel(z, step)
    x_hat = process.denoiser(z, step.t)

    torch.testing.assert_close(kernel.v, scheduler._get_variance(k - 1).expand(B), rtol=1e-6, atol=1e-12)
    theirs = scheduler.step(x_hat, k - 1, z, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    torch.testing.assert_close(kernel.sample(noise), theirs, rtol=1e-6, atol=1e-6)

    mean, v = process.posterior(x_hat, z, step)
    torch.testing.assert_close(mean, kernel.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(v, kernel.v)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("k", [21, 501, 981])
def test_a_step_equals_ddim(k: int, eta: float) -> None:
    options = {**OPTIONS, "set_alpha_to_one": False}
    scheduler = in_double(DDIMScheduler(**options))
    scheduler.set_timesteps(50)
    assert k - 1 in scheduler.timesteps
    process = model(ndm.DDPMSchedule(), ndm.Identity())
    z = torch.randn(B, *SHAPE, dtype=torch.float64)
    step = process.step(times((k - 20) / 1000), times(k / 1000), torch.ones(B), None, eta)
    kernel = process.kernel(z, step, override=True)
    theirs = scheduler.step(process.denoiser(z, step.t), k - 1, z, eta, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    torch.testing.assert_close(kernel.sample(noise), theirs.prev_sample, rtol=1e-6, atol=1e-6)


# ---- the forward process is consistent


@every_schedule
@every_transform
@pytest.mark.parametrize("eta", [*ETAS, 1.2])
def test_the_posterior_composes_to_the_marginals(make, schedule, eta: float) -> None:
    process = model(schedule, make())
    x = torch.randn(B, *SHAPE, dtype=torch.float64)
    t, s = f64([0.3, 0.35, 0.55, 0.7, 0.95]), f64([0.2, 0.3, 0.1, 0.65, 0.5])
    step = process.step(s, t, torch.ones(B), None, eta)
    (mean_t, sigma_t), (mean_s, sigma_s) = process.marginal(x, t), process.marginal(x, s)
    # The posterior's mean is affine in z_t, so its expectation is its value at z_t's mean.
    composed, v = process.posterior(x, mean_t, step)
    torch.testing.assert_close(composed, mean_s, rtol=1e-9, atol=1e-10)
    slope = process.posterior(x, mean_t + 1, step)[0] - composed
    variance = per_example(v, x) + (slope * per_example(sigma_t, x)) ** 2
    torch.testing.assert_close(variance, per_example(sigma_s**2, x).expand_as(x), rtol=1e-8, atol=0)
    if eta == 1:
        level_s, level_t = schedule(s), schedule(t)
        ddpm = level_s.sigma**2 * (1 - (level_t.alpha * level_s.sigma / (level_s.alpha * level_t.sigma)) ** 2)
        torch.testing.assert_close(v, ddpm, rtol=1e-9, atol=0)


@every_transform
def test_marginals_are_alpha_f_and_sigma(make) -> None:
    process, x, t = (
        model(ndm.OTSchedule(), make()),
        torch.randn(B, *SHAPE).double(),
        torch.linspace(0.1, 0.9, B).double(),
    )
    mean, deviation = process.marginal(x, t)
    gamma = 2 * (t / (1 - t)).log()
    torch.testing.assert_close(mean, (1 - t)[:, None] * process.transform(x)(gamma), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(deviation, t, rtol=1e-10, atol=0)


# ---- discrete steps tend to the SDE and the ODE


@every_schedule
@every_transform
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 1.5])
def test_small_steps_tend_to_the_drift(make, schedule, eta: float) -> None:
    process = model(schedule, make())
    z, t = torch.randn(B, *SHAPE, dtype=torch.float64), torch.linspace(0.25, 0.85, B, dtype=torch.float64)
    drift, gaps = process.drift(z, t, eta=eta), []
    for h in (1e-3, 1e-4):
        step = process.step(t - h, t, torch.ones(B), None, eta)
        gaps.append(((z - process.kernel(z, step, override=True).mean) / h - drift).abs().max().item())
        torch.testing.assert_close(step.v / h, process.diffusion(z, t, eta=eta) ** 2, rtol=40 * h, atol=1e-12)
    assert drift.abs().max() > 0.5
    assert gaps[0] < 1
    assert gaps[1] < 0.15 * gaps[0] + 1e-7  # first order in h


def test_drift_and_diffusion_take_the_models_own_volatility() -> None:
    process = model(ndm.LinearSchedule(-6.0, 4.0), neural(), volatility=1.7)
    z, t = torch.randn(B, *SHAPE, dtype=torch.float64), torch.linspace(0.2, 0.9, B, dtype=torch.float64)
    torch.testing.assert_close(process.drift(z, t), process.drift(z, t, eta=1.7))
    torch.testing.assert_close(process.diffusion(z, t), process.diffusion(z, t, eta=1.7))
    assert (process.drift(z, t) - process.drift(z, t, eta=1.0)).abs().max() > 0.1
    level = process.schedule(t)
    torch.testing.assert_close(process.diffusion(z, t) ** 2, 1.7**2 * level.sigma**2 * level.dgamma)


@every_schedule
@pytest.mark.parametrize("eta", ETAS)
def test_the_exact_denoiser_moves_gaussians_along_their_marginals(schedule, eta: float) -> None:
    r, h = 1.7, 1e-6
    process = model(schedule, ndm.Scale(wave), Exact(r, wave))
    z, t = torch.randn(B, *SHAPE, dtype=torch.float64), torch.linspace(0.15, 0.9, B, dtype=torch.float64)

    def variance(t: Tensor) -> Tensor:
        level = schedule(t)
        return level.alpha**2 * wave(level.gamma) ** 2 * r + level.sigma**2

    flow = (variance(t + h).log() - variance(t - h).log()) / (4 * h)  # d log(standard deviation) / dt
    # Fokker-Planck: noise g needs g^2 / 2 times minus the score, z / variance, more.
    expected = flow + process.diffusion(z, t, eta=eta) ** 2 / (2 * variance(t))
    torch.testing.assert_close(process.drift(z, t, eta=eta), expected[:, None] * z, rtol=1e-6, atol=1e-8)


# ---- direct reverse processes


class ExactDirect(BaseDenoiser):
    """Predicts, for the at it is told of, exactly what the estimate x_hat of another model implies."""

    direct = True

    def __init__(self, through: ndm.NDM) -> None:
        super().__init__()
        self.through = through

    def estimate(self, z: Tensor, level, labels: Tensor | None = None) -> Estimate:
        x_hat = self.through.denoiser(z, level)
        return Estimate(
            mean=x_hat + self.at.path_value(self.through.transform(x_hat)).offset,
            residual=None,
            transformed=self.through.transform(x_hat)(level.gamma),
        )


@every_schedule
@every_transform
@pytest.mark.parametrize("own", [0.7, 1.0])
def test_direct_equals_through_x_hat(make, schedule, own: float) -> None:
    through = model(schedule, make(), volatility=own)
    direct = model(schedule, through.transform, ExactDirect(through), volatility=own)
    z = torch.randn(B, *SHAPE, dtype=torch.float64)
    s, t = torch.linspace(0.1, 0.5, B).double(), torch.linspace(0.3, 0.9, B).double()
    step = through.step(s, t, torch.ones(B), None)

    direct.denoiser.at = DiscreteStep(step)
    torch.testing.assert_close(direct.kernel(z, step).mean, through.kernel(z, step).mean, rtol=1e-10, atol=1e-10)
    for eta in (0.0, 0.5, 1.2):  # another volatility than the one the network was trained for
        other = through.step(s, t, torch.ones(B), None, eta)
        ours, theirs = (m.kernel(z, other, override=True).mean for m in (direct, through))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    direct.denoiser.at = ContinuousTime(schedule(t), times(own))
    for eta in (None, 0.0, 0.5, 1.2):
        ours, theirs = (m.drift(z, t, eta=eta) for m in (direct, through))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def direct_model(ode: bool, schedule=None) -> ndm.NDM:
    net = ResidualMLP(3, hidden=8, depth=1, embedding=8, heads=2 if ode else 1, zero_init=False)
    return model(schedule or ndm.LinearSchedule(), neural(), ndm.DirectDenoiser(net, ode=ode))


def test_direct_without_f_has_no_ode() -> None:
    process, z = direct_model(ode=False), torch.randn(B, *SHAPE, dtype=torch.float64)
    step = process.grid_step(torch.full((B,), 5), 10, z, 0.0)
    for use in (lambda: process.drift(z, times(0.5), eta=0.0), lambda: process.kernel(z, step, override=True)):
        with pytest.raises(ValueError, match=r"DirectDenoiser\(net, ode=True\).*method=\"sde\" or \"ancestral\""):
            use()
    process.drift(z, times(0.5))
    process.kernel(z, process.grid_step(torch.full((B,), 5), 10, z))
    direct_model(ode=True).drift(z, times(0.5), eta=0.0)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_an_empty_step_leaves_z_where_it_is(direct: bool, eta: float | None) -> None:
    schedule = ndm.OTSchedule()  # clipped from t = 0.9987
    process = direct_model(True, schedule) if direct else model(schedule, neural())
    z = torch.randn(B, *SHAPE, dtype=torch.float64)
    step = process.grid_step(torch.full((B,), 1000), 1000, z, eta)
    assert (step.gain == 0).all()
    kernel = process.kernel(z, step, override=eta is not None)
    assert torch.equal(kernel.sample(torch.randn_like(z)), z)


def test_a_grid_step_is_the_step_between_its_times() -> None:
    process = model(ndm.LinearSchedule(), ndm.Identity())
    index = torch.tensor([1, 3, 10])
    step = process.grid_step(index, 10, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(step.t.gamma, f64([-13.3 + 18.3 * i / 10 for i in (1, 3, 10)]))
    torch.testing.assert_close(step.s.gamma, f64([-13.3 + 18.3 * i / 10 for i in (0, 2, 9)]))
    assert step.steps == 10
    assert torch.equal(step.index, index)
    assert isinstance(step, Step)
