"""Order of the training batches, which depends only on the seed and the step.

A resumed run therefore gets the same batches as an uninterrupted one, for any number of devices, and samplers have no
state to save.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ndm._internal.distributed import strided_share
from ndm._internal.random import seed_of
from ndm.data.base import Data, Examples

__all__ = ["Batch", "InOrder", "Stream"]

#: Random number streams: order of the examples (per pass), augmentation (per step), training times and noise (per
#: step), dropout (per step and share), validation (per batch).
ORDER, AUGMENTATION, NOISE, DROPOUT, VALIDATION = range(5)

#: Number of prefetched batches.
AHEAD = 3


class Batch(NamedTuple):
    """The examples of a step on one device.

    Attributes:
        x: the examples, (B, \\*shape).
        labels: their class labels, (B,), or None.
        rows: indices of these examples within the step.
        total: number of examples in the step.
        start: number of validation examples before this batch.
    """

    x: Tensor
    labels: Tensor | None
    rows: slice
    total: int
    start: int = 0


class Stream:
    """Shuffled batches for the remaining steps. Each pass covers all data in a new order.

    Iteration starts at ``trainer.global_step``. A batch is divided among the devices, and each share into ``pieces``
    whose gradients are accumulated; the content of the batch depends on neither. An incomplete batch at the end of a
    pass is dropped.

    Args:
        data: the data set.
        batch_size: examples per step over all devices; at most the size of the data set.
        seed: seed of the order and of the augmentation.
        trainer: provides the step, the device and ``max_steps`` (-1 for no limit).
        labels: include the class labels.
        pieces: number of batches per device and step.

    Raises:
        ValueError: a batch cannot be divided equally.
    """

    def __init__(
        self, data: Data, batch_size: int, seed: int, trainer: Trainer, labels: bool = False, pieces: int = 1
    ) -> None:
        self.data = data
        self.seed = seed
        self.trainer = trainer
        self.pieces = pieces
        self.with_labels = labels
        self.streamed = data.training_batches(batch_size, seed, 0) is not None
        if self.streamed:
            self.batch_size = batch_size
        else:
            self.examples: Examples = data.examples("train")
            self.labels = data.labels("train") if labels else None
            self.batch_size = min(batch_size, len(self.examples))
        shares = pieces * trainer.world_size
        if self.batch_size % shares:
            raise ValueError(
                f"A batch of {self.batch_size} examples cannot be divided equally among {trainer.world_size} device(s) "
                f"and {pieces} piece(s): training.batch_size must be a multiple of {shares}."
            )
        self._order: tuple[int, Tensor] | None = None  # (pass, order)

    def __len__(self) -> int:
        """Number of batches of the whole training, which is one epoch for Lightning."""
        if self.trainer.max_steps == -1:
            raise TypeError("This stream of batches is infinite and has no length.")
        return self.trainer.max_steps * self.pieces

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches(self.trainer.global_step)
        in_memory = not self.streamed and isinstance(self.examples, Tensor)
        return batches if in_memory else _ahead(batches, pin=self._to_gpu())

    def _to_gpu(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    def _batches(self, first: int) -> Iterator[Batch]:
        steps = itertools.count(first) if self.trainer.max_steps == -1 else range(first, self.trainer.max_steps)
        given = self.data.training_batches(self.batch_size, self.seed, first) if self.streamed else None
        of = self.pieces * self.trainer.world_size
        for step in steps:
            whole = next(given) if given is not None else None
            for piece in range(self.pieces):
                rows = strided_share(self.batch_size, piece * self.trainer.world_size + self.trainer.global_rank, of)
                x, labels = self._fetch(step, rows) if whole is None else (whole[0][rows], _rows_of(whole[1], rows))
                if self.with_labels and labels is None:
                    raise ValueError("training.labels is set, but the streamed data have no labels.")
                if type(self.data).augment is not Data.augment:
                    u = torch.rand(self.batch_size, generator=_generator(self.seed, AUGMENTATION, step))
                    x = self.data.augment(x, u[rows])
                yield Batch(x, labels if self.with_labels else None, rows, self.batch_size)

    def _fetch(self, step: int, rows: slice) -> tuple[Tensor, Tensor | None]:
        places = self._places(step)[rows]
        return self.examples[places], _rows_of(self.labels, places)

    def _places(self, step: int) -> Tensor:
        """Indices of the examples of a step in the split, (batch_size,)."""
        n = len(self.examples)
        epoch, k = divmod(step, n // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(n, generator=_generator(self.seed, ORDER, epoch))
        return self._order[1][k * self.batch_size : (k + 1) * self.batch_size]


class InOrder:
    """Validation batches, each divided among the devices.

    If a batch has fewer examples than devices, the remaining devices get one of its examples with empty ``rows``,
    because a sharded network must be called by all devices.

    Args:
        examples: (N, \\*shape).
        labels: their class labels, (N,), or None.
        batch_size: examples per batch over all devices.
        trainer: provides the device.
        part: indices of the examples to use, int64 (M,); None for all, in order.
        repeats: number of repetitions, each with new times and noise, which makes the mean over few examples less
            noisy.
    """

    def __init__(
        self,
        examples: Examples,
        labels: Tensor | None,
        batch_size: int,
        trainer: Trainer,
        part: Tensor | None = None,
        repeats: int = 1,
    ) -> None:
        self.examples = examples
        self.labels = labels
        self.batch_size = batch_size
        self.trainer = trainer
        self.repeats = repeats
        self.places = (torch.arange(len(examples)) if part is None else part).repeat(repeats)

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.places), self.batch_size):
            total = min(self.batch_size, len(self.places) - start)
            rows = strided_share(total, self.trainer.global_rank, self.trainer.world_size)
            places = self.places[start : start + total][rows]
            if len(places) == 0:
                places = self.places[start : start + 1]
            yield Batch(self.examples[places], _rows_of(self.labels, places), rows, total, start)


def _rows_of(labels: Tensor | None, rows: Tensor | slice) -> Tensor | None:
    return None if labels is None else labels[rows]


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*numbers))


def _ahead(batches: Iterator[Batch], pin: bool) -> Iterator[Batch]:
    """Prefetch batches in a background thread."""

    def fetch() -> Batch | None:
        batch = next(batches, None)
        if batch is None or not pin:
            return batch
        labels = None if batch.labels is None else batch.labels.pin_memory()
        return batch._replace(x=batch.x.pin_memory(), labels=labels)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        waiting = deque(thread.submit(fetch) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(fetch))
            yield batch
