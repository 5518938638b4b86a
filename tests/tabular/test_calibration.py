"""Measures of predictive distributions against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ndm.tabular.calibration import calibration_error, coverage, crps, interval, pit, pit_histogram, quantiles


def normal_crps(y: np.ndarray, sigma: float) -> np.ndarray:
    """The CRPS of N(0, sigma^2) (Gneiting and Raftery, J. Am. Stat. Assoc. 102, 2007, equation 21)."""
    w = y / sigma
    density = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in w])
    return sigma * (w * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_crps_of_a_normal_distribution(sigma: float) -> None:
    y = np.linspace(-2, 2, 5)
    samples = sigma * np.random.default_rng(0).normal(size=(5, 40_000))
    np.testing.assert_allclose(crps(samples, y), normal_crps(y, sigma), atol=0.02 * sigma)


def test_crps_is_fair_for_few_samples() -> None:
    """Its mean over observations of the same distribution is sigma / sqrt(pi), for 2 samples too."""
    rng = np.random.default_rng(1)
    found = crps(rng.normal(size=(100_000, 2)), rng.normal(size=100_000))
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - 1 / math.sqrt(math.pi)) < 4 * error


def test_crps_is_the_sum_over_pairs() -> None:
    x, y = np.random.default_rng(2).normal(size=(3, 7)), np.array([0.1, -1.0, 2.0])
    pairs = np.abs(x[:, :, None] - x[:, None]).sum((1, 2)) / (7 * 6)
    np.testing.assert_allclose(crps(x, y), np.abs(x - y[:, None]).mean(1) - pairs / 2)


@pytest.mark.parametrize("discrete", [False, True])
def test_pit_values_of_a_calibrated_prediction_are_uniform(discrete: bool) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20_000, 19)), rng.normal(size=20_000)
    if discrete:
        x, y = np.rint(x), np.rint(y)
    values = pit(x, y)
    assert 0 < values.min() < values.max() < 1
    counts = pit_histogram(values)
    assert counts.sum() == 20_000
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


def test_pit_values_of_a_narrow_prediction_are_at_the_ends() -> None:
    rng = np.random.default_rng(4)
    counts = pit_histogram(pit(0.3 * rng.normal(size=(2000, 50)), rng.normal(size=2000)))
    assert min(counts[0], counts[-1]) > 3 * counts[4]


def test_quantiles_and_coverage_of_a_calibrated_prediction() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(20_000, 20)), rng.normal(size=20_000)
    for p in (0.1, 0.5, 0.9):
        assert abs((y <= quantiles(x, [p])[:, 0]).mean() - p) < 4 * math.sqrt(p * (1 - p) / 20_000)
    share, error = coverage(x, y, 0.9)
    assert error == pytest.approx(math.sqrt(share * (1 - share) / 20_000))
    assert abs(share - 0.9) < 4 * error
    assert interval(x[:3], 0.5).shape == (3, 2)


def test_calibration_error_of_known_probabilities() -> None:
    p = np.repeat([[0.9, 0.1], [0.35, 0.65]], 1000, axis=0)
    y = np.r_[np.arange(1000) >= 900, np.arange(1000) < 650].astype(int)
    assert calibration_error(p, y) == pytest.approx(0.0, abs=1e-9)
    y[:1000] = np.arange(1000) >= 600  # 60% are right, with a confidence of 90%
    assert calibration_error(p, y) == pytest.approx(0.15)
    assert calibration_error([[1.0, 0.0]], [0]) == 0.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        crps([[0.0]], [0.0])
    with pytest.raises(ValueError, match="do not fit observed values"):
        pit([[0.0, 1.0]], [0.0, 1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantiles([[0.0]], [1.5])
    with pytest.raises(ValueError, match="no rows"):
        coverage(np.zeros((0, 3)), [])
    with pytest.raises(ValueError, match="do not fit 10 bins"):
        calibration_error([[0.5, 0.5]], [0, 1])
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        pit_histogram([1.5])
