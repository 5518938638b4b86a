"""The likelihood under the reverse ODE against closed forms, and in the data's own units."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ndm
from ndm.inference.likelihood import log_likelihood
from tests.inference.densities import LOOSE, TIGHT, Exact, small, widening

# ---- closed forms

CASES = [pytest.param(torch.float64, 1e-7, 1e-5, marks=pytest.mark.slow), (torch.float32, 1e-5, 1e-3)]


@pytest.mark.parametrize("a", [torch.ones_like, widening], ids=["identity", "scale"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize(("dtype", "tolerance", "error"), CASES)
def test_the_density_of_gaussian_data_is_the_closed_form(a, divergence, dtype, tolerance, error):
    """The exact denoiser's flow is linear: z_0 = mu_0 + sqrt(V_0 / V_1) (z_1 - mu_1), and z_1 is standard normal.

    The field's Jacobian is diagonal here, so that a Rademacher probe is exact as well.
    """
    mean, r, low, high = torch.tensor([0.5, -1.0, 0.0], dtype=dtype), 1.7, -8.0, 4.0
    transform = ndm.Identity() if a is torch.ones_like else ndm.Scale(a)
    model = ndm.NDM(ndm.LinearSchedule(low, high), transform, Exact(mean, r * torch.eye(3, dtype=dtype), a))
    alpha, sigma_squared = ([1 / (1 + math.exp(s * g)) for g in (low, high)] for s in (1, -1))
    factor = [a(torch.tensor(g)).item() * math.sqrt(v) for g, v in zip((low, high), alpha, strict=True)]  # alpha a
    variance = [f**2 * r + v for f, v in zip(factor, sigma_squared, strict=True)]
    stretch = math.sqrt(variance[0] / variance[1])
    truth = torch.distributions.Normal(
        (factor[0] - stretch * factor[1]) * mean / math.sqrt(alpha[0]), stretch / math.sqrt(alpha[0])
    )
    x = mean + 2 * torch.randn(20, 3, dtype=dtype)
    result = log_likelihood(model, x, divergence=divergence, tolerance=tolerance)
    assert result.log_prob.dtype == dtype
    torch.testing.assert_close(result.log_prob, truth.log_prob(x).sum(1), rtol=0, atol=error)


def test_the_density_is_in_the_datas_own_units():
    """Correlated data with units: the density of what the user has, Jacobian included."""
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 1.0]], dtype=torch.float64)
    scale, shift = torch.tensor([100.0, 0.01, 3.0]).double(), torch.tensor([-5.0, 2.0, 0.0]).double()
    model = ndm.NDM(
        ndm.LinearSchedule(-9, 12),
        ndm.Identity(),
        Exact(torch.zeros(3).double(), covariance),
        standardize=ndm.Standardize(shift.tolist(), scale.tolist()),
    )
    truth = torch.distributions.MultivariateNormal(
        shift, scale[:, None] * (covariance + math.exp(-9) * torch.eye(3)) * scale
    )
    data = truth.sample((20,))
    result = log_likelihood(model, data, **TIGHT)
    torch.testing.assert_close(result.log_prob, truth.log_prob(data), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.bits_per_dim, -truth.log_prob(data) / (3 * math.log(2)), rtol=0, atol=1e-4)
    assert result.dimensions == 3


def test_labels_reach_the_denoiser():
    """The label shifts the data's mean, and with it the density."""
    model = ndm.NDM(ndm.LinearSchedule(-9, 26), ndm.Identity(), Exact(torch.zeros(1).double(), torch.eye(1).double()))
    x, labels = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 5])
    truth = torch.distributions.Normal(labels.double(), math.sqrt(1 + math.exp(-9)))
    log_prob = log_likelihood(model, x, labels=labels, **TIGHT).log_prob
    torch.testing.assert_close(log_prob, truth.log_prob(x[:, 0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("transform", ["identity", pytest.param("neural", marks=pytest.mark.slow), "separable"])
def test_the_density_integrates_to_one(transform):
    """Whatever the networks are: for this the divergence must be that of the very field that is integrated.

    In the learned transformations it is a derivative of a derivative.
    """
    model = small(transform=transform, schedule=ndm.LinearSchedule(-2, 10))
    side = torch.linspace(-6, 6, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    density = log_likelihood(model, grid, tolerance=1e-2).log_prob.exp()
    edges = density.reshape(61, 61)
    assert max(edges[[0, -1]].max(), edges[:, [0, -1]].max()) < 1e-5  # nothing beyond the grid
    assert density.sum().item() * 0.2**2 == pytest.approx(1, abs=1e-3)
    # And it is no Gaussian, for which a constant divergence would do.
    weights = density / density.sum()
    centred = grid - weights @ grid
    gaussian = torch.distributions.MultivariateNormal(weights @ grid, (weights[:, None] * centred).T @ centred)
    assert (weights * (density.log() - gaussian.log_prob(grid))).sum() > 0.01


# ---- a batch is no more than its examples


@pytest.mark.parametrize("transform", ["identity", "neural", "separable"])
@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(transform):
    """Not even when the rest is far away, where the field is stiff."""
    model = small(transform=transform)
    company = torch.cat([torch.randn(2, 2), torch.full((1, 2), 300.0)]).double()
    together = log_likelihood(model, company, **LOOSE).log_prob
    alone = torch.cat([log_likelihood(model, row[None], **LOOSE).log_prob for row in company])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_a_transformation_that_moves_the_data_is_scored_through_the_decoder() -> None:
    # x ~ N(0, r), F = a x, exact denoiser: z_0 = alpha_0 a x + sigma_0 noise has variance alpha_0^2 a^2 r + sigma_0^2.
    # The decoder's x given z_0 is N(z_0 / alpha_0, e^gamma_0), so its density is a normal of known variance.
    r, a = 1.7, 1.2

    class Exact(torch.nn.Module):
        def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
            alpha, sigma = level.alpha[:, None], level.sigma[:, None]
            return alpha * a * r * z / (alpha**2 * a**2 * r + sigma**2)

    model = ndm.NDM(ndm.LinearSchedule(-1.0, 12.0), ndm.Scale(lambda gamma: torch.full_like(gamma, a)), Exact())
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    result = ndm.log_likelihood(
        model, x, dequantization="importance", samples=4000, tolerance=1e-4, generator=generator
    )
    level = model.schedule(torch.zeros(1, dtype=torch.float64))
    variance = a**2 * r + 2 * torch.exp(level.gamma)
    truth = torch.distributions.Normal(0.0, variance.sqrt()).log_prob(x[:, 0])
    assert ((result.log_prob - truth).abs() < 4 * result.stderr + 1e-3).all()
    assert result.stderr.max() < 0.05
