"""The fast score of ``ndm distill``: speed and errors on a table, and anomalies by the fast and by the exact score.

On magic, the rows are those of the test split, the same with cells exchanged between rows (a tenth, and all of them),
and with noise of half a standard deviation. Errors are differences from ``ndm.log_likelihood`` at the default
tolerance; ``covered`` is the part of the rows whose error is at most ``error_95``. Rows per second are of CPU time and
without reading files. On vowels and cardio (:mod:`outliers`) the score is minus log p, of a model of real columns;
columns that are linear functions of those before are left out, since the density would be unbounded.

    python benchmarks/fast.py --tables TABLES --runs FOLDER

FOLDER keeps the models, which are trained and distilled if they are not there; likelihood.py shares that of magic.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from bench import save
from likelihood import table_run
from score import command
from sklearn.metrics import roc_auc_score
from torch import Tensor

import ndm
from ndm.inference.likelihood import calibrate_solver
from ndm.scoring.distilled import DistilledScore
from ndm.storage.checkpoints import load_part


def distilled(name: str, train: np.ndarray, runs: Path) -> tuple[ndm.NDM, DistilledScore, float]:
    """The model and its fast score, and the seconds that the distillation took, 0 if it was there."""
    model, seconds = table_run(name, train, runs), 0.0
    if not (runs / name / "distilled").is_dir():
        seconds, _ = command("distill", runs / name)
    return model, load_part(runs / name / "distilled", DistilledScore).eval(), seconds


def independent(train: np.ndarray) -> list[int]:
    """The columns that are not linear functions of those before."""
    z, kept = (train - train.mean(0)) / train.std(0), list[int]()
    for column in range(z.shape[1]):
        if np.linalg.matrix_rank(z[:, [*kept, column]], tol=1e-3 * len(z) ** 0.5) > len(kept):
            kept.append(column)
    return kept


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def scores(model: ndm.NDM, fast: DistilledScore, x: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The errors and the speed on some rows, and their fast and exact scores."""
    calibration = calibrate_solver(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        exact, slow = timed(lambda: ndm.log_likelihood(model, x, calibration=calibration).log_prob)
    found, quick = timed(lambda: [fast(model.to_model(x)) for _ in range(20)][-1])
    error = (found.log_prob - exact).abs()
    row = {"rows": len(x), "rows_per_second": 20 * len(x) / quick, "exact_rows_per_second": len(x) / slow}
    row |= {"spread": exact.std().item(), "rms": error.square().mean().sqrt().item()}
    row |= {f"q{p:g}": error.quantile(p).item() for p in (0.5, 0.95, 0.99)}
    row |= {"covered": (error <= found.errors[:, 1]).double().mean().item()}
    return row | {"beyond": int(found.errors[:, 1].isinf().sum())}, found.log_prob, exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="a folder with magic, vowels and cardio")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the trained models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, random = [], np.random.default_rng(0)
    for name in ("magic", "vowels", "cardio"):
        here = options.tables / name
        train, test = (pandas.read_parquet(here / f"{part}.parquet").to_numpy() for part in ("train", "test"))
        columns = independent(train)
        train, test = train[:, columns], test[:, columns]
        model, fast, seconds = distilled(name, train, options.runs)
        kinds = {"test": test}
        if name == "magic":
            for share in (0.1, 1.0):
                others = test[random.integers(0, len(test), test.shape), np.arange(test.shape[1])]
                kinds[f"{share:.0%} of the cells exchanged"] = np.where(random.random(test.shape) < share, others, test)
            kinds["noise of half a deviation"] = test + 0.5 * train.std(0) * random.normal(size=test.shape)
        for kind, rows in kinds.items():
            line, quick, exact = scores(model, fast, torch.from_numpy(rows.copy()).float())
            line = {"set": name, "kind": kind, "d": rows.shape[1], "distillation_seconds": seconds} | line
            if name != "magic":
                truth = pandas.read_parquet(here / "test-labels.parquet").to_numpy().ravel()
                line |= {"auc_fast": roc_auc_score(truth, -quick), "auc_exact": roc_auc_score(truth, -exact)}
            lines.append(line)
            print(line, flush=True)
    print(save("fast", lines, {}))


if __name__ == "__main__":
    main()
