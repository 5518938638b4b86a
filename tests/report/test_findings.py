"""What is measured of a run, and that a large model is measured less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ndm.evaluation.cost import cost
from ndm.report import findings
from ndm.report.findings import affordable_examples, measure, numbers_of_steps
from ndm.report.subjects import Subject, named_data, subjects


def one(path: Path) -> Subject:
    return subjects([path], torch.device("cpu"))[0]


@pytest.mark.parametrize(("budget", "expected"), [(1e12, 256), (100.5, 100), (1.0, 8)])
def test_examples_are_fewer_for_a_model_that_costs_more(
    points: Path, monkeypatch: pytest.MonkeyPatch, budget: float, expected: int
) -> None:
    subject = one(points)
    unit = cost(subject.model, (2,)) * findings.POINTS
    monkeypatch.setitem(findings.BUDGET, "cpu", budget * unit if budget < 1e6 else budget)
    assert affordable_examples([subject]) == expected


def test_the_most_expensive_run_decides(points: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap, dear = one(points), one(images)
    unit = cost(dear.model, dear.shape, torch.zeros(1, dtype=torch.long)) * findings.POINTS
    monkeypatch.setitem(findings.BUDGET, "cpu", 20.5 * unit)
    assert affordable_examples([cheap, dear]) == affordable_examples([dear]) == 20


def test_everything_is_measured(images: Path) -> None:
    subject, ticks = one(images), []
    subject.take_examples(6, named_data)
    found = measure(subject, 0, lambda: ticks.append(1))
    assert len(ticks) == findings.POINTS + 3
    assert found.profile.density.shape == (6, findings.POINTS)
    assert found.samples.shape == (36, 3, 8, 8)
    assert found.walk.states.shape == (findings.STEPS + 1, 3, 3, 8, 8)
    assert list(found.ratios) == [5]  # what it was trained for: its variance is predicted
    assert numbers_of_steps([found]) == "T = 10 steps"


def test_without_data_the_samples_stand_in(points: Path) -> None:
    subject = one(points)
    found = measure(subject, 0)
    assert found.profile is None
    assert found.samples.shape == (findings.POINTS_DRAWN, 2)
    assert list(found.ratios) == [10, 100]


def test_less_is_drawn_of_a_model_that_costs_more(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = one(images)
    monkeypatch.setitem(findings.BUDGET, "cpu", 1.0)
    found = measure(subject, 0)
    assert len(found.samples) == 16
    assert found.steps == 10
