"""What a data set is to the rest of the package."""

from __future__ import annotations

from torch import Tensor

__all__ = ["SPLITS", "Data", "from_levels"]

SPLITS = ("train", "validation", "test")


class Data:
    """A data set: three splits held in memory, the shape of an example, and whether its values are discrete.

    A subclass defines ``shape``, ``levels`` and ``_split(name)``, which returns the examples of a split and their
    labels or None; it takes plain constructor arguments, so that a configuration can name it. The same arguments give
    the same data.

    Attributes:
        shape: shape of one example.
        levels: K if every value is one of the K levels 2 (k + 1/2) / K - 1, k = 0 ... K - 1; None if continuous.
    """

    shape: tuple[int, ...]
    levels: int | None

    @property
    def train(self) -> Tensor:
        """The examples to learn from, float32 (N, \\*shape)."""
        return self.split("train")

    @property
    def validation(self) -> Tensor:
        """The examples to make choices by, float32 (N, \\*shape)."""
        return self.split("validation")

    @property
    def test(self) -> Tensor:
        """The examples to report results on, float32 (N, \\*shape)."""
        return self.split("test")

    def split(self, name: str) -> Tensor:
        """The examples of the split called "train", "validation" or "test", float32 (N, \\*shape).

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

    def _known(self, name: str) -> tuple[Tensor, Tensor | None]:
        if name not in SPLITS:
            raise ValueError(f"There is no split {name!r}: the splits are {', '.join(SPLITS)}.")
        return self._split(name)

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


def from_levels(k: Tensor, levels: int) -> Tensor:
    """The values of the levels numbered k: 2 (k + 1/2) / levels - 1, in float32 and within (-1, 1).

    Raises:
        ValueError: an entry of k is not among 0 ... levels - 1.

    Example:
        >>> import torch
        >>> from_levels(torch.tensor([0, 1, 2, 3]), levels=4)
        tensor([-0.7500, -0.2500,  0.2500,  0.7500])
    """
    if k.numel() and (k.min() < 0 or k.max() >= levels):
        raise ValueError(f"Level numbers must lie in 0 ... {levels - 1}, not {k.min().item()} ... {k.max().item()}.")
    return ((2 * k.double() + 1) / levels - 1).float()
