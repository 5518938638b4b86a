"""The bound against closed forms (method, section 7), against torch.distributions, and against an exact likelihood.

With an exact linear denoiser every term is a quadratic function of x and of the noise, for which a few sign patterns
in place of random numbers give the exact expectation; times are replaced by the nodes of a quadrature. Numbers of
the method are then reproduced to all their digits, not to Monte Carlo error.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from scipy.integrate import quad
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import ndm
import ndm.method.bounds
from ndm.method.bounds import low_discrepancy
from ndm.method.schedules import per_example
from ndm.networks import ResidualMLP

R, LOW, HIGH = 1.7, -8.0, 6.0


def f64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@pytest.fixture
def noise(monkeypatch):
    """Replace the noise that the bound draws by given numbers."""

    def put(values: Tensor) -> None:
        monkeypatch.setattr(ndm.method.bounds, "normal_like", lambda x, generator: values.to(x))

    return put


def sigmoid(gamma):
    return 1 / (1 + math.exp(-gamma))


def one(gamma: Tensor) -> Tensor:
    return torch.ones_like(gamma)


def rising(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R) and F = a(gamma) x."""

    def __init__(self, a=one) -> None:
        super().__init__()
        self.a = a

    def forward(self, z: Tensor, level) -> Tensor:
        a = self.a(level.gamma)
        return per_example(level.alpha * a * R / (level.alpha**2 * a**2 * R + level.sigma**2), z) * z


class BestVolatility(nn.Module):
    """eta^2 = (a/2 - da) / (a/2) for a = rising."""

    def forward(self, gamma: Tensor) -> Tensor:
        a, da = rising(gamma), 0.8 * torch.sigmoid(gamma) * torch.sigmoid(-gamma)
        return ((a / 2 - da) / (a / 2)).sqrt()


def gaussian_model(a=one, schedule=None, **options) -> ndm.NDM:
    transform = ndm.Identity() if a is one else ndm.Scale(a)
    return ndm.NDM(schedule or ndm.LinearSchedule(LOW, HIGH), transform, Exact(a), **options)


def diffusion(model: ndm.NDM, noise, steps: int | None, nodes: int = 300) -> float:
    """E[L_diff] for x ~ N(0, R), exactly: signs for x and the noise, quadrature for the time."""
    if steps is None:
        u, weights = leggauss(nodes)
        u, weights = (u + 1) / 2, weights / 2
    else:
        u, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    x, eps = (f64(v)[:, None] for v in zip(*itertools.product([R**0.5, -(R**0.5)], [1, -1]), strict=True))
    noise(eps.repeat_interleave(len(u), 0))
    terms = model.bound(x.repeat_interleave(len(u), 0), steps, times=f64(u).repeat(4))
    return (terms.diffusion.detach().reshape(4, -1).mean(0) * f64(weights)).sum().item()


# ---- method, section 7


def test_continuous_time_equals_the_closed_form(noise) -> None:
    value = diffusion(gaussian_model(), noise, None)
    assert value == pytest.approx(4.263310268688, abs=1e-11)
    assert value == pytest.approx(0.5 * math.log((1 + R * math.exp(-LOW)) / (1 + R * math.exp(-HIGH))), abs=1e-11)


def test_scaling_equals_its_integral(noise) -> None:
    value = diffusion(gaussian_model(rising), noise, None)

    def integrand(gamma: float) -> float:
        sigma2 = sigmoid(gamma)
        a, da = 1 + 0.8 * sigma2, 0.8 * sigma2 * (1 - sigma2)
        mse = R * sigma2 / ((1 - sigma2) * a**2 * R + sigma2)
        return 0.5 * math.exp(-gamma) * (a - da) ** 2 * mse

    assert value == pytest.approx(4.281072534395, abs=1e-11)
    assert value == pytest.approx(quad(integrand, LOW, HIGH, epsabs=1e-12)[0], abs=1e-10)


