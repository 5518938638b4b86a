"""Conversion of 8-bit images to the values used by models, float32 in (-1, 1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Pixels", "from_pixels"]


def from_pixels(k: Tensor) -> Tensor:
    """The values of 8-bit pixels, 2 (k + 1/2) / 256 - 1, exactly those of :func:`ndm.data.from_levels`.

    Divisions by powers of two are exact, so two float32 operations are as accurate as a float64 table, and faster.

    Args:
        k: uint8, of any shape.

    Returns:
        float32, of the same shape.

    Example:
        >>> import torch
        >>> from_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [-0.99609375, 0.99609375]
    """
    return k.float().mul_(2 / 256).add_(1 / 256 - 1)


class Pixels:
    """Rows of an array of 8-bit images, converted on access: see :class:`ndm.data.Examples`.

    For a memory-mapped array only the requested pages are read.

    Args:
        array: uint8, (N, C, H, W).
        rows: the rows to use, int64 (n,); all by default.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.array = array
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, (C, H, W)."""
        return self.array.shape[1:]

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """The images of these rows, int64 (n,) or a slice, as float32 (n, C, H, W)."""
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        if self.rows is not None:
            chosen = self.rows[chosen]
        # Slices are copied too: torch warns about views of read-only memory-mapped arrays.
        return from_pixels(torch.from_numpy(np.array(self.array[chosen])))

    def __reduce__(self) -> tuple[Callable[..., Pixels], tuple[Any, ...]]:
        # A memory-mapped array would be pickled with its contents; another process can map the file itself.
        if isinstance(self.array, np.memmap) and self.array.filename:
            return _reopen, (Path(self.array.filename), self.rows)
        return Pixels, (self.array, self.rows)


def _reopen(file: Path, rows: np.ndarray | None) -> Pixels:
    return Pixels(np.load(file, mmap_mode="r"), rows)
