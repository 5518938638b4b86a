"""The learned standard deviation of the forward process, against the definition of its steps and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.networks
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.mixed_denoiser import outputs_for
from ndm.method.noise import LEAST
from ndm.method.schedules import per_example
from ndm.method.steps import ContinuousTime, DiscreteStep
from tests.method.gaussians import HIGH, LOW, R, diffusion, f64, network
from tests.method.processes import assert_gradient_is_right, assert_saved_calibrated_and_sampled, times

B, D = 5, 3
TRANSFORMS = {
    "identity": ndm.Identity,
    "scale": lambda: ndm.Scale(lambda gamma: 1 + 0.8 * torch.sigmoid(gamma)),
    "separable": lambda: ndm.Separable(network(D, heads=2, level=False), terms=2, gate="free"),
    "neural": lambda: ndm.Neural(network(D), gate="sigma"),
}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def learned() -> ndm.LearnedNoise:
    return ndm.LearnedNoise(network(D, heads=3, level=False))


def per_dimension(shape: tuple[int, ...] = (D,), scale: float = 1.0) -> ndm.DimensionNoise:
    part = ndm.DimensionNoise(shape)
    part.coefficients.data.normal_(std=scale, generator=torch.Generator().manual_seed(3))
    return part


NOISES = {"of x": learned, "per dimension": per_dimension}
every_noise = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)


def model(make, noise, schedule=None, **options) -> ndm.NDM:
    torch.manual_seed(1)
    schedule = schedule or ndm.LinearSchedule(-6.0, 5.0)
    return ndm.NDM(schedule, make(), ndm.Denoiser(network(D)), noise=noise(), **options).double().requires_grad_(False)


def share_of(process: ndm.NDM, step, std_s: Tensor, std_t: Tensor, eta: float) -> Tensor:
    """v / std_s^2 of a step by the definition, (B, D): of the schedule, or of the schedule of each dimension."""
    if not process.noise.given:
        return per_example(step.v, std_s) / std_s**2
    ratio = std_s**2 * per_example(step.t.alpha**2, std_s) / (std_t**2 * per_example(step.s.alpha**2, std_s))
    of_schedule = -torch.expm1(step.s.gamma - step.t.gamma)[:, None]
    r = (1 - ratio) / of_schedule
    r = torch.where(r >= LEAST, r, LEAST / (2 - r / LEAST))
    return (per_example(step.v / step.s.sigma**2, r) * r).clamp(max=1 - 1e-6)


def std_and_mean(process: ndm.NDM, x: Tensor, level) -> tuple[Tensor, Tensor]:
    """The definition: alpha F and sigma e^h, (B, D)."""
    curve = process.curve(x)
    mean = per_example(level.alpha, x) * curve(level.gamma)
    return per_example(level.sigma, x) * curve.noise(level.gamma)[0].exp(), mean


@every_noise
def test_the_curve_vanishes_at_both_ends_and_its_derivative_is_right(noise) -> None:
    process = model(ndm.Identity, noise)
    curve = process.curve(torch.randn(B, D, dtype=torch.float64)).noise
    for end in (-6.0, 5.0):
        value, slope = curve(times(end))
        assert value.abs().max() == 0
        assert slope.abs().max() == 0
    gamma = torch.linspace(-5.5, 4.5, B, dtype=torch.float64)
    value, slope = curve(gamma)
    assert 0.01 < value.abs().max() < process.noise.limit
    apart = (curve(gamma + 1e-5)[0] - curve(gamma - 1e-5)[0]) / 2e-5
    torch.testing.assert_close(slope, apart, rtol=1e-6, atol=1e-8)
    many = curve(torch.stack([gamma, gamma + 0.1]))
    torch.testing.assert_close(many[0][0], value)
    torch.testing.assert_close(many[1][1], curve(gamma + 0.1)[1])


@every_transform
@every_noise
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("s", "t"), [(0.4, 0.45), (0.0, 1.0), (0.2, 0.6)])
def test_a_step_is_that_of_the_definition(make, noise, eta: float, s: float, t: float) -> None:
    process, x, z = model(make, noise), torch.randn(B, D).double(), torch.randn(B, D).double()
    step = process.step(times(s, B), times(t, B), torch.ones(B).long(), None, eta)
    assert (step.v <= process.largest_share * step.s.sigma**2 * (1 + 1e-12)).all()
    (std_s, mean_s), (std_t, mean_t) = (std_and_mean(process, x, level) for level in (step.s, step.t))
    v = share_of(process, step, std_s, std_t, eta) * std_s**2
    expected = mean_s + (std_s**2 - v).sqrt() / std_t * (z - mean_t)
    mean, variance = process.posterior(x, z, step)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(variance if variance.ndim > 1 else per_example(variance, x).expand_as(x), v)
    kernel = process.kernel(z, step)
    torch.testing.assert_close(kernel.sample(torch.ones_like(z)) - kernel.mean, v.sqrt())
    found, std = process.marginal(x, times(t, B))
    torch.testing.assert_close(found, mean_t)
    torch.testing.assert_close(std, std_t)


@every_transform
@every_noise
@pytest.mark.parametrize("schedule", [ndm.LinearSchedule(-6.0, 5.0), ndm.OTSchedule(-6.0, 5.0)], ids=["vp", "ot"])
def test_the_error_of_a_step_is_the_difference_of_the_two_means(make, noise, schedule) -> None:
    process, x, eps = model(make, noise, schedule), torch.randn(B, D).double(), torch.randn(B, D).double()
    step = process.step(times(0.4, B), times(0.45, B), torch.ones(B).long(), None)
    at, curve = DiscreteStep(step), process.curve(x)
    value = at.path_value(curve)
    z = process.perturbed(x, value, eps, step.t)
    std, mean = std_and_mean(process, x, step.t)
    torch.testing.assert_close(z, mean + std * eps)
    estimate = process.denoiser.estimate(z, step.t)
    gap = process.mismatch(value, eps, x, estimate, at)
    apart = process.posterior(x, z, step)[0] - process.posterior(estimate.mean, z, step)[0]
    torch.testing.assert_close(per_example(step.s.alpha * step.gain, x) * gap, apart)
    torch.testing.assert_close(process.kernel(z, step).mean, process.posterior(estimate.mean, z, step)[0])


@every_transform
@every_noise
@pytest.mark.parametrize("direct", [False, True])
def test_continuous_time_is_the_limit_of_small_steps(make, noise, direct: bool) -> None:
    process, x, eps = model(make, noise, volatility=0.8), torch.randn(B, D).double(), torch.randn(B, D).double()
    if direct:
        process.denoiser = ndm.DirectDenoiser(network(D).double())
    level = process.schedule(times(0.45, B))
    at = ContinuousTime(level, times(0.8))
    step = process.step(times(0.45 - 1e-6, B), times(0.45, B), torch.ones(B).long(), None)
    gaps = []
    for one in (at, DiscreteStep(step)):
        value = one.path_value(process.curve(x))
        z = process.perturbed(x, value, eps, level)
        gaps.append(process.mismatch(value, eps, x, process.denoiser.estimate(z, level), one))
    torch.testing.assert_close(gaps[0], gaps[1], rtol=1e-4, atol=1e-5)
    drift = process.drift(z, times(0.45, B))
    kernel = process.kernel(z, step)
    torch.testing.assert_close((z - kernel.mean) / 1e-6, drift, rtol=1e-4, atol=1e-4)


def log_std(gamma: Tensor, part: ndm.DimensionNoise) -> tuple[Tensor, Tensor]:
    ends = f64([LOW, HIGH])
    h, dh = part(gamma[:, None], ends)(gamma)
    return h[:, 0], dh[:, 0]


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R), F = x and noise per dimension."""

    def __init__(self, part: ndm.DimensionNoise) -> None:
        super().__init__()
        self.part = [part]

    def forward(self, z: Tensor, level) -> Tensor:
        variance = level.sigma**2 * (2 * log_std(level.gamma, self.part[0])[0]).exp()
        return per_example(level.alpha * R / (level.alpha**2 * R + variance), z) * z


