"""Data sets of in-memory tensors, for training and evaluation in Python."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ndm.data.base import SPLITS, Data, Examples, from_levels

__all__ = ["Tensors"]


class Tensors(Data):
    """A data set of tensors, each (N, \\*shape) with the same shape in all splits.

    :func:`ndm.training.fit` needs the training and the validation split, :func:`ndm.evaluation.evaluate` the split to
    evaluate, and the training split if it calibrates. Other splits are optional.

    Floating-point tensors are the examples, stored as float32. Integer tensors need ``levels``: they contain the level
    numbers 0 ... levels - 1, are stored unchanged, and are converted by :func:`ndm.data.from_levels` on access.

    A configuration cannot contain tensors, so ``ndm train`` does not support this class, and ``ndm evaluate`` does not
    find the data of a run of ``fit`` on it. Use :func:`ndm.evaluation.evaluate`, or write a subclass of
    :class:`ndm.data.Data` that creates the tensors from plain arguments.

    Args:
        train: the training examples, (N, \\*shape).
        validation: the validation examples, likewise.
        test: the test examples, likewise.
        levels: K of K-level data; None if the values are continuous.
        labels: the class labels by split name, each integers, (N,).

    Raises:
        ValueError: no split is given, a split is not a tensor, is empty, has another shape than the others or values
            that are not finite, integers are given without ``levels`` or out of their range, or labels do not match the
            examples.

    Example:
        >>> import torch
        >>> pixels = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2) * 10      # six images of 256 levels
        >>> data = Tensors(pixels[:4], pixels[4:], levels=256, labels={"train": torch.tensor([0, 1, 0, 1])})
        >>> data.shape, data.levels, len(data.examples("validation")), data.labels("train").tolist()
        ((1, 2, 2), 256, 2, [0, 1, 0, 1])
        >>> data.train[0].flatten().tolist()
        [-0.99609375, -0.91796875, -0.83984375, -0.76171875]
        >>> data.test
        Traceback (most recent call last):
            ...
        ValueError: Tensors was built without a test split: pass test=, of shape (N, 1, 2, 2).
    """

    def __init__(
        self,
        train: Tensor | None = None,
        validation: Tensor | None = None,
        test: Tensor | None = None,
        levels: int | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> None:
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}.")
        given = {name: x for name, x in zip(SPLITS, (train, validation, test), strict=True) if x is not None}
        if not given:
            raise ValueError(
                "Tensors needs at least one of train=, validation= and test=, which can only be given in Python: in a "
                "configuration or on the command line, use another data set, such as Table or Images."
            )
        self.levels = levels
        self._examples = {name: self._checked(name, x) for name, x in given.items()}
        shapes = {name: tuple(x.shape[1:]) for name, x in given.items()}
        if len(set(shapes.values())) > 1:
            each = ", ".join(f"{shape} in the {name} split" for name, shape in shapes.items())
            raise ValueError(f"The examples of all splits must have the same shape, got {each}.")
        self.shape = next(iter(shapes.values()))
        self._labels = {name: self._checked_labels(name, y) for name, y in (labels or {}).items()}

    def _checked(self, name: str, x: Tensor) -> Examples:
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, not {type(x).__name__}: convert arrays with torch.as_tensor.")
        if x.ndim < 2:
            raise ValueError(
                f"{name} must have shape (N, *shape), got {tuple(x.shape)}: pass N scalar examples as x[:, None]."
            )
        if x.numel() == 0:
            raise ValueError(f"The {name} split has no examples: its tensor has shape {tuple(x.shape)}.")
        x = x.detach()
        if x.is_floating_point():
            if not x.isfinite().all():
                raise ValueError(f"The {name} split has NaN or infinite values; remove or replace them.")
            return x.float()
        if x.is_complex() or self.levels is None:
            raise ValueError(
                f"The {name} split has dtype {x.dtype}: give levels=K if its values are the levels 0 ... K - 1; "
                "otherwise convert it to floating point."
            )
        try:
            from_levels(torch.stack(x.aminmax()), self.levels)
        except ValueError as error:
            raise ValueError(f"In the {name} split: {error}") from None
        return _Levels(x, self.levels)

    def _checked_labels(self, name: str, y: Tensor) -> Tensor:
        if name not in self._examples:
            raise ValueError(f"labels has an entry for {name!r}, but the splits are {', '.join(self._examples)}.")
        n = len(self._examples[name])
        whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
        if not whole or y.shape != (n,) or y.min() < 0:
            raise ValueError(f"The labels of the {name} split must be a tensor of {n} non-negative integers.")
        return y.long()

    @property
    def _present(self) -> tuple[str, ...]:
        return tuple(name for name in SPLITS if name in self._examples)

    def _split(self, name: str) -> tuple[Examples, Tensor | None]:
        if name not in self._examples:
            like = ", ".join(["N", *map(str, self.shape)])
            raise ValueError(f"Tensors was built without a {name} split: pass {name}=, of shape ({like}).")
        return self._examples[name], self._labels.get(name)


class _Levels:
    """Level numbers, converted on access; in eight bits they need a quarter of the memory."""

    def __init__(self, numbers: Tensor, levels: int) -> None:
        self.numbers = numbers
        self.levels = levels

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        return from_levels(self.numbers[rows], self.levels)
