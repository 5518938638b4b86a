"""Images as they are kept, eight bits a value, and as a model sees them, float32 in (-1, 1)."""

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

    Divisions by powers of two are exact, so that two passes in float32 do what a table in float64 would, and faster.

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
    """Rows of an array of 8-bit images, converted when they are asked for: see :class:`ndm.data.Examples`.

    An array mapped from a file stays there, and only the pages that are asked for are read.

    Args:
        array: uint8, (N, C, H, W).
        rows: take these rows of it only, (n,) of int64; all of them by default.
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
        # A copy also where a slice would be a view: a mapped file cannot be written to, and torch would warn of that.
        return from_pixels(torch.from_numpy(np.array(self.array[chosen])))

    def __reduce__(self) -> tuple[Callable[..., Pixels], tuple[Any, ...]]:
        # A mapped array would be pickled with all its contents; another process can map the file itself.
        if isinstance(self.array, np.memmap) and self.array.filename:
            return _reopen, (Path(self.array.filename), self.rows)
        return Pixels, (self.array, self.rows)


def _reopen(file: Path, rows: np.ndarray | None) -> Pixels:
    return Pixels(np.load(file, mmap_mode="r"), rows)
