"""Jacobians of networks, computed once for the many backward passes of an exact divergence.

An exact divergence needs one backward pass per dimension. A network that can compute its Jacobian with respect to its
input faster than by that many backward passes does so inside :func:`whole_jacobians`, and the backward passes then
multiply by the Jacobian.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = ["jacobian_wanted", "linearized", "whole_jacobians"]

_WANTED: ContextVar[bool] = ContextVar("jacobians", default=False)


@contextmanager
def whole_jacobians() -> Iterator[None]:
    """Context manager in which networks that are differentiated are differentiated in every direction."""
    token = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(token)


def jacobian_wanted(z: Tensor) -> bool:
    """Whether the derivative with respect to z, (B, ...), will be needed in every direction."""
    wanted = _WANTED.get() and z.requires_grad and torch.is_grad_enabled()
    return wanted and not torch.is_autocast_enabled(z.device.type)


def linearized(z: Tensor, output: Tensor, jacobian: Tensor) -> Tensor:
    """Return ``output``, (B, o), a function of z, (B, d), whose gradient is that of ``jacobian``, (d, B, o)."""
    return _Linearized.apply(z, output, jacobian)


class _Linearized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, output: Tensor, jacobian: Tensor) -> Tensor:
        ctx.save_for_backward(jacobian)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (jacobian,) = ctx.saved_tensors
        return (jacobian * gradients[0]).sum(-1).T, None, None