def test_the_best_volatility_equals_a_change_of_schedule(noise) -> None:
    value = diffusion(gaussian_model(rising, volatility=BestVolatility()), noise, None)
    a_0, a_1 = 1 + 0.8 * sigmoid(LOW), 1 + 0.8 * sigmoid(HIGH)
    closed = 0.5 * math.log((1 + R * a_0**2 * math.exp(-LOW)) / (1 + R * a_1**2 * math.exp(-HIGH)))
    assert value == pytest.approx(4.258915463849, abs=1e-11)
    assert value == pytest.approx(closed, abs=1e-11)


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_any_other_volatility_equals_its_integral(noise, eta: float) -> None:
    def integrand(gamma: float) -> float:
        mse = R * sigmoid(gamma) / (sigmoid(-gamma) * R + sigmoid(gamma))
        return 0.5 * math.exp(-gamma) / eta**2 * ((1 + eta**2) / 2) ** 2 * mse

    value = diffusion(gaussian_model(volatility=eta), noise, None)
    assert value == pytest.approx(quad(integrand, LOW, HIGH, epsabs=1e-12)[0], rel=1e-9)
    assert value > 4.3


@pytest.mark.parametrize(("steps", "value"), [(10, 8.542634561393), (100, 4.538763330653), (1000, 4.289784035388)])
def test_discrete_time_with_the_posterior_variance(noise, steps: int, value: float) -> None:
    assert diffusion(gaussian_model(), noise, steps) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("a", [one, rising])
def test_discrete_time_tends_to_continuous_time_at_first_order(noise, a) -> None:
    model = gaussian_model(a)
    limit = diffusion(model, noise, None)
    gaps = [diffusion(model, noise, steps) - limit for steps in (400, 800, 1600)]
    assert gaps[0] > 0.01
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.02)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_calibrated_steps_equal_the_closed_form_for_every_number_of_steps(noise, steps: int, covariance: str) -> None:
    model = gaussian_model()
    x, eps = (f64(v)[:, None] for v in zip(*itertools.product([R**0.5, -(R**0.5)], [1, -1]), strict=True))
    noise(eps)
    model.calibrate([x], steps, covariance)
    # One step down from gamma = 6 to -8 shrinks the variance by e^14; v is kept below (1 - 1e-6) sigma_s^2.
    assert diffusion(model, noise, steps) == pytest.approx(4.263310268688, abs=1e-6 if steps == 1 else 1e-9)
    model.uncalibrate(steps)
    assert diffusion(model, noise, steps) > 4.5


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_learned_variance_can_be_the_best_one_for_every_number_of_steps(noise, steps: int) -> None:
    knots = 21  # one at every noise level that these grids visit
    model = gaussian_model(reverse_variance=ndm.LearnedVariance(knots)).double()
    gamma = torch.linspace(LOW, HIGH, knots, dtype=torch.float64)
    mse = R * torch.sigmoid(gamma) / (torch.sigmoid(-gamma) * R + torch.sigmoid(gamma))
    with torch.no_grad():  # kappa is the mean squared error of the noise estimate, e^{-gamma} E|x - x_hat|^2
        start = torch.nn.functional.logsigmoid(-gamma)
        model.reverse_variance.shift.copy_((mse.log() - gamma - start) / ndm.LearnedVariance.UNIT)
    assert diffusion(model, noise, steps) == pytest.approx(4.263310268688, abs=1e-6 if steps == 1 else 1e-9)


