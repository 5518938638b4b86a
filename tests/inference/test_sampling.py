"""The samplers against closed forms for Gaussian data, against diffusers, and at their edges."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.inference.sampling import METHODS, sample, sample_batches
from ndm.method.denoisers import BaseDenoiser
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP

# Data x ~ N(MEAN, R) in each dimension; z_t ~ N(alpha a MEAN, alpha^2 a^2 R + sigma^2) under F = a x.
MEAN, R = 0.8, 1.7
LOW, HIGH = -8.0, 16.0  # with gamma_1 = 16, z_1 is standard normal up to 1e-7 in its variance


def one(gamma: Tensor) -> Tensor:
    return torch.ones_like(gamma)


def widening(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


SCALES = {"identity": one, "scale": widening}


class Exact(nn.Module):
    """E[x | z], the best denoiser there is for Gaussian data under F = a(gamma) x. Labels, if given, shift the mean."""

    def __init__(self, a: Callable[[Tensor], Tensor] = one) -> None:
        super().__init__()
        self.a = a

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        a, alpha, sigma = (per_example(v, z) for v in (self.a(level.gamma), level.alpha, level.sigma))
        mean = MEAN if labels is None else MEAN + per_example(labels.to(z), z)
        return mean + alpha * a * R * (z - alpha * a * mean) / (alpha**2 * a**2 * R + sigma**2)


def gaussian(name: str = "identity", **parts) -> ndm.NDM:
    transform = ndm.Identity() if name == "identity" else ndm.Scale(SCALES[name])
    parts = {"denoiser": Exact(SCALES[name]), **parts}
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), transform, **parts)


def small(**parts) -> ndm.NDM:
    """A model with weights, for what does not depend on what it has learned."""
    parts = {"denoiser": ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, zero_init=False)), **parts}
    return ndm.NDM(ndm.LinearSchedule(-6, 4), ndm.Identity(), **parts)


# ---- closed forms, written from the method's section 2, 3 and 5 and sharing no code with the package


def level(t: float) -> tuple[float, float, float]:
    """alpha, sigma, gamma."""
    gamma = LOW + (HIGH - LOW) * t
    return math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma))), gamma


def a_of(name: str, gamma: float) -> float:
    return SCALES[name](torch.tensor(gamma, dtype=torch.float64)).item()


def moments(name: str, t: float) -> tuple[float, float]:
    """Mean and variance of q(z_t)."""
    alpha, sigma, gamma = level(t)
    a = a_of(name, gamma)
    return alpha * a * MEAN, alpha**2 * a**2 * R + sigma**2


def posterior_mean(name: str, t: float) -> tuple[float, float]:
    """x_hat = intercept + slope z."""
    alpha, _, gamma = level(t)
    mean, variance = moments(name, t)
    slope = alpha * a_of(name, gamma) * R / variance
    return MEAN - slope * mean, slope


def ancestral_moments(name: str, steps: int, eta: float) -> tuple[float, float]:
    """Mean and variance of z_0 / alpha_0 when the reverse steps' variance is v = eta^2 v_DDPM, from z_1 ~ N(0, 1)."""
    mean, variance = 0.0, 1.0
    for i in range(steps, 0, -1):
        (alpha_t, sigma_t, gamma_t), (alpha_s, sigma_s, gamma_s) = level(i / steps), level((i - 1) / steps)
        v = eta**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2) * sigma_s**2 / sigma_t**2
        c = math.sqrt(sigma_s**2 - v) / sigma_t
        intercept, slope = posterior_mean(name, i / steps)
        k = alpha_s * a_of(name, gamma_s) - c * alpha_t * a_of(name, gamma_t)
        mean = (c + k * slope) * mean + k * intercept
        variance = (c + k * slope) ** 2 * variance + v
    return mean / level(0)[0], variance / level(0)[0] ** 2


