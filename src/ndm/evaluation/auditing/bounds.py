"""The bound by term, for several numbers of steps and reverse variances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ndm.data import Data
from ndm.data.choosing import Some, part_of
from ndm.evaluation.auditing.results import BoundRow, value_of
from ndm.evaluation.calibration import calibrated, own_variance, with_variance
from ndm.evaluation.per_example import bound_per_example
from ndm.method.calibration import AUTO
from ndm.model import NDM

__all__ = ["CALIBRATED", "Part", "bounds"]

#: The name of the calibrated variance in the results: one number for each step.
CALIBRATED = "calibrated"


@dataclass(frozen=True)
class Part:
    """Random examples of a split: the examples, their labels, (n,), if used, and the size of the split."""

    examples: Some
    labels: Tensor | None
    whole: int

    @staticmethod
    def of(data: Data, split: str, size: int | None, seed: int, labelled: bool) -> Part:
        every = data.examples(split)
        places = part_of(len(every), size, seed)
        labels = data.labels(split) if labelled else None
        return Part(Some(every, places), None if labels is None else labels[places], len(every))

    def some(self, size: int, seed: int) -> Part:
        """A random subset."""
        chosen = part_of(len(self.examples), size, seed)
        labels = None if self.labels is None else self.labels[chosen]
        return Part(Some(self.examples.examples, self.examples.places[chosen]), labels, self.whole)


def bounds(
    model: NDM,
    data: Data,
    part: Part,
    steps: Sequence[int],
    *,
    calibration: int,
    scale: float,
    times: int,
    seed: int,
    batch_size: int,
) -> tuple[list[BoundRow], str | None]:
    """The bound for each number of steps and reverse variance, then in continuous time; as :func:`evaluate` has them.

    The kind of the calibrated variance, which is returned too, is the best one for the smallest number of steps.

    Args:
        model: the model.
        data: the data set; without a training split there is no calibrated variance.
        part: the examples.
        steps: the numbers of steps.
        calibration: number of network evaluations of each calibration.
        scale: one nat in the unit of the results.
        times: noise levels per example; see :func:`ndm.evaluation.bound_per_example`.
        seed: seed of the times and the noise.
        batch_size: batch size.
    """
    budget: dict[str, Any] = {"labels": part.labels, "times": times, "seed": seed, "batch_size": batch_size}
    own, rows = own_variance(model), []
    kind: str | None = None
    for t in steps:
        fitted = None
        if _has_training(data):
            some = Part.of(data, "train", max(1, calibration // t), seed, part.labels is not None)
            name = kind or AUTO
            kind, fitted = calibrated(model, some.examples, some.labels, t, [name], seed, "time")[name]
        for name in dict.fromkeys(["posterior", own, *([CALIBRATED] if fitted is not None else [])]):
            with with_variance(model, name, t, fitted if name == CALIBRATED else None):
                rows.append(_row(bound_per_example(model, part.examples, t, **budget), t, name, scale))
    rows.append(_row(bound_per_example(model, part.examples, None, **budget), None, None, scale))
    return rows, kind


def _has_training(data: Data) -> bool:
    try:
        return len(data.examples("train")) > 0
    except ValueError:
        return False


def _row(terms: dict[str, Tensor], steps: int | None, variance: str | None, scale: float) -> BoundRow:
    held = terms["total"].isfinite()
    values = {name: value_of(torch.where(held, values, torch.nan) * scale) for name, values in terms.items()}
    per_example = torch.where(held, terms["total"], torch.nan) * scale
    return BoundRow(steps, variance, not_finite=int((~held).sum()), per_example=per_example, **values)
