"""The handwritten digits of scikit-learn; no download is needed."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import Data, from_levels

__all__ = ["Digits"]


class Digits(Data):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998): 1,797 images of 8x8 pixels, 17 levels.

    The split is fixed, 1,297 for training, 250 for validation and 250 for testing. Labels are the digits.
    """

    shape = (1, 8, 8)
    levels = 17
    _sizes = (1297, 250, 250)

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = from_levels(torch.from_numpy(bunch.images), self.levels)[:, None]
        labels = torch.from_numpy(bunch.target).long()
        # RandomState's stream is frozen by NumPy's policy; that of newer generators may change between versions.
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
        train, validation, test = order.split(self._sizes)
        rows = {"train": train, "validation": validation, "test": test}
        return {name: (x[i], labels[i]) for name, i in rows.items()}