def euler_maruyama_moments(name: str, steps: int, eta: float) -> tuple[float, float]:
    """The same for Euler and Maruyama's steps of dz = [m' + (sigma'/sigma + g^2 / 2 sigma^2)(z - m)] dt + g dw."""
    mean, variance = 0.0, 1.0
    for i in range(steps, 0, -1):
        t, h = i / steps, 1e-6
        alpha, sigma, gamma = level(t)
        dgamma = HIGH - LOW
        g_squared = eta**2 * sigma**2 * dgamma
        intercept, slope = posterior_mean(name, t)
        m = alpha * a_of(name, gamma)

        def m_at(t: float) -> float:
            alpha, _, gamma = level(t)
            return alpha * a_of(name, gamma)

        dm = (m_at(t + h) - m_at(t - h)) / (2 * h)
        pull = (1 - sigma**2) * dgamma / 2 + g_squared / (2 * sigma**2)  # sigma'/sigma = alpha^2 gamma' / 2
        shift, factor = (dm - pull * m) * intercept, pull + (dm - pull * m) * slope
        mean = mean - (factor * mean + shift) / steps
        variance = (1 - factor / steps) ** 2 * variance + g_squared / steps
    return mean / level(0)[0], variance / level(0)[0] ** 2


def data_moments(name: str) -> tuple[float, float]:
    mean, variance = moments(name, 0.0)
    return mean / level(0)[0], variance / level(0)[0] ** 2


def assert_moments(x: Tensor, expected: tuple[float, float], bias: float = 0.0) -> None:
    """Mean and variance agree to four standard errors, and ``bias`` besides."""
    mean, variance = expected
    n = x.numel()
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + bias)
    assert x.var().item() == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / n) + bias)


N = 50_000


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("steps", [1, 2, 10, 37])
@pytest.mark.parametrize("eta", [None, 0.5])
def test_ancestral_steps_with_the_posterior_variance(name, steps, eta):
    """Exactly as (in)exact as the closed form says: at few steps the samples are too narrow."""
    expected = ancestral_moments(name, steps, 1.0 if eta is None else eta)
    assert_moments(sample(gaussian(name), N, (2,), steps=steps, eta=eta, dtype=torch.float64), expected)


def test_the_posterior_variance_is_too_small_at_few_steps():
    """What the test above compares with: much of the variance is missing at T = 10, and it comes back as T grows."""
    assert ancestral_moments("identity", 10, 1.0)[1] < 0.6 * data_moments("identity")[1]
    assert ancestral_moments("identity", 10_000, 1.0)[1] == pytest.approx(data_moments("identity")[1], rel=2e-3)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_ancestral_steps_with_the_calibrated_variance_are_exact(name, steps, covariance):
    """For Gaussian data the best reverse variance makes every reverse step exact, a single one included."""
    model = gaussian(name)
    x = MEAN + math.sqrt(R) * torch.randn(N, 2, dtype=torch.float64)
    model.calibrate(x, steps=steps, covariance=covariance)
    # The calibration is itself from N examples; a full covariance spends them on each of the two dimensions.
    y = sample(model, N, (2,), steps=steps, dtype=torch.float64)
    assert_moments(y, data_moments(name), bias=4 * R * math.sqrt(2 / N))


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("steps", [1, 13])
def test_ddim_is_the_closed_form(name, steps):
    """Without noise the result is linear in z_1 alone: the same numbers, not just the same moments."""
    path = sample(gaussian(name), 5, (2,), method="ddim", steps=steps, trajectory=True, dtype=torch.float64)
    z_1 = path[0] * level(1)[0]
    mean, variance = ancestral_moments(name, steps, 0.0)
    torch.testing.assert_close(path[-1], mean + math.sqrt(variance) * z_1)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(
    ("solver", "steps", "error"),
    [(None, None, 1e-5), (None, 200, 5e-3), ("euler", 1000, 3e-2), ("midpoint", 200, 5e-3), ("rk4", 60, 1e-3)],
)
def test_the_ode_is_the_closed_form(name, solver, steps, error):
    """The exact flow carries z_1 to mu_0 + sqrt(V_0 / V_1) (z_1 - mu_1), example by example."""
    path = sample(
        gaussian(name),
        6,
        (2,),
        method="ode",
        steps=steps,
        solver=solver,
        rtol=1e-7,
        atol=1e-7,
        trajectory=True,
        dtype=torch.float64,
    )
    (mu_0, v_0), (mu_1, v_1), alpha_0 = moments(name, 0.0), moments(name, 1.0), level(0)[0]
    expected = (mu_0 + math.sqrt(v_0 / v_1) * (path[0] * level(1)[0] - mu_1)) / alpha_0
    torch.testing.assert_close(path[-1], expected, rtol=0, atol=error)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("eta", [None, 0.6])