class ExactCorrelated(nn.Module):
    """E[x | z] for x ~ N(0, C)."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.covariance = covariance

    def forward(self, z: Tensor, level) -> Tensor:
        eye, alpha = torch.eye(len(self.covariance), dtype=z.dtype), level.alpha[:, None, None]
        noisy = alpha**2 * self.covariance + level.sigma[:, None, None] ** 2 * eye
        return (alpha * self.covariance @ torch.linalg.solve(noisy, z[..., None]))[..., 0]


def correlated(noise) -> tuple[ndm.NDM, Tensor, float]:
    """A model, sign patterns of its data and of the noise, and the closed form of its diffusion term."""
    d = 3
    root = torch.linalg.cholesky(f64([[2.0, 1.2, -0.3], [1.2, 1.0, 0.1], [-0.3, 0.1, 0.4]]))
    points = torch.cat([torch.eye(2 * d), -torch.eye(2 * d)]).double() * (2 * d) ** 0.5  # second moments: the identity
    points = points.repeat_interleave(4, 0)  # all of them in each of the folds that a calibration makes
    x, eps = points[:, :d] @ root.T, points[:, d:]
    noise(eps)
    covariance = root @ root.T
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), ExactCorrelated(covariance))

    def entropy(gamma: float) -> float:
        return torch.linalg.slogdet(torch.eye(d) + covariance * math.exp(-gamma)).logabsdet.item() / 2

    return model, x, entropy(LOW) - entropy(HIGH)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_full_covariance_is_exact_for_correlated_gaussians(noise, steps: int) -> None:
    model, x, closed = correlated(noise)
    values = {}
    for covariance in ("isotropic", "diagonal", "full"):
        model.calibrate([x], steps, covariance)
        costs = [model.bound(x, steps, times=torch.full((len(x),), (i + 0.5) / steps)) for i in range(steps)]
        values[covariance] = np.mean([c.diffusion.mean().item() for c in costs])
    assert values["full"] == pytest.approx(closed, abs=2e-6 if steps == 1 else 1e-8)
    assert values["isotropic"] > values["diagonal"] + 0.01 > values["full"] + 0.02


def test_the_whole_bound_is_tight_for_gaussians(noise) -> None:
    model = gaussian_model(schedule=ndm.LinearSchedule(LOW, 25.0))
    x = f64([R**0.5, -(R**0.5)])[:, None]
    noise(torch.ones(2, 1))
    terms = model.bound(x)
    rest = (terms.prior + terms.reconstruction).mean().item()
    entropy = 0.5 * math.log(2 * math.pi * math.e * (R + math.exp(LOW)))  # of x + noise of variance e^{gamma_0}
    assert rest + diffusion(model, noise, None) == pytest.approx(entropy, abs=1e-9)


def test_without_tricks_the_average_is_the_same() -> None:
    n = 2**16
    x = R**0.5 * torch.randn(n, 1, dtype=torch.float64)
    for steps, value in ((None, 4.263310268688), (10, 8.542634561393)):
        terms = gaussian_model().bound(x, steps, generator=torch.Generator().manual_seed(3))
        error = terms.diffusion.std().item() / n**0.5
        assert terms.diffusion.mean().item() == pytest.approx(value, abs=4 * error)
        assert error < 0.02 * value


# ---- any parts: each step's cost is a KL divergence


def network(d: int = 2, **options) -> ResidualMLP:
    return ResidualMLP(d, hidden=12, depth=1, embedding=8, zero_init=False, **options)


TRANSFORMS = {
    "identity": ndm.Identity,
    "scale": lambda: ndm.Scale(rising),
    "neural": lambda: ndm.Neural(network()),
    "neural, free": lambda: ndm.Neural(network(), gate="free"),
    "separable": lambda: ndm.Separable(network(heads=3, level=False), terms=3, gate="sigma"),
}
DENOISERS = {
    "v": lambda heads: ndm.Denoiser(network(heads=heads), "v"),
    "eps": lambda heads: ndm.Denoiser(network(heads=heads), "eps"),
    "direct": lambda heads: ndm.DirectDenoiser(network(heads=heads), "v"),
}
VARIANCES = {"posterior": 1, "learned": 1, "predicted": 2, "isotropic": 1, "diagonal": 1, "full": 1}


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
@pytest.mark.parametrize("schedule", [ndm.LinearSchedule(-6.0, 4.0), ndm.OTSchedule(-6.0, 6.0)])
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_step_costs_the_divergence_of_the_posterior_from_the_kernel(
    noise, make, denoiser, schedule, variance: str
) -> None:
    kinds = ("isotropic", "diagonal", "full")
    reverse = "posterior" if variance in kinds else variance
    model = ndm.NDM(schedule, make(), denoiser(VARIANCES[variance]), reverse_variance=reverse, volatility=0.9).double()
    n, steps = 8, 4
    x, eps = torch.randn(2, n, 2, dtype=torch.float64)
    if variance in kinds:
        model.calibrate([x], steps, variance)
    index = torch.arange(n) % steps + 1
    noise(eps)
    with torch.no_grad():
        terms = model.bound(x, steps, times=(index - 0.5) / steps)
        step = model.grid_step(index, steps, x)
        mean, deviation = model.marginal(x, index.double() / steps)
        z = mean + deviation[:, None] * eps
        true, v = model.posterior(x, z, step)
        kernel = model.kernel(z, step)
        root = torch.stack([kernel.covariance.apply_sqrt(e.expand(n, 2).double()) for e in torch.eye(2)], 1)
    eye = torch.eye(2, dtype=torch.float64)
    q = MultivariateNormal(true, v[:, None, None] * eye)
    p = MultivariateNormal(kernel.mean, v[:, None, None] * root.mT @ root)
    torch.testing.assert_close(terms.diffusion, steps * kl_divergence(q, p), rtol=1e-7, atol=1e-9)
    prior = Independent(Normal(*(a.expand(n, 2) for a in (torch.zeros(1).double(), torch.ones(1).double()))), 1)
    mean, deviation = model.marginal(x, torch.ones(n, dtype=torch.float64))
    end = Independent(Normal(mean, deviation[:, None].expand(n, 2)), 1)
    torch.testing.assert_close(terms.prior, kl_divergence(end, prior), rtol=1e-9, atol=1e-12)
    f_0 = model.marginal(x, torch.zeros(n, dtype=torch.float64))[0] / schedule(torch.zeros(1).double()).alpha
    expected = math.log(2 * math.pi) - 6 + 1 + ((f_0 - x) ** 2).sum(1) / (2 * math.exp(-6))
    torch.testing.assert_close(terms.reconstruction, expected, rtol=1e-7, atol=1e-9)


def test_identity_equals_vdm(noise) -> None:
    net, n, steps = network().double(), 6, 7
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net, "eps"))
    x, eps = torch.randn(2, n, 2, dtype=torch.float64)
    noise(eps)
    index = torch.tensor([1, 2, 4, 5, 6, 7])
    terms = model.bound(x, steps, times=(index - 0.5) / steps)
    t, s = index.double() / steps, (index - 1).double() / steps
    gamma_t, gamma_s = -13.3 + 18.3 * t, -13.3 + 18.3 * s
    z = torch.sigmoid(-gamma_t).sqrt()[:, None] * x + torch.sigmoid(gamma_t).sqrt()[:, None] * eps
    square = ((eps - net(z, t)) ** 2).sum(1)
    torch.testing.assert_close(terms.diffusion, steps / 2 * torch.expm1(gamma_t - gamma_s) * square, rtol=1e-9, atol=0)
    terms = model.bound(x, times=t - 0.05)
    gamma = -13.3 + 18.3 * (t - 0.05)
    z = torch.sigmoid(-gamma).sqrt()[:, None] * x + torch.sigmoid(gamma).sqrt()[:, None] * eps
    square = ((eps - net(z, t - 0.05)) ** 2).sum(1)
    torch.testing.assert_close(terms.diffusion, 18.3 / 2 * square, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("eta", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("direct", [False, True])
def test_continuous_time_equals_the_formula_and_the_limit_of_steps(noise, make, eta: float, direct: bool) -> None:
    denoiser = DENOISERS["direct" if direct else "v"](1)
    model = ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), make(), denoiser, volatility=eta).double()
    x, eps = torch.randn(2, 5, 2, dtype=torch.float64)
    noise(eps)
    t = f64([0.2, 0.4, 0.5, 0.7, 0.9])
    continuous = model.bound(x, times=t).diffusion
    if not direct:
        level = model.schedule(t)
        f, df = model.transform(x).with_derivative(level.gamma)
        x_hat = model.denoiser(level.alpha[:, None] * f + level.sigma[:, None] * eps, level)
        f_hat, df_hat = model.transform(x_hat).with_derivative(level.gamma)
        gap = (1 + eta**2) / 2 * (f - f_hat) - (df - df_hat)
        expected = 0.5 * 10 * torch.exp(-level.gamma) / eta**2 * (gap**2).sum(1)
        torch.testing.assert_close(continuous, expected, rtol=1e-8, atol=1e-10)
    gaps = []
    for steps in (1000, 10_000):  # steps that end at t exactly
        discrete = model.bound(x, steps, times=t - 0.5 / steps).diffusion
        gaps.append((discrete / continuous - 1).abs().max().item())
    assert gaps[0] < 0.15
    assert gaps[1] < 0.12 * gaps[0]


@pytest.mark.parametrize("variance", ["posterior", "learned", "predicted"])
def test_an_empty_step_costs_nothing(variance: str) -> None:
    denoiser = ndm.Denoiser(network(heads=VARIANCES[variance]))
    model = ndm.NDM(ndm.OTSchedule(), ndm.Neural(network()), denoiser, reverse_variance=variance)  # clipped at the end
    diffusion = model.bound(torch.randn(2, 2), 1000, times=torch.tensor([0.9995, 0.5])).diffusion
    assert diffusion[0] == 0
    assert diffusion[1] > 0
    diffusion.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ---- the exact likelihood of a small model


LEVELS = f64([-2 / 3, 0.0, 2 / 3])
DISCRETE = [
    ("through", "posterior", 1.0),
    ("through", "posterior", 0.7),
    ("through", "learned", 1.0),
    ("through", "predicted", 1.0),
    ("direct", "posterior", 1.0),
    ("direct", "predicted", 1.3),
]


@pytest.mark.parametrize(("kind", "variance", "eta"), DISCRETE)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_bound_is_above_the_exact_negative_log_likelihood(noise, kind, variance, eta, steps: int) -> None:
    """Three levels, one dimension, a random network: integrate the generative model on a grid."""
    heads = 2 if variance == "predicted" else 1
    make = ndm.DirectDenoiser if kind == "direct" else ndm.Denoiser
    model = ndm.NDM(
        ndm.LinearSchedule(-3.0, 2.0),
        ndm.Neural(network(1), gate="free"),
        make(network(1, heads=heads)),
        ndm.DiscretizedDecoder(3),
        reverse_variance=variance,
        volatility=eta,
    ).double()
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    width, z = (grid[1] - grid[0]).item(), grid[:, None]

    with torch.no_grad():
        log_p = Normal(0.0, 1.0).log_prob(grid) + math.log(width)  # the mass of each cell of z_1
        for i in range(steps, 0, -1):
            kernel = model.kernel(z, model.grid_step(torch.full((len(z),), i), steps, z))
            deviation = kernel.v.sqrt() * kernel.covariance.apply_sqrt(torch.ones_like(z))[:, 0]
            step = Normal(kernel.mean, deviation[:, None]).log_prob(grid) + math.log(width)
            log_p = torch.logsumexp(log_p[:, None] + step, 0)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
        level = model.schedule(torch.zeros(1).double())
        logits = -((z / level.alpha - LEVELS) ** 2) / (2 * level.gamma.exp())
        exact = -torch.logsumexp(log_p[:, None] + logits.log_softmax(1), 0)  # -log P(k)
        assert torch.exp(-exact).sum().item() == pytest.approx(1, abs=1e-6)

        nodes, weights = hermegauss(80)
        weights = f64(weights / weights.sum())
        noise(f64(nodes).repeat(steps)[:, None])
        times = (torch.arange(steps).double() + 0.5).repeat_interleave(80) / steps
        for k in range(3):
            terms = model.bound(LEVELS[k].expand(80 * steps, 1), steps, times=times)
            bound = (terms.total.reshape(steps, 80).mean(0) * weights).sum().item()
            assert exact[k].item() <= bound + 1e-9
            # The gap is KL( q(z | x) || p(z | x) ), which the exact evidence lower bound on the grid has too.
            assert bound == pytest.approx(elbo_on_grid(model, k, grid, steps), rel=1e-5)
            assert bound - exact[k].item() > 1e-3  # or the comparison would say nothing


def elbo_on_grid(model: ndm.NDM, k: int, grid: Tensor, steps: int) -> float:
    """E_q[ log q(z | x) - log p(x, z) ], all of it integrated on a grid."""
    width, z, x = (grid[1] - grid[0]).item(), grid[:, None], LEVELS[k].expand(len(grid), 1)

    def marginal(t: float) -> Tensor:
        mean, deviation = model.marginal(x[:1], f64([t]))
        return Normal(mean[0, 0], deviation[0]).log_prob(grid)

    log_q = marginal(1.0)
    total = (log_q.exp() * (log_q - Normal(0.0, 1.0).log_prob(grid))).sum().item() * width
    for i in range(1, steps + 1):
        step = model.grid_step(torch.full((len(z),), i), steps, z)
        mean, v = model.posterior(x, z, step)
        kernel = model.kernel(z, step)
        deviation = kernel.v.sqrt() * kernel.covariance.apply_sqrt(torch.ones_like(z))[:, 0]
        divergence = kl_divergence(Normal(mean[:, 0], v.sqrt()), Normal(kernel.mean[:, 0], deviation))
        total += (marginal(i / steps).exp() * divergence).sum().item() * width
    level = model.schedule(torch.zeros(1).double())
    logits = (-((z / level.alpha - LEVELS) ** 2) / (2 * level.gamma.exp())).numpy()
    nll = logsumexp(logits, axis=1) - logits[:, k]
    return total + float((marginal(0.0).exp().numpy() * nll).sum()) * width


# ---- gradients


def everything_learned(transform: str, direct: bool, decoder: ndm.Decoder, minimize_variance: bool = True) -> ndm.NDM:
    make = {
        "neural": lambda: ndm.Neural(network()),
        "separable": lambda: ndm.Separable(network(heads=4, level=False), terms=4),
    }[transform]
    denoiser = ndm.DirectDenoiser(network(heads=3), ode=True) if direct else ndm.Denoiser(network(heads=2))
    return ndm.NDM(
        ndm.LearnedSchedule(-6.0, 4.0, learn_endpoints=True, minimize_variance=minimize_variance),
        make(),
        denoiser,
        decoder,
        reverse_variance="predicted",
        volatility=ndm.LearnedVolatility(3),
    ).double()


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("decoder", [ndm.GaussianDecoder(), ndm.DiscretizedDecoder(16)], ids=["gaussian", "levels"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("transform", ["neural", "separable"])
def test_gradients_reach_every_parameter_and_are_right(transform, direct, decoder, steps: int | None) -> None:
    model = everything_learned(transform, direct, decoder, minimize_variance=False)
    x = ndm.DiscretizedDecoder(16).encode(torch.randint(16, (8, 2)), torch.float64)

    def loss() -> Tensor:
        terms = model.bound(x, steps, generator=torch.Generator().manual_seed(5))
        return terms.total.mean()

    loss().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        expected = p.grad.clone()
        if name == "denoiser.net.output.weight" or name == "denoiser.net.output.bias":
            # The variance's head is of no use in continuous time, and the bound does not train the head for E[F | z].
            rows, expected = p.grad.reshape(-1, 2, *p.shape[1:]).flatten(1).abs().sum(1), None
            assert rows[0] > 0
            assert (rows[1] > 0) == (steps is not None)
            assert not direct or rows[2] == 0
        if expected is not None:
            assert expected.abs().max() > 0, name

    # Along one random direction the slope is that of the bound's values.
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) * 0.1 for p in parameters]
    slope = sum((p.grad * v).sum() for p, v in zip(parameters, direction, strict=True)).item()
    h, values = 1e-5, []
    for move in (h, -2 * h):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p += move * v
            values.append(loss().item())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("transform", ["neural", "separable"])
def test_in_continuous_time_the_schedule_between_its_ends_is_trained_for_variance(transform, steps: int | None) -> None:
    torch.manual_seed(3)
    model = everything_learned(transform, True, ndm.DiscretizedDecoder(16))
    x = ndm.DiscretizedDecoder(16).encode(torch.randint(16, (8, 2)), torch.float64)

    def gradients(of) -> dict[str, Tensor]:
        model.zero_grad()
        terms = model.bound(x, steps, generator=torch.Generator().manual_seed(5))
        of(terms).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients(lambda terms: terms.total.mean())
    model.schedule.minimize_variance = False
    expected = gradients(lambda terms: terms.total.mean())
    if steps is None:
        half_the_square = gradients(lambda terms: (terms.diffusion**2 / (2 * terms.dimensions)).mean())
        assert (half_the_square["schedule.logits"] - expected["schedule.logits"]).abs().max() > 1e-3
        expected["schedule.logits"] = half_the_square["schedule.logits"]
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


class Blind(nn.Module):
    """Estimates x as zero, so that the integrand of the bound is gamma' e^{-gamma} |x|^2 / 2."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return torch.zeros_like(z)


