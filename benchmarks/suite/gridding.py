"""Bounds of a row's models at few steps: even ones, and the best ones for each model (:mod:`ndm.method.grids`).

The weights are those that a row's run has left in the work folder, at the end of the equal times. Steps and variances
are chosen by training examples, for every model alike: the grid by the first ones, then a variance per dimension at its
steps. Differences from the reference are paired by example, each at its own best steps.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from bench import environment, mean_and_error, table
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data
from ndm.evaluation import bound_per_example
from ndm.method.grids import even_grid, grid_from, pair_moments
from suite import figures, jobs
from suite.afterwards import Afterwards, each, weights_of
from suite.figures import Result, told
from suite.measuring import BLOCK, CALIBRATION, TEST, over_seeds, scale
from suite.settings import Row

#: The numbers of steps, among how many times they are chosen, and by how many training examples.
STEPS, CANDIDATES, EXAMPLES = (5, 10, 20), 40, 500

GRIDS = ("even", "best")


class Gridding(Afterwards):
    """The bounds at few steps of one model of a row, with one seed."""

    kind = "grids"


def run(
    row: Row,
    seed: int,
    data: Data,
    results: Path,
    work: Path,
    redo: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Measure the models of a row and seed, all of them unless all are done.

    Args:
        row: the row, tuned.
        seed: of the training.
        data: the row's data.
        results: where the results go, in a folder of their own.
        work: where the weights are.
        redo: make results of other settings again.
        say: what is told of the progress.

    Raises:
        ValueError: there are results of other settings, and they are not to be made again.
    """
    trained, where = weights_of(row, seed, results, work, say), f"{row.name}, seed {seed}"
    if trained is None:
        return
    how = {"steps": list(STEPS), "candidates": CANDIDATES, "examples": EXAMPLES}
    together = list(each(Gridding, row, seed, results, trained, how))
    if not redo:
        for job in together:
            job.refuse_other_settings()
    if all(job.state == "done" for job in together):
        say(f"{where}: grids done before")
        return
    reference: dict[tuple[int, str], Tensor] = {}
    for job in together:
        began = time.process_time()
        values, gammas = measured(job.model(data, trained), row, data)
        reference = reference or values
        found = [_figure(steps, grid, values, gammas, reference) for steps, grid in values]
        facts = trained.facts[job.entry.name]
        facts = {k: facts[k] for k in ("parameters", "steps")} | {"seconds": round(time.process_time() - began, 1)}
        jobs.write_json(
            job.file, {"environment": environment(), "settings": job.settings, "facts": facts, "figures": found}
        )
        say(f"{where}, {job.entry.name}: grids/{job.file.name}")


def measured(
    model: ndm.NDM, row: Row, data: Data
) -> tuple[dict[tuple[int, str], Tensor], dict[tuple[int, str], list[float]]]:
    """The bound of each test example in the data's unit, (N,), and the noise levels of the steps, by T and grid."""
    x, train = data.examples("test")[: row.examples], data.examples("train")
    values, gammas = {}, {}
    # One pass is enough for all numbers of steps.
    generator, moments = torch.Generator().manual_seed(seed_of(CALIBRATION)), []
    for some in train[:EXAMPLES].split(BLOCK):
        moments.append(pair_moments(model, some, CANDIDATES, "diagonal", generator=generator))
    total = reduce(operator.add, moments)
    for steps in STEPS:
        best = grid_from(total, x[0].numel(), CANDIDATES, steps, "diagonal")
        some = list(train[: max(1, row.calibration // steps)].split(BLOCK))
        for grid, times in zip(GRIDS, (even_grid(steps, best), best), strict=True):
            generator = torch.Generator().manual_seed(seed_of(CALIBRATION, steps, 1))
            model.calibrate(some, steps, "diagonal", grid=times, generator=generator)
            terms = bound_per_example(model, x, steps, seed=seed_of(TEST), batch_size=BLOCK, times=row.times)
            values[steps, grid] = terms["total"] * scale(data)
            gammas[steps, grid] = [round(gamma, 2) for gamma in model.schedule(times.float()).gamma.tolist()]
            model.uncalibrate(steps)
    return values, gammas


def _figure(
    steps: int,
    grid: str,
    values: Mapping[tuple[int, str], Tensor],
    gammas: Mapping[tuple[int, str], list[float]],
    reference: Mapping[tuple[int, str], Tensor],
) -> dict[str, Any]:
    value, error = mean_and_error(values[steps, grid])
    difference, difference_error = mean_and_error(values[steps, grid] - reference[steps, grid])
    found = {"value": value, "stderr": error, "difference": difference, "difference_stderr": difference_error}
    return {
        "steps": steps,
        "grid": grid,
        **{k: round(v, 6) for k, v in found.items()},
        "gammas": gammas[steps, grid],
    }


# ---- tables


def results(folder: Path = figures.FOLDER) -> figures.Rows:
    """Results by row and model, in the order of the row, of all seeds."""
    return figures.results(folder / "grids")


def figure(of: Sequence[Result], steps: int, grid: str, key: str = "value") -> tuple[float, float] | None:
    """A bound, or its difference from the reference's, averaged over seeds, with its error; None if not measured."""
    error = {"value": "stderr", "difference": "difference_stderr"}[key]
    found = [f for one in of for f in one["figures"] if (f["steps"], f["grid"]) == (steps, grid)]
    return over_seeds([(f[key], f[error]) for f in found]) if found else None


def markdown(row: str, models: Mapping[str, list[Result]]) -> str:
    """The table of a row: bounds with even and with the best steps, and differences from the reference."""
    first = next(iter(models.values()))
    steps, reference = first[0]["settings"]["grids"]["steps"], first[0]["settings"]["beside"][0]
    lines = []
    for name, of in models.items():
        line = [name]
        for t in steps:
            line += [told(figure(of, t, grid)) for grid in GRIDS]
            line += ["" if name == reference else told(figure(of, t, grid, "difference"), "+") for grid in GRIDS]
        lines.append(line)
    header = ["model"]
    for t in steps:
        header += [f"T = {t}, even", "best", "difference, even", "best"]
    seeds = f"{len(first)} seed{'s' if len(first) > 1 else ''}"
    return f"### {row}: even and best steps\n\n{seeds}.\n\n{table(lines, header)}\n"
