"""Densities of mixed tables by simpler models: a product over columns, and a mixture of normals and frequencies.

Both see the rows as the encoding of ndm sees them: the index of the atom of each column, and the value v of columns
with a density or a grid, after the column's map. log p is in nats, with respect to the same measure: a value on a
grid has the density at its place times the width of its cell, a good approximation for narrow cells.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from ndm.method.encoding import TableEncoding

COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Encoded:
    """Rows as indices of atoms, (n, C), values, (n, C) with NaN where there is none, and log widths, (n,)."""

    def __init__(self, encoding: TableEncoding, rows: torch.Tensor) -> None:
        x = encoding(rows)
        self.atoms = np.stack([encoding.index(x, i).numpy() for i in range(len(encoding.table))], 1)
        self.counts = [len(column.counts) for column in encoding.table]
        self.values = np.full(self.atoms.shape, np.nan)
        self.log_width = np.zeros(len(rows))
        for i, (column, where) in enumerate(zip(encoding.table, encoding.slices, strict=True)):
            if column.rest is None:
                continue
            own = self.atoms[:, i] == column.atoms
            v = x[:, where.stop - 1]
            self.values[own, i] = v[own].numpy()
            slope = column.map.log_slope(v).numpy()
            self.log_width[own] += slope[own] + (math.log(column.step) if column.rest == "grid" else 0.0)


def smoothed(atoms: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """log of the weighted frequencies of k atoms, with half an occurrence added to each."""
    found = np.bincount(atoms, weights, minlength=k) + 0.5
    return np.log(found / found.sum())


def product(train: Encoded, validation: Encoded, test: Encoded, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """log p of the test rows, (n,): each column by its frequencies and a mixture of normals, chosen by validation."""
    began, total = time.process_time(), test.log_width.copy()
    for i, k in enumerate(train.counts):
        total += smoothed(train.atoms[:, i], np.ones(len(train.atoms)), k)[test.atoms[:, i]]
        own = ~np.isnan(train.values[:, i])
        if not own.any():
            continue
        there = ~np.isnan(test.values[:, i])
        held = validation.values[~np.isnan(validation.values[:, i]), i][:, None]
        fits = []
        for count in (1, 2, 4, 8, 16, 32):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = GaussianMixture(count, reg_covar=1e-5, random_state=seed).fit(train.values[own, i][:, None])
            fits.append((fit.score(held), fit))
        best = max(fits, key=lambda pair: pair[0])[1]
        total[there] += best.score_samples(test.values[there, i][:, None])
    return total, {"seconds": time.process_time() - began}


class ClassMixture:
    """A mixture whose components are a normal distribution of the values and frequencies of the atoms.

    Values that every row has share a full covariance matrix in each component; others are independent.
    """

    def __init__(self, count: int, seed: int, steps: int = 100, floor: float = 1e-3) -> None:
        self.count, self.seed, self.steps, self.floor = count, seed, steps, floor

    def fit(self, data: Encoded) -> ClassMixture:
        random = np.random.RandomState(self.seed)
        whole = ~np.isnan(data.values)
        self.full = np.flatnonzero(whole.all(0))
        self.partly = [i for i in np.flatnonzero(whole.any(0)) if i not in self.full]
        r = random.dirichlet(np.full(self.count, 0.3), len(data.atoms))
        last = -np.inf
        for _ in range(self.steps):
            self._maximise(data, r)
            joint = self._joint(data)
            top = joint.max(1, keepdims=True)
            r = np.exp(joint - top)
            value = float((np.log(r.sum(1)) + top[:, 0]).mean())
            r /= r.sum(1, keepdims=True)
            if value - last < 1e-4:
                break
            last = value
        return self

    def _maximise(self, data: Encoded, r: np.ndarray) -> None:
        self.weights = np.log((r.sum(0) + 1e-3) / (r.sum(0) + 1e-3).sum())
        self.frequencies = [
            np.stack([smoothed(data.atoms[:, i], r[:, j], k) for j in range(self.count)])
            for i, k in enumerate(data.counts)
        ]
        v, total = data.values[:, self.full], r.sum(0) + 1e-6
        self.means = (r.T @ v) / total[:, None]
        self.roots = []
        for j in range(self.count):
            away = v - self.means[j]
            covariance = (away * r[:, j : j + 1]).T @ away / total[j] + self.floor * np.eye(len(self.full))
            self.roots.append(np.linalg.cholesky(covariance))
        self.apart = []
        for i in self.partly:
            own = ~np.isnan(data.values[:, i])
            some, value = r[own], data.values[own, i][:, None]
            n = some.sum(0) + 1e-6
            mean = (some * value).sum(0) / n
            self.apart.append((mean, (some * (value - mean) ** 2).sum(0) / n + self.floor))

    def _joint(self, data: Encoded) -> np.ndarray:
        found = np.tile(self.weights, (len(data.atoms), 1))
        for i, table in enumerate(self.frequencies):
            found += table[:, data.atoms[:, i]].T
        v = data.values[:, self.full]
        for j, root in enumerate(self.roots):
            if len(self.full):
                z = np.linalg.solve(root, (v - self.means[j]).T)
                found[:, j] -= (z**2).sum(0) / 2 + np.log(np.diag(root)).sum() + len(z) / 2 * math.log(2 * math.pi)
        for i, (mean, variance) in zip(self.partly, self.apart, strict=True):
            own = ~np.isnan(data.values[:, i])
            away = (data.values[own, i][:, None] - mean) ** 2 / variance
            found[own] -= (away + np.log(2 * math.pi * variance)) / 2
        return found

    def log_prob(self, data: Encoded) -> np.ndarray:
        joint = self._joint(data)
        top = joint.max(1)
        return top + np.log(np.exp(joint - top[:, None]).sum(1)) + data.log_width


def mixture(train: Encoded, validation: Encoded, test: Encoded, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """log p of the test rows, (n,), with the number of components chosen by validation."""
    began, best, worse = time.process_time(), (-np.inf, None), 0
    for count in COMPONENTS:
        fit = ClassMixture(count, seed).fit(train)
        value = float(fit.log_prob(validation).mean())
        worse = 0 if value > best[0] else worse + 1
        best = max(best, (value, fit), key=lambda pair: pair[0])
        if worse == 2:
            break
    assert best[1] is not None
    return best[1].log_prob(test), {"components": best[1].count, "seconds": time.process_time() - began}