def test_a_schedule_trained_for_variance_comes_near_the_best_there_is() -> None:
    # E_t[(gamma' l(gamma))^2] is smallest where gamma' l is constant: it is then the square of the integral of l.
    low, high = -2.0, 2.0
    best = (math.exp(-low) - math.exp(-high)) ** 2 / 4
    schedule = ndm.LearnedSchedule(low, high)
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(Blind(), parameterization="x"))
    x, times = torch.ones(512, 1), torch.arange(512) / 512

    def second_moment() -> float:
        with torch.no_grad():
            return model.bound(x, times=times).diffusion.square().mean().item()

    linear = (high - low) * (math.exp(-2 * low) - math.exp(-2 * high)) / 8
    with torch.no_grad():
        schedule.logits[0] += 30
    assert second_moment() == pytest.approx(linear, rel=0.02)
    with torch.no_grad():
        schedule.logits[0] -= 30
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        model.bound(x, times=times).total.mean().backward()
        optimizer.step()
    assert best <= second_moment() < 1.1 * best < linear / 1.8


@pytest.mark.parametrize("steps", [1, 5, None])
def test_the_learned_variance_is_trained_in_discrete_time(steps: int | None) -> None:
    model = ndm.NDM(
        ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network()), reverse_variance=ndm.LearnedVariance(knots=4)
    )
    model.bound(torch.randn(64, 2), steps).total.sum().backward()
    gradient = model.reverse_variance.shift.grad
    if steps is None:
        assert gradient is None
    else:
        assert gradient.abs().max() > 0


