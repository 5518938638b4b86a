"""The interface of data sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor

from ndm.data import describing
from ndm.method.encoding import TableEncoding

__all__ = ["SPLITS", "Data", "Examples", "from_levels", "to_levels"]

ArrayT = TypeVar("ArrayT", Tensor, np.ndarray)

SPLITS = ("train", "validation", "test")


class Examples(Protocol):
    """A split whose rows can be read without converting all of it to floats in memory, such as a tensor."""

    def __len__(self) -> int:
        """The number of examples, N."""
        ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """The examples of these rows, int64 (n,) or a slice, as float32 (n, \\*shape)."""
        ...


class Data:
    """A data set: three splits, the shape of an example, and whether its values are discrete.

    A subclass defines ``shape``, ``levels`` and ``_split(name)``, which returns the examples of a split (for example a
    tensor) and their labels or None. Its constructor takes plain arguments, so that a configuration can name it. The
    same arguments must give the same data.

    Use :meth:`examples` to read a few rows at a time: ``split``, ``train``, ``validation`` and ``test`` return a whole
    split as one float tensor, which for images needs four times the memory of their pixels.

    Attributes:
        shape: shape of one example.
        levels: K if every value is one of the K levels 2 (k + 1/2) / K - 1, k = 0 ... K - 1; None if continuous.
    """

    shape: tuple[int, ...]
    levels: int | None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The column names of a table; None for other data."""
        return None

    @property
    def encoding(self) -> TableEncoding | None:
        """The map from rows to latent vectors, for a table of columns of several kinds; None for other data."""
        return None

    @property
    def given(self) -> tuple[str, ...]:
        """The columns of a table that are given, of which the density is not modelled; usually none."""
        return ()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of x, which is that of an example but for a table with an encoding."""
        return self.shape if self.encoding is None else self.encoding.latent_shape

    @cached_property
    def classes(self) -> int | None:
        """The number of classes, K, whose labels are 0 ... K - 1; None if the data set has no labels.

        By default one more than the largest label of any split.
        """
        return self._count_classes()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, (K,), in the order of their labels; None if they have none."""
        return None

    def summary(self) -> list[str]:
        """Short lines that describe the data set: what was read and left out, splits, classes, duplicates.

        Lines that begin with "warning:" report likely problems for training or evaluation.

        Raises:
            ValueError: the data cannot be read: see the class's own documentation.
        """
        kind = "continuous values" if self.levels is None else f"values of {self.levels} levels"
        lines = [f"data: {type(self).__name__}, examples of {' x '.join(map(str, self.shape))} numbers, {kind}"]
        return lines + self._split_lines()

    def fingerprint(self) -> str | None:
        """A SHA-256 of the splits' contents in hexadecimal; None if they are streamed.

        It does not depend on the location or the age of the files. Different examples, labels or splits have different
        fingerprints.

        Raises:
            ValueError: the data cannot be read: see the class's own documentation.
        """
        if self.training_batches(1, 0, 0) is not None:
            return None
        return describing.digest(self._contents())

    @property
    def train(self) -> Tensor:
        """The training examples, float32 (N, \\*shape)."""
        return self.split("train")

    @property
    def validation(self) -> Tensor:
        """The validation examples, float32 (N, \\*shape)."""
        return self.split("validation")

    @property
    def test(self) -> Tensor:
        """The test examples, float32 (N, \\*shape)."""
        return self.split("test")

    def split(self, name: str) -> Tensor:
        """The examples of the split called "train", "validation" or "test", float32 (N, \\*shape), all in memory.

        Raises:
            ValueError: there is no split of that name.
        """
        return self.examples(name)[:]

    def examples(self, name: str) -> Examples:
        """The same examples, accessed by rows: ``len(e)``, ``e[rows]``, ``e[a:b]``.

        Raises:
            ValueError: there is no split of that name.
        """
        return self._known(name)[0]

    def labels(self, name: str) -> Tensor | None:
        """The classes of the split's examples, int64 (N,); None if the data set has none.

        Raises:
            ValueError: there is no split of that name.
        """
        return self._known(name)[1]

    def augment(self, x: Tensor, u: Tensor) -> Tensor:
        """Augment a training batch; by default it is returned unchanged.

        u is the only source of randomness, so training is reproducible if u is a function of the step.

        Args:
            x: examples of the training split, (B, \\*shape).
            u: uniform in [0, 1), one number per example, (B,).

        Returns:
            The augmented examples, (B, \\*shape).
        """
        return x

    def training_batches(
        self, batch_size: int, seed: int, first_step: int
    ) -> Iterator[tuple[Tensor, Tensor | None]] | None:
        """The training batches of a streamed data set; None, the default, if rows can be accessed in any order.

        Batch number i is a function of ``(batch_size, seed, i)`` only. Each pass over the data has its own order, and
        an incomplete last batch is dropped. The iterator is infinite.

        Args:
            batch_size: examples per batch, B.
            seed: the seed of the orders.
            first_step: number of the first batch.

        Returns:
            An iterator over batches: examples (B, \\*shape), not yet augmented, and labels (B,) or None.
        """
        return None

    @property
    def _present(self) -> tuple[str, ...]:
        """The names of the available splits."""
        return SPLITS

    def _count_classes(self) -> int | None:
        labels = [y for y in map(self.labels, self._present) if y is not None and len(y)]
        return 1 + max(0, *(int(y.max()) for y in labels)) if labels else None

    def _contents(self) -> Iterator[str | Tensor | np.ndarray]:
        """Yield the contents of all splits in pieces."""
        for name in self._present:
            x, labels = self.examples(name), self.labels(name)
            yield f"{name} {len(x)} of {self.shape}, {'no ' if labels is None else ''}labels"
            yield from _blocks(x)
            if labels is not None:
                yield labels

    def _split_lines(self) -> list[str]:
        """The lines of a summary about splits, classes and duplicates."""
        lines = [describing.sizes_line({name: len(self.examples(name)) for name in self._present})]
        labels = {name: y for name in self._present if (y := self.labels(name)) is not None}
        if self.classes is not None:
            lines.append(describing.class_line(labels.values(), self.classes, self.class_names))
            lines += describing.one_sided_lines(labels, self.classes)
        return lines + describing.duplicate_lines(self._hashes())

    def _hashes(self) -> dict[str, np.ndarray]:
        """Hashes of all examples by split; empty for large data, for which this would be slow."""
        examples = sum(len(self.examples(name)) for name in self._present)
        if examples * max(prod(self.shape), describing.SMALL) > describing.COMPARED:
            return {}
        return {name: describing.row_hashes(x.numpy() for x in _blocks(self.examples(name))) for name in self._present}

    def _known(self, name: str) -> tuple[Examples, Tensor | None]:
        if name not in SPLITS:
            raise ValueError(f"There is no split {name!r}: the splits are {', '.join(SPLITS)}.")
        return self._split(name)

    @abstractmethod
    def _split(self, name: str) -> tuple[Examples, Tensor | None]:
        raise NotImplementedError


