"""The likelihood of K-level data against quadrature: bounds, importance weights and standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ndm
from ndm.inference.likelihood import log_likelihood
from tests.inference.densities import LEVELS, LOOSE, Exact, seeded, small


class Quadrature:
    """p(z_0) of a one-dimensional model on a grid, by scipy and dz_1/dz_0 as a difference: no divergence is used."""

    def __init__(self, model: ndm.NDM) -> None:
        self.z = np.linspace(-6, 6, 3001)

        def drift(t: float, z: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                state, time = torch.from_numpy(z)[:, None], torch.full((len(z),), t, dtype=torch.float64)
                return model.drift(state, time, eta=0.0)[:, 0].numpy()

        end = solve_ivp(drift, (0, 1), self.z, method="DOP853", rtol=1e-7, atol=1e-7).y[:, -1]
        self.density = np.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) * np.gradient(end, self.z)
        gamma_0 = model.schedule.gamma(torch.zeros(1, dtype=torch.float64))[0].item()
        self.alpha, self.deviation = math.sqrt(1 / (1 + math.exp(gamma_0))), math.exp(gamma_0 / 2)  # of z_0 / alpha_0

    def integral(self, values: np.ndarray) -> float:
        return float(np.trapezoid(values, self.z))

    def log_decoder(self, x: float) -> np.ndarray:
        """log p(x | z_0) on the grid."""
        logits = -((self.z / self.alpha - LEVELS.numpy()[:, None]) ** 2) / (2 * self.deviation**2)
        here = int(np.argmin(np.abs(LEVELS.numpy() - x)))
        return logits[here] - np.logaddexp.reduce(logits, axis=0)

    def log_p(self, x: float) -> float:
        """The exact log P(x) = log of the integral of p(z_0) p(x | z_0)."""
        return math.log(self.integral(self.density * np.exp(self.log_decoder(x))))

    def variational(self, x: float, f: float) -> float:
        """E log p(z_0) p(x | z_0) / q(z_0 | x) with q = N(alpha_0 f, sigma_0^2)."""
        deviation = self.alpha * self.deviation
        log_q = -(((self.z - self.alpha * f) / deviation) ** 2) / 2 - math.log(deviation * math.sqrt(2 * math.pi))
        return self.integral(np.exp(log_q) * (np.log(self.density) + self.log_decoder(x) - log_q))

    def uniform(self, x: float) -> float:
        """The mean over the cell of log p(x + u) + log(cell)."""
        cell = np.linspace(x - 1 / 3, x + 1 / 3, 2001)
        log_density = np.log(np.interp(self.alpha * cell, self.z, self.density) * self.alpha)
        return float(np.trapezoid(log_density, cell)) * 3 / 2 + math.log(2 / 3)


@pytest.fixture(scope="module", params=["identity", pytest.param("neural", marks=pytest.mark.slow)])
def three_levels(request) -> tuple[ndm.NDM, Quadrature]:
    torch.manual_seed(0)
    # So noisy a z_0 that q(z_0 | x) is as wide as p(z_0), and the importance weights vary little.
    schedule = ndm.LinearSchedule(0, 10)
    model = small(1, request.param, schedule=schedule, decoder=ndm.DiscretizedDecoder(levels=3))
    return model, Quadrature(model)


def test_the_quadrature_is_itself_right(three_levels):
    """The three levels exhaust what there is."""
    _, quadrature = three_levels
    assert quadrature.integral(quadrature.density) == pytest.approx(1, abs=1e-5)
    assert sum(math.exp(quadrature.log_p(x)) for x in LEVELS.tolist()) == pytest.approx(1, abs=1e-5)


def estimated(model: ndm.NDM, dequantization: str | None, samples: int, copies: int) -> tuple[list[float], list[float]]:
    """Each level's estimate, averaged over independent copies in one batch, with its standard error."""
    x = LEVELS.repeat_interleave(copies)[:, None]
    result = log_likelihood(
        model, x, dequantization=dequantization, samples=samples, generator=seeded(1), tolerance=1e-3
    )
    log_prob = result.log_prob.reshape(3, copies)
    return log_prob.mean(1).tolist(), (log_prob.std(1) / math.sqrt(copies)).tolist()


def f_0(model: ndm.NDM, x: float) -> float:
    """F(x, gamma_0)."""
    gamma_0 = model.schedule.gamma(torch.zeros(1, dtype=torch.float64))[0]
    return model.transform(torch.tensor([[x]], dtype=torch.float64))(gamma_0).item()