def test_the_head_for_f_learns_its_closed_form_however_small_the_weight_of_its_loss() -> None:
    model = ndm.NDM(
        ndm.LinearSchedule(-4, 4), ndm.Identity(), ndm.DirectDenoiser(ResidualMLP(1, 32, 1, heads=2), ode=True)
    )
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(300):
        terms = model.bound(torch.randn(256, 1, generator=generator), generator=generator)
        optimizer.zero_grad()
        (terms.total + terms.auxiliary).mean().backward()
        optimizer.step()
    level = model.schedule(torch.linspace(0.1, 0.9, 200))
    z = torch.randn(200, 1, generator=generator)  # x ~ N(0, 1) and a variance-preserving schedule: so is z
    with torch.no_grad():
        f_hat = model.denoiser.estimate(z, level).transformed
    exact = level.alpha[:, None] * z  # E[x | z]
    assert (f_hat - exact).square().mean() < 0.01


def test_the_auxiliary_loss_trains_the_head_for_f() -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Neural(network()), ndm.DirectDenoiser(network(heads=2), ode=True))
    terms = model.bound(torch.randn(16, 2))
    assert terms.auxiliary.shape == (16,)
    assert (terms.auxiliary > 0).all()
    terms.auxiliary.sum().backward()
    rows = model.denoiser.net.output.weight.grad.reshape(2, 2, -1).abs().sum((1, 2))
    assert rows[0] == 0
    assert rows[1] > 0
    assert (gaussian_model().bound(torch.randn(3, 1).double()).auxiliary == 0).all()


