"""A row that was run again, held against the results of before: do its figures come out again, within their errors?

Compared are the figures that the tables give: the reference's bounds, and the others' differences from it at equal
time. Both runs have the same seeds, and are measured with the same examples, times and noise. What the runs of a seed
do not share is how many steps a budget of seconds has room for, and rounding, which a training makes large. So the
combined error, as of two independent runs, is larger than it has to be, and a figure that is off by more than two of
them is not reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import table

from suite import figures, jobs
from suite.figures import Result
from suite.settings import Row

#: A figure that has moved by more of its combined standard errors than this is not reproduced.
ENOUGH = 2.0


@dataclass(frozen=True)
class Repeated:
    """A figure of both runs.

    Attributes:
        model: the name.
        what: which figure.
        before, now: it, and its standard error.
        steps: of the trainings, before and now, by seed.
    """

    model: str
    what: str
    before: tuple[float, float]
    now: tuple[float, float]
    steps: tuple[Sequence[int], Sequence[int]]

    @property
    def errors(self) -> float:
        """How far the figure has moved, in standard errors of the difference of two independent runs."""
        return (self.now[0] - self.before[0]) / math.hypot(self.before[1], self.now[1])


def refuse_new(row: Row, before: Path) -> None:
    """
    Raises:
        ValueError: a folder of results lacks one of this row, or has one that was made with other settings.
    """
    settled = jobs.tuned(row, before)
    for job in (job for seed in row.seeds for job in jobs.jobs_of(settled or row, seed, before)):
        if settled is None or job.state != "done":
            why = "; ".join(job.differences()) if job.state == "other settings" else "it was not run"
            raise ValueError(f"Row {row.name} has no results in {before.name} to run again: {why}.")


def repeated(
    before: Mapping[str, list[Result]], now: Mapping[str, list[Result]], seeds: Sequence[int]
) -> list[Repeated]:
    """The figures of a row's models in two runs, of these seeds, which both have.

    Raises:
        ValueError: a run lacks one, or the runs had other settings.
    """
    found = []
    for name, of_before in before.items():
        old, new = ({one["settings"]["seed"]: one for one in of} for of in (of_before, now.get(name, [])))
        if lacking := set(seeds) - (set(old) & set(new)):
            raise ValueError(f"{name}: seed {min(lacking)} is not in both runs.")
        runs = [old[seed] for seed in seeds], [new[seed] for seed in seeds]
        if any(a["settings"] != b["settings"] for a, b in zip(*runs, strict=True)):
            raise ValueError(f"{name}: the runs had other settings, and so have other figures.")
        reference = name == runs[0][0]["settings"]["beside"][0]
        steps = tuple([one["facts"]["steps"] for one in run] for run in runs)
        for t, variance in figures.COMPARED:
            first, second = (figures.figure(run, t, variance, "value" if reference else "difference") for run in runs)
            if first is not None and second is not None:
                what = figures.label(t, variance) + ("" if reference else ": difference")
                found.append(Repeated(name, what, first, second, (steps[0], steps[1])))
    return found


def markdown(row: str, found: Sequence[Repeated]) -> str:
    """The table of a row that was run again, and how many of its figures have come out again."""
    lines = [
        [
            one.model,
            one.what,
            *(figures.told(f, "+" if "difference" in one.what else "") for f in (one.before, one.now)),
            f"{one.errors:+.1f}",
            *("/".join(f"{n:,}" for n in steps) for steps in one.steps),
        ]
        for one in found
    ]
    header = ["model", "figure", "before", "again", "moved by, errors", "steps before", "steps again"]
    within = sum(abs(one.errors) <= ENOUGH for one in found)
    largest = max(abs(one.errors) for one in found)
    seeds = len(found[0].steps[0])
    return (
        f"### {row}, run again\n\n{seeds} seed{'s' if seeds > 1 else ''}. {within} of {len(found)} figures have come "
        f"out again within {ENOUGH:g} combined standard errors; the largest change is {largest:.1f}.\n\n"
        f"{table(lines, header)}\n"
    )


def told(before: Path, now: Path, rows: Sequence[Row]) -> str:
    """The tables of rows that were run again, with the seeds that they say.

    Args:
        before: the folder of the results of before.
        now: that of the new ones.
        rows: which.

    Raises:
        ValueError: a row lacks results, or its runs had other settings.
    """
    first, second, parts = figures.results(before), figures.results(now), []
    for row in rows:
        try:
            found = repeated(first.get(row.name, {}), second.get(row.name, {}), row.seeds)
        except ValueError as error:
            raise ValueError(f"Row {row.name}, {error}") from None
        parts.append(markdown(row.name, found))
    return "\n".join(parts)