def gaussian() -> tuple[ndm.NDM, ndm.DimensionNoise]:
    part = per_dimension((1,), 0.5).double()
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact(part), noise=part).double(), part


def test_the_bound_of_gaussian_data_in_continuous_time(noise) -> None:
    """L_diff = 1/2 integral of the squared difference of the two drifts over the diffusion, by a fine quadrature."""
    process, part = gaussian()
    gamma = torch.linspace(LOW, HIGH, 20001, dtype=torch.float64)
    (h, dh), alpha, sigma = log_std(gamma, part), torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    std = sigma * h.exp()
    error = R * std**2 / (alpha**2 * R + std**2)  # E (x - x_hat)^2
    # The conditional drifts are m' + (std' / std + g^2 / (2 std^2)) (z - m), with m = alpha x and
    # g^2 = std^2 d log(std^2 / alpha^2), that of a Markov chain.
    assert (1 + 2 * dh).min() > LEAST
    g = std * (1 + 2 * dh).sqrt()
    slope = -(sigma**2) / 2 - (alpha**2 / 2 + dh + g**2 / (2 * std**2))
    expected = torch.trapezoid(alpha**2 * slope**2 * error / g**2, gamma).item() / 2
    assert diffusion(process, noise, None, nodes=400) == pytest.approx(expected, rel=1e-6)
    assert diffusion(process, noise, 20000) == pytest.approx(expected, rel=1e-3)


