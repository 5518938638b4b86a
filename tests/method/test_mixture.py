"""The base of a denoiser against quadrature and against densities of Gaussian mixtures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ndm
from ndm.networks import ResidualMLP

D = torch.float64
WEIGHTS, MEANS, VARIANCES = torch.tensor([0.3, 0.7], dtype=D), torch.tensor([-1.0, 2.0], dtype=D), [0.25, 0.04]


def line() -> ndm.MixtureBase:
    """A mixture of two Gaussians on the line."""
    base = ndm.MixtureBase(1, 2).to(D)
    return base.set(WEIGHTS, MEANS[:, None], torch.tensor(VARIANCES, dtype=D)[:, None, None])


def plane() -> tuple[ndm.MixtureBase, Tensor, Tensor, Tensor]:
    """A mixture of three Gaussians with correlations in three dimensions, and its parameters."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=D)
    means = torch.randn(3, 3, generator=generator, dtype=D)
    roots = torch.randn(3, 3, 3, generator=generator, dtype=D) / 2
    covariances = roots @ roots.mT + 0.05 * torch.eye(3, dtype=D)
    return ndm.MixtureBase(3, 3).to(D).set(weights, means, covariances), weights, means, covariances


def log_density(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    kinds = torch.distributions.MultivariateNormal(means, covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), kinds).log_prob(x)


@pytest.mark.parametrize("gamma", [-8.0, -2.0, 0.0, 1.5, 5.0])
def test_the_estimate_is_the_posterior_mean_by_quadrature(gamma: float) -> None:
    level = ndm.LinearSchedule(gamma, gamma + 1)(torch.zeros(5, dtype=D))
    z = torch.linspace(-2, 3, 5, dtype=D)[:, None]
    x = torch.linspace(-6, 6, 200_001, dtype=D)
    prior = sum(
        w * torch.exp(-((x - m) ** 2) / (2 * v)) / v**0.5 for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True)
    )
    weight = prior * torch.exp(-((z - level.alpha[:, None] * x) ** 2) / (2 * level.sigma[:, None] ** 2))
    want = (weight * x).sum(1) / weight.sum(1)
    base = line()
    torch.testing.assert_close(base(z, level, "x")[:, 0], want, rtol=1e-6, atol=1e-8)
    noise = (z[:, 0] - level.alpha * want) / level.sigma
    torch.testing.assert_close(base(z, level, "eps")[:, 0], noise, rtol=1e-4, atol=1e-6)
    v = level.alpha * noise - level.sigma * want
    torch.testing.assert_close(base(z, level, "v")[:, 0], v, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parameterization", ["v", "eps", "x"])
def test_the_noise_is_the_score_of_the_noisy_mixture(parameterization: str) -> None:
    base, weights, means, covariances = plane()
    level = ndm.LinearSchedule(-1.0, 3.0)(torch.linspace(0, 1, 20, dtype=D))
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=D).requires_grad_()
    total = 0.0
    for i in range(20):
        noisy = level.alpha[i] ** 2 * covariances + level.sigma[i] ** 2 * torch.eye(3, dtype=D)
        total = total + log_density(z[i], weights, level.alpha[i] * means, noisy)
    assert isinstance(total, Tensor)
    (score,) = torch.autograd.grad(total, z)
    noise = -level.sigma[:, None] * score
    x = (z - level.sigma[:, None] * noise) / level.alpha[:, None]
    want = {"eps": noise, "x": x, "v": level.alpha[:, None] * noise - level.sigma[:, None] * x}[parameterization]
    torch.testing.assert_close(base(z, level, parameterization), want)


@pytest.mark.parametrize("denoiser", ["plain", "direct"])
def test_an_untrained_model_is_the_mixture(denoiser: str) -> None:
    base, weights, means, covariances = plane()
    net = ResidualMLP(3, hidden=8, depth=1, heads=1 if denoiser == "plain" else 2)
    reading = ndm.Denoiser(net, base=base) if denoiser == "plain" else ndm.DirectDenoiser(net, ode=True, base=base)
    model = ndm.NDM(ndm.LinearSchedule(-12.0, 12.0), ndm.Identity(), reading).to(D)
    x = means[torch.arange(30) % 3] + 0.5 * torch.randn(30, 3, generator=torch.Generator().manual_seed(2), dtype=D)
    want = log_density(x, weights, means, covariances)
    torch.testing.assert_close(ndm.log_likelihood(model, x).log_prob, want, rtol=0, atol=0.01)

    # The mean over data of the mixture of its bound is its entropy, by Monte Carlo on both sides.
    generator = torch.Generator().manual_seed(3)
    kind = torch.multinomial(weights, 20_000, replacement=True, generator=generator)
    noise = torch.randn(20_000, 3, 1, generator=generator, dtype=D)
    data = means[kind] + (torch.linalg.cholesky(covariances)[kind] @ noise)[..., 0]
    gap = model.bound(data, generator=generator).total + log_density(data, weights, means, covariances)
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))


def test_a_model_with_a_base_is_saved_whole(tmp_path: Path) -> None:
    base, *_ = plane()
    model = ndm.NDM(
        ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(3, hidden=8, depth=1), base=base.float())
    ).eval()
    loaded = ndm.NDM.from_pretrained(model.save_pretrained(tmp_path / "model")).eval()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    one, other = (m.bound(x, generator=torch.Generator().manual_seed(1)).total for m in (model, loaded))
    assert torch.equal(one, other)


def test_it_takes_arrays_and_refuses_what_is_no_mixture() -> None:
    base = ndm.MixtureBase(2, 1).set(np.ones(1), np.zeros((1, 2)), np.diag([4.0, 0.25])[None])
    level = ndm.LinearSchedule(0.0, 1.0)(torch.zeros(1))
    z = torch.tensor([[1.0, 1.0]])
    want = level.alpha * torch.tensor([4.0, 0.25]) / (level.alpha**2 * torch.tensor([4.0, 0.25]) + level.sigma**2)
    torch.testing.assert_close(base(z, level, "x")[0], want)
    with pytest.raises(ValueError, match="positive"):
        ndm.MixtureBase(0)
