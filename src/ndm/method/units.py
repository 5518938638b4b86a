"""The conversion between data in original units and x."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, at_least_single, check_examples, device_of, precision_of
from ndm.method.decoders import Decoder
from ndm.method.encoding import TableEncoding
from ndm.method.parts import Part
from ndm.method.standardization import Standardize

__all__ = ["InUnits"]


class InUnits(Part):
    """A model of data in original units, with its decoder and its standardisation."""

    decoder: Decoder
    standardize: Standardize | TableEncoding | None

    def to_model(self, data: Values, check: bool = True) -> Tensor:
        """Convert user data to x, (B, \\*shape): integers to levels, original units to standardised ones.

        Args:
            data: a tensor of any precision, or anything accepted by :func:`ndm._internal.inputs.as_tensor`.
            check: validate the shape and the values.

        Returns:
            A tensor in the precision and on the device of the model's networks; without networks, in those of the data,
            with at least float32.

        Raises:
            ValueError: no examples, NaN or infinite values, values off the decoder's levels, integers for a model of
                continuous data that does not standardise them, or a model whose weights are in half precision.
        """
        data, precision, device = as_tensor(data), precision_of(self), device_of(self)
        if check:
            check_examples(data, self.standardize.shape if self.standardize else None)
        if not data.is_floating_point():
            if self.standardize is None:
                # At least single precision: 256 levels do not fit in bfloat16.
                own = precision or next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
                return self.decoder.encode(data.to(device), torch.promote_types(own, torch.float32))
            data = data.double()
        # Standardised in the finer of the two precisions: values may be large relative to their differences.
        x = at_least_single(data) if precision is None else data.to(torch.promote_types(data.dtype, precision))
        x = x if self.standardize is None else self.standardize(x)
        x = x.to(device, precision or x.dtype)
        if check:
            self.decoder.check(x)
        return self.decoder.place(x)

    def from_model(self, x: Tensor) -> Tensor:
        """x back to the user's units, (B, \\*shape)."""
        return x if self.standardize is None else self.standardize.inverse(x)

    def log_det(self, x: Tensor) -> Tensor | float:
        """``log |det dx/ddata|`` in nats, one number or (B,), to be added to a log-density of x."""
        return 0.0 if self.standardize is None else self.standardize.log_det(x)

    def latent_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape of x for data of a shape, which differs for a table with codes."""
        return shape if self.standardize is None else self.standardize.latent(shape)