def _blocks(x: Examples) -> Iterator[Tensor]:
    for start in range(0, len(x), describing.AT_ONCE):
        yield x[start : start + describing.AT_ONCE]


def from_levels(k: Tensor, levels: int) -> Tensor:
    """The values of the levels numbered k: 2 (k + 1/2) / levels - 1, in float32 and within (-1, 1).

    Raises:
        ValueError: an entry of k is not among 0 ... levels - 1.

    Example:
        >>> import torch
        >>> from_levels(torch.tensor([0, 1, 2, 3]), levels=4)
        tensor([-0.7500, -0.2500,  0.2500,  0.7500])
    """
    low, high = (k.min().item(), k.max().item()) if k.numel() else (0, 0)
    if low < 0 or high >= levels:  # compared as Python integers, since 256 as uint8 would be 0
        raise ValueError(f"Level numbers must lie in 0 ... {levels - 1}, not {low} ... {high}.")
    return ((2 * k.double() + 1) / levels - 1).float()


def to_levels(x: ArrayT, levels: int) -> ArrayT:
    """The level numbers of values, (x + 1) levels / 2 - 1/2, not rounded: the inverse of :func:`from_levels`.

    Example:
        >>> import torch
        >>> to_levels(torch.tensor([-0.75, 0.75, 1.0]), levels=4)
        tensor([0.0000, 3.0000, 3.5000])
    """
    return (x + 1) * (levels / 2) - 0.5