# ---- how often the networks are run


class Counting(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.calls += 1
        return self.net(*args, **kwargs)


@pytest.mark.parametrize(
    ("direct", "separable", "steps", "passes"),
    [
        (False, True, 5, 2),  # one pass for x, one for x_hat, whatever is asked of the curve
        (False, True, None, 2),
        (True, True, 5, 1),
        (True, True, None, 1),
        (False, False, 5, 2),
        (False, False, None, 3),  # t with its derivative, the two ends, and x_hat
        (True, False, 5, 1),
        (True, False, None, 2),
    ],
)
def test_passes_over_the_networks(direct: bool, separable: bool, steps: int | None, passes: int) -> None:
    denoiser_net = Counting(network())
    net = Counting(network(heads=4, level=False) if separable else network())
    model = ndm.NDM(
        ndm.LinearSchedule(),
        ndm.Separable(net) if separable else ndm.Neural(net),
        (ndm.DirectDenoiser if direct else ndm.Denoiser)(denoiser_net),
    )
    model.bound(torch.randn(4, 2), steps)
    assert (denoiser_net.calls, net.calls) == (1, passes)


# ---- times and noise


@pytest.mark.parametrize("n", [1, 7, 64])
def test_low_discrepancy_times(n: int) -> None:
    like = torch.empty(0, dtype=torch.float64)
    draws = torch.stack([low_discrepancy(n, like) for _ in range(400)])
    assert (draws >= 0).all()
    assert (draws < 1).all()
    ordered = draws.sort(1).values
    torch.testing.assert_close(ordered.diff(dim=1), f64([[1 / n] * (n - 1)] * 400), rtol=0, atol=1e-12)
    # Each time by itself is uniform: the first example's draws against the uniform distribution (Kolmogorov-Smirnov).
    first, uniform = draws[:, 0].sort().values, (torch.arange(400) + 0.5).double() / 400
    assert (first - uniform).abs().max() < 0.1
    if n > 2:  # a time says nothing of its neighbour's
        assert (draws.diff(dim=1) % 1).std() > 0.2


def test_times_stay_below_one_in_single_precision(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 1e-12, dtype=torch.float64))
    times = low_discrepancy(4, torch.empty(0))
    assert (times < 1).all()
    assert times.max() > 0.9999
    terms = gaussian_model().bound(torch.ones(1, 1), 1000, times=f64([1 - 1e-12]))
    assert terms.total.isfinite().all()


