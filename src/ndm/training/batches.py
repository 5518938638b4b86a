"""The order of the training batches, a function of the seed and the step alone.

So a run that is resumed sees exactly the batches that it would have seen, and no sampler has a state to be saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["Batch", "InOrder", "Stream", "seed_of"]

#: Examples (B, \\*shape), and with a conditional model their class labels (B,).
Batch = list[Tensor]


def seed_of(*numbers: int) -> int:
    """One seed from several non-negative numbers, such that no two lists of numbers have streams in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Stream:
    """Shuffled batches for the steps that are still to come: all of the data in each pass, in an order of its own.

    It goes on where ``trainer.global_step`` stands; with several devices each takes its share of every batch. The
    examples that do not fill a batch at the end of a pass are left out of it.

    Args:
        x: the examples, (N, \\*shape).
        labels: their class labels, (N,), or None.
        batch_size: examples per step; all of them if there are fewer.
        seed: of the orders.
        trainer: tells the step, the device and the number of steps, ``max_steps``, which is -1 for no end.
    """

    def __init__(self, x: Tensor, labels: Tensor | None, batch_size: int, seed: int, trainer: Trainer) -> None:
        self.tensors = [x] if labels is None else [x, labels]
        self.batch_size = min(batch_size, len(x))
        self.seed = seed
        self.trainer = trainer
        self._order: tuple[int, Tensor] | None = None  # of which pass, and it

    def __len__(self) -> int:
        """The number of steps of the whole training, which Lightning takes for one epoch."""
        if self.trainer.max_steps == -1:
            raise TypeError("This stream of batches has no end.")
        return self.trainer.max_steps

    def __iter__(self) -> Iterator[Batch]:
        end = None if self.trainer.max_steps == -1 else self.trainer.max_steps
        steps = itertools.count(self.trainer.global_step)
        for step in itertools.takewhile(lambda step: end is None or step < end, steps):
            rows = self._rows(step)[self.trainer.global_rank :: self.trainer.world_size]
            yield [tensor[rows] for tensor in self.tensors]

    def _rows(self, step: int) -> Tensor:
        """The examples of a step, (batch_size,)."""
        n = len(self.tensors[0])
        epoch, k = divmod(step, n // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            self._order = epoch, torch.randperm(n, generator=generator)
        return self._order[1][k * self.batch_size : (k + 1) * self.batch_size]


class InOrder:
    """All the examples in batches, for validation.

    Args:
        x: the examples, (N, \\*shape).
        labels: their class labels, (N,), or None.
        batch_size: examples per batch.
    """

    def __init__(self, x: Tensor, labels: Tensor | None, batch_size: int) -> None:
        pieces = [x.split(batch_size)] if labels is None else [x.split(batch_size), labels.split(batch_size)]
        self.batches: list[Batch] = [list(batch) for batch in zip(*pieces, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)
