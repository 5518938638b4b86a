"""Bounds of a trained model per test example, differences between models, and errors over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bench import mean_and_error
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data
from ndm.evaluation import bound_per_example
from suite.settings import Comparison

BLOCK = 250

#: Seeds of the times and the noise, the same for all models and trainings.
TEST, CALIBRATION = 0, 2

#: How a bound in T steps is measured: its name, and the grid of ``NDM.calibrate``. The posterior's variance needs none.
WAYS = {"posterior": None, "diagonal": "time", "diagonal, best steps": "optimal"}


def scale(data: Data) -> float:
    """The factor from nats to the unit of the data: bits per dimension for data with levels."""
    return 1.0 if data.levels is None else 1 / (math.prod(data.shape) * math.log(2))


def unit(data: Data) -> str:
    return "nats" if data.levels is None else "bits/dim"


def measure(model: ndm.NDM, comparison: Comparison, data: Data) -> dict[tuple[int | None, str], Tensor]:
    """The bound of every test example, (N,), in the data's unit, by T and way; in continuous time the way is ``-``."""
    x, train, found = data.examples("test")[: comparison.examples], data.examples("train"), {}

    def bound(steps: int | None) -> Tensor:
        terms = bound_per_example(model, x, steps, seed=seed_of(TEST), batch_size=BLOCK, times=comparison.times)
        return terms["total"] * scale(data)

    for steps in comparison.bounds:
        if steps is None:
            found[None, "-"] = bound(None)
            continue
        some = list(train[: max(1, comparison.calibration // steps)].split(BLOCK))
        for way, grid in WAYS.items():
            if grid is not None:
                generator = torch.Generator().manual_seed(seed_of(CALIBRATION, steps))
                model.calibrate(some, steps, "diagonal", spacing=grid, generator=generator)
            found[steps, way] = bound(steps)
        model.uncalibrate(steps)
    return found


def compared(
    found: Mapping[tuple[int | None, str], Tensor], reference: Mapping[tuple[int | None, str], Tensor]
) -> list[dict[str, Any]]:
    """Mean and standard error of each bound, and of its difference from the reference's, paired by example."""
    rows = []
    for (steps, way), values in found.items():
        value, error = mean_and_error(values)
        difference, difference_error = mean_and_error(values - reference[steps, way])
        numbers = {"value": value, "stderr": error, "difference": difference, "difference_stderr": difference_error}
        rows.append({"steps": steps, "variance": way, **{k: round(v, 6) for k, v in numbers.items()}})
    return rows


def over_seeds(of_seeds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean over S seeds of figures (mean, standard error over examples), and its standard error.

    The square of the error is s² / S + the mean of e²: s is the spread between seeds and e the error over examples. The
    examples are the same for all seeds, so that averaging over seeds does not reduce their part.
    """
    means, errors = zip(*of_seeds, strict=True)
    mean, between = mean_and_error(means)
    examples = sum(e**2 for e in errors) / len(errors)
    return mean, math.sqrt(examples + (between**2 if len(means) > 1 else 0.0))