def test_euler_maruyama_has_its_closed_form_moments(name, eta):
    expected = euler_maruyama_moments(name, 100, 1.0 if eta is None else eta)
    assert_moments(sample(gaussian(name), N, (2,), method="sde", steps=100, eta=eta, dtype=torch.float64), expected)


@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize("name", SCALES)
def test_what_euler_maruyama_is_compared_with_tends_to_the_data(name, eta):
    """For every volatility, since the denoiser is exact; so the test above is one of the drift in the method."""
    assert euler_maruyama_moments(name, 20_000, eta) == pytest.approx(data_moments(name), rel=2e-3)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 400), ("srk", 150), ("srk", None)])
def test_torchsdes_solvers_reach_the_data(solver, steps):
    n = 1000 if steps is None else 5000
    x = sample(
        gaussian("scale"), n, (2,), method="sde", steps=steps, solver=solver, rtol=1e-2, atol=1e-2, dtype=torch.float64
    )
    assert_moments(x, data_moments("scale"), bias=0.05)


# ---- diffusers as the oracle


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddpm_and_ddim_are_those_of_diffusers(prediction, eta):
    """The same network, schedule and noise through the loop of diffusers' DDIMScheduler: the same states on the way."""
    from diffusers import DDIMScheduler

    steps = 8
    scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type=prediction,
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    first = scheduler.alphas_cumprod[0].item()  # where diffusers' last step ends
    parameterization = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}[prediction]
    net = ResidualMLP(3, hidden=16, depth=1, zero_init=False)
    schedule = ndm.DDPMSchedule(gamma_min=math.log((1 - first) / first))
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(net, parameterization))
    path = sample(model, 4, (3,), method="ancestral", steps=steps, eta=eta, generator=seeded(3), trajectory=True)

    generator = seeded(3)
    z = torch.randn(4, 3, generator=generator)
    low, high = schedule.end_points()
    for i, timestep in enumerate(scheduler.timesteps.tolist()):
        alpha_squared = scheduler.alphas_cumprod[timestep].double()
        torch.testing.assert_close(path[i], z / alpha_squared.sqrt().float(), rtol=1e-3, atol=1e-3)
        gamma = torch.log((1 - alpha_squared) / alpha_squared)
        with torch.no_grad():
            output = net(z, ((gamma - low) / (high - low)).float().expand(4))
        noise = torch.randn(4, 3, generator=generator) if eta else None
        z = scheduler.step(output, timestep, z, eta=eta, variance_noise=noise).prev_sample
    torch.testing.assert_close(path[-1], z / math.sqrt(first), rtol=1e-3, atol=1e-3)


def test_ancestral_with_eta_zero_is_ddim():
    model = small()
    samples = [
        sample(model, 4, (2,), method=m, steps=10, eta=e, generator=seeded(0))
        for m, e in [("ancestral", 0.0), ("ddim", None)]
    ]
    assert torch.equal(*samples)


def test_another_volatility_than_the_models_does_not_use_its_reverse_variance():
    """With the model's own eta the calibration is used; with another it says nothing about the step."""
    model = small()
    plain = [sample(model, 4, (2,), steps=3, eta=e, generator=seeded(0)) for e in (None, 0.5)]
    model.calibrate(torch.randn(64, 2), steps=3)
    own, other = (sample(model, 4, (2,), steps=3, eta=e, generator=seeded(0)) for e in (None, 0.5))
    assert not torch.allclose(own, plain[0])
    assert torch.equal(other, plain[1])


# ---- steps that are even in gamma


def curved(**parts) -> ndm.NDM:
    """The same network as small() has, with a schedule that is not linear between the same end points."""
    torch.manual_seed(1)
    model = small(**parts)
    model.schedule = ndm.CosineSchedule(gamma_min=-6, gamma_max=4)
    return model


def straight(**parts) -> ndm.NDM:
    torch.manual_seed(1)
    return small(**parts)


