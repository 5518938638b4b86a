"""Densities of mixed tables by a product over columns, and by a mixture of normals and frequencies.

Both see the atoms and the mapped values of the encoding of ndm (:class:`ndm.evaluation.table_mixtures.Rows`). A value
on a grid has the density at its place times the width of its cell, a good approximation for narrow cells.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from ndm.evaluation import table_mixtures
from ndm.evaluation.table_mixtures import Rows
from ndm.method.columns import log_frequencies
from ndm.method.encoding import TableEncoding


def product(encoding: TableEncoding, *splits: torch.Tensor, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """log p of the test rows, (n,): each column by its frequencies and a mixture of normals, chosen by validation."""
    began = time.process_time()
    train, validation, test = (Rows(encoding, rows) for rows in splits)
    total, place = test.log_width.copy(), 0
    for i, column in enumerate(encoding.table):
        counts = np.bincount(train.atoms[:, i], minlength=len(column.counts))
        total += log_frequencies(torch.from_numpy(counts)).numpy()[test.atoms[:, i]]
        if column.rest is None:
            continue
        own, there, held = (~np.isnan(rows.values[:, place]) for rows in (train, test, validation))
        fits = []
        for count in (1, 2, 4, 8, 16, 32):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = GaussianMixture(count, reg_covar=1e-5, random_state=seed).fit(train.values[own, place][:, None])
            fits.append((fit.score(validation.values[held, place][:, None]), fit))
        best = max(fits, key=lambda pair: pair[0])[1]
        total[there] += best.score_samples(test.values[there, place][:, None])
        place += 1
    return total, {"seconds": time.process_time() - began}


def mixture(encoding: TableEncoding, *splits: torch.Tensor, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """log p of the test rows, (n,), by the mixture of ndm, with the number of components chosen by validation."""
    table_mixtures.OPERATIONS, table_mixtures.ROWS = float("inf"), 10**9
    table_mixtures.COMPONENTS = (*table_mixtures.COMPONENTS[:12], 96, 128)
    began = time.process_time()
    fit = table_mixtures.table_mixture(encoding, *splits[:2], seed=seed)
    values = fit.log_prob(splits[2]).numpy()
    return values, {"components": fit.components, "seconds": time.process_time() - began}