def test_the_generator_decides_everything() -> None:
    model, x = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network())), torch.randn(9, 2)
    for steps in (None, 10):
        first, again, other = (
            model.bound(x, steps, generator=torch.Generator().manual_seed(seed)).total for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.isclose(first, other).any()


def test_the_two_noises_are_independent_and_normal(monkeypatch) -> None:
    drawn, original = [], ndm.method.bounds.normal_like
    monkeypatch.setattr(ndm.method.bounds, "normal_like", lambda *a: drawn.append(original(*a)) or drawn[-1])
    gaussian_model().bound(torch.zeros(4000, 1, dtype=torch.float64))
    moments = torch.cat(drawn, 1).T.cov()
    torch.testing.assert_close(moments, torch.eye(2).double(), rtol=0, atol=0.1)


# ---- labels, units, errors


def test_labels_reach_the_denoiser() -> None:
    net = network(classes=3)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net))
    x, values = torch.randn(6, 2), []
    for label in (0, 1, 2):
        labels = torch.full((6,), label)
        values.append(model.bound(x, 10, labels=labels, generator=torch.Generator().manual_seed(0)).diffusion)
    assert not torch.isclose(values[0], values[1]).any()
    assert not torch.isclose(values[1], values[2]).any()
    with pytest.raises(ValueError, match="labels"):
        model.bound(x, 10)
    model.calibrate([(x, torch.zeros(6, dtype=torch.long))], 3)
    assert model.bound(x, 3, labels=torch.zeros(6, dtype=torch.long)).total.isfinite().all()