@pytest.mark.parametrize(("method", "eta"), [("ancestral", None), ("ancestral", 0.5), ("ddim", None)])
def test_even_in_gamma_the_schedule_does_not_matter(method, eta):
    """The discrete process knows noise levels alone, so its steps are those of a schedule that is linear in gamma."""
    options = {"n": 4, "shape": (2,), "method": method, "steps": 5, "eta": eta, "trajectory": True}
    found, in_time = (
        sample(curved(), **options, spacing=spacing, generator=seeded(0)) for spacing in ("gamma", "time")
    )
    expected = sample(straight(), **options, generator=seeded(0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(in_time, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("method", "solver"), [("ode", "euler"), ("ode", "heun"), ("sde", None)])
def test_the_solvers_steps_are_even_in_gamma(method, solver):
    """The noise levels that the network is asked at, and in the limit the solution of a linear schedule's ODE."""
    model, seen = curved(), []
    model.denoiser.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1][0].item()))
    sample(model, 4, (2,), method=method, steps=6, solver=solver, spacing="gamma", generator=seeded(0))
    gamma = -6 + 10 * torch.tensor(seen, dtype=torch.float64)  # of the network's level, 0 to 1
    expected = torch.linspace(4, -6, 7, dtype=torch.float64)
    gaps = (gamma[:, None] - expected[None]).abs().min(dim=1)
    assert (gaps.values < 1e-4).all()  # times are float32
    assert set(gaps.indices.tolist()) >= set(range(6))
    if method == "ode":
        many = [
            sample(m, 4, (2,), method="ode", steps=1000, solver=solver, spacing=s, generator=seeded(0))
            for m, s in ((curved(), "gamma"), (straight(), "time"))
        ]
        torch.testing.assert_close(*many, rtol=0.01, atol=0.01)


def test_a_calibration_for_other_steps_is_left_alone():
    model, options = curved(), {"steps": 4, "spacing": "gamma"}
    plain = sample(model, 4, (2,), **options, generator=seeded(0))
    model.calibrate(torch.randn(64, 2), steps=4)
    assert torch.equal(sample(model, 4, (2,), **options, generator=seeded(0)), plain)


def test_a_calibration_for_steps_that_are_even_in_gamma():
    x = torch.randn(64, 2, generator=seeded(2))
    found, expected = curved(), straight()
    found.calibrate(x, steps=4, spacing="gamma", generator=seeded(3))
    expected.calibrate(x, steps=4, generator=seeded(3))
    samples = [sample(m, 4, (2,), steps=4, generator=seeded(0)) for m in (found, expected)]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    times = (torch.arange(64) % 4 + 0.5) / 4
    bounds = [m.bound(x, 4, times=times, generator=seeded(4)).total for m in (found, expected)]
    torch.testing.assert_close(*bounds, rtol=1e-4, atol=1e-4)


def learned(**options) -> ndm.NDM:
    """The network of small(), with a learned schedule that is not linear."""
    model = straight()
    model.schedule = ndm.LearnedSchedule(-6, 4, **options)
    with torch.no_grad():
        model.schedule.logits.copy_(torch.linspace(-3, 3, 17))
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"eta": 0.5}, {"method": "ddim"}, {"method": "ode"}, {"method": "sde"}, {"method": "ode", "solver": "euler"}],
)
@pytest.mark.parametrize(
    ("model", "own", "other"),
    [
        (learned(), "gamma", "time"),
        (learned(minimize_variance=False), "time", "gamma"),
        (curved(), "time", "gamma"),
    ],
    ids=["trained for variance", "trained by the bound", "fixed"],
)
def test_where_no_spacing_is_given_it_is_the_schedules_own(model, own, other, options):
    found, expected, different = (
        sample(model, 4, (2,), steps=5, **options, **spacing, generator=seeded(0))
        for spacing in ({}, {"spacing": own}, {"spacing": other})
    )
    assert torch.equal(found, expected)
    assert not torch.allclose(found, different, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "solver"), [("ode", None), ("ode", "dopri5"), ("sde", "srk")])
def test_a_solver_that_chooses_its_steps_needs_no_spacing(method, solver):
    steps = None if method == "ode" else 4
    assert sample(learned(), 4, (2,), method=method, steps=steps, solver=solver, generator=seeded(0)).isfinite().all()


