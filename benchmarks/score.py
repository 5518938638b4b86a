"""``ndm score`` on a table whose density is known: how near the scores come, what errors they state, and the time.

The table has 20,000 rows of 8 columns from a mixture of six Gaussians with means N(0, 4 I) and random covariances.
``ndm train table`` is given the CSV file, as a user would, and ``ndm score`` scores the rows that were not trained on.
Told are, of log_prob under the reverse ODE: its correlation with the true log-density over these rows, and the mean
and the mean absolute difference; of the bound: how far it lies above, and for what share of rows the truth lies within
two stated standard errors of it (these are of the bound's estimate, and leave out that the model is not the truth). To
see whether the stated errors are right, some rows are scored again with many more noise levels: the share of their
bounds within two stated errors, both runs' together, should be about 0.95. The solver's error is told for each
tolerance, against the same rows in float64 at a tolerance of 1e-7.

With --rows N, N more rows are drawn and scored, for the time and the peak of memory.

    python benchmarks/score.py [--steps 6000] [--tolerances 1e-3 1e-4 1e-5] [--rows 1000000] [--run RUN]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet
import torch
from bench import save, table

import ndm

COLUMNS, PARTS, TRAINED, AGAIN = 8, 6, 20_000, 256


class Mixture:
    """Six Gaussians in eight dimensions, equally likely."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.means = random.normal(0, 2, (PARTS, COLUMNS))
        factors = random.normal(size=(PARTS, COLUMNS, COLUMNS)) / math.sqrt(COLUMNS)
        self.roots = np.linalg.cholesky(factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(COLUMNS))

    def sample(self, n: int, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        part = random.integers(0, PARTS, n)
        x = random.normal(size=(n, COLUMNS))
        for k in range(PARTS):  # in place, for a million rows
            x[part == k] = self.means[k] + x[part == k] @ self.roots[k].T
        return x

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        whitened = [np.linalg.solve(root, (x - mean).T) for mean, root in zip(self.means, self.roots, strict=True)]
        log_det = np.log(np.diagonal(self.roots, axis1=1, axis2=2)).sum(1)
        each = np.stack([-(w**2).sum(0) / 2 - d for w, d in zip(whitened, log_det, strict=True)])
        return np.logaddexp.reduce(each) - COLUMNS / 2 * math.log(2 * math.pi) - math.log(PARTS)


def write(x: np.ndarray, path: Path) -> Path:
    pandas.DataFrame(x, columns=[f"f{i}" for i in range(COLUMNS)]).to_csv(path, index=False)
    return path


def command(*arguments: object) -> tuple[float, float]:
    """Run ndm; the seconds it took and the megabytes it needed at most."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "ndm", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"ndm {arguments[0]} failed.")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="of the training")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-4, 1e-5])
    parser.add_argument("--test", type=int, default=2000, help="how many held-out rows to score")
    parser.add_argument("--rows", type=int, help="how many more rows to score, for the time")
    parser.add_argument("--run", type=Path, help="a run on this table, in place of a new training")
    options = parser.parse_args()
    mixture, rows = Mixture(), []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        run = options.run or here / "run"
        seconds: float | None = None
        if options.run is None:
            trained = write(mixture.sample(TRAINED, 1), here / "train.csv")
            seconds, _ = command(
                "train", "table", "--data.path", trained, "--trainer.max_steps", options.steps, "--out", run
            )
        x = mixture.sample(options.test, 2)
        truth, test = mixture.log_prob(x), write(x, here / "test.csv")
        n = min(AGAIN, options.test)
        command("score", run, test, "--out", here / "fine.parquet", "--max-rows", n,
                "--no-likelihood", "--times", 1000)  # fmt: skip
        fine = pandas.read_parquet(here / "fine.parquet")
        model = ndm.NDM.from_pretrained(run / "model").double()
        fine["log_prob"] = ndm.log_likelihood(model, torch.from_numpy(x[:n]), rtol=1e-7, atol=1e-7).log_prob
        for tolerance in options.tolerances:
            out = here / f"{tolerance:g}.parquet"
            command("score", run, test, "--out", out, "--tolerance", tolerance)
            about = json.loads(pyarrow.parquet.read_schema(out).metadata[b"ndm"])
            speed = {"rows_per_second": about["scored"] / about["seconds"]}
            stated = {"stated_solver_error": about["log_prob"]["solver_error"]}
            rows.append({"tolerance": tolerance} | speed | stated | compare(pandas.read_parquet(out), fine, truth, n))
        many = None
        if options.rows:
            path = write(mixture.sample(options.rows, 3), here / "many.csv")
            took, megabytes = command("score", run, path, "--out", here / "many.parquet")
            many = {"rows": options.rows, "seconds": took, "megabytes": megabytes}
    keys = list(rows[0])
    print(table([[f"{row[key]:.4g}" for key in keys] for row in rows], keys))
    if many:
        print(f"{many['rows']:,} rows: {many['seconds']:.0f} s, {many['megabytes']:.0f} MB at most")
    settings = {"steps": options.steps, "test": options.test, "training_seconds": seconds, "many": many}
    print(f"the same numbers are in {save('score', rows, settings)}")


def compare(scores: pandas.DataFrame, fine: pandas.DataFrame, truth: np.ndarray, n: int) -> dict[str, Any]:
    error = scores["log_prob"] - truth
    nelbo, stated = scores["nelbo"], scores["nelbo_stderr"]
    again = (nelbo[:n] - fine["nelbo"]).abs() / np.hypot(stated[:n], fine["nelbo_stderr"])
    return {
        "correlation": np.corrcoef(scores["log_prob"], truth)[0, 1],
        "mean_error": error.mean(),
        "mean_absolute_error": error.abs().mean(),
        "solver_error": (scores["log_prob"][:n] - fine["log_prob"]).abs().mean(),
        "bound_above_truth": (nelbo + truth).mean(),
        "bound_stated_error": stated.mean(),
        "truths_within_two": ((nelbo + truth).abs() < 2 * stated).mean(),
        "bounds_within_two": (again < 2).mean(),
    }


if __name__ == "__main__":
    main()
