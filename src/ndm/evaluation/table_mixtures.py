r"""Baseline for tables with columns of several kinds: a mixture, fitted in seconds.

The mixture is that of :mod:`ndm.method.table_mixture`, with full covariances, fitted by expectation-maximisation.
Values that are not there, since the cell is missing or recurs, are marginalised exactly (Little and Rubin, Statistical
Analysis with Missing Data, 2002, section 11.2). The number of components and the shrinkage of the covariances towards
their diagonals are selected on the validation split; independent columns are among the candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ndm.data.choosing import part_of
from ndm.evaluation.baselines import (
    COMPONENTS,
    OPERATIONS,
    REGULARISATION,
    ROWS,
    STRONGER,
    TYPICAL_ITERATIONS,
    has_mixtures,
)
from ndm.method.columns import log_frequencies
from ndm.method.encoding import TableEncoding
from ndm.method.table_mixture import TableMixtureBase

__all__ = ["TableMixture", "table_mixture"]

#: The frequencies of atoms of a component are smoothed by this many rows with the frequencies of all rows.
SMOOTHING = 10.0

#: Columns with more atoms have the same frequencies in all components.
MOST_ATOMS = 256

#: The search over the number of components ends after so many without improvement.
PATIENCE = 4

#: A fit ends when the mean log p of the rows rises by less, in nats, or after this many iterations.
RISE, ITERATIONS = 1e-3, 100

#: The least standard deviation of a grid's value, in cells: then the cells' probabilities sum to 1 within 0.02.
CELLS = 0.5

#: The quantile of the widths of cells, which differ by the slope of the column's map.
WIDE = 0.95

#: Cost of a component for rows with the same values there, in floating-point operations, beside that of their matrix.
PATTERN_COST = 1e6

#: Iterations of the fits of one component together.
FEW_ITERATIONS = 20

#: Models of more columns are not compared with a mixture, whose covariances would take too long.
COLUMNS = 64


class Rows:
    """Rows as the mixture sees them.

    Args:
        encoding: the columns.
        rows: (N, C).

    Attributes:
        x: the encoded rows, (N, d).
        atoms: the index of the atom of each column, (N, C).
        values: v of the columns with values, (N, G), with NaN where there is none.
        log_width: the log-density of a row minus that of its values, (N,): slopes of maps, and cells of grids.
        least: the least variance of values, (G,), from the width of cells.
    """

    def __init__(self, encoding: TableEncoding, rows: Tensor) -> None:
        x = encoding(rows)
        self.x = x.numpy()
        self.atoms = torch.stack([encoding.index(x, i) for i in range(len(encoding.table))], 1).numpy()
        self.log_width, values, least = np.zeros(len(x)), [], []
        for i, (column, where) in enumerate(zip(encoding.table, encoding.slices, strict=True)):
            if column.rest is None:
                continue
            v, own = x[:, where.stop - 1], self.atoms[:, i] == column.atoms
            values.append(np.where(own, v.numpy(), np.nan))
            width = column.map.log_slope(v).numpy() + (math.log(column.step) if column.rest == "grid" else 0.0)
            self.log_width += np.where(own, width, 0.0)
            widest = float(np.exp(np.quantile(width[own], WIDE))) if column.rest == "grid" and own.any() else 0.0
            least.append((CELLS * widest) ** 2)
        self.values = np.stack(values, 1) if values else np.zeros((len(x), 0))
        self.least = np.array(least)
        there, which = np.unique(~np.isnan(self.values), axis=0, return_inverse=True)
        #: The coordinates that are there, and the rows, of each pattern of the values.
        self.patterns = [(own, np.flatnonzero(which.reshape(-1) == i)) for i, own in enumerate(there)]

    def __len__(self) -> int:
        return len(self.atoms)


@dataclass(frozen=True)
class Regularisation:
    """Of the covariances: the least variance, and the shrinkage towards the diagonal, in rows with this diagonal."""

    least: float = REGULARISATION
    rows_of_diagonal: float = 0.0

    def __call__(self, covariance: np.ndarray, rows: float, least: np.ndarray) -> np.ndarray:
        """The covariance of a component of so many rows, with the least variances of its coordinates."""
        share = self.rows_of_diagonal / (self.rows_of_diagonal + rows) if self.rows_of_diagonal < math.inf else 1.0
        diagonal = np.diag(np.diag(covariance))
        regular: np.ndarray = (1 - share) * covariance + share * diagonal + np.diag(np.maximum(self.least, least))
        return regular


@dataclass
class TableMixture:
    """A mixture of rows; see :func:`table_mixture`.

    Attributes:
        encoding: the columns.
        weights: pi, (K,).
        atoms: of each column p_kj, (K, A), or (1, A) for a column with many atoms.
        means: (K, G), in the coordinates of the diffusion.
        covariances: (K, G, G).
        rows: number of rows it was fitted to.
    """

    encoding: TableEncoding
    weights: np.ndarray
    atoms: list[np.ndarray]
    means: np.ndarray
    covariances: np.ndarray
    rows: int

    @property
    def components(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def description(self) -> str:
        """The kind of mixture and its number of components."""
        return f"mixture of {self.components} component{'s' * (self.components != 1)}"

    def base(self) -> TableMixtureBase:
        """The mixture as the base of a :class:`ndm.MixedDenoiser`."""
        columns = self.encoding.table
        base = TableMixtureBase(
            [len(column.counts) for column in columns],
            [column.rest is not None for column in columns],
            [len(column.counts) > MOST_ATOMS for column in columns],
            self.components,
        )
        return base.set(self.weights, self.atoms, self.means, self.covariances)

    def log_prob(self, rows: Tensor) -> Tensor:
        """log p of rows, (B, C) -> (B,), float64, in nats, with respect to the measure of a table's likelihood.

        A value on a grid has the density at its place times the width of its cell. It is NaN for a row with a cell that
        its column cannot hold.
        """
        try:
            found = Rows(self.encoding, rows)
        except ValueError:
            if len(rows) == 1:
                return torch.full((1,), math.nan, dtype=torch.float64)
            return torch.cat([self.log_prob(part) for part in rows.tensor_split(2)])
        return torch.from_numpy(_log_sum(_joint(self, found)) + found.log_width)


def table_mixture(encoding: TableEncoding, train: Tensor, validation: Tensor, seed: int = 0) -> TableMixture:
    """Fit a mixture of rows with several kinds of columns, selected by the log p of the validation rows.

    This takes at most about 15 seconds on one core: a random subset is used if there are more than 20,000 rows, and
    mixtures that would take too long are skipped. The result is deterministic.

    Args:
        encoding: the columns.
        train: rows for fitting, (N, C).
        validation: rows for selection, (M, C).
        seed: seed of the subset of rows and of the initialisation.

    Raises:
        ValueError: there are fewer than two training rows or no validation rows.
        ImportError: scikit-learn is not installed.
    """
    if not has_mixtures():
        raise ImportError("A mixture needs scikit-learn: pip install scikit-learn.")
    if len(train) < 2 or len(validation) < 1:
        raise ValueError(
            f"A mixture needs two training rows and a validation row, got {len(train)} and {len(validation)}."
        )
    rows, others = (_some(encoding, x, seed) for x in (train, validation))
    candidates, d = _affordable(rows), rows.values.shape[1]
    found: list[tuple[float, int, TableMixture]] = []

    def fit(place: int, regularisation: Regularisation) -> None:
        mixture = _fitted(encoding, rows, candidates[place], regularisation, seed)
        found.append((float((_log_sum(_joint(mixture, others))).mean()), place, mixture))

    for place in range(len(candidates)):
        fit(place, Regularisation())
        if place - max(found, key=lambda one: one[0])[1] >= PATIENCE:
            break
    best = max(found, key=lambda one: one[0])[1]
    for near in range(max(best - 1, 0), min(best + 2, len(candidates))):
        for rows_of_diagonal in sorted({0.0, 0.1 * d, float(d)}):
            fit(near, Regularisation(STRONGER, rows_of_diagonal))
    fit(0, Regularisation(STRONGER, math.inf))
    return max(found, key=lambda one: one[0])[2]


def _some(encoding: TableEncoding, rows: Tensor, seed: int) -> Rows:
    """At most :data:`ROWS` random rows, fewer if their many patterns of absent values would take too long."""
    found = Rows(encoding, rows[part_of(len(rows), ROWS, seed)])
    while len(found) > 2 and FEW_ITERATIONS * _cost(found) > OPERATIONS:
        found = Rows(encoding, rows[part_of(len(rows), len(found) // 2, seed)])
    return found


def _cost(rows: Rows) -> float:
    """The cost of an iteration for a component, in floating-point operations."""
    n, d = rows.values.shape
    return 10.0 * n * (d**2 + rows.atoms.shape[1]) + (PATTERN_COST + d**3) * len(rows.patterns)


def _affordable(rows: Rows) -> list[int]:
    """The candidate numbers of components within the time limit, with at most one parameter per row."""
    n, d, columns = *rows.values.shape, rows.atoms.shape[1]
    numbers = (d + 1) * (d + 2) / 2 + columns
    cost = np.cumsum([_cost(rows) * TYPICAL_ITERATIONS * components for components in COMPONENTS])
    every = zip(COMPONENTS, cost, strict=True)
    return [k for k, so_far in every if k == 1 or (k * numbers <= n and so_far <= OPERATIONS)]


def _fitted(
    encoding: TableEncoding, rows: Rows, components: int, regularisation: Regularisation, seed: int
) -> TableMixture:
    """A mixture by expectation-maximisation, from clusters of the encoded rows."""
    from sklearn.cluster import KMeans

    clusters = min(components, len(np.unique(rows.x, axis=0)))
    labels = KMeans(clusters, n_init=1, random_state=seed % 2**32).fit(rows.x).labels_
    shares = np.zeros((len(rows), components))
    shares[np.arange(len(rows)), labels] = 1.0
    d = rows.values.shape[1]
    start = np.zeros((components, d)), np.repeat(np.eye(d)[None], components, 0)
    mixture = TableMixture(encoding, np.ones(components) / components, [], *start, len(rows))
    last = -math.inf
    for _ in range(ITERATIONS):
        mixture = _maximised(mixture, rows, shares, regularisation)
        joint = _joint(mixture, rows)
        total = _log_sum(joint)
        shares = np.exp(joint - total[:, None])
        if total.mean() - last < RISE:
            break
        last = total.mean()
    return mixture


def _maximised(mixture: TableMixture, rows: Rows, shares: np.ndarray, regularisation: Regularisation) -> TableMixture:
    """The mixture of the highest likelihood for the rows' shares in components, (N, K)."""
    counts = shares.sum(0)
    weights = (counts + 1e-3) / (counts + 1e-3).sum()
    atoms = []
    for i, column in enumerate(mixture.encoding.table):
        index, overall = rows.atoms[:, i], log_frequencies(torch.tensor(column.counts)).exp().numpy()
        if len(overall) > MOST_ATOMS:
            atoms.append(overall[None])
            continue
        of_component = np.stack([np.bincount(index, share, minlength=len(overall)) for share in shares.T])
        atoms.append((of_component + SMOOTHING * overall) / (counts[:, None] + SMOOTHING))
    means, covariances = np.empty_like(mixture.means), np.empty_like(mixture.covariances)
    for k, share in enumerate(shares.T):
        filled, extra = _completed(rows, mixture.means[k], mixture.covariances[k], share)
        n = counts[k] + 1e-6
        means[k] = share @ filled / n
        away = filled - means[k]
        covariances[k] = ((share[:, None] * away).T @ away + extra) / n
        covariances[k] = regularisation(covariances[k], n, rows.least)
    return TableMixture(mixture.encoding, weights, atoms, means, covariances, mixture.rows)


