"""Measures of predictive distributions: CRPS, PIT values, coverage, and the calibration error of probabilities.

A prediction of a number is a set of samples, one row of samples per row of the table. A prediction of a category is a
vector of probabilities.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["calibration_error", "coverage", "crps", "interval", "pit", "pit_histogram", "quantiles"]


def crps(samples: ArrayLike, observed: ArrayLike) -> np.ndarray:
    r"""The continuous ranked probability score of each row, by the fair estimator.

    CRPS = E\|X - y\| - E\|X - X'\| / 2, with X and X' from the prediction. The second mean is over pairs of different
    samples, so that the estimate is unbiased for any number of samples (Ferro, Q. J. R. Meteorol. Soc. 140, 2014). It
    may be negative for few samples. Lower is better.

    Args:
        samples: (m, n), n samples for each of m rows, n at least 2.
        observed: the observed values y, (m,).

    Returns:
        (m,), in the unit of the values.

    Raises:
        ValueError: the shapes do not fit, or there are fewer than 2 samples.

    Example:
        >>> crps([[0.0, 1.0]], [0.5])
        array([0.])
    """
    x, y = _checked(samples, observed)
    n = x.shape[1]
    if n < 2:
        raise ValueError(f"The CRPS needs at least 2 samples for each row, got {n}.")
    weights = 2 * np.arange(1, n + 1) - n - 1  # sum over i < j of x_(j) - x_(i)
    spread = (np.sort(x, axis=1) * weights).sum(1) / (n * (n - 1))
    return np.asarray(np.abs(x - y[:, None]).mean(1) - spread)


def pit(samples: ArrayLike, observed: ArrayLike, seed: int = 0) -> np.ndarray:
    """The randomised probability integral transform of each row, the rank of y among the samples, in (0, 1).

    It is (#{x < y} + U (#{x = y} + 1)) / (n + 1) with U uniform on (0, 1). It is uniform if y and the samples are from
    the same distribution, which may have atoms.

    Args:
        samples: (m, n), n samples for each of m rows.
        observed: the observed values y, (m,).
        seed: the seed of U.

    Returns:
        (m,).

    Raises:
        ValueError: the shapes do not fit, or there are no samples.
    """
    x, y = _checked(samples, observed)
    below, tied = (x < y[:, None]).sum(1), (x == y[:, None]).sum(1)
    u = np.random.default_rng(seed).random(len(y))
    return np.asarray((below + u * (tied + 1)) / (x.shape[1] + 1))


def pit_histogram(values: ArrayLike, bins: int = 10) -> np.ndarray:
    """The number of PIT values in each of some bins of equal width, int64 (bins,).

    Equal counts are expected if the predictions are calibrated; a U-shape means that they are too narrow.

    Args:
        values: values in [0, 1], (m,).
        bins: the number of bins.

    Raises:
        ValueError: a value is not in [0, 1], or bins is less than 1.
    """
    v = np.asarray(values, np.float64)
    if bins < 1 or not ((v >= 0) & (v <= 1)).all():
        raise ValueError("A PIT histogram needs values in [0, 1] and at least one bin.")
    return np.histogram(v, bins=bins, range=(0.0, 1.0))[0]


def quantiles(samples: ArrayLike, levels: ArrayLike) -> np.ndarray:
    """Quantiles of the samples of each row, (m, q), in the unit of the values.

    With n samples the quantile of level p is at the rank p (n + 1), so that a new value of the same distribution is
    below it with probability p, for p from 1 / (n + 1) to n / (n + 1). Beyond, it is the smallest or largest sample.

    Args:
        samples: (m, n), n samples for each of m rows.
        levels: (q,), each in (0, 1).

    Raises:
        ValueError: a level is not in (0, 1), or there are no samples.
    """
    x, p = np.asarray(samples, np.float64), np.atleast_1d(np.asarray(levels, np.float64))
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"The samples must have the shape (m, n) with n at least 1, got {x.shape}.")
    if not ((p > 0) & (p < 1)).all():
        raise ValueError(f"The levels of quantiles must be between 0 and 1, got {p.tolist()}.")
    return np.asarray(np.quantile(x, p, axis=1, method="weibull").T)


def interval(samples: ArrayLike, level: float = 0.9) -> np.ndarray:
    """The central interval of each row, (m, 2): its lower and upper end, in the unit of the values.

    Args:
        samples: (m, n), n samples for each of m rows.
        level: the probability of the interval, in (0, 1).

    Raises:
        ValueError: the level is not in (0, 1), or there are no samples.
    """
    return quantiles(samples, [(1 - level) / 2, (1 + level) / 2])


def coverage(samples: ArrayLike, observed: ArrayLike, level: float = 0.9) -> tuple[float, float]:
    """The share of the observed values in the central interval of their row, and its binomial standard error.

    For values with atoms, such as whole numbers, a calibrated prediction covers more than ``level``.

    Args:
        samples: (m, n), n samples for each of m rows.
        observed: the observed values, (m,), m at least 1.
        level: the probability of the interval, in (0, 1).

    Returns:
        The share, and sqrt(share (1 - share) / m).

    Raises:
        ValueError: the shapes do not fit, there are no rows, or the level is not in (0, 1).
    """
    x, y = _checked(samples, observed)
    low, high = interval(x, level).T
    return _share((low <= y) & (y <= high))


def calibration_error(probabilities: ArrayLike, observed: ArrayLike, bins: int = 10) -> float:
    """The expected calibration error of the most likely category, in [0, 1] (Guo et al., arXiv 1706.04599).

    It is the mean over rows of \\|accuracy - confidence\\| of the row's bin, where the confidence is the largest
    probability and the bins have equal width. It is biased upwards for few rows.

    Args:
        probabilities: (m, K).
        observed: the indices of the observed categories, (m,), m at least 1.
        bins: the number of bins.

    Raises:
        ValueError: the shapes do not fit, there are no rows, or bins is less than 1.

    Example:
        >>> calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1])
        0.3
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(observed)
    if p.ndim != 2 or y.shape != p.shape[:1] or len(y) == 0 or bins < 1:
        raise ValueError(f"Probabilities of the shape {p.shape} and {y.shape} categories do not fit {bins} bins.")
    confidence, right = p.max(1), p.argmax(1) == y
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(places, right - confidence, minlength=bins)
    return round(float(np.abs(gaps).sum() / len(y)), 12)


def _share(true: np.ndarray) -> tuple[float, float]:
    """The share of true entries, (m,), and its binomial standard error."""
    if len(true) == 0:
        raise ValueError("There are no rows.")
    share = float(true.mean())
    return share, math.sqrt(share * (1 - share) / len(true))


def _checked(samples: ArrayLike, observed: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(samples, np.float64), np.asarray(observed, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] == 0:
        raise ValueError(f"Samples of the shape {x.shape} do not fit observed values of the shape {y.shape}.")
    return x, y
