"""Labels in many forms, and labels that are refused by a sentence."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm._internal.inputs import check_labels
from tests._internal.models import ANY, bound, calibrated, model, seeded

LABELLED = {
    "bound": lambda m, x, y: bound(m, x, labels=y),
    "likelihood": lambda m, x, y: ndm.log_likelihood(m, x, labels=y, tolerance=ANY, generator=seeded()).log_prob,
    "calibrate": lambda m, x, y: calibrated(m, [(x, y)]),
    "grid": lambda m, x, y: ndm.optimal_grid(m, [(x, y)], 2, candidates=6, generator=seeded()),
    "curvature": lambda m, x, y: ndm.curvature(m, x, labels=y, generator=seeded()),
    "sample": lambda m, x, y: ndm.sample(m, len(x), (2,), steps=3, labels=y, generator=seeded()),
    "guided": lambda m, x, y: ndm.sample(m, len(x), (2,), steps=3, labels=y, guidance=1.0, generator=seeded()),
    "batches": lambda m, x, y: torch.cat(
        [b for _, b in ndm.sample_batches(m, len(x), (2,), steps=3, labels=y, batch_size=2)]
    ),
    "paths": lambda m, x, y: ndm.ode_paths(m, x, 3, labels=y),
}


every_labelled = pytest.mark.parametrize("way", LABELLED.values(), ids=LABELLED)


@every_labelled
def test_labels_may_come_in_many_forms(way) -> None:
    m, x, y = model(classes=3), torch.randn(4, 2), [0, 2, 1, 2]
    expected = way(m, x, torch.tensor(y))
    same = [y, tuple(y), np.array(y), pd.Series(y), torch.tensor(y, dtype=torch.uint8), torch.tensor(y).float()]
    for labels in same:
        assert torch.equal(way(m, x, labels), expected)


@every_labelled
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1, 2, 3], r"must be 0 \.\.\. 2, .*got 0 \.\.\. 3"),  # 3 stands for no class
        ([1, 2, 3, 4], r"got 1 \.\.\. 4"),
        ([0, 1, -1, 0], r"got -1 \.\.\. 1; -1 and nan often stand for a missing label"),
        ([0, 1, 200, 0], r"got 0 \.\.\. 200"),
        ([0.0, 1.0, math.nan, 0.0], "missing label"),
        ([0.0, 1.5, 1.0, 0.0], "must be integers from 0 to 2"),
        (["a", "b", "a", "c"], "labels must be numbers, got text"),
        ([0, 1], "needs one label"),
        ([[0], [1], [2], [0]], "needs one label"),
        (1, "needs one label"),
    ],
)
def test_labels_that_are_none_are_said_in_a_sentence(way, labels, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        way(model(classes=3), torch.randn(4, 2), labels)


def test_labels_of_a_network_that_says_nothing_of_classes_are_handed_on() -> None:
    m = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Shifted())
    found, other = (bound(m, torch.zeros(3, 2), labels=y) for y in ([-1.5, 0.0, 20.0], [0.0, 0.0, 0.0]))
    assert torch.equal(found, bound(m, torch.zeros(3, 2), labels=torch.tensor([-1.5, 0.0, 20.0])))
    assert (found == other).tolist() == [False, True, False]


class Shifted(nn.Module):
    """The label itself for an estimate."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel, labels: Tensor) -> Tensor:
        return labels.to(z)[:, None].expand_as(z)


def test_check_labels_gives_integers() -> None:
    assert check_labels(torch.tensor([2.0, 0.0]), 3).dtype == torch.long


def test_no_class_can_be_trained_on_without_the_check() -> None:
    m, x = model(classes=3), torch.randn(4, 2)
    assert bound(m, x, labels=torch.full((4,), 3), check=False).isfinite().all()
