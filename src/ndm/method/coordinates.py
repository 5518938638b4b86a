r"""Coordinates in which the forward process's noise and the steps of the reverse process are independent.

The covariance of z_t given x is V diag(std^2) V^T with an orthonormal V: the identity, whose coordinates are those of
the data, or the cosine transform of an image.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["DATA", "FREQUENCIES", "Coordinates", "Frequencies", "cosine_matrix"]


class Coordinates:
    """Those of the data, V = I."""

    def into(self, z: Tensor) -> Tensor:
        r"""V^T z, (B, \*shape), for z of that shape."""
        return z

    def back(self, u: Tensor) -> Tensor:
        r"""V u, (B, \*shape), for u of that shape."""
        return u

    def scaled(self, noise: Tensor, spread: Tensor | None) -> Tensor:
        r"""V diag(spread) noise, (B, \*shape), for standard normal noise of that shape; without a spread the noise."""
        return noise if spread is None else self.back(spread * noise)


class Frequencies(Coordinates):
    """The orthonormal cosine transform (DCT-II) of images, (..., C, H, W), along height, width and channels.

    Along three channels its coordinates are their mean and two differences, such as red minus blue.
    """

    def into(self, z: Tensor) -> Tensor:
        channels, rows, columns = (_matrix(n, z.dtype, z.device) for n in z.shape[-3:])
        return _mixed(rows @ z @ columns.T, channels)

    def back(self, u: Tensor) -> Tensor:
        channels, rows, columns = (_matrix(n, u.dtype, u.device) for n in u.shape[-3:])
        return _mixed(rows.T @ u @ columns, channels.T)


def _mixed(images: Tensor, channels: Tensor) -> Tensor:
    return images if len(channels) == 1 else torch.einsum("ij,...jhw->...ihw", channels, images)


def cosine_matrix(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of length n as a matrix, (n, n), frequencies along the first axis."""
    k, m = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (m + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=64)
def _matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else a later gradient could not use it
        return cosine_matrix(n).to(device, dtype)


#: The coordinates of the data, and those of the cosine transform of an image.
DATA, FREQUENCIES = Coordinates(), Frequencies()
