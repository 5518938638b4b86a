"""Measurements of a run, and their computational budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ndm.data.choosing import part_of
from ndm.evaluation.cost import cost
from ndm.report.measures import Profile, Walk, noise_profile, steps_of_interest, variance_ratio, walk
from ndm.report.subjects import Subject
from ndm.report.tables import TableFindings, conditional_walk, measure_table

__all__ = ["PIECES", "POINTS_DRAWN", "TERMS", "Findings", "affordable_examples", "measure", "numbers_of_steps"]

#: The bound and its terms: attribute of a profile, and display name.
TERMS = {
    "total": "bound",
    "diffusion": "of which diffusion",
    "prior": "of which prior",
    "reconstruction": "of which reconstruction",
}

#: Number of noise level intervals.
POINTS = 32

#: Number of test examples for the bound by noise level, unless the model is too large.
EXAMPLES, FEWEST_EXAMPLES = 256, 8

#: Number of sampling steps, likewise.
STEPS, FEWEST_STEPS = 100, 10

#: Number of samples of points and table rows, and of test examples shown with them.
POINTS_DRAWN = 500

#: Maximum floating-point operations per kind of measurement; unlike a time limit, it gives reproducible pages.
BUDGET = {"cpu": 1e12, "cuda": 5e13}

#: Number of calls of `tick` per run.
PIECES = POINTS + 3


@dataclass(frozen=True, eq=False)
class Findings:
    """Measurements of a run.

    Attributes:
        subject: the run.
        profile: bound of its test examples; None if there are none.
        samples: samples in the data's units.
        steps: number of sampling steps.
        walk: trajectories of some samples.
        ratios: w / v by gamma, for several numbers of steps.
        table: further measurements of a table with columns of any kind; None for other data.
    """

    subject: Subject
    profile: Profile | None
    samples: Tensor
    steps: int
    walk: Walk
    ratios: dict[int, tuple[list[float], list[float]]]
    table: TableFindings | None = None


def numbers_of_steps(findings: Sequence[Findings]) -> str:
    """Format the numbers of sampling steps."""
    return " and ".join(f"T = {T}" for T in sorted({f.steps for f in findings})) + " steps"


def affordable_examples(subjects: Sequence[Subject]) -> int:
    """Return the number of test examples within the budget of all models."""
    return min(_within(EXAMPLES, FEWEST_EXAMPLES, _budget(s) / (_cost(s) * POINTS)) for s in subjects)


def measure(subject: Subject, seed: int, tick: Callable[[], None] = lambda: None) -> Findings:
    """Measure a run, after loading its examples (if available)."""
    model = subject.model
    profile = None
    if subject.examples is not None:
        profile = noise_profile(model, subject.examples, subject.labels, points=POINTS, seed=seed, tick=tick)
    affordable = _budget(subject) / _cost(subject)  # steps for one example
    image = subject.kind == "image"
    n = (36 if affordable > 36 * 20 else 16) if image else POINTS_DRAWN
    steps = _within(STEPS, FEWEST_STEPS, affordable / n)
    samples = _walk(subject, n, steps, seed).data
    tick()
    few = {"image": 3, "plane": 10, "columns": 24, "table": 24}[subject.kind]
    path = _walk(subject, few, steps, seed + 1)
    tick()
    x, labels = subject.x, subject.labels
    if x is None:  # use samples instead of data
        x, labels = model.to_model(samples.to(subject.device), check=False), _on(subject, n)
    some = part_of(len(x), _within(64, 4, affordable / 200), seed).to(x.device)
    interest = steps_of_interest(model, subject.training_steps_of_bound())
    chosen = {T: variance_ratio(model, x[some], T, _rows(labels, some), seed) for T in interest}
    tick()
    found = None if subject.encoding is None else measure_table(subject, affordable, seed)
    return Findings(subject, profile, samples, steps, path, {T: r for T, r in chosen.items() if r is not None}, found)


def _walk(subject: Subject, n: int, steps: int, seed: int) -> Walk:
    if subject.kind == "table":
        return conditional_walk(subject, n, steps, seed)
    return walk(subject.model, n, subject.shape, _on(subject, n), steps=steps, seed=seed)


def _rows(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if labels is None else labels[rows]


def _on(subject: Subject, n: int) -> Tensor | None:
    labels = subject.sample_labels(n)
    return None if labels is None else labels.to(subject.device)


def _budget(subject: Subject) -> float:
    return BUDGET["cpu" if subject.device.type == "cpu" else "cuda"]


def _cost(subject: Subject) -> float:
    one = torch.zeros(1, dtype=torch.long, device=subject.device) if subject.classes else None
    return max(cost(subject.model, subject.shape, one), 1.0)


def _within(most: int, fewest: int, number: float) -> int:
    return int(max(fewest, min(most, number)))
