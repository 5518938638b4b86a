"""Abbreviations of parts in the constructor of a model: names, numbers and modules."""

from __future__ import annotations

from typing import Any

from ndm.method.decoders import GaussianDecoder
from ndm.method.denoisers import as_denoiser
from ndm.method.named_variances import variance_named
from ndm.method.volatility import ConstantVolatility

__all__ = ["as_part"]


def as_part(name: str, value: Any) -> Any:
    """Convert ``value``, which may be an abbreviation such as a name or a number, to the part ``name`` of a model."""
    if name == "denoiser":
        return as_denoiser(value)
    if name == "decoder" and value is None:
        return GaussianDecoder()
    if name == "reverse_variance" and isinstance(value, str):
        return variance_named(value)
    if name == "volatility" and isinstance(value, (int, float)):
        return ConstantVolatility(value)
    return value
