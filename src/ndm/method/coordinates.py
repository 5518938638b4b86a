r"""Coordinates in which the forward process's noise and the steps of the reverse process are independent.

The covariance of z_t given x is V diag(std^2) V^T with an orthonormal V: the identity, whose coordinates are those of
the data, or the cosine transform of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ndm.method.transforms.linear import cosine_matrix

__all__ = ["DATA", "Coordinates", "Frequencies"]


class Coordinates:
    """Those of the data, V = I."""

    def into(self, z: Tensor) -> Tensor:
        r"""V^T z, (B, \*shape), for z of that shape."""
        return z

    def back(self, u: Tensor) -> Tensor:
        r"""V u, (B, \*shape), for u of that shape."""
        return u


class Frequencies(Coordinates):
    """The orthonormal cosine transform (DCT-II) of images, (B, C, H, W), along height, width and channels.

    Along three channels its coordinates are their mean and two differences, such as red minus blue.
    """

    def into(self, z: Tensor) -> Tensor:
        channels, rows, columns = (cosine_matrix(n).to(z) for n in z.shape[1:])
        return _mixed(rows @ z @ columns.T, channels)

    def back(self, u: Tensor) -> Tensor:
        channels, rows, columns = (cosine_matrix(n).to(u) for n in u.shape[1:])
        return _mixed(rows.T @ u @ columns, channels.T)


def _mixed(images: Tensor, channels: Tensor) -> Tensor:
    return images if len(channels) == 1 else torch.einsum("ij,bjhw->bihw", channels, images)


#: The coordinates of the data.
DATA = Coordinates()