def _completed(
    rows: Rows, mean: np.ndarray, covariance: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values with the expectation of those that are not there, (N, G), and the sum of their covariances, (G, G)."""
    filled, extra = rows.values.copy(), np.zeros_like(covariance)
    for there, which in rows.patterns:
        if there.all():
            continue
        absent = ~there
        slope = np.linalg.solve(covariance[np.ix_(there, there)], covariance[np.ix_(there, absent)])
        known = rows.values[np.ix_(which, there)] - mean[there]
        filled[np.ix_(which, absent)] = mean[absent] + known @ slope
        left = covariance[np.ix_(absent, absent)] - covariance[np.ix_(absent, there)] @ slope
        extra[np.ix_(absent, absent)] += share[which].sum() * left
    return filled, extra


def _joint(mixture: TableMixture, rows: Rows) -> np.ndarray:
    """log pi_k + log p(row | k) of the values' own measure, (N, K)."""
    found = np.tile(np.log(mixture.weights), (len(rows), 1))
    for i, table in enumerate(mixture.atoms):
        found += np.log(table).T[rows.atoms[:, i]]
    for k, (mean, covariance) in enumerate(zip(mixture.means, mixture.covariances, strict=True)):
        for there, which in rows.patterns:
            if not there.any():
                continue
            root = np.linalg.cholesky(covariance[np.ix_(there, there)])
            away = (rows.values[np.ix_(which, there)] - mean[there]) @ np.linalg.inv(root).T
            log_det = 2 * np.log(np.diag(root)).sum() + len(root) * math.log(2 * math.pi)
            found[which, k] -= ((away**2).sum(1) + log_det) / 2
    return found


def _log_sum(joint: np.ndarray) -> np.ndarray:
    """logsumexp over components, (N, K) -> (N,)."""
    total: np.ndarray = torch.from_numpy(joint).logsumexp(1).numpy()
    return total
