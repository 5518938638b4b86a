"""Class labels: how many classes there are, and whether the labels are what a model of K classes can be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ndm.data.base import Data

__all__ = ["MISSING", "check_labels", "require_labels"]

#: The label of an example whose class is not known.
MISSING = -1


def check_labels(data: Data, classes: int, splits: Sequence[str] = ("train", "validation")) -> None:
    """Refuse labels that a model of ``classes`` classes cannot be given, before it is given any.

    Args:
        data: a data set. Of streamed data, the examples that are held are looked at.
        classes: the number of classes, K.
        splits: which splits are looked at.

    Raises:
        ValueError: a split has no labels, some are missing, or some are outside 0 ... K - 1.
    """
    for split in splits:
        labels = data.labels(split)
        if labels is None:
            raise ValueError(f"The {split} split of {type(data).__name__} has no labels.")
        require_labels(labels, classes, f"In the {split} split, ")


def require_labels(labels: Tensor, classes: int, where: str = "") -> None:
    """Refuse labels that are missing or outside 0 ... classes - 1.

    Args:
        labels: int64, (N,).
        classes: the number of classes, K.
        where: the beginning of the sentence, up to and with its comma and space.

    Raises:
        ValueError: some labels are.

    Example:
        >>> import torch
        >>> require_labels(torch.tensor([0, 4, 1]), classes=3)
        Traceback (most recent call last):
            ...
        ValueError: labels must be 0 ... 2, and are 0 ... 4: give the network classes=5, or correct the labels.
    """
    if labels.numel() == 0:
        return
    missing = int((labels == MISSING).sum())
    if missing:
        raise ValueError(
            f"{where}some labels are missing (-1): {missing:,} of {labels.numel():,}; give every example a label, "
            "leave those examples out, or train without labels."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        advice = f"give the network classes={high + 1}, or correct the labels" if low >= 0 else "correct the labels"
        raise ValueError(f"{where}labels must be 0 ... {classes - 1}, and are {low} ... {high}: {advice}.")
