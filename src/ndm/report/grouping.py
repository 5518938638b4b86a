"""Grouping of runs by data set, and their names in figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ndm.report.blocks import Entry
from ndm.report.subjects import Subject

__all__ = ["about", "groups", "legend", "same_data"]


def same_data(a: Subject, b: Subject) -> bool:
    """Whether two runs use the same data, so that their results are comparable."""
    if (a.shape, a.levels) != (b.shape, b.levels):
        return False
    if a.examples is not None and b.examples is not None:
        return torch.equal(a.examples, b.examples)
    return "data" in a.config and a.config["data"] == b.config.get("data")


def groups(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Group the runs by data set."""
    found: list[list[Subject]] = []
    for subject in subjects:
        for group in found:
            if same_data(group[0], subject):
                group.append(subject)
                break
        else:
            found.append([subject])
    return found


def legend(subjects: Sequence[Subject]) -> list[Entry]:
    """Return the legend for these runs."""
    return [Entry(s.name, s.index) for s in subjects]


def about(some: Sequence[Subject], every: Sequence[Subject]) -> str:
    """Return the runs of a figure for its title: " of A, B"; empty if it shows all runs."""
    return "" if len(some) == len(every) else " of " + ", ".join(s.name for s in some)
