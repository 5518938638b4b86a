"""Mixed precision: networks in half precision, and everything around them in that of the data.

The bound weighs errors of x_hat and of F by e^{-gamma}, up to 6e5 near the data (method, section 6), where bfloat16 has
three decimal digits. So under ``torch.autocast`` the networks alone run in its precision, and the residual path (noise
levels, the displacement of F, x - x_hat, the terms of the bound) stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["residual_path", "run_network"]

#: What the networks compute in, where it is not the precision of what they are given.
_NETWORKS: ContextVar[torch.dtype | None] = ContextVar("networks", default=None)


@contextmanager
def residual_path(device: torch.device) -> Iterator[None]:
    """Keep ``torch.autocast``, where it is on, to the networks that are called by :func:`run_network` in here."""
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
    """net(x, ...), (B, ...), in the networks' precision; what comes back is in that of x."""
    dtype = _NETWORKS.get()
    if dtype is None:
        return net(x, *args, **kwargs).to(x.dtype)
    with torch.autocast(x.device.type, dtype=dtype):
        output = net(x, *args, **kwargs)
    return output.to(x.dtype)