def test_where_no_spacing_is_given_a_calibration_has_its_own_steps():
    x, model = torch.randn(64, 2, generator=seeded(2)), learned()
    without = sample(model, 4, (2,), steps=4, generator=seeded(0))
    model.calibrate(x, steps=4, generator=seeded(3))  # in even steps of time
    assert torch.equal(
        sample(model, 4, (2,), steps=4, generator=seeded(0)),
        sample(model, 4, (2,), steps=4, spacing="time", generator=seeded(0)),
    )
    # What the calibration says nothing about: another volatility, and another number of steps.
    for options in ({"method": "ddim", "steps": 4}, {"steps": 5}):
        assert torch.equal(
            sample(model, 4, (2,), **options, generator=seeded(0)),
            sample(model, 4, (2,), **options, spacing="gamma", generator=seeded(0)),
        )
    assert torch.equal(sample(model.uncalibrate(), 4, (2,), steps=4, generator=seeded(0)), without)


# ---- a direct reverse process


class Direct(BaseDenoiser):
    """The exact estimate of y = F - 2 / (1 + eta^2) dF/dgamma under F = a(gamma) x, and of F as well if asked for."""

    direct = True

    def __init__(self, a: Callable[[Tensor], Tensor], ode: bool) -> None:
        super().__init__()
        self.a, self.ode, self.exact = a, ode, Exact(a)

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> ndm.Estimate:
        x_hat = self.exact(z, level, labels)
        a, da = torch.func.jvp(self.a, (level.gamma,), (torch.ones_like(level.gamma),))
        y_hat = per_example(a - da, z) * x_hat
        transformed = per_example(a, z) * x_hat if self.ode else None
        return ndm.Estimate(mean=y_hat, residual=lambda target, _, noise: target - y_hat, transformed=transformed)


@pytest.mark.parametrize(("method", "eta"), [("sde", None), ("sde", 0.5), ("ode", None)])
def test_a_direct_process_with_the_exact_estimate_is_the_same_process(method, eta):
    """The same random numbers, the same samples; the ODE and another eta need the head for F."""
    through_x_hat = gaussian("scale")
    direct = gaussian("scale", denoiser=Direct(widening, ode=method == "ode" or eta is not None))
    samples = [
        sample(m, 3, (2,), method=method, steps=20, eta=eta, generator=seeded(0), dtype=torch.float64)
        for m in (through_x_hat, direct)
    ]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-9, atol=1e-9)


def test_a_direct_process_has_ancestral_steps():
    """For the identity y is x, and the steps are those through x_hat."""
    samples = [
        sample(m, 3, (2,), method="ancestral", steps=7, generator=seeded(0), dtype=torch.float64)
        for m in (gaussian(), gaussian(denoiser=Direct(one, ode=False)))
    ]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "eta"), [("ode", None), ("ddim", None), ("ancestral", 0.5), ("sde", 0.5)])
def test_a_direct_process_without_an_estimate_of_f_refuses_in_a_sentence(method, eta):
    model = small(denoiser=ndm.DirectDenoiser(ResidualMLP(2, hidden=8, depth=1)))
    with pytest.raises(ValueError, match=r'DirectDenoiser\(net, ode=True\).*sample with method="sde" or "ancestral"'):
        sample(model, 2, (2,), method=method, steps=3, eta=eta)


@pytest.mark.parametrize("method", ["ancestral", "ddim", "ode", "sde"])
@pytest.mark.parametrize("eta", [-1.0, float("nan"), float("inf")])
def test_a_volatility_that_is_none_is_refused(method, eta):
    with pytest.raises(ValueError, match="eta"):
        sample(small(), 2, (2,), method=method, steps=3, eta=eta)


@pytest.mark.parametrize("method", ["ddim", "ode"])
def test_a_method_without_noise_has_no_volatility(method):
    with pytest.raises(ValueError, match=f"for the methods ancestral and sde; leave it out with '{method}'"):
        sample(small(), 2, (2,), method=method, steps=3, eta=1.0)


# ---- random numbers

EVERY_WAY = [
    ("ancestral", 5, None), ("ddim", 5, None), ("ode", None, None), ("ode", 5, "heun"), ("ode", 5, "rk4"),
    ("sde", 5, None), ("sde", 5, "euler"), ("sde", 5, "srk"), ("sde", None, None),
]  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("method", "steps", "solver"), EVERY_WAY)
def test_every_random_number_comes_from_the_generator(method, steps, solver):
    model = small()

    def draw(seed: int) -> Tensor:
        return sample(
            model, 3, (2,), method=method, steps=steps, solver=solver, rtol=1e-2, atol=1e-2, generator=seeded(seed)
        )

    state = torch.get_rng_state()
    first = draw(0)
    assert first.shape == (3, 2)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)  # the global generator moves on; nothing changes
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)


