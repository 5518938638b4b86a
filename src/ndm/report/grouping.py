"""Runs beside each other: which are of the same data, and how a figure names them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ndm.report.blocks import Entry
from ndm.report.subjects import Subject

__all__ = ["about", "groups", "legend", "same_data"]


def same_data(a: Subject, b: Subject) -> bool:
    """Whether the figures of two runs can stand side by side: they are of the same data."""
    if (a.shape, a.levels) != (b.shape, b.levels):
        return False
    if a.examples is not None and b.examples is not None:
        return torch.equal(a.examples, b.examples)
    return "data" in a.config and a.config["data"] == b.config.get("data")


def groups(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The runs, those of the same data together."""
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
    """The legend of a figure that shows these runs."""
    return [Entry(s.name, s.index) for s in subjects]


def about(some: Sequence[Subject], every: Sequence[Subject]) -> str:
    """Which runs a figure is about, for its title: " of A, B"; nothing where it is about all of them."""
    return "" if len(some) == len(every) else " of " + ", ".join(s.name for s in some)
