"""Options of an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ndm.data import SPLITS
from ndm.evaluation.per_example import BLOCK

__all__ = ["AuditOptions"]


@dataclass(frozen=True)
class AuditOptions:
    """Options of :func:`ndm.evaluation.audit`.

    Args:
        split: ``train``, ``validation`` or ``test``.
        steps: numbers of steps T of the bound, to which continuous time is added; by default 10, 50 and 1000, and for a
            schedule of N noise levels N - 1.
        examples: number of random examples of the split; by default 1000, or fewer for a large network.
        times: noise levels per example for a bound with more steps than that, in continuous time and by noise level; by
            default 100, or fewer for a large network.
        ode: number of these examples, at random, for the likelihood under the ODE, 0 to leave it out; by default 16, or
            fewer for a large network.
        samples: samples of z_0 per example, for K-level data.
        probes: probes for a divergence that is not exact.
        divergence: as for :func:`ndm.log_likelihood`.
        tolerance: as for :func:`ndm.log_likelihood`.
        grid: integrate the ODE's density, for continuous data of at most 3 dimensions.
        lowest_gamma: the lowest noise level on which the network was trained, if it is below that of the schedule; the
            audit then also evaluates lower ends of the schedule.
        seed: seed of all random numbers and subsets.
        batch_size: batch size.

    Raises:
        ValueError: the split is unknown, or a number is out of range.
    """

    split: str = "test"
    steps: Sequence[int] | None = None
    examples: int | None = None
    times: int | None = None
    ode: int | None = None
    samples: int = 4
    probes: int = 4
    divergence: str = "auto"
    tolerance: float | None = None
    grid: bool = True
    lowest_gamma: float | None = None
    seed: int = 0
    batch_size: int = BLOCK

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"There is no split {self.split!r}; choose one of {', '.join(SPLITS)}.")
        if self.examples is not None and self.examples < 2:
            raise ValueError(f"A standard error needs at least 2 examples, got {self.examples}.")
        numbers = {"times": self.times, "samples": self.samples, "probes": self.probes, "batch_size": self.batch_size}
        numbers |= {f"steps[{i}]": n for i, n in enumerate(self.steps or ())}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if self.ode is not None and self.ode < 0:
            raise ValueError(f"ode must not be negative, got {self.ode}.")
        if self.lowest_gamma is not None and not math.isfinite(self.lowest_gamma):
            raise ValueError(f"lowest_gamma must be a finite number, got {self.lowest_gamma}.")
