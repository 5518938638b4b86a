"""Mixed precision: networks in half precision, all other computations in the precision of the data.

The bound weights errors of x_hat and of F by e^{-gamma}, up to 6e5 near the data (method, section 6), but bfloat16 has
only three decimal digits. Under ``torch.autocast`` only the networks therefore run in its precision, and the residual
path (noise levels, the displacement of F, x - x_hat, the terms of the bound) stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["residual_path", "run_network"]

#: The precision of the networks, if it differs from that of their inputs.
_NETWORKS: ContextVar[torch.dtype | None] = ContextVar("networks", default=None)


@contextmanager
def residual_path(device: torch.device) -> Iterator[None]:
    """Restrict ``torch.autocast``, if enabled, to networks called by :func:`run_network` in this context."""
    kind = device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    token = _NETWORKS.set(torch.get_autocast_dtype(kind))
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        _NETWORKS.reset(token)


def run_network(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """net(x, ...), (B, ...), computed in the networks' precision and returned in that of x."""
    dtype = _NETWORKS.get()
    if dtype is None:
        return net(x, *args, **kwargs).to(x.dtype)
    with torch.autocast(x.device.type, dtype=dtype):
        output = net(x, *args, **kwargs)
    return output.to(x.dtype)
