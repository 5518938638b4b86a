"""Densities of tables: ``ndm train table`` with its defaults, a neural spline flow and a mixture of Gaussians.

Every figure is a log-likelihood of the test split, in nats per row and the units of the file. DATA has a folder for
each set, with train.parquet, validation.parquet and test.parquet of real columns. A cell is a set, a method and a seed;
it is written to the folder --scratch once it is finished, and skipped when the command is given again.

    python benchmarks/tables.py gmm --data DATA --scratch ROWS
    python benchmarks/tables.py nsf --data DATA --scratch ROWS                   needs: pip install zuko
    python benchmarks/tables.py ndm --data DATA --scratch ROWS --source CHECKOUT [--kinds real]
    python benchmarks/tables.py summary --scratch ROWS                           writes results/tables.jsonl

gmm: ``sklearn.mixture.GaussianMixture`` with full covariances; the number of components and reg_covar are those of the
highest validation likelihood. nsf: ``zuko.flows.NSF``, AdamW, early stopping; the settings are chosen by validation. A
fit that would take longer than --cap CPU seconds ends there and says ``capped``. Both see standardised rows. On larger
tables the first seed chooses for all (:mod:`density.others` has the grids and limits).
ndm: ``ndm train table --data.path SET --data.kinds KINDS ...`` and ``ndm score RUN SET/test.parquet ...`` run as
commands, with the source of CHECKOUT. KINDS is numeric, for columns without maps (the rows "ndm"), or real for every
column, each with its map ("real"). The log-likelihood is log_prob, by the ODE; the bound is -nelbo. With KINDS real a
value that recurs has a probability, not a density: rows with such a value are left out, and the figure of the others
is the bound where there are any.

Seconds are CPU seconds of one thread. A difference is paired by row and seed. Its error is the root of v / n + s² / S:
v is the variance over the n test rows of the difference averaged over seeds, s² that of the mean difference over the S
seeds. The reference is the better of gmm and nsf by the mean over seeds of the test split, which favours the reference.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import torch
from bench import RESULTS, environment, write
from density.cells import Cells, Facts, Rows, over_rows
from density.others import Table, gmm, nsf
from density.summary import SETS, lines

import ndm as ndm_package


def command(source: Path, log: Path, *arguments: object) -> float:
    """Run a command of a source tree with one thread, its output to a file; the CPU seconds that it took."""
    own = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, *map(str, arguments)], env=own, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(map(str, arguments))} failed:\n{log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def version(source: Path, folder: Path) -> str:
    """The commit of a source tree, after a look at whether it is what runs."""
    command(source, folder / "version.txt", "-c", "import ndm; print(ndm.__file__)")
    if not Path((folder / "version.txt").read_text().strip()).is_relative_to((source / "src").resolve()):
        raise SystemExit(f"{source} is not what `import ndm` finds: is there a src/ndm in it?")
    described = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=7"]
    return subprocess.run(described, capture_output=True, text=True).stdout.strip()


def ndm(folder: Path, key: str, seed: int, source: Path, cells: Cells, kinds: str, more: str) -> tuple[Facts, Rows]:
    """Train and score; what a command that was stopped left is put aside, for its seconds are not known."""
    work = cells.folder / f"{key}-work"
    if work.exists():
        work.rename(f"{work}-stopped-{time.time_ns()}")
    work.mkdir()
    run, scores = work / "run", work / "scores.csv"
    columns = pandas.read_parquet(folder / "train.parquet").columns
    every = json.dumps(dict.fromkeys(columns, "real")) if kinds == "real" else kinds
    train = ["-m", "ndm", "train", "table", "--data.path", folder, "--data.kinds", every, "--seed", seed, "--out", run]
    train += shlex.split(more)
    trained = command(source, work / "train.txt", *train)
    score = ["-m", "ndm", "score", run, folder / "test.parquet", "--out", scores]
    scored = command(source, work / "score.txt", *score)
    found = pandas.read_csv(scores)
    rows = {"test": found["log_prob"].to_numpy(float), "bound": -found["nelbo"].to_numpy(float)}
    recurring = recurring_rows(run, folder / "test.parquet") if kinds == "real" else np.zeros(len(found), bool)
    if recurring.any():  # then log_prob is a lower bound on log p, and the bound is nearer
        rows["test"] = np.where(recurring, math.nan, rows["bound"])
    return {
        "recurring": int(recurring.sum()),
        "settings": {"command": f"ndm train table --data.path SET --data.kinds {kinds} {more}".strip()},
        "seconds": {"fit": trained, "score": scored, "all": trained + scored},
        **trained_steps(run / "metrics.csv"),
    }, rows


def recurring_rows(run: Path, test: Path) -> np.ndarray:
    """Whether a row has a value that recurs, bool (n,): of it the model has a probability, the others a density."""
    cells, encoding = pandas.read_parquet(test), ndm_package.NDM.from_pretrained(run / "model").standardize
    return np.any([cells[c.name].isin(c.levels) for c in encoding.table], axis=0)


def trained_steps(metrics: Path) -> Facts:
    """The steps of a run, and its validations' bounds on log p: the last, and the best with its step."""
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    bounds = {int(r["step"]): -float(r["val/total"]) for r in rows if r.get("val/total")}
    best = max(bounds, key=lambda step: bounds[step])
    return {
        "steps": max(int(r["step"]) for r in rows), "best_step": best, "validation": bounds[best],
        "last_validation": bounds[max(bounds)], "validations": len(bounds),
    }  # fmt: skip


