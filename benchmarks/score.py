"""``ndm score`` on a table whose density is known: the errors of the scores, the stated errors, time and memory.

The table has 20,000 rows of 8 columns from a mixture of six Gaussians with means N(0, 4 I) and random covariances.
``ndm train table`` and ``ndm score`` are run as commands, on new rows.
Of log_prob, the result has the correlation with the true log-density and the errors; of the bound, its distance from
the truth and how often the truth lies within two stated errors, which some rows with 1,000 noise levels check. The
solver's error is against float64 at a tolerance of 1e-6, for each tolerance. With --rows N, N more rows are scored by a
command with two workers that is killed (SIGKILL) halfway and given again, and the first 102,400 of them by one worker
and by two: the time, the peak of memory of a process, and whether the scores are the same to the last bit.

    python benchmarks/score.py [--steps 6000] [--tolerances 0.8 0.08 0.008] [--rows 1000000] [--run RUN]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from bench import save

import ndm
from ndm import scoring

COLUMNS, PARTS, TRAINED, AGAIN, FEW = 8, 6, 20_000, 256, 102_400


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


def command(*arguments: object, until: Callable[[], bool] | None = None) -> tuple[float, float]:
    """Run ndm, and kill it when ``until`` says so; the seconds it took and the megabytes it needed at most."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "ndm", *map(str, arguments)])
    killed, ended = False, 0
    while not ended:
        ended, status, usage = os.wait4(process.pid, 0 if until is None or killed else os.WNOHANG)
        if not ended and until is not None and until():
            process.kill()
            killed = True
        time.sleep(0.0 if ended else 0.05)
    if status and not killed:
        raise SystemExit(f"ndm {arguments[0]} failed.")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def many(run: Path, here: Path, n: int) -> list[dict[str, Any]]:
    """Score some of n rows by one and by two workers, and all by two workers with a kill in the middle."""
    x = Mixture().sample(n, 3)
    few, every = write(x[:FEW], here / "few.csv"), write(x, here / "many.csv")
    lines = []
    for workers in (1, 2):
        out = here / f"few-{workers}.parquet"
        seconds, megabytes = command("score", run, few, "--out", out, "--workers", workers)
        lines.append({"rows": FEW, "workers": workers, "seconds": seconds, "megabytes": megabytes})
    out, blocks = here / "many.parquet", here / "many.parquet.partial" / "blocks"
    all_rows = ("score", run, every, "--out", out, "--workers", 2)
    first, megabytes = command(*all_rows, until=lambda: blocks.is_file() and blocks.stat().st_size > 16 * n)
    done = blocks.stat().st_size // (40 * 1024 + 4) * 1024  # blocks of five numbers for each row, and a checksum
    second, more = command(*all_rows)
    found, *some = (pandas.read_parquet(path) for path in (out, here / "few-1.parquet", here / "few-2.parquet"))
    log_p = found["log_prob"].fillna(found["log_prob"].mean())
    line = {"rows": n, "workers": 2, "seconds": first + second, "megabytes": max(megabytes, more), "killed_after": done}
    line |= {"same": all(found[:FEW].equals(part) for part in some), "missing": int(found["log_prob"].isna().sum())}
    line |= {"each_once": bool((found["row"] == np.arange(n)).all())}
    return [*lines, line | {"correlation": float(np.corrcoef(log_p, Mixture().log_prob(x))[0, 1])}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="of the training")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.8, 0.08, 0.008])
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
        coverage = {}
        command("score", run, test, "--out", here / "fine.parquet", "--max-rows", n,
                "--no-likelihood", "--times", 1000)  # fmt: skip
        fine = pandas.read_parquet(here / "fine.parquet")
        model = ndm.NDM.from_pretrained(run / "model").double()
        fine["log_prob"] = ndm.log_likelihood(model, torch.from_numpy(x[:n]), tolerance=1e-6).log_prob
        for tolerance in options.tolerances:
            out = here / f"{tolerance:g}.parquet"
            about = scoring.score(
                ndm.NDM.from_pretrained(run / "model"), torch.from_numpy(x), out, tolerance=tolerance
            ).about
            speed = {"rows_per_second": about["scored"] / about["seconds"]}
            stated = {"checked_solver_error": about["log_prob"]["checked_error"]}
            rows.append({"tolerance": tolerance} | speed | stated | compare(pandas.read_parquet(out), fine, truth, n))
        for times in (20, 100):
            out = here / f"times-{times}.parquet"
            command("score", run, test, "--out", out, "--max-rows", n, "--no-likelihood", "--times", times, "--seed", 1)
            found = pandas.read_parquet(out)
            apart = (found["nelbo"] - fine["nelbo"]).abs() / np.hypot(found["nelbo_stderr"], fine["nelbo_stderr"])
            coverage[times] = {"within_two": (apart < 2).mean(), "stated": found["nelbo_stderr"].mean()}
        large = many(run, here, options.rows) if options.rows else None
    print(*rows, large, sep="\n")
    settings = {"steps": options.steps, "test": options.test, "training_seconds": seconds}
    settings |= {"bounds": coverage, "many": large}
    print(save("score", rows, settings))


def compare(scores: pandas.DataFrame, fine: pandas.DataFrame, truth: np.ndarray, n: int) -> dict[str, Any]:
    error, solver = scores["log_prob"] - truth, (scores["log_prob"][:n] - fine["log_prob"]).abs()
    nelbo, stated = scores["nelbo"], scores["nelbo_stderr"]
    return {
        "correlation": np.corrcoef(scores["log_prob"], truth)[0, 1], "mean_error": error.mean(),
        "mean_absolute_error": error.abs().mean(), "solver_error": solver.mean(), "largest_solver_error": solver.max(),
        "stated_row_error": scores["solver_error"].mean(),
        "errors_within_stated": (solver < scores["solver_error"][:n] + 1e-4).mean(),
        "bound_above_truth": (nelbo + truth).mean(), "bound_stated_error": stated.mean(),
        "truths_within_two": ((nelbo + truth).abs() < 2 * stated).mean(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