# ---- trajectories, labels, units, levels


@pytest.mark.parametrize(("method", "steps", "solver"), EVERY_WAY)
def test_a_trajectory_runs_from_noise_to_the_sample(method, steps, solver):
    standardize = ndm.Standardize([10.0, -5.0], [2.0, 0.5])
    model = small(standardize=standardize)
    common = {"solver": solver, "rtol": 1e-3, "atol": 1e-3}
    path = sample(model, 3, (2,), method=method, steps=steps, trajectory=True, generator=seeded(0), **common)
    assert path.shape == ((steps or 100) + 2, 3, 2)
    end = sample(model, 3, (2,), method=method, steps=steps, generator=seeded(0), **common)
    torch.testing.assert_close(path[-1], end, rtol=1e-3, atol=1e-3)
    # A Gaussian decoder's most likely data are z_0 / alpha_0; and the states are z / alpha in the data's units.
    torch.testing.assert_close(path[-2], path[-1])
    z_1 = torch.randn(3, 2, generator=seeded(0))
    alpha_1 = math.sqrt(1 / (1 + math.exp(4)))
    torch.testing.assert_close(path[0], z_1 / alpha_1 * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, -5.0]))
    assert all(not torch.equal(a, b) for a, b in pairwise(path[:-1]))


@pytest.mark.parametrize(("method", "steps"), [("ancestral", 50), ("ddim", 50), ("ode", None), ("sde", 100)])
def test_labels_reach_the_denoiser(method, steps):
    labels = torch.tensor([0, 10, 20]).repeat_interleave(400)
    x = sample(gaussian(), 1200, (1,), method=method, steps=steps, labels=labels, dtype=torch.float64)
    means = x.reshape(3, 400).mean(1)
    torch.testing.assert_close(means, MEAN + torch.tensor([0.0, 10.0, 20.0]).double(), rtol=0, atol=0.35)


def test_samples_are_in_the_datas_own_units():
    """A model of standardised N(0, 1) data with units: what is drawn has the data's mean and deviation."""
    mean, scale = [100.0, -3.0], [20.0, 0.1]
    x = sample(
        gaussian(standardize=ndm.Standardize(mean, scale)), 20_000, (2,), method="ode", steps=40, dtype=torch.float64
    )
    for k in range(2):
        assert_moments((x[:, k] - mean[k]) / scale[k], data_moments("identity"), bias=0.02)


@pytest.mark.parametrize(("method", "steps", "solver"), EVERY_WAY)
def test_k_level_samples_lie_on_the_levels(method, steps, solver):
    model = small(decoder=ndm.DiscretizedDecoder(levels=5))
    x = sample(model, 200, (2,), method=method, steps=steps, solver=solver, rtol=1e-2, atol=1e-2)
    k = ((x + 1) / 2 * 5 - 0.5).round()
    torch.testing.assert_close(x, 2 * (k + 0.5) / 5 - 1)
    assert len(k.unique()) > 1
    model.bound(x)  # its own check agrees


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_steps_will_do(method, steps):
    x = sample(small(), 2, (2,), method=method, steps=steps)
    assert x.shape == (2, 2)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    "schedule", [ndm.CosineSchedule(), ndm.DDPMSchedule(), ndm.OTSchedule(), ndm.LearnedSchedule()]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_schedule_can_be_sampled_with(schedule, method):
    """Clipped schedules have empty steps, and infinite slopes just outside them: nothing may become NaN."""
    model = ndm.NDM(schedule, ndm.Identity(), Exact())
    x = sample(model, 4000, (2,), method=method, steps=100, dtype=torch.float64)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.15)
    assert x.var().item() == pytest.approx(R, rel=0.3)


# ---- guidance


QUICK_WAYS = [way for way in EVERY_WAY if way[:2] != ("sde", None)]


def knows(classes: int, denoiser: nn.Module) -> nn.Module:
    denoiser.classes = classes
    return denoiser