@pytest.mark.parametrize("dequantization", [None, "variational", "uniform"])
@pytest.mark.slow
def test_the_dequantised_bounds_are_what_they_are_by_quadrature(three_levels, dequantization):
    """None is the variational bound for K-level data."""
    model, quadrature = three_levels
    means, errors = estimated(model, dequantization, samples=2, copies=700)
    for x, mean, error in zip(LEVELS.tolist(), means, errors, strict=True):
        expected = quadrature.uniform(x) if dequantization == "uniform" else quadrature.variational(x, f_0(model, x))
        assert mean == pytest.approx(expected, abs=4 * error + 1e-3)
        assert error < 0.02


@pytest.mark.slow
def test_importance_weights_close_the_gap(three_levels):
    """variational < importance with few samples < with many, which is log P(x): for the mean over the levels."""
    model, quadrature = three_levels
    exact = np.mean([quadrature.log_p(x) for x in LEVELS.tolist()])
    gap = exact - np.mean([quadrature.variational(x, f_0(model, x)) for x in LEVELS.tolist()])
    few, error_few = estimated(model, "importance", samples=4, copies=500)
    many, error_many = estimated(model, "importance", samples=32, copies=40)
    error_few, error_many = (math.hypot(*error) / 3 for error in (error_few, error_many))
    assert error_few < gap / 8
    assert 0.1 * gap < exact - np.mean(few) < 0.9 * gap
    assert np.mean(many) == pytest.approx(exact, abs=0.1 * gap + 3 * error_many)
    assert np.mean(many) > np.mean(few)


def test_one_importance_sample_is_the_variational_bound(three_levels):
    model, _ = three_levels
    x = LEVELS[:, None]
    a, b = (
        log_likelihood(model, x, dequantization=name, samples=1, generator=seeded(5), **LOOSE).log_prob
        for name in ("variational", "importance")
    )
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dequantization", ["uniform", "variational", "importance"])
@pytest.mark.slow
def test_the_standard_error_of_dequantisation_is_honest(three_levels, dequantization):
    """It is about the spread that independent repetitions show."""
    model, _ = three_levels
    x = LEVELS.repeat_interleave(100)[:, None]
    result = log_likelihood(model, x, dequantization=dequantization, samples=16, generator=seeded(2), **LOOSE)
    seen = result.log_prob.reshape(3, 100).std(1)
    stated = result.stderr.reshape(3, 100).square().mean(1).sqrt()
    torch.testing.assert_close(stated, seen, rtol=0.3, atol=0)


@pytest.mark.parametrize("dequantization", ["uniform", "variational", "importance"])
def test_samples_may_be_taken_in_portions(dequantization, monkeypatch):
    """How many go through the solver together is a matter of memory: the same draws give the same answer."""
    model = small(1, "separable", decoder=ndm.DiscretizedDecoder(levels=3))
    whole, pieces = [], []
    for results, most in [(whole, 65536), (pieces, 7)]:  # 7: two samples of three examples
        monkeypatch.setattr("ndm.inference.likelihood.NUMBERS_AT_ONCE", most)
        x = LEVELS[:, None]
        results.append(log_likelihood(model, x, dequantization=dequantization, samples=5, generator=seeded(3), **LOOSE))
    torch.testing.assert_close(pieces[0].log_prob, whole[0].log_prob)
    torch.testing.assert_close(pieces[0].stderr, whole[0].stderr)


def test_labels_follow_the_samples(monkeypatch):
    """Every copy of an example keeps its label."""
    exact = Exact(torch.zeros(1).double(), torch.eye(1).double())
    model = ndm.NDM(ndm.LinearSchedule(-4, 10), ndm.Identity(), exact, ndm.DiscretizedDecoder(levels=3))
    results = []
    for most in (65536, 1):
        monkeypatch.setattr("ndm.inference.likelihood.NUMBERS_AT_ONCE", most)
        x, labels = LEVELS[:, None], torch.tensor([0, 1, -2])
        results.append(log_likelihood(model, x, labels=labels, samples=3, generator=seeded(0)).log_prob)
    torch.testing.assert_close(results[0], results[1])


def test_integers_are_put_on_the_levels(three_levels):
    model, _ = three_levels
    values = torch.tensor([[0], [1], [2]])
    a, b = (log_likelihood(model, x, generator=seeded(0), **LOOSE).log_prob for x in (values, LEVELS[:, None]))
    torch.testing.assert_close(a, b.to(a), rtol=1e-2, atol=1e-2)
