r"""Baseline for a model: a Gaussian mixture, fitted in seconds.

    p(x) = sum_k pi_k N(x; mu_k, S_k)

with full covariances, fitted by expectation-maximisation (scikit-learn's GaussianMixture). The number of components and
the regularisation of the covariances are selected on the validation split; independent columns are among the
candidates. On small tables the mixture may fit the data better than a network; the user is then informed.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ndm.data.choosing import part_of
from ndm.method.mixture import MixtureBase

if TYPE_CHECKING:
    import sklearn.mixture

__all__ = ["GaussianMixture", "gaussian_mixture", "has_mixtures"]

#: Candidate numbers of components, in this order; the search stops after two without improvement.
COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

#: Regularisation of the standardised variances: the value for the search over components, and then an alternative for
#: the best number and its neighbours.
REGULARISATION, STRONGER = 1e-6, 1e-3

#: Maximum number of rows for fitting and for selection; a random subset is used.
ROWS = 20_000

#: Maximum number of columns.
COLUMNS = 256

#: Maximum number of iterations of a fit.
ITERATIONS = 200

#: Typical number of iterations of a fit, for the cost estimate.
TYPICAL_ITERATIONS = 50

#: Maximum number of floating-point operations of all fits: about 15 seconds on one core.
OPERATIONS = 5e10


class GaussianMixture:
    """Gaussian mixture of standardised columns, with results in the data's units; see :func:`gaussian_mixture`.

    Attributes:
        components: K, the number of Gaussians.
        regularisation: value added to the variances, in standardised units.
        rows: number of rows it was fitted to.
    """

    def __init__(self, mixture: sklearn.mixture.GaussianMixture, mean: np.ndarray, std: np.ndarray, rows: int) -> None:
        self.components: int = mixture.n_components
        self.regularisation: float = mixture.reg_covar
        self.rows = rows
        self._mixture, self._mean, self._std = mixture, mean, std

    @property
    def description(self) -> str:
        """The kind of mixture and its number of components."""
        return f"Gaussian mixture of {self.components} component{'s' * (self.components != 1)}"

    @property
    def weights(self) -> np.ndarray:
        """pi, (K,)."""
        return self._mixture.weights_

    @property
    def means(self) -> np.ndarray:
        """mu, (K, d), in the data's units."""
        return self._mixture.means_ * self._std + self._mean

    @property
    def covariances(self) -> np.ndarray:
        """S, (K, d, d), in the data's units."""
        S = self._mixture.covariances_
        full = S if S.ndim == 3 else S[:, :, None] * np.eye(S.shape[1])
        return full * np.outer(self._std, self._std)

    def base(self) -> MixtureBase:
        """The mixture as the base of a denoiser of the same units."""
        return MixtureBase(len(self._mean), self.components).set(self.weights, self.means, self.covariances)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of rows, (B, d) -> (B,), float64, in nats, in the data's units.

        It is -inf or NaN for a row that is not finite or whose distance overflows.

        Raises:
            ValueError: the rows have another number of columns.
        """
        rows = _rows(x)
        if rows.shape[1] != len(self._mean):
            raise ValueError(f"The mixture was fitted to {len(self._mean)} columns, got {rows.shape[1]}.")
        found = np.full(len(rows), math.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            standardised = (rows - self._mean) / self._std
            finite = np.isfinite(standardised).all(1)
            if finite.any():
                found[finite] = self._mixture.score_samples(standardised[finite]) - np.log(self._std).sum()
        return torch.from_numpy(found)


def has_mixtures() -> bool:
    """Whether scikit-learn is installed."""
    try:
        import sklearn.mixture  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def gaussian_mixture(train: Tensor, validation: Tensor, seed: int = 0) -> GaussianMixture:
    r"""Fit a Gaussian mixture with full covariances, selected by the log-density of the validation rows.

    This takes at most about 15 seconds on one core: a random subset is used if there are more than 20,000 rows, and
    mixtures that would take too long are skipped. The result is deterministic.

    Args:
        train: rows for fitting, (N, d), of any floating type.
        validation: rows for selection, (M, d).
        seed: seed of the subset of rows and of the initialisation.

    Raises:
        ValueError: there are fewer than two training rows or no validation rows, a value is not finite, or there are
            more than 256 columns.
        ImportError: scikit-learn is not installed.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> mixture = gaussian_mixture(x[:400], x[400:])
        >>> mixture.log_prob(x[:3]).shape
        torch.Size([3])
    """
    if not has_mixtures():
        raise ImportError("A Gaussian mixture needs scikit-learn: pip install scikit-learn.")
    rows, others = (_rows(x[part_of(len(x), ROWS, seed)]) for x in (train, validation))
    _check(rows, others)
    mean, std = rows.mean(0), rows.std(0)
    std[std == 0] = 1.0
    rows, others = (rows - mean) / std, (others - mean) / std
    candidates = _affordable(*rows.shape)
    found: list[tuple[float, int, sklearn.mixture.GaussianMixture]] = []
    for place, components in enumerate(candidates):
        found.append(_fitted(rows, others, components, REGULARISATION, seed, place))
        if len(found) > 2 and max(value for value, _, _ in found[:-2]) > max(found[-1][0], found[-2][0]):
            break
    place = max(found, key=lambda one: one[0])[1]
    for near in range(max(place - 1, 0), min(place + 2, len(candidates))):
        found.append(_fitted(rows, others, candidates[near], STRONGER, seed, near))
    found.append(_fitted(rows, others, 1, STRONGER, seed, 0, "diag"))
    best = max(found, key=lambda one: one[0])[2]
    return GaussianMixture(best, mean, std, len(rows))


def _affordable(rows: int, columns: int) -> list[int]:
    """Return the candidate numbers of components for these rows within the time limit, at least one."""
    numbers = (columns + 1) * (columns + 2) / 2  # parameters per component; at most one parameter per row
    cost = [4.0 * TYPICAL_ITERATIONS * rows * components * columns**2 for components in COMPONENTS]
    every = zip(COMPONENTS, np.cumsum(cost), strict=True)
    return [k for k, so_far in every if k == 1 or (k * numbers <= rows and so_far <= OPERATIONS)]


def _fitted(
    rows: np.ndarray,
    others: np.ndarray,
    components: int,
    regularisation: float,
    seed: int,
    place: int,
    covariance: Literal["full", "diag"] = "full",
) -> tuple[float, int, sklearn.mixture.GaussianMixture]:
    """Return the mean log-density of the validation rows, the index as given, and the mixture."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Mixture

    mixture = Mixture(
        components, covariance_type=covariance, reg_covar=regularisation, max_iter=ITERATIONS,
        random_state=seed % 2**32,
    )  # fmt: skip
    with warnings.catch_warnings():
        # Too few iterations, or fewer k-means clusters because of equal rows: the validation rows decide.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(rows)
    return float(mixture.score(others)), place, mixture


def _rows(x: Tensor) -> np.ndarray:
    if x.ndim != 2:
        raise ValueError(f"A Gaussian mixture needs rows of shape (N, d), got {tuple(x.shape)}.")
    return x.detach().double().cpu().numpy()


def _check(rows: np.ndarray, others: np.ndarray) -> None:
    if len(rows) < 2 or len(others) < 1:
        raise ValueError(
            f"A Gaussian mixture needs two training rows and a validation row, got {len(rows)} and {len(others)}."
        )
    if rows.shape[1] != others.shape[1] or not 1 <= rows.shape[1] <= COLUMNS:
        raise ValueError(
            f"A Gaussian mixture needs 1 to {COLUMNS} columns, the same for training and validation, got "
            f"{rows.shape[1]} and {others.shape[1]}."
        )
    if not (np.isfinite(rows).all() and np.isfinite(others).all()):
        raise ValueError("The rows for a Gaussian mixture contain NaN or infinite values; remove or replace them.")
