"""Random numbers: noise like a tensor, times over a batch, and a share of both for one process of several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Drawn", "Randomness", "Share", "low_discrepancy", "normal_like", "seed_of"]


@dataclass(frozen=True)
class Share:
    """The random numbers of some examples of a batch: those that they have in the whole batch.

    Every process that works on a part of a batch draws the numbers of all of it and takes its own. So a result does not
    depend on how many processes there are, nor on how a batch is cut into pieces whose gradients are accumulated.

    Args:
        generator: in the same state in every process.
        rows: which examples of the batch.
        total: how many examples the batch has.
    """

    generator: torch.Generator
    rows: slice
    total: int


class Drawn:
    """Noise that was drawn before, given out in turn: for who wants every example to have random numbers of its own.

    Args:
        noise: one tensor for each time that noise is asked for, of the shape that it is asked for.
    """

    def __init__(self, noise: Iterable[Tensor]) -> None:
        self._left = iter(noise)

    def next(self) -> Tensor:
        return next(self._left)


#: Where random numbers come from: a generator, a share of one, noise that was drawn, or None for PyTorch's own.
Randomness = torch.Generator | Share | Drawn | None


def seed_of(*numbers: int) -> int:
    """One seed from several non-negative numbers, such that no two lists of numbers have streams in common."""
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

    VDM, arXiv 2107.00630, appendix I.1. The order is random so that a time says nothing of an example's place. Of a
    :class:`Share` they are spread over the whole batch.
    """
    if isinstance(generator, Drawn):
        raise TypeError("Noise that was drawn before holds no times: give them.")
    if isinstance(generator, Share):
        return low_discrepancy(generator.total, like, generator.generator)[generator.rows]
    device = like.device if generator is None else generator.device
    u = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    order = torch.randperm(n, generator=generator, device=device)
    return below_one(((u + order.double() / n) % 1).to(like.device, like.dtype))


def below_one(t: Tensor) -> Tensor:
    """Undo a rounding to t's precision that turned a time just below 1 into 1."""
    return t.clamp(max=1 - torch.finfo(t.dtype).eps)
