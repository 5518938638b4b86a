"""The classes of the rows of a class-conditional model."""

from __future__ import annotations

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, check_labels
from ndm.model import NDM
from ndm.scoring.rows import LabelledRows, Rows

__all__ = ["checked_labels", "labels_of"]


def labels_of(model: NDM, rows: Rows, labels: int | Values | None) -> Tensor | None:
    """Return the classes of the rows: :func:`checked_labels` of the given ones, or of those of the rows."""
    if labels is None and model.num_classes and isinstance(rows, LabelledRows):
        labels = rows.labels(model.num_classes)
    return checked_labels(model, rows.count, labels)


def checked_labels(model: NDM, n: int, labels: int | Values | None) -> Tensor | None:
    """Return the classes of n rows, int64 (n,); None for a model without classes.

    Args:
        model: the model.
        n: the number of rows.
        labels: the class of all rows, or of each, (n,); None if there are none.

    Raises:
        ValueError: labels are missing or not needed, their number is wrong, or one is not a class of the model.
    """
    if not model.num_classes:
        if labels is not None:
            raise ValueError("Labels need a class-conditional model; this model was trained without classes.")
        return None
    if labels is None:
        raise ValueError(
            "The model is class-conditional, and the rows have no labels: give the class of all rows (--label K)."
        )
    found = torch.full((n,), labels) if isinstance(labels, int) else as_tensor(labels, "labels")
    if found.shape != (n,):
        raise ValueError(f"The {n} rows need one label each, got labels of shape {tuple(found.shape)}.")
    return check_labels(found.cpu(), model.num_classes)
