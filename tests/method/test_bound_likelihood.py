"""The bound is above the exact negative log-likelihood of a small model."""

from __future__ import annotations

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import ndm
import ndm.method.bounds
from tests.method.gaussians import f64, network

LEVELS = f64([-2 / 3, 0.0, 2 / 3])
DISCRETE = [
    ("through, noise", "posterior", 1.0),
    ("through, noise", "learned", 0.7),
    ("through, noise per dimension", "posterior", 1.0),
    ("direct, noise", "predicted", 1.3),
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
    make = ndm.DirectDenoiser if kind.startswith("direct") else ndm.Denoiser
    model = ndm.NDM(
        ndm.LinearSchedule(-3.0, 2.0),
        ndm.Neural(network(1), gate="free"),
        make(network(1, heads=heads)),
        ndm.DiscretizedDecoder(3),
        reverse_variance=variance,
        volatility=eta,
        noise=some_noise(kind),
    ).double()
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    width, z = (grid[1] - grid[0]).item(), grid[:, None]

    with torch.no_grad():
        log_p = Normal(0.0, 1.0).log_prob(grid) + math.log(width)  # the mass of each cell of z_1
        for i in range(steps, 0, -1):
            kernel = model.kernel(z, model.grid_step(torch.full((len(z),), i), steps, z))
            deviation = (kernel.sample(torch.ones_like(z)) - kernel.mean)[:, 0]
            step = Normal(kernel.mean, deviation[:, None]).log_prob(grid) + math.log(width)
            log_p = torch.logsumexp(log_p[:, None] + step, 0)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
        level = model.schedule(torch.zeros(1).double())
        logits = -((z / level.alpha - LEVELS) ** 2) / (2 * level.gamma.exp())
        exact = -torch.logsumexp(log_p[:, None] + logits.log_softmax(1), 0)  # -log P(k)
        assert torch.exp(-exact).sum().item() == pytest.approx(1, abs=1e-6)

        nodes, weights = hermegauss(160)
        weights = f64(weights / weights.sum())
        noise(f64(nodes).repeat(steps)[:, None])
        times = (torch.arange(steps).double() + 0.5).repeat_interleave(160) / steps
        for k in range(3):
            terms = model.bound(LEVELS[k].expand(160 * steps, 1), steps, times=times)
            bound = (terms.total.reshape(steps, 160).mean(0) * weights).sum().item()
            assert exact[k].item() <= bound + 1e-9
            # The gap is KL( q(z | x) || p(z | x) ), which the exact evidence lower bound on the grid has too.
            assert bound == pytest.approx(elbo_on_grid(model, k, grid, steps), rel=1e-5)
            assert bound - exact[k].item() > 1e-3  # or the comparison would say nothing


def some_noise(kind: str) -> ndm.Noise | None:
    if "noise" not in kind:
        return None
    if "dimension" not in kind:
        return ndm.LearnedNoise(network(1, heads=3, level=False))
    part = ndm.DimensionNoise((1,))
    part.coefficients.data.normal_()
    return part


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
        deviation = (kernel.sample(torch.ones_like(z)) - kernel.mean)[:, 0]
        divergence = kl_divergence(Normal(mean[:, 0], v.reshape(-1).sqrt()), Normal(kernel.mean[:, 0], deviation))
        total += (marginal(i / steps).exp() * divergence).sum().item() * width
    level = model.schedule(torch.zeros(1).double())
    logits = (-((z / level.alpha - LEVELS) ** 2) / (2 * level.gamma.exp())).numpy()
    nll = logsumexp(logits, axis=1) - logits[:, k]
    return total + float((marginal(0.0).exp().numpy() * nll).sum()) * width
