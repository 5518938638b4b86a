"""Second moments in folds, and the shrinkage that costs least on examples that were held out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

import ndm
from ndm.method.moments import FOLDS, MOST_NUMBERS, PRIOR_EXAMPLES, Moments, folds_for


def gathered(e: Tensor, full: bool, folds: int = FOLDS, sizes: int = 1000) -> Moments:
    """The moments of errors (T, n, d), taken in so many at a time."""
    moments = Moments(len(e), e.shape[2], full, folds)
    for i, rows in enumerate(e):
        for some in rows.split(sizes):
            moments.add(i, some)
    return moments


def correlated(n: int, d: int = 5, steps: int = 2) -> Tensor:
    return torch.randn(steps, n, d).double() @ (2 * torch.randn(steps, d, d).double())


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("sizes", [1, 3, 7, 1000])
def test_the_folds_do_not_depend_on_the_batches(full: bool, sizes: int) -> None:
    e = correlated(23)
    moments, folds = gathered(e, full, sizes=sizes), [e[:, k::FOLDS] for k in range(FOLDS)]
    assert moments.count.tolist() == [[6, 6, 6, 5]] * 2
    for k, rows in enumerate(folds):
        expected = rows.mT @ rows if full else (rows**2).sum(1)
        torch.testing.assert_close(moments.sums[:, k], expected)
    torch.testing.assert_close(moments.squares(), (e**2).mean(1))
    both = gathered(e[:, :10], full) + gathered(e[:, 10:], full)
    torch.testing.assert_close(both.squares(), (e**2).mean(1))


def test_a_large_matrix_is_kept_twice_only() -> None:
    assert folds_for(10, 64, True) == FOLDS
    assert folds_for(1000, 784, True) == 2
    assert folds_for(1000, 784, False) == FOLDS
    assert FOLDS * 10 * 64**2 < MOST_NUMBERS


# ---- an oracle: the densities of held-out examples, by SciPy


def held_out_cost(e: np.ndarray, covariance) -> float:
    """E over folds of the cross entropy of N(0, I + S_fold) from N(0, W), times n, W = covariance(the other folds)."""
    d, total = e.shape[1], 0.0
    for k in range(FOLDS):
        inside, outside = e[k::FOLDS], np.delete(e, np.s_[k::FOLDS], axis=0)
        w = covariance(outside)
        # E[-log N(y; 0, W)] for y ~ e + N(0, I): at e, and the trace of W^-1 for the unit noise.
        at = -multivariate_normal(np.zeros(d), w).logpdf(inside).sum()
        total += at + len(inside) * np.trace(np.linalg.inv(w)) / 2
    return total


def mixed(simple: np.ndarray, measured: np.ndarray, n: int, c: float) -> np.ndarray:
    return simple if math.isinf(c) else (n * measured + c * simple) / (n + c)


def level(squares: np.ndarray, n: int, c: float) -> np.ndarray:
    return mixed(np.full_like(squares, squares.mean()), squares, n, c)


@pytest.mark.parametrize("n", [5, 9, 30, 400])
@pytest.mark.parametrize("kind", ["correlated", "independent", "equal"])
def test_the_shrinkage_is_the_one_that_costs_least_on_held_out_examples(kind: str, n: int) -> None:
    d = 5
    e = correlated(n, d) if kind == "correlated" else torch.randn(2, n, d).double()
    e = e * (torch.logspace(-1, 1, d).double() if kind == "independent" else 1.5)
    moments = gathered(e, full=True)
    squares, matrices = moments.shrunk_squares(), list(moments.shrunk_matrices())
    torch.testing.assert_close(gathered(e, full=False).shrunk_squares(), squares)
    for i, rows in enumerate(e.numpy()):

        def diagonal(x: np.ndarray, c: float) -> np.ndarray:
            return np.diag(1 + level((x**2).mean(0), len(x), c))

        costs = [held_out_cost(rows, lambda x, c=c: diagonal(x, c)) for c in PRIOR_EXAMPLES]
        prior = PRIOR_EXAMPLES[int(np.argmin(costs))]
        expected = level((rows**2).mean(0), n, prior)
        np.testing.assert_allclose(squares[i], expected, rtol=1e-10)

        def full(x: np.ndarray, c: float, prior: float = prior) -> np.ndarray:
            return mixed(diagonal(x, prior), np.eye(d) + x.T @ x / len(x), len(x), c)

        costs = [held_out_cost(rows, lambda x, c=c: full(x, c)) for c in PRIOR_EXAMPLES]
        c = PRIOR_EXAMPLES[int(np.argmin(costs))]
        np.testing.assert_allclose(
            matrices[i], mixed(np.diag(expected), rows.T @ rows / n, n, c), rtol=1e-9, atol=1e-9 * abs(expected).max()
        )


def test_moments_of_equal_folds_are_left_as_they_are() -> None:
    e = correlated(20).repeat_interleave(FOLDS, 1)
    moments = gathered(e, full=True)
    torch.testing.assert_close(moments.shrunk_squares(), moments.squares(), rtol=1e-12, atol=0)
    for i, matrix in enumerate(moments.shrunk_matrices()):
        torch.testing.assert_close(matrix, e[i].T @ e[i] / e.shape[1], rtol=1e-12, atol=1e-12)


def test_of_one_example_only_the_size_is_believed() -> None:
    e = correlated(1)
    mean = (e**2).mean((1, 2))
    moments = gathered(e, full=True)
    torch.testing.assert_close(moments.shrunk_squares(), mean[:, None].expand(2, 5))
    for i, matrix in enumerate(moments.shrunk_matrices()):
        torch.testing.assert_close(matrix, mean[i] * torch.eye(5).double())
    unfolded = gathered(correlated(7), full=True, folds=1)  # nothing to choose by, and nobody asked for it
    torch.testing.assert_close(next(unfolded.shrunk_matrices()), unfolded.matrix(0))


# ---- what it is for


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, C)."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        a, g = level.alpha[:, None], level.sigma[:, None]
        return (z @ self.vectors * (a * self.values / (a**2 * self.values + g**2))) @ self.vectors.T


def held_out(c: Tensor, n: int, covariance: str, steps: int = 5) -> float:
    """The bound of new data after a calibration on n examples, the same ones and the same noise for every kind."""
    model = ndm.NDM(ndm.LinearSchedule(-7.0, 4.0), ndm.Identity(), Exact(c))
    root = torch.linalg.cholesky(c)
    draw = torch.Generator().manual_seed(n)
    data, new = (torch.randn(k, len(c), generator=draw, dtype=torch.float64) @ root.T for k in (n, 1500))
    model.calibrate(data, steps, covariance, generator=torch.Generator().manual_seed(1))
    times = (torch.arange(1500) + 0.5) / 1500
    return model.bound(new, steps, times=times, generator=torch.Generator().manual_seed(2)).total.mean().item()


def spectrum(d: int, turned: bool) -> Tensor:
    values = torch.diag(torch.logspace(-2, 0.5, d, dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q if turned else torch.eye(d, dtype=torch.float64)
    return turn @ values @ turn.T


@pytest.mark.parametrize("d", [2, 10, 40])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("n", [2, 10, 40, 400])
def test_more_freedom_is_never_far_worse_on_new_data(d: int, turned: bool, n: int) -> None:
    c = spectrum(d, turned)
    isotropic, diagonal, full = (held_out(c, n, kind) for kind in ("isotropic", "diagonal", "full"))
    noise = 0.3 + 0.01 * d + 8 / n  # of so few examples, and of the new ones
    assert diagonal <= isotropic + noise
    assert full <= diagonal + noise
    if n >= 40 and d > 2:  # and where there is something to win, it is won
        assert full < isotropic - d / 20
        assert turned or diagonal < isotropic - d / 20


def test_errors_that_are_not_finite_are_not_calibrated() -> None:
    class Diverged(nn.Module):
        def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
            return z * math.nan

    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Diverged())
    for covariance in ("isotropic", "diagonal", "full"):
        with pytest.raises(ValueError, match="errors on these data are not finite"):
            model.calibrate(torch.randn(9, 2), 3, covariance)
    assert not model.calibrations
