"""Images as numbers, to be compared with what they were made of."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ndm.data import Images, from_levels

N = 40


def as_values(pixels: np.ndarray) -> Tensor:
    """What (N, H, W, C) of uint8 should come out as."""
    return from_levels(torch.from_numpy(pixels).permute(0, 3, 1, 2), 256)


def numbers(x: Tensor, among: Tensor) -> list[int]:
    """Which of these images each one is; any two of them differ."""
    same = (x[:, None] == among[None]).flatten(2).all(2)
    assert same.any(1).all(), "an image is none of the source's"
    return same.int().argmax(1).tolist()


def take(data: Images, n: int, batch_size: int = 5, seed: int = 0, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(data.training_batches(batch_size, seed, first), n))
