"""The forward and the reverse process against diffusers, against each other, and against exact Gaussian dynamics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import ndm
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.process import Process
from ndm.method.schedules import per_example
from ndm.method.steps import ContinuousTime, DiscreteStep
from ndm.method.variances import Step
from ndm.networks import ResidualMLP

B, SHAPE = 5, (3,)
SCHEDULES = {"variance preserving": ndm.LinearSchedule(-9.0, 4.0), "straight path": ndm.OTSchedule(-9.0, 9.0)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
ETAS = (0.0, 0.5, 1.0)


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def times(t: float, n: int = B) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def neural(gate: str = "free") -> ndm.Neural:
    return ndm.Neural(ResidualMLP(3, hidden=8, depth=1, embedding=8, zero_init=False), gate=gate)


def separable() -> ndm.Separable:
    return ndm.Separable(ResidualMLP(3, hidden=8, depth=1, heads=4, level=False, zero_init=False), terms=4)


TRANSFORMS = {"identity": ndm.Identity, "scale": lambda: ndm.Scale(wave), "neural": neural, "separable": separable}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def wave(gamma: Tensor) -> Tensor:
    return 1.3 + torch.sin(gamma / 3)


class Guess(nn.Module):
    """Some smooth x_hat(z, gamma)."""

    def forward(self, z: Tensor, level) -> Tensor:
        return torch.tanh(z) * per_example(torch.sigmoid(level.gamma + 1), z) + 0.3


def model(schedule, transform, denoiser: nn.Module | None = None, **options) -> ndm.NDM:
    return ndm.NDM(schedule, transform, denoiser or Guess(), **options).double()


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
        torch.testing.assert_close(step.v / h, process.diffusion(t, eta) ** 2, rtol=40 * h, atol=1e-12)
    assert drift.abs().max() > 0.5
    assert gaps[0] < 1
    assert gaps[1] < 0.15 * gaps[0] + 1e-7  # first order in h


def test_drift_and_diffusion_take_the_models_own_volatility() -> None:
    process = model(ndm.LinearSchedule(-6.0, 4.0), neural(), volatility=1.7)
    z, t = torch.randn(B, *SHAPE, dtype=torch.float64), torch.linspace(0.2, 0.9, B, dtype=torch.float64)
    torch.testing.assert_close(process.drift(z, t), process.drift(z, t, eta=1.7))
    torch.testing.assert_close(process.diffusion(t), process.diffusion(t, eta=1.7))
    assert (process.drift(z, t) - process.drift(z, t, eta=1.0)).abs().max() > 0.1
    level = process.schedule(t)
    torch.testing.assert_close(process.diffusion(t) ** 2, 1.7**2 * level.sigma**2 * level.dgamma)


class Exact(nn.Module):
    """The posterior mean of x for x ~ N(0, r) and F = a(gamma) x."""

    def __init__(self, r: float, a) -> None:
        super().__init__()
        self.r, self.a = r, a

    def forward(self, z: Tensor, level) -> Tensor:
        a = self.a(level.gamma)
        return per_example(level.alpha * a * self.r / (level.alpha**2 * a**2 * self.r + level.sigma**2), z) * z


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
    expected = flow + process.diffusion(t, eta) ** 2 / (2 * variance(t))
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


# ---- volatility


def test_learned_volatility_starts_at_one_and_equals_its_formula() -> None:
    volatility = ndm.LearnedVolatility(terms=3).double()
    gamma = f64([-20.0, -8.0, -5.0, 4.0, 9.0])
    volatility.set_gamma_range(-8.0, 4.0)
    assert torch.equal(volatility(gamma), torch.ones_like(gamma))
    with torch.no_grad():
        volatility.coefficients.copy_(f64([0.2, -0.5, 0.3]))
    u = np.clip((gamma.numpy() + 8) / 12, 0, 1)
    log = 0.2 + math.sqrt(2) * (-0.5 * np.cos(np.pi * u) + 0.3 * np.cos(2 * np.pi * u))
    np.testing.assert_allclose(volatility(gamma).detach(), np.exp(log), rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, -1.0, math.inf, math.nan])
def test_a_volatility_that_is_not_positive_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="volatility must be positive"):
        model(ndm.LinearSchedule(), ndm.Identity(), volatility=eta)


# ---- data in their own units


def test_standardize_and_its_jacobian() -> None:
    data = torch.randn(500, 2, 2, dtype=torch.float64) * f64([[2.0, 0.1], [30.0, 1.0]]) + 5
    part = ndm.Standardize.fit(data)
    x = part(data)
    torch.testing.assert_close(x.mean(0), torch.zeros(2, 2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.std(0), torch.ones(2, 2).double())
    torch.testing.assert_close(part.inverse(x), data)
    matrix = jacobian(lambda d: part(d.reshape(1, 2, 2)).flatten(), data[0].flatten())
    torch.testing.assert_close(part.log_det(x), torch.linalg.slogdet(matrix).logabsdet)
    scalar = ndm.Standardize(1.0, 4.0)
    assert scalar.log_det(x).item() == pytest.approx(-4 * math.log(4))


@pytest.mark.parametrize("scale", [0.0, -1.0, [1.0, 0.0], math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        ndm.Standardize(0.0, scale)


def test_data_to_the_model_and_back() -> None:
    process = model(ndm.LinearSchedule(), ndm.Identity(), standardize=ndm.Standardize([1.0, 2.0], [3.0, 4.0]))
    data = f64([[4.0, 2.0], [1.0, 10.0]])
    x = process.to_model(data)
    torch.testing.assert_close(x, f64([[1.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(process.from_model(x), data)
    assert process.log_det(x).item() == pytest.approx(-math.log(12))
    torch.testing.assert_close(process.to_model(data.long()), x)  # whole numbers are numbers in their own units
    with pytest.raises(ValueError, match="integers"):
        model(ndm.LinearSchedule(), ndm.Identity()).to_model(torch.ones(2, 2, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_come_in_the_precision_of_the_model(dtype) -> None:
    net = ResidualMLP(3, hidden=8, depth=1)
    process = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(256)).to(dtype)
    x = process.to_model(torch.tensor([[0, 255, 7]], dtype=torch.uint8))
    assert x.dtype == dtype
    assert x[0].tolist() == [-255 / 256, 255 / 256, -241 / 256]
    with pytest.raises(ValueError, match="half precision"):
        process.bfloat16().to_model(torch.tensor([[0, 255, 7]]))


# ---- parts that do not fit


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="anchored"):
        model(ndm.LearnedSchedule(learn_endpoints=True), neural("anchored"))
    with pytest.raises(ValueError, match="standardize"):
        model(
            ndm.LinearSchedule(),
            ndm.Identity(),
            decoder=ndm.DiscretizedDecoder(4),
            standardize=ndm.Standardize(0.0, 1.0),
        )
    with pytest.raises(ValueError, match="choose one of posterior, learned, predicted"):
        model(ndm.LinearSchedule(), ndm.Identity(), reverse_variance="small")


def test_parts_are_told_the_schedules_range() -> None:
    net = ResidualMLP(3, hidden=8, depth=1)
    process = model(
        ndm.CosineSchedule(gamma_min=-7.0, gamma_max=6.0),
        neural(),
        ndm.Denoiser(net),
        reverse_variance="learned",
        volatility=ndm.LearnedVolatility(),
    )
    for part in (process.transform, process.denoiser, process.reverse_variance, process.volatility):
        assert part.gamma_range == (-7.0, 6.0)


@pytest.mark.parametrize("schedule", [ndm.OTSchedule(), ndm.CosineSchedule(), ndm.DDPMSchedule()])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_drift_at_the_ends_of_a_clipped_schedule_is_the_limit_from_the_inside(schedule, eta):
    """Of which a solver's first step is made; where the schedule stands still there is none."""

    class Shrunk(torch.nn.Module):
        def forward(self, z, level):
            return 2 + 0.3 * per_example(level.alpha, z) * z

    process = Process(schedule, ndm.Identity(), Shrunk())
    z = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    first, last = schedule.even_in_gamma(1).tolist()
    near = torch.tensor([first * 1.001 if first else 0.0, 1 - (1 - last) * 1.001], dtype=torch.float64)
    for found, expected in (
        (process.drift(z, ends, eta=eta), process.drift(z, near, eta=eta)),
        (process.diffusion(ends, eta), process.diffusion(near, eta)),
    ):
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
        if eta:
            assert (found != 0).all()
    if last < 0.9999:  # and not just by rounding
        still = torch.full((2,), (1 + last) / 2, dtype=torch.float64)
        assert (process.drift(z, still, eta=eta) == 0).all()


def test_the_straight_paths_drift_at_its_end_is_flow_matchings():
    """(z - x_hat) / t at t = 1, up to the clip."""

    class Exact(torch.nn.Module):
        def forward(self, z, level):
            alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
            return 2 + alpha * 0.25 * (z - 2 * alpha) / (alpha**2 * 0.25 + sigma**2)

    process, z = Process(ndm.OTSchedule(), ndm.Identity(), Exact()), torch.tensor([[1.0]])
    assert process.drift(z, torch.ones(1), eta=0.0).item() == pytest.approx(-1.0, abs=2e-3)
