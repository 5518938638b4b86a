"""Random numbers: noise, times, and one process's share of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Drawn", "Randomness", "Share", "low_discrepancy", "normal_like", "seed_of"]


@dataclass(frozen=True)
class Share:
    """The random numbers of some examples of a batch, the same as in the whole batch.

    Each process draws the numbers of the whole batch and selects its own. Results therefore do not depend on the number
    of processes or on gradient accumulation.

    Args:
        generator: in the same state in every process.
        rows: the examples of the batch.
        total: the number of examples in the batch.
    """

    generator: torch.Generator
    rows: slice
    total: int


class Drawn:
    """Noise drawn in advance and returned in turn, so that every example can have its own random numbers.

    Args:
        noise: one tensor per request, of the requested shape.
    """

    def __init__(self, noise: Iterable[Tensor]) -> None:
        self._left = iter(noise)

    def next(self) -> Tensor:
        return next(self._left)


#: A source of random numbers: a generator, a share of one, drawn noise, or None for PyTorch's default generator.
Randomness = torch.Generator | Share | Drawn | None


def seed_of(*numbers: int) -> int:
    """Combine several non-negative numbers into one seed, such that different lists have different streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def normal_like(x: Tensor, generator: Randomness) -> Tensor:
    """Standard normal noise of x's shape and precision, drawn on the generator's device."""
    if isinstance(generator, Drawn):
        return generator.next().to(x)
    if isinstance(generator, Share):
        whole = torch.randn(
            (generator.total, *x.shape[1:]),
            generator=generator.generator,
            device=generator.generator.device,
            dtype=x.dtype,
        )
        return whole[generator.rows].to(x.device)
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def low_discrepancy(n: int, like: Tensor, generator: Randomness = None) -> Tensor:
    """n times in [0, 1), each uniform, evenly spread over the batch: (u + i / n) mod 1 in random order.

    VDM, arXiv 2107.00630, appendix I.1. The order is random so that times are independent of the position in the batch.
    For a :class:`Share` they are spread over the whole batch.
    """
    if isinstance(generator, Drawn):
        raise TypeError("Noise that was drawn in advance does not contain times: pass times=.")
    if isinstance(generator, Share):
        return low_discrepancy(generator.total, like, generator.generator)[generator.rows]
    device = like.device if generator is None else generator.device
    u = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    order = torch.randperm(n, generator=generator, device=device)
    return below_one(((u + order.double() / n) % 1).to(like.device, like.dtype))


def below_one(t: Tensor) -> Tensor:
    """Move times that were rounded up to 1 back below 1."""
    return t.clamp(max=1 - torch.finfo(t.dtype).eps)