def summary(options: argparse.Namespace) -> None:
    found = lines(options.scratch)
    if not found:
        raise SystemExit(f"{options.scratch} has no finished cell: run gmm, nsf or ndm first.")
    print(write(options.results, [{"environment": environment()}, *found]))


def measure(options: argparse.Namespace) -> None:
    """The cells of a method that are not finished."""
    name = options.method
    if name == "ndm":
        name = options.name or ("real" if options.kinds == "real" else "ndm")
    cells = Cells(options.scratch, name)
    commit = version(options.source, options.scratch) if options.method == "ndm" else None
    for key in cells.finished() if options.method == "ndm" else ():
        if (before := cells.read(key)[0]["commit"]) != commit:
            raise SystemExit(f"{name} has cells of {before}, {options.source} is at {commit}: choose another --name.")
    for set_name, seed in itertools.product(options.sets, options.seeds):
        key = f"{set_name}-{seed}"
        if cells.has(key):
            continue
        folder = options.data / set_name
        if options.method == "ndm":
            facts, rows = ndm(folder, key, seed, options.source, cells, options.kinds, options.options)
            facts["commit"] = commit
        elif options.method == "gmm":
            data, first = Table.read(folder), f"{set_name}-{min(options.seeds)}"
            facts, rows = gmm(data, seed, None if data.small or key == first else cells.read(first)[0])
        else:
            fits = Cells(cells.folder, "fits")
            facts, rows = nsf(Table.read(folder), set_name, seed, min(options.seeds), fits, options.cap)
        cells.write(key, facts, **rows)
        mean, error = over_rows(rows["test"])
        print(f"{name} {key}: {mean:.3f} ± {error:.3f}  {json.dumps(facts)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = parser.add_subparsers(dest="method", required=True, metavar="METHOD")
    for method in ("gmm", "nsf", "ndm", "summary"):
        one = methods.add_parser(method)
        one.add_argument("--scratch", type=Path, required=True, metavar="ROWS", help="the folder of finished cells")
        if method == "summary":
            one.add_argument("--results", type=Path, default=RESULTS / "tables.jsonl", help="(default: %(default)s)")
            continue
        one.add_argument("--data", type=Path, required=True, help="the folder of the sets")
        one.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET", help="(default: all four)")
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
        if method == "nsf":
            one.add_argument("--cap", type=float, default=400.0, help="CPU seconds of a fit (default: 400)")
        if method == "ndm":
            one.add_argument("--source", type=Path, required=True, metavar="CHECKOUT", help="whose src/ndm is run")
            one.add_argument("--name", help="of the rows (default: ndm for --kinds numeric, real for --kinds real)")
            one.add_argument("--kinds", default="numeric", choices=("numeric", "real"), help="(default: %(default)s)")
            one.add_argument("--options", default="", help="more options of ndm train, in one string")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    (summary if options.method == "summary" else measure)(options)


if __name__ == "__main__":
    main()
