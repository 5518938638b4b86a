"""Labels that a model cannot be given are refused in one sentence."""

from __future__ import annotations

import pytest
import torch

from ndm.data import Digits, Tensors, TwoMoons, check_labels, require_labels


def test_labels_of_the_classes_pass() -> None:
    check_labels(Digits(), 10)
    require_labels(torch.tensor([0, 1, 2]), 3)
    require_labels(torch.tensor([], dtype=torch.long), 3)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1, 4], r"labels must be 0 \.\.\. 2, got 0 \.\.\. 4: give the network classes=5"),
        ([4, 0, 1], r"labels must be 0 \.\.\. 2, got 0 \.\.\. 4"),
        ([3], r"labels must be 0 \.\.\. 2, got 3 \.\.\. 3"),
        ([0, -2, 1], r"labels must be 0 \.\.\. 2, got -2 \.\.\. 1: correct the labels"),
        ([0, -1, 1, -1], r"some labels are missing \(-1\): 2 of 4"),
        ([-1, 0, 7], r"some labels are missing \(-1\): 1 of 3"),
    ],
)
def test_others_are_refused_wherever_they_are(labels: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        require_labels(torch.tensor(labels), 3)


def test_the_split_is_named() -> None:
    x, y = torch.randn(4, 2), {"train": torch.tensor([0, 1, 2, 0]), "validation": torch.tensor([0, 1, 3, 0])}
    with pytest.raises(ValueError, match="In the validation split, labels must be"):
        check_labels(Tensors(x, x, labels=y), 3)
    check_labels(Tensors(x, x, labels=y), 3, splits=["train"])
    with pytest.raises(ValueError, match="The train split of TwoMoons has no labels"):
        check_labels(TwoMoons(), 3)
