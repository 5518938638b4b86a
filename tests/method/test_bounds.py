"""The bound against the closed forms of the method, section 7."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

import ndm
import ndm.method.bounds
from tests.method.gaussians import HIGH, LOW, BestVolatility, R, diffusion, f64, gaussian_model, one, rising, sigmoid


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
