"""A newcomer's path, from a clone to a page: four commands on a table, timed, and how good their answers are.

The checkout is cloned into a new folder and installed there, as ``make install`` does, unless --here is given. The
table is that of score.py, 20,000 rows of 8 columns from a mixture whose density is known. The four commands are those
of the README: train, score (2,000 new rows), sample, report. Told are the seconds each took; of the scores their
correlation with the true log-density, their mean error, and for what share of rows the truth lies within two stated
standard errors of the bound; of the samples the mean of the true log-density, beside that of new rows, with standard
errors; and the size of the page.

    python benchmarks/newcomer.py [--here]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from bench import mean_and_error, save
from score import TRAINED, Mixture, write

ROOT = Path(__file__).parent.parent
SCORED, SAMPLED = 2000, 1000


def timed(*command: object, cwd: Path) -> float:
    """Run a command; the seconds it took."""
    began = time.perf_counter()
    status = subprocess.run([str(part) for part in command], cwd=cwd).returncode
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed.")
    return time.perf_counter() - began


def path(folder: Path, ndm: list[str]) -> list[dict[str, Any]]:
    """The four commands, in a folder that has train.csv and new.csv."""
    rows = []
    for what, arguments in {
        "train": ["table", "--data.path", "train.csv", "--out", "run"],
        "score": ["run", "new.csv", "--out", "scores.parquet"],
        "sample": ["run", "-n", SAMPLED, "--out", "samples.csv"],
        "report": ["run", "--out", "report.html"],
    }.items():
        line = " ".join(map(str, ["ndm", what, *arguments]))
        rows.append({"command": line, "seconds": timed(*ndm, what, *arguments, cwd=folder)})
    return rows


def answers(folder: Path) -> dict[str, Any]:
    mixture = Mixture()
    new, samples = (pandas.read_csv(folder / name).to_numpy() for name in ("new.csv", "samples.csv"))
    truth, scores = mixture.log_prob(new), pandas.read_parquet(folder / "scores.parquet")
    error = scores["log_prob"] - truth
    sampled = mean_and_error(torch.from_numpy(mixture.log_prob(samples)))
    real = mean_and_error(torch.from_numpy(truth))
    return {
        "correlation": float(np.corrcoef(scores["log_prob"], truth)[0, 1]),
        "mean_error": float(error.mean()),
        "mean_absolute_error": float(error.abs().mean()),
        "bound_above_truth": float((scores["nelbo"] + truth).mean()),
        "bound_stated_error": float(scores["nelbo_stderr"].mean()),
        "truths_within_two": float(((scores["nelbo"] + truth).abs() < 2 * scores["nelbo_stderr"]).mean()),
        "mean_solver_error": float(scores["solver_error"].mean()),
        "log_density_of_samples": sampled,
        "log_density_of_new_rows": real,
        "page_kilobytes": (folder / "report.html").stat().st_size / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="use this installation, not a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        rows, ndm = [], [sys.executable, "-m", "ndm"]
        if not options.here:
            rows.append({"command": "git clone", "seconds": timed("git", "clone", "-q", ROOT, here / "ndm", cwd=here)})
            rows.append({"command": "make install", "seconds": timed("make", "install", cwd=here / "ndm")})
            ndm = [str(here / "ndm" / ".venv" / "bin" / "ndm")]
        work = here / "work"
        work.mkdir()
        write(Mixture().sample(TRAINED, 1), work / "train.csv")
        write(Mixture().sample(SCORED, 2), work / "new.csv")
        rows += path(work, ndm)
        found = answers(work)
    for row in rows:
        print(f"{row['seconds']:8.1f} s  {row['command']}")
    print(found)
    threads = os.environ.get("OMP_NUM_THREADS")
    print(f"the same numbers are in {save('newcomer', rows, {'OMP_NUM_THREADS': threads, 'answers': found})}")


if __name__ == "__main__":
    main()
