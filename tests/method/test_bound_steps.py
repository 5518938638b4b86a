"""Any parts: each step's cost is a KL divergence, and steps tend to continuous time."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import ndm
import ndm.method.bounds
from tests.method.gaussians import f64, network, rising

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
