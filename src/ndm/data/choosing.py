"""Subsets of a split, random or evenly spaced. The first examples are not used, since files may be sorted."""

from __future__ import annotations

import torch
from torch import Tensor

from ndm.data.base import Examples

__all__ = ["Some", "evenly_spaced", "part_of"]


def part_of(n: int, size: int | None, seed: int) -> Tensor:
    """The indices of a random subset of n examples, int64 (min(size, n),), increasing; all indices if ``size`` is None.

    All subsets of that size are equally likely. The same arguments give the same subset.

    Args:
        n: the number of examples, N.
        size: the size of the subset.
        seed: the random seed.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> part_of(1000, 5, seed=0).shape
        torch.Size([5])
        >>> part_of(3, 5, seed=0)
        tensor([0, 1, 2])
    """
    if size is not None and size < 1:
        raise ValueError(f"The number of random examples must be at least 1, got {size}.")
    if size is None or size >= n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:size].sort().values


def evenly_spaced(n: int, size: int) -> Tensor:
    """The indices of at most ``size`` of n examples, evenly spaced from the first to the last, int64, for plots.

    They may be unrepresentative for periodic data; use :func:`part_of` for measurements.

    Example:
        >>> evenly_spaced(100, 4), evenly_spaced(2, 4)
        (tensor([ 0, 33, 66, 99]), tensor([0, 1]))
    """
    return torch.linspace(0, n - 1, min(n, size), dtype=torch.float64).round().long()


class Some:
    """The examples of a split at some indices, accessed by rows like the split.

    Args:
        examples: the examples of the split, (N, \\*shape).
        places: their indices, int64 (n,).
    """

    def __init__(self, examples: Examples, places: Tensor) -> None:
        self.examples = examples
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.examples[self.places[rows]]
