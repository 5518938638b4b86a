"""Validation of class labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ndm.data.base import Data

__all__ = ["MISSING", "check_labels", "require_labels"]

#: The label of an example of unknown class.
MISSING = -1


def check_labels(data: Data, classes: int, splits: Sequence[str] = ("train", "validation")) -> None:
    """Raise an error for labels that are invalid for a model with ``classes`` classes.

    Args:
        data: a data set. For streamed data only the held examples are checked.
        classes: the number of classes, K.
        splits: the splits to check.

    Raises:
        ValueError: a split has no labels, or labels are missing or outside 0 ... K - 1.
    """
    for split in splits:
        labels = data.labels(split)
        if labels is None:
            raise ValueError(f"The {split} split of {type(data).__name__} has no labels.")
        require_labels(labels, classes, f"In the {split} split, ")


def require_labels(labels: Tensor, classes: int, where: str = "") -> None:
    """Raise an error for labels that are missing or outside 0 ... classes - 1.

    Args:
        labels: int64, (N,).
        classes: the number of classes, K.
        where: the beginning of the message, including a comma and a space.

    Raises:
        ValueError: there are such labels.

    Example:
        >>> import torch
        >>> require_labels(torch.tensor([0, 4, 1]), classes=3)
        Traceback (most recent call last):
            ...
        ValueError: labels must be 0 ... 2, got 0 ... 4: give the network classes=5, or correct the labels.
    """
    if labels.numel() == 0:
        return
    missing = int((labels == MISSING).sum())
    if missing:
        raise ValueError(
            f"{where}some labels are missing (-1): {missing:,} of {labels.numel():,}; give every example a label, "
            "remove those examples, or train without labels."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        advice = f"give the network classes={high + 1}, or correct the labels" if low >= 0 else "correct the labels"
        raise ValueError(f"{where}labels must be 0 ... {classes - 1}, got {low} ... {high}: {advice}.")