@pytest.mark.parametrize(("method", "steps", "solver"), QUICK_WAYS)
@pytest.mark.parametrize("kind", ["identity", "scale", "direct"])
def test_guidance_of_gaussians_moves_their_mean(kind, method, steps, solver):
    """x_hat is affine in the class's mean: guided from mean k + K to k + c by w it is that of the mean between."""
    if kind == "direct":
        model = gaussian("scale", denoiser=Direct(widening, ode=True))
        model.denoiser.net = knows(4, nn.Identity())
    else:
        model = gaussian(kind, denoiser=knows(4, Exact(SCALES[kind])))
    common = {"shape": (2,), "method": method, "steps": steps, "solver": solver, "rtol": 1e-8, "atol": 1e-8}
    labels, w = torch.tensor([0.0, 1.0, 3.0]).double(), 0.7
    parts = dict(model.named_modules())
    x = sample(model, 3, labels=labels, guidance=w, generator=seeded(0), dtype=torch.float64, **common)
    mean = (1 + w) * labels - w * 4
    getattr(model.denoiser, "net", getattr(model.denoiser, "module", None)).classes = 0  # any number is a label now
    expected = sample(model, 3, labels=mean, generator=seeded(0), dtype=torch.float64, **common)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert dict(model.named_modules()) == parts  # and the model is as it was


def test_guidance_of_a_network_with_classes():
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False))).train()
    labels = torch.tensor([0, 1, 2])

    def draw(guidance: float | None, labels: Tensor = labels) -> Tensor:
        return sample(model, 3, (2,), steps=5, labels=labels, guidance=guidance, generator=seeded(0))

    torch.testing.assert_close(draw(0.0), draw(None))
    with pytest.raises(ValueError, match=r"labels must be 0 \.\.\. 2"):
        draw(None, torch.full((3,), 3))  # what stands for no class is no class
    none, model.denoiser.net.classes = draw(-1.0), 4
    torch.testing.assert_close(none, draw(None, torch.full((3,), 3)))
    model.denoiser.net.classes = 3
    assert (draw(2.0) - draw(None)).abs().max() > 1e-3
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "arguments", "sentence"),
    [
        (3, {"guidance": 1.0}, "Guidance needs labels"),
        (0, {"guidance": 1.0, "labels": torch.tensor([0, 1])}, "build it with classes=K"),
        (3, {"guidance": math.inf, "labels": torch.tensor([0, 1])}, "finite"),
        (3, {"labels": torch.tensor([0, 1, 2])}, "Each of the 2 samples needs one label"),
        (3, {"labels": torch.tensor(1)}, "Each of the 2 samples needs one label"),
    ],
)
def test_guidance_that_cannot_be_is_said_in_a_sentence(classes, arguments, sentence):
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, classes=classes)))
    own = model.denoiser
    for draw in (sample, lambda *a, **o: list(sample_batches(*a, **o))):
        with pytest.raises(ValueError, match=sentence):
            draw(model, 2, (2,), steps=3, **arguments)
        assert model.denoiser is own


# ---- many samples


@pytest.mark.parametrize(("method", "steps", "solver"), QUICK_WAYS)
def test_samples_do_not_depend_on_how_many_processes_share_them(method, steps, solver):
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False)))
    labels = torch.arange(20) % 3
    options = {"method": method, "steps": steps, "solver": solver, "rtol": 1e-2, "atol": 1e-2, "labels": labels}

    def draw(rank: int, world_size: int, **others) -> dict[int, Tensor]:
        blocks = sample_batches(
            model, 20, (2,), seed=5, batch_size=3, rank=rank, world_size=world_size, **options, **others
        )
        rows = {}
        for where, x in blocks:
            assert len(x) == where.stop - where.start <= 3
            torch.rand(3)  # the global generator is of no consequence
            rows |= dict(zip(range(where.start, where.stop), x, strict=True))
        return rows

    alone = draw(0, 1)
    assert list(alone) == list(range(20))
    shares = [draw(rank, 3) for rank in range(3)]
    assert sum(len(share) for share in shares) == 20
    assert max(len(share) for share in shares) <= 9  # three blocks of the seven
    together = shares[0] | shares[1] | shares[2]
    assert all(torch.equal(together[i], alone[i]) for i in range(20))
    assert len({tuple(x.tolist()) for x in alone.values()}) == 20  # no block repeats another


def test_the_seed_decides_the_samples_and_labels_follow_their_examples():
    model = gaussian()
    labels = torch.arange(7) * 100.0

    def draw(**others) -> Tensor:
        options = {"seed": 1, "labels": labels, "steps": 20, "method": "ode"} | others
        return torch.cat([x for _, x in sample_batches(model, 7, (2,), batch_size=3, **options)])

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=2))
    assert torch.equal(draw(), draw(labels=labels.__getitem__))  # asked for block by block
    torch.testing.assert_close(draw().mean(1), MEAN + labels, rtol=0, atol=8)