class ExactCorrelated(nn.Module):
    """E[x | z] for x ~ N(0, covariance), F = x and noise per dimension."""

    def __init__(self, covariance: Tensor, part: ndm.DimensionNoise) -> None:
        super().__init__()
        self.covariance, self.part = covariance, [part]

    def forward(self, z: Tensor, level) -> Tensor:
        h = self.part[0](z, f64([LOW, HIGH]))(level.gamma)[0]
        alpha, variance = level.alpha[:, None, None], (per_example(level.sigma, h) * h.exp()) ** 2
        noisy = alpha**2 * self.covariance + torch.diag_embed(variance)
        return (alpha * self.covariance @ torch.linalg.solve(noisy, z[..., None]))[..., 0]


def test_the_exact_reverse_process_has_the_same_bound_in_continuous_time_with_every_noise(noise) -> None:
    """The likelihood, whatever the schedule of each dimension: L_diff is half a difference of log-determinants."""
    root = torch.linalg.cholesky(f64([[2.0, 1.2], [1.2, 1.0]]))
    covariance, nodes = root @ root.T, 500
    patterns = torch.cat([torch.eye(4), -torch.eye(4)]).double() * 2  # second moments: the identity
    patterns = patterns.repeat(nodes, 1)
    times = ((torch.arange(nodes) + 0.5) / nodes).repeat_interleave(8).double()
    noise(patterns[:, 2:])
    low, high = (torch.logdet(torch.eye(2) + covariance * math.exp(-gamma)).item() / 2 for gamma in (LOW, HIGH))
    for scale in (0.0, 0.2):
        part = per_dimension((2,), scale).double()
        exact = ExactCorrelated(covariance, part)
        process = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), exact, noise=part).double()
        h, dh = part(patterns[:, :2], f64([LOW, HIGH]))(torch.linspace(LOW, HIGH, 50).double())
        assert (1 + 2 * dh).min() > LEAST  # else it is no Markov chain
        assert scale == 0 or (h[:, 0] - h[:, 1]).abs().max() > 0.2
        found = process.bound(patterns[:, :2] @ root.T, times=times).diffusion.mean().item()
        assert found == pytest.approx(low - high, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_the_bound_of_gaussian_data_in_steps(noise, steps: int) -> None:
    process, part = gaussian()
    total = 0.0
    for i in range(1, steps + 1):
        step = process.grid_step(torch.tensor([i]), steps, torch.zeros(1, dtype=torch.float64))
        std_s, std_t = (level.sigma * log_std(level.gamma, part)[0].exp() for level in (step.s, step.t))
        v = std_s**2 * (1 - std_s**2 / step.s.alpha**2 / (std_t**2 / step.t.alpha**2))
        c = (std_s**2 - v).sqrt() / std_t
        error = R * std_t**2 / (step.t.alpha**2 * R + std_t**2)
        total += ((step.s.alpha - c * step.t.alpha) ** 2 * error / (2 * v)).item()
    assert diffusion(process, noise, steps) == pytest.approx(total, rel=1e-7)  # v is at most (1 - 1e-6) std_s^2


def test_the_density_of_the_ode_is_that_of_gaussian_data() -> None:
    process, _ = gaussian()
    x = f64([[-2.0], [0.1], [1.3]])
    found = ndm.log_likelihood(process, x, tolerance=1e-6).log_prob
    level_0, level_1 = process.schedule(f64([0.0])), process.schedule(f64([1.0]))
    variance_0 = level_0.alpha**2 * R + level_0.sigma**2
    variance_1 = level_1.alpha**2 * R + level_1.sigma**2  # of z_1 under the ODE, which starts from N(0, 1)
    z = level_0.alpha * x[:, 0]
    spread = variance_0 / variance_1
    expected = -(z**2 / spread + torch.log(2 * math.pi * spread)) / 2 + level_0.alpha.log()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Constant(BaseDenoiser):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def estimate(self, z: Tensor, level, labels: Tensor | None = None) -> Estimate:
        x_hat = self.x.expand_as(z)
        return Estimate(mean=x_hat, residual=lambda target, displacement, noise: target - x_hat)


class Direct(BaseDenoiser):
    """A direct denoiser with estimates of y and of F that are given, whatever z is."""

    direct = ode = True

    def __init__(self, y: Tensor, transformed: Tensor) -> None:
        super().__init__()
        self.found = Estimate(mean=y, residual=lambda *of: of[0] - y, transformed=transformed)

    def estimate(self, z: Tensor, level, labels: Tensor | None = None) -> Estimate:
        return self.found


@every_transform
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_direct_denoiser_has_the_ode_and_the_steps_of_its_estimates(make, eta: float) -> None:
    """y of its own volatility and F of one x_hat give what x_hat gives for another volatility."""
    process = model(make, per_dimension, volatility=0.9)
    z, x_hat = torch.randn(2, B, D).double()
    level, s, t, index = process.schedule(times(0.45, B)), times(0.3, B), times(0.45, B), torch.ones(B).long()
    step, other = process.step(s, t, index, None), process.step(s, t, index, None, eta)
    transformed = process.curve(x_hat)(level.gamma)
    y = process.y_of(x_hat, z, ContinuousTime(level, times(0.9)))
    y_of_step = process.y_of(x_hat, z, DiscreteStep(step))
    process.denoiser = Constant(x_hat)
    expected = process.drift_at(z, level), process.drift_at(z, level, eta=eta), process.kernel(z, other, override=True)
    process.denoiser = Direct(y, transformed)
    assert process.has_ode
    torch.testing.assert_close(process.drift_at(z, level), expected[0])
    torch.testing.assert_close(process.drift_at(z, level, eta=eta), expected[1])
    process.denoiser = Direct(y_of_step, transformed)
    found = process.kernel(z, other, override=True)
    torch.testing.assert_close(found.mean, expected[2].mean)
    torch.testing.assert_close(found.sample(z), expected[2].sample(z))


@pytest.mark.parametrize("solver", ["heun", "rk4", "dpm++2m"])
def test_the_ode_of_a_clipped_schedule_has_the_variance_of_the_data(solver: str) -> None:
    """The default steps are even in gamma: even in time, the first one would cross half of the noise levels."""
    process, part = gaussian()
    process.schedule = ndm.CosineSchedule(0.008, LOW, HIGH)
    part.coefficients.data.mul_(2)
    found = ndm.sample(process, 4000, (1,), method="ode", solver=solver, steps=100, generator=torch.Generator())
    assert found.std().item() == pytest.approx(R**0.5, rel=0.05)


@pytest.mark.parametrize("steps", [None, 10, 1000])
def test_a_schedule_of_a_dimension_that_falls_has_a_finite_bound(steps: int | None) -> None:
    """gamma + 2 h falls at some noise levels: the variance of a step is small there, but no underflow."""
    parts = ndm.LinearSchedule(-8.0, 6.0), ndm.Identity(), ndm.Denoiser(network(D))
    process = ndm.NDM(*parts, noise=per_dimension(scale=3.0))
    gamma = torch.linspace(-8, 6, 500)
    assert (1 + 2 * process.noise(torch.zeros(500, D), torch.tensor([-8.0, 6.0]))(gamma)[1]).min() < -1
    total = process.bound(torch.randn(2000, D), steps).total.mean()
    total.backward()
    assert total.isfinite()
    assert process.noise.coefficients.grad.isfinite().all()


@every_noise
def test_single_precision_suffices_for_a_volatility_above_one(noise) -> None:
    process, x, z = model(ndm.Identity, noise), torch.randn(B, D).double(), torch.randn(B, D).double()
    found = []
    for dtype in (torch.float64, torch.float32):
        process.to(dtype)
        s, t = times(0.1, B).to(dtype), times(0.9, B).to(dtype)
        step = process.step(s, t, torch.ones(B).long(), None, 1.5)
        found.append(process.posterior(x.to(dtype), z.to(dtype), step)[0].double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@every_transform
@pytest.mark.parametrize("solver", ["dpm++2m", pytest.param("rk4", marks=pytest.mark.slow)])
def test_the_ode_of_a_constant_estimate_follows_its_path(make, solver: str) -> None:
    x = torch.randn(1, D).double()
    process = model(make, learned)
    process.denoiser = Constant(x)
    found = ndm.sample(process, B, (D,), method="ode", steps=60, solver=solver, trajectory=True)
    z = found[0]
    level_0, level_1 = process.schedule(times(0.0, 1)), process.schedule(times(1.0, 1))
    (std_0, mean_0), (std_1, mean_1) = (std_and_mean(process, x, level) for level in (level_0, level_1))
    noise = (z * level_1.alpha - mean_1) / std_1
    torch.testing.assert_close(found[-2] * level_0.alpha, mean_0 + std_0 * noise, rtol=1e-4, atol=1e-4)


@every_noise
@pytest.mark.parametrize("steps", [None, 7])
def test_the_gradient_is_that_of_finite_differences(noise, steps: int | None) -> None:
    process = model(TRANSFORMS["separable"], noise).requires_grad_(True)
    x, u = torch.randn(B, D).double(), torch.rand(B).double()

    def total() -> Tensor:
        return process.bound(x, steps, times=u, generator=torch.Generator().manual_seed(0)).total.mean()

    assert_gradient_is_right(total, next(process.noise.parameters()))


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_with_noise_is_saved_calibrated_and_sampled(direct: bool, tmp_path) -> None:
    process = model(ndm.Identity, per_dimension if direct else learned)
    if direct:
        process.denoiser = ndm.DirectDenoiser(network(D, heads=2).double(), ode=True).requires_grad_(False)
    assert_saved_calibrated_and_sampled(process, torch.randn(200, D).double(), tmp_path)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(4, D)
    with pytest.raises(ValueError, match="at least one term"):
        ndm.LearnedNoise(network(D), terms=0)
    with pytest.raises(ValueError, match="The limit of log"):
        ndm.DimensionNoise((D,), limit=0)
    with pytest.raises(ValueError, match="There is no basis 'sine'"):
        ndm.DimensionNoise((D,), basis="sine")
    process = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network(D)), noise=ndm.DimensionNoise((2,)))
    with pytest.raises(ValueError, match=r"DimensionNoise has shape \(2,\), and examples have \(3,\)"):
        process.bound(x)
    process.noise = ndm.LearnedNoise(network(D, level=False))
    with pytest.raises(ValueError, match=r"must return shape \(4, 9\)"):
        process.bound(x)
    process = model(ndm.Identity, learned)
    process.denoiser = ndm.DirectDenoiser(network(D, heads=2).double(), ode=True)
    assert not process.has_ode
    with pytest.raises(ValueError, match="with a noise of x has no ODE and no volatility but its own"):
        ndm.log_likelihood(process, x)


@pytest.mark.parametrize("options", [{"conditionals": "any"}, {"given": [0]}])
def test_a_model_of_columns_given_others_has_no_learned_noise(options) -> None:
    columns = [{"name": name, "counts": [9], "map": {"scale": 2.0}} for name in "ab"]
    encoding = ndm.TableEncoding(columns)
    layouts = encoding.layouts()
    net = ndm.networks.ResidualMLP(2, 8, 1, outputs=outputs_for(layouts), context=4)
    denoiser = ndm.MixedDenoiser(net, layouts, **options)
    parts = ndm.LinearSchedule(), ndm.Identity(), denoiser
    ndm.NDM(*parts, standardize=encoding)
    with pytest.raises(ValueError, match="A model of some columns given others has no learned noise"):
        ndm.NDM(*parts, standardize=encoding, noise=ndm.DimensionNoise((2,)))
