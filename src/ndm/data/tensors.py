"""Tensors at hand as a data set, for training and evaluating in Python."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ndm.data.base import SPLITS, Data, Examples, from_levels

__all__ = ["Tensors"]


class Tensors(Data):
    """A data set of tensors, each (N, \\*shape) with a shape that all splits share.

    :func:`ndm.training.fit` needs the training and the validation split, :func:`ndm.evaluation.evaluate` the one that
    it is asked about, and the training split where it calibrates; a split that nobody will ask for need not be given.

    Floating-point numbers are the examples themselves, kept as float32. Integers need ``levels``: they are the numbers
    0 ... levels - 1 of the levels, stay as they are, and are converted by :func:`ndm.data.from_levels` when they are
    asked for.

    A configuration cannot hold tensors, so ``ndm train`` cannot be given this class, and ``ndm evaluate`` cannot find
    the data of a run that ``fit`` has trained on it: use :func:`ndm.evaluation.evaluate`, or write a subclass of
    :class:`ndm.data.Data`, which makes the tensors from plain arguments.

    Args:
        train: the examples to learn from, (N, \\*shape).
        validation: the examples to make choices by, likewise.
        test: the examples to report results on, likewise.
        levels: K of K-level data; None if the values are continuous.
        labels: the classes of the examples by the names of the splits, each of integers, (N,).

    Raises:
        ValueError: no split is given, a split is no tensor, has no examples, another shape than the others or values
            that are not finite, integers come without ``levels`` or lie outside of them, or labels do not belong to
            the examples.

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
        ValueError: These tensors have no test split: give Tensors test=, of shape (N, 1, 2, 2).
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
                "Tensors needs at least one of train=, validation= and test=, given in Python: a configuration or a "
                "command line cannot hold tensors; name another data set there, such as Table, Images or one of yours."
            )
        self.levels = levels
        self._examples = {name: self._checked(name, x) for name, x in given.items()}
        shapes = {name: tuple(x.shape[1:]) for name, x in given.items()}
        if len(set(shapes.values())) > 1:
            each = ", ".join(f"{shape} in the {name} split" for name, shape in shapes.items())
            raise ValueError(f"The examples of all splits must have one shape, and have {each}.")
        self.shape = next(iter(shapes.values()))
        self._labels = {name: self._checked_labels(name, y) for name, y in (labels or {}).items()}

    def _checked(self, name: str, x: Tensor) -> Examples:
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, not {type(x).__name__}: torch.as_tensor makes one of an array.")
        if x.ndim < 2:
            raise ValueError(
                f"{name} must have shape (N, *shape), got {tuple(x.shape)}: of N numbers x[:, None] makes N examples, "
                "each of one number."
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
                f"The {name} split is of {x.dtype}: give levels=K if its values are the levels 0 ... K - 1, or "
                "floating-point numbers if they are numbers."
            )
        try:
            from_levels(torch.stack(x.aminmax()), self.levels)
        except ValueError as error:
            raise ValueError(f"In the {name} split: {error}") from None
        return _Levels(x, self.levels)

    def _checked_labels(self, name: str, y: Tensor) -> Tensor:
        if name not in self._examples:
            raise ValueError(f"There are labels for {name!r}, and the splits given are {', '.join(self._examples)}.")
        n = len(self._examples[name])
        whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
        if not whole or y.shape != (n,) or y.min() < 0:
            raise ValueError(f"The labels of the {name} split must be a tensor of {n} integers from 0 on.")
        return y.long()

    @property
    def _present(self) -> tuple[str, ...]:
        return tuple(name for name in SPLITS if name in self._examples)

    def _split(self, name: str) -> tuple[Examples, Tensor | None]:
        if name not in self._examples:
            like = ", ".join(["N", *map(str, self.shape)])
            raise ValueError(f"These tensors have no {name} split: give Tensors {name}=, of shape ({like}).")
        return self._examples[name], self._labels.get(name)


class _Levels:
    """Level numbers, converted when their rows are asked for: in eight bits they take a quarter of the memory."""

    def __init__(self, numbers: Tensor, levels: int) -> None:
        self.numbers = numbers
        self.levels = levels

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        return from_levels(self.numbers[rows], self.levels)
