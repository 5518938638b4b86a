"""Standardisation of data to zero mean and unit variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, at_least_single, check_examples
from ndm.method.parts import Part

__all__ = ["Standardize"]


class Standardize(Part):
    """Standardise data per dimension, x = (data - mean) / scale, and invert it.

    Args:
        mean: the mean of one example, nested lists or a number.
        scale: likewise, positive.

    Raises:
        ValueError: a scale is not positive.
    """

    def __init__(self, mean: float | list, scale: float | list) -> None:
        super().__init__()
        self._given = mean, scale
        self._mean = as_tensor(mean, "means").double()
        self._scale = as_tensor(scale, "scales").double()
        if not ((self._scale > 0) & self._scale.isfinite()).all() or not self._mean.isfinite().all():
            raise ValueError(
                "The standardisation's scale must be positive, and mean and scale finite: check the data for constant "
                "columns."
            )

    @property
    def mean(self) -> Any:
        """The constructor argument."""
        return self._given[0]

    @property
    def scale(self) -> Any:
        """The constructor argument."""
        return self._given[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example; () for any."""
        return np.broadcast_shapes(self._mean.shape, self._scale.shape)  # that of PyTorch imports sympy

    def latent(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape of x for data of a shape, which is the same."""
        return shape

    @classmethod
    def fit(cls, data: Values) -> Standardize:
        """Create it from the mean and standard deviation of data, (N, \\*shape), per dimension.

        Args:
            data: a tensor of any precision or of integers, or anything accepted by
                :func:`ndm._internal.inputs.as_tensor`.

        Raises:
            ValueError: fewer than two examples, NaN or infinite values, or a dimension that is constant.
        """
        data = as_tensor(data).double()
        check_examples(data)
        if len(data) < 2:
            raise ValueError("A standardisation needs at least 2 examples, got 1.")
        if not data.isfinite().all():
            raise ValueError("The data contain NaN or infinite values; remove or replace them.")
        return cls(data.mean(0).tolist(), data.std(0).tolist())

    def forward(self, data: Values) -> Tensor:
        """Standardised data, (B, \\*shape), in their precision, at least float32."""
        data = as_tensor(data)
        data = at_least_single(data) if data.is_floating_point() else data.double()
        return (data - self._mean.to(data)) / self._scale.to(data)

    def inverse(self, x: Tensor) -> Tensor:
        """Data in original units, (B, \\*shape)."""
        return x * self._scale.to(x) + self._mean.to(x)

    def log_det(self, x: Tensor) -> Tensor:
        """``log |det dx/ddata|`` of one example of x, (B, \\*shape): a number, in nats."""
        return -self._scale.log().expand(x.shape[1:]).sum().to(x)