def test_bits_per_dimension() -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network(12)), ndm.DiscretizedDecoder(256))
    terms = model.bound(torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8), 10)
    expected = (terms.diffusion + terms.prior + terms.reconstruction) / (12 * math.log(2))
    torch.testing.assert_close(terms.bits_per_dim, expected)
    assert terms.dimensions == 12


def test_the_bound_is_in_the_datas_own_units() -> None:
    denoiser = ndm.Denoiser(network())
    x = torch.randn(7, 2, dtype=torch.float64)
    bounds = []
    for standardize, data in (
        (None, x),
        (ndm.Standardize([1.0, -2.0], [4.0, 0.5]), x * f64([4.0, 0.5]) + f64([1.0, -2.0])),
    ):
        model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), denoiser, standardize=standardize).double()
        bounds.append(model.bound(data, 10, generator=torch.Generator().manual_seed(0)).total)
    torch.testing.assert_close(bounds[1], bounds[0] + math.log(4.0 * 0.5))  # -log p(data) = -log p(x) + log scale


def levels_model() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network()), ndm.DiscretizedDecoder(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor([[math.nan, 0.25]]), "NaN"),
        (torch.tensor([[0.25, math.inf]]), "NaN or infinite"),
        (torch.tensor([[0.25, 0.3]]), "do not lie on"),
        (torch.tensor([[0, 4]]), "K = 4 levels"),
        (torch.tensor([[-1, 3]]), "K = 4 levels"),
    ],
)
def test_bad_data_are_refused(data: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        levels_model().bound(data)
    with pytest.raises(ValueError, match=message):
        levels_model().calibrate([data], 2)


def test_other_mistakes_are_refused() -> None:
    model, data = levels_model(), torch.tensor([[0, 3]])
    for steps in (0, -3):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            model.bound(data, steps)
        with pytest.raises(ValueError, match="steps must be at least 1"):
            model.calibrate([data], steps)
    for time in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            model.bound(data, 5, times=torch.tensor([time]))
    with pytest.raises(ValueError, match="at least one batch"):
        model.calibrate([], 5)
    with pytest.raises(ValueError, match="choose one of isotropic"):
        model.calibrate([data], 5, "round")
    model.bound(torch.tensor([[0.3, 0.3]]), check=False)


def test_calibration_sees_every_batch_and_leaves_the_model_alone(noise) -> None:
    model = ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), ndm.Denoiser(network())).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    noise(torch.ones(1, 2))  # the same for every example, however they are grouped
    whole = ndm.method.bounds.calibrate(model, x, 4, "diagonal")
    batches = ndm.method.bounds.calibrate(model, [x[:5], (x[5:6],), [x[6:], None]], 4, "diagonal")
    torch.testing.assert_close(whole.log_ratio, batches.log_ratio)
    assert whole.log_ratio.dtype == torch.float64
    assert (whole.log_ratio > 0).all()
    assert not model.calibrations
    assert all(p.grad is None for p in model.parameters())
    assert not whole.log_ratio.requires_grad
