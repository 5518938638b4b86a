"""One block of a scoring as a function, for the tasks of Ray, Dask, Spark or a pool of processes."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor
from ndm.data.frames import as_arrow, cells_of
from ndm.data.mixed import rows_of_numbers
from ndm.inference.likelihood import TOLERANCE
from ndm.method.encoding import TableEncoding
from ndm.model import NDM
from ndm.scoring.checks import check_model, check_options
from ndm.scoring.labels import checked_labels
from ndm.scoring.partial import MEASURED
from ndm.scoring.scorer import Scorer

__all__ = ["score_block"]

#: Number of prepared models that a process keeps.
KEPT = 2

#: A process scores one block at a time, since a scoring switches its model between modes.
_ONE = threading.Lock()


def score_block(
    model_path: str | os.PathLike[str],
    rows: Any,
    block: int = 0,
    *,
    labels: int | Values | None = None,
    likelihood: bool = True,
    times: int = 20,
    tolerance: float | None = None,
    samples: int = 4,
    probes: int = 4,
    divergence: str = "auto",
    precision: str = "32",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    r"""Score a block of rows on the CPU: the values of :func:`score` for the same block.

    The function has no state but its two last models, so it can be the task of any engine that runs Python functions on
    many computers. A process loads a model once. The bounds of rows do not depend on the block that they are in; the
    random numbers of log-likelihoods, if any, depend on the index and the size of the block.

    Args:
        model_path: the folder of a run, or of a saved model.
        rows: (n, \*shape) in original units, as for ``model.bound``; for a model of a table with columns of several
            kinds also a DataFrame, an Arrow table or a dictionary, which has its columns in any order.
        block: index of the block. ``ndm score`` numbers its blocks of ``--batch-size`` rows from 0.
        labels: for a class-conditional model the class of all rows, or of each, (n,).
        likelihood: also compute the log-likelihood, which takes the most time.
        times: number of noise levels per row for the bound, even.
        tolerance: tolerance of the ODE solver in nats: see :func:`ndm.log_likelihood`.
        samples: number of samples of z_0, for K-level data.
        probes: number of probes for a divergence that is not exact.
        divergence: ``exact``, ``hutchinson``, or ``auto``: see :func:`ndm.log_likelihood`.
        precision: ``32``, ``bf16`` (networks only) or ``64``.
        seed: seed of all random numbers.

    Returns:
        ``nelbo`` and ``nelbo_stderr``, with ``likelihood`` also ``log_prob``, ``log_prob_stderr`` and ``solver_error``,
        in nats, and for K-level data ``bits_per_dim``, each float64 (n,): see :func:`score`.

    Raises:
        ValueError: an argument is out of range, or the rows do not fit the model.
        FileNotFoundError: there is no model.
    """
    check_options(times, tolerance, samples, probes, precision, None, None, seed)
    with _ONE:
        folder = _model_folder(Path(model_path))
        stamp = max(file.stat().st_mtime_ns for file in folder.iterdir()) if folder.is_dir() else 0
        options = (tolerance, samples, probes, divergence)
        scorer = _scorer(str(folder), stamp, likelihood, times, options, precision, seed)
        x = _numbers(scorer.model, rows)
        if len(x) == 0:
            raise ValueError("The block has no rows.")
        with scorer.at_work():
            if not scorer.slopes:
                scorer.options["tolerance"] = TOLERANCE * x[0].numel() if tolerance is None else tolerance
                scorer.prepare(x)
            values = scorer.measure(block, x, checked_labels(scorer.model, len(x), labels))
    found = dict(zip(MEASURED if likelihood else MEASURED[:2], values.T.copy(), strict=False))
    if scorer.model.decoder.levels is not None:
        bits = 1 / (x[0].numel() * math.log(2))
        found["bits_per_dim"] = bits * (-found["log_prob"] if likelihood else found["nelbo"])
    return found


def _model_folder(path: Path) -> Path:
    """The folder of the model of a run, or the folder itself."""
    inside = path / "model"
    return inside if inside.is_dir() else path


@functools.lru_cache(maxsize=KEPT)
def _scorer(
    folder: str, stamp: int, likelihood: bool, times: int, options: tuple[Any, ...], precision: str, seed: int
) -> Scorer:
    """A scorer that is not prepared; ``stamp`` is the time of the model's last change."""
    model = NDM.from_pretrained(folder).eval()
    check_model(model, likelihood)
    names = ("tolerance", "samples", "probes", "divergence")
    return Scorer(model, likelihood, times, dict(zip(names, options, strict=True)), precision, seed)


def _numbers(model: NDM, rows: Any) -> Tensor:
    encoding = model.standardize
    named = isinstance(rows, Mapping) or hasattr(rows, "columns") or hasattr(rows, "column_names")
    if not named:
        return as_tensor(rows, "rows")
    if not isinstance(encoding, TableEncoding):
        raise ValueError(
            "The model does not know the names of its columns: pass the rows as an array, in the order of the training."
        )
    table = as_arrow(rows)
    cells = {
        name: str(column.type) if (own := cells_of(column, name in encoding.texts)) is None else own
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return torch.from_numpy(rows_of_numbers(encoding.table, cells, "The block"))