def test_blocks_are_made_when_they_are_asked_for():
    calls = []
    model = small()
    model.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    model.denoiser.net.register_forward_pre_hook(lambda *_: calls.append(1))
    blocks = sample_batches(model, 10**9, (2,), batch_size=2, steps=3)
    assert not calls
    assert next(blocks)[1].shape == (2, 2)
    assert len(calls) == 3
    assert next(blocks)[0] == slice(2, 4)


@pytest.mark.parametrize(
    "arguments",
    [{"n": 0}, {"batch_size": 0}, {"seed": -1}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}],
)
def test_a_share_that_cannot_be_is_refused_at_once(arguments):
    with pytest.raises(ValueError, match="must be"):
        sample_batches(**{"model": small(), "n": 2, "shape": (2,), **arguments})


# ---- manners


@pytest.mark.parametrize(("method", "steps"), [("ancestral", 6), ("ddim", 6), ("ode", 6), ("sde", 6)])
def test_a_bar_is_shown_where_it_is_asked_for_and_only_there(method, steps, capsys):
    sample(small(), 2, (2,), method=method, steps=steps, progress=True)
    assert "sampling" in capsys.readouterr().err
    for progress in (False, None):  # None: nobody watches a file
        sample(small(), 2, (2,), method=method, steps=60, progress=progress)
        assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_for_long_runs(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    sample(small(), 2, (2,), steps=49)
    assert "sampling" not in capsys.readouterr().err
    sample(small(), 2, (2,), steps=50)
    assert "sampling" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "number of steps must be at least 1, got 0"),
        ({"steps": -3, "method": "ode"}, "number of steps must be at least 1, got -3"),
        ({"n": 0}, "number of samples must be at least 1, got 0"),
        ({"method": "langevin"}, "no sampling method 'langevin'; choose one of ancestral, ddim, ode, sde"),
        ({"steps": None}, "'ancestral' needs a number of steps"),
        ({"steps": None, "method": "ddim"}, "'ddim' needs a number of steps"),
        ({"spacing": "log"}, "no spacing 'log' of the steps; choose one of time, gamma"),
        ({"spacing": "gamma", "method": "ode", "steps": None}, "gamma' cannot be used with an adaptive solver"),
        ({"spacing": "gamma", "method": "sde", "solver": "srk"}, "cannot be used with the solver 'srk'"),
        ({"method": "ode", "solver": "rk5"}, "no solver 'rk5'.*euler, midpoint, heun, rk4, dopri5"),
        ({"method": "sde", "solver": "heun"}, "no solver 'heun'.*euler-maruyama, euler, srk"),
        ({"method": "ode", "solver": "heun", "steps": None}, "'heun' needs a number of steps"),
        ({"method": "sde", "solver": "euler-maruyama", "steps": None}, "'euler-maruyama' needs a number of steps"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, sentence):
    model = small().train()
    with pytest.raises(ValueError, match=sentence):
        sample(**{"model": model, "n": 2, "shape": (2,), "steps": 3, **arguments})
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_samples_are_drawn_in_eval_mode_and_the_mode_is_restored(training):
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, dropout=0.9, zero_init=False))).train(training)
    seen = []
    model.denoiser.register_forward_pre_hook(lambda m, _: seen.append(m.training))
    model.denoiser.net.register_forward_pre_hook(lambda m, _: seen.append(m.training))
    x = sample(model, 2, (2,), steps=2, generator=seeded(0))
    assert seen
    assert not any(seen)
    assert model.training == training
    assert all(m.training == training for m in model.modules())
    assert not x.requires_grad


def test_the_precision_is_the_parameters_or_the_one_asked_for():
    model = small()
    assert sample(model, 1, (2,), steps=2).dtype == torch.float32
    assert sample(model.double(), 1, (2,), steps=2).dtype == torch.float64
    assert sample(gaussian(), 1, (2,), steps=2, dtype=torch.float64).dtype == torch.float64


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method, steps, solver in EVERY_WAY:
            sample(small(), 2, (2,), method=method, steps=steps, solver=solver, rtol=1e-2, atol=1e-2)
