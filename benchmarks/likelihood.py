"""The log-density under the ODE: speed, true and stated error; against an older version and flow_matching's ODESolver.

Every method computes the density of the same rows with the same network, in float32, with the exact divergence, in
turns, on one core; rows per second are of CPU time, medians of the rounds. Errors are differences from the density in
float64 at a tolerance of 1e-6 nats (digits: in 128 steps); ``apart`` is its largest difference from the peer's in
float64.
``covered`` is the part of the rows whose error is at most what is stated, ``stated`` the median of the stated errors
over that of the true ones. Settings are tolerances in nats per dimension. ``ours`` is calibrated as by ``ndm score``,
``ours, plain`` is not.

The sets are two tables of TABLES, the 30 columns of the Wisconsin breast cancer data (logarithms), a 2-D toy, and
handwritten digits as continuous data. The tables' models are trained by ``ndm train table``.

    python benchmarks/likelihood.py --tables TABLES --peer FOLDER --before FOLDER --runs FOLDER

The first FOLDER holds the package flow_matching, the second the package ndm of an older commit; the last one keeps the
models, which are trained if they are not there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from bench import environment, read, save, train
from score import command
from torch import Tensor

import ndm
from ndm.data import Digits, Pinwheel, Tensors
from ndm.inference.likelihood import SolverCalibration, calibrate_solver
from ndm.method.process import frozen
from ndm.networks import UNet

SETS = ("magic", "protein", "wdbc", "pinwheel", "digits")
ROUNDS, ROWS = 3, 256

#: Digits have 64 columns and a U-Net: fewer rows and rounds, and a reference of a fixed number of steps.
PICTURES, PICTURE_ROUNDS, PICTURE_STEPS = 8, 1, 128

#: Tolerances in nats per dimension; 0.01 is the default.
OURS = (0.1, 0.02, 0.01, 1e-3)
BEFORE = (1.0, 0.1, 0.01)
THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("dopri5, 0.001", {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}),
    ("midpoint, 20 steps", {"method": "midpoint", "step_size": 1 / 20}),
    ("rk4, 12 steps", {"method": "rk4", "step_size": 1 / 12}),
]

#: What the older version runs: rows and tolerances on the standard input.
OLDER = """
import json, sys, time, warnings
import ndm, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
model = ndm.NDM.from_pretrained(sys.argv[1]).eval()
asked = json.load(sys.stdin)
x = torch.tensor(asked["x"], dtype=torch.float32).reshape(asked["shape"])
began = time.process_time()
found = ndm.log_likelihood(model, x, divergence="exact", tolerance=asked["tolerance"])
seconds = time.process_time() - began
keys = {"log_prob": found.log_prob.tolist(), "error": found.solver_error.tolist()}
print(json.dumps(keys | {"seconds": seconds, "nfe": found.nfe}))
"""


class Velocity:
    """Our drift as the peer wants it: v(x=, t=) of vectors x, (B, d), and a number t from 1, data, to 0, noise."""

    def __init__(self, model: ndm.NDM, shape: torch.Size) -> None:
        self.model, self.shape = model, shape

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        z = x.reshape(-1, *self.shape)
        return -self.model.drift(z, (1 - t).to(x).expand(len(x)), eta=0.0).flatten(1)


def theirs(model: ndm.NDM, x: Tensor, method: str, **settings: Any) -> Tensor:
    """log p of rows by the peer, (B,)."""
    from flow_matching.solver import ODESolver

    data = model.to_model(x)
    alpha = model.schedule(data.new_zeros(len(data))).alpha
    z = alpha.reshape(-1, *[1] * (data.ndim - 1)) * data

    def log_normal(end: Tensor) -> Tensor:
        return -((end.square() + math.log(2 * math.pi)).flatten(1).sum(1)) / 2

    with frozen(model):
        _, log_p = ODESolver(Velocity(model, data.shape[1:])).compute_likelihood(
            z.flatten(1), log_normal, method=method, exact_divergence=True,
            time_grid=torch.tensor([1.0, 0.0], dtype=z.dtype), **{"step_size": None, **settings},
        )  # fmt: skip
    return (log_p + data[0].numel() * alpha.log() + model.log_det(data)).detach()


def picture() -> ndm.NDM:
    net = UNet(1, width=4, multipliers=(5, 7), groups=4)
    return ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Identity(), ndm.Denoiser(net), ndm.GaussianDecoder())


def table_run(name: str, train_rows: np.ndarray, runs: Path) -> ndm.NDM:
    """The model of ``ndm train table`` for a table, from the folder of runs if it is there."""
    if not (runs / name / "model").is_dir():
        path = runs / f"{name}.csv"
        pandas.DataFrame(train_rows, columns=[f"c{i}" for i in range(train_rows.shape[1])]).to_csv(path, index=False)
        command("train", "table", "--data.path", path, "--data.kinds", "numeric", "--training.base", "none",
                "--trainer.max_steps", 2000, "--trainer.max_time", 180, "--out", runs / name)  # fmt: skip
    return ndm.NDM.from_pretrained(runs / name / "model").eval()


def table(name: str, tables: Path, runs: Path) -> tuple[ndm.NDM, Tensor]:
    rows, test = (pandas.read_parquet(tables / name / f"{part}.parquet").to_numpy() for part in ("train", "test"))
    return table_run(name, rows, runs), torch.tensor(test[:ROWS], dtype=torch.float32)


def wdbc(runs: Path) -> tuple[ndm.NDM, Tensor]:
    from sklearn.datasets import load_breast_cancer

    rows = np.random.default_rng(0).permutation(np.log(load_breast_cancer().data + 1e-3))
    return table_run("wdbc", rows[:469], runs), torch.from_numpy(rows[469:]).float()


def pinwheel(runs: Path) -> tuple[ndm.NDM, Tensor]:
    toy = Pinwheel()
    return table_run("pinwheel", toy.train.numpy(), runs), toy.test[: 8 * ROWS]


def pictures(runs: Path) -> tuple[ndm.NDM, Tensor]:
    """Handwritten digits as continuous data."""
    splits = [Digits().examples(name) for name in ("train", "validation", "test")]
    data = Tensors(*(examples[torch.arange(len(examples))] for examples in splits))
    if not (runs / "digits").is_dir():
        train(picture, data, steps=600, bound_steps=None, seed=0, batch_size=64).save_pretrained(runs / "digits")
    return ndm.NDM.from_pretrained(runs / "digits").eval(), data.test[:PICTURES]


def sets(tables: Path, runs: Path, chosen: list[str]) -> Iterator[tuple[str, ndm.NDM, Tensor]]:
    """Name, a trained model and rows of the chosen sets."""
    own = {"wdbc": wdbc, "pinwheel": pinwheel, "digits": pictures}
    for name in chosen:
        yield name, *(own[name](runs) if name in own else table(name, tables, runs))


def for_older(model: ndm.NDM, folder: Path) -> Path:
    """The model saved without the arguments that older versions do not know, which must have their defaults."""
    model.save_pretrained(folder)
    path = folder / "config.json"

    def cut(part: Any) -> Any:
        if isinstance(part, dict):
            new = {"outputs": None, "context": 0, "base": None, "calibrations": None}
            return {k: cut(v) for k, v in part.items() if k not in new or v != new[k]}
        return part

    path.write_text(json.dumps(cut(json.loads(path.read_text()))))
    return folder


def older(model: Path, source: Path, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor, float, int]:
    """log p, its stated error, CPU seconds and evaluations of an older version."""
    asked = {"x": x.flatten().tolist(), "shape": list(x.shape), "tolerance": tolerance}
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", OLDER, str(model)], input=json.dumps(asked), text=True, check=True,
                          capture_output=True, env=environment)  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return torch.tensor(found["log_prob"]), torch.tensor(found["error"]), found["seconds"], found["nfe"]


Found = tuple[Tensor, Tensor | None, float, int | None]


def jobs(model: ndm.NDM, x: Tensor, old: tuple[Path, Path] | None) -> dict[tuple[str, str], Callable[[], Found]]:
    """Who and setting: a function that returns log p, its stated error, CPU seconds and evaluations."""
    d = x[0].numel()
    found: dict[tuple[str, str], Callable[[], Found]] = {}

    def ours(tolerance: float, calibrated: bool) -> Found:
        calibration = calibrate_solver(model, x, divergence="exact", tolerance=tolerance) if calibrated else None
        began = time.process_time()
        now = ndm.log_likelihood(model, x, divergence="exact", tolerance=tolerance, calibration=calibration)
        return now.log_prob, now.solver_error, time.process_time() - began, now.nfe

    def peer(settings: dict[str, Any]) -> Found:
        began = time.process_time()
        return theirs(model, x, **settings), None, time.process_time() - began, None

    for tolerance in OURS:
        if x.ndim == 2:  # `ndm score` calibrates for the exact divergence of tables
            found["ours", f"{tolerance:g}"] = lambda t=tolerance * d: ours(t, True)
        found["ours, plain", f"{tolerance:g}"] = lambda t=tolerance * d: ours(t, False)
    if old is not None:
        for tolerance in BEFORE:
            found["before", f"{tolerance:g}"] = lambda t=tolerance * d: older(*old, x, t)
    for label, settings in THEIRS:
        found["theirs", label] = lambda s=settings: peer(s)
    return found


def reference_of(model: ndm.NDM, x: Tensor) -> Tensor:
    """The density of rows in float64, (B,)."""
    if x.ndim == 2:
        return ndm.log_likelihood(model, x, divergence="exact", tolerance=1e-6).log_prob
    alone = SolverCalibration(first=PICTURE_STEPS)
    return ndm.log_likelihood(model, x, divergence="exact", tolerance=1e9, calibration=alone).log_prob


def measure(name: str, model: ndm.NDM, x: Tensor, old: tuple[Path, Path] | None) -> list[dict[str, Any]]:
    fine = copy.deepcopy(model).double()
    reference = reference_of(fine, x.double())
    few, tight = (x[:8], 1e-8) if x.ndim == 2 else (x[:2], 1e-5)
    apart = (theirs(fine, few.double(), "dopri5", rtol=tight, atol=tight) - reference[: len(few)]).abs().max().item()
    print(f"{name}: in float64 the two are {apart:.2g} apart at most", flush=True)
    work = jobs(model, x, old)
    taken: dict[tuple[str, str], list[float]] = {job: [] for job in work}
    results = {}
    for _ in range(ROUNDS if x.ndim == 2 else PICTURE_ROUNDS):
        for job, run in work.items():
            results[job] = run()
            taken[job].append(results[job][2])
    rows = []
    for (who, setting), (log_p, stated, _, nfe) in results.items():
        error = (log_p.double() - reference).abs()
        row: dict[str, Any] = {"set": name, "d": x[0].numel(), "rows": len(x), "who": who, "setting": setting}
        row |= {"rows_per_second": len(x) / statistics.median(taken[who, setting]), "nfe": nfe, "apart": apart}
        row |= {"rms_error": error.square().mean().sqrt().item(), "largest_error": error.max().item()}
        if stated is not None:
            row["covered"] = (error <= stated).double().mean().item()
            row["stated"] = (stated.median() / error.median()).item()
        rows.append(row)
        print({k: v for k, v in row.items() if k not in ("set", "d", "rows", "apart")}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="a folder with magic and protein")
    parser.add_argument("--peer", type=Path, required=True, help="a folder that holds the package flow_matching")
    parser.add_argument("--before", type=Path, help="a folder that holds the package ndm of an older version")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="the results of others are kept")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the trained models")
    options = parser.parse_args()
    sys.path.append(str(options.peer))
    torch.set_num_threads(1)
    options.runs.mkdir(exist_ok=True)
    for name, model, x in sets(options.tables, options.runs, options.sets):
        old = None
        if options.before is not None:
            old = (for_older(model, options.runs / f"{name}-older"), options.before)
        rows = [{"commit": environment()["commit"]} | row for row in measure(name, model, x, old)]
        keep(name, rows)


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Write the results of a set, in the place of those that it had."""
    others = [row for row in read("likelihood")[1:] if row.get("set") in SETS and row["set"] != name]
    print(save("likelihood", sorted([*others, *rows], key=lambda row: SETS.index(row["set"])), {"rounds": ROUNDS}))


if __name__ == "__main__":
    main()
