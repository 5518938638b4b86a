"""The order of the training batches, a function of the seed and the step alone.

So a run that is resumed sees exactly the batches that it would have seen, whatever the number of its devices, and no
sampler has a state to be saved.
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

#: Streams of random numbers: of the order of the examples (with the pass), of what augments them (with the step), of
#: training's times and noise (with the step), of dropout (with the step and the share), of validation (with the batch).
ORDER, AUGMENTATION, NOISE, DROPOUT, VALIDATION = range(5)

#: Batches that are fetched while the device works.
AHEAD = 3


class Batch(NamedTuple):
    """One device's share of the examples of a step.

    Attributes:
        x: the examples, (B, \\*shape).
        labels: their classes, (B,), or None.
        rows: which examples of the step's these are.
        total: how many the step has.
        start: how many examples of the validation came before this batch.
    """

    x: Tensor
    labels: Tensor | None
    rows: slice
    total: int
    start: int = 0


class Stream:
    """Shuffled batches for the steps that are still to come: all of the data in each pass, in an order of its own.

    It goes on where ``trainer.global_step`` stands. A step's batch is shared among the devices, and a device's share
    may come in ``pieces`` whose gradients are accumulated; what is in the batch depends on neither. The examples that
    do not fill a batch at the end of a pass are left out of it.

    Args:
        data: the data set.
        batch_size: examples per step, on all devices together; all there are if there are fewer.
        seed: of the orders and of the augmentation.
        trainer: tells the step, the device and the number of steps, ``max_steps``, which is -1 for no end.
        labels: give the class labels too.
        pieces: how many batches of a device make a step.

    Raises:
        ValueError: a batch cannot be shared equally.
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
                f"A batch of {self.batch_size} examples cannot be shared equally by {trainer.world_size} device(s) in "
                f"{pieces} piece(s): training.batch_size must be a multiple of {shares}."
            )
        self._order: tuple[int, Tensor] | None = None  # of which pass, and it

    def __len__(self) -> int:
        """The number of batches of the whole training, which Lightning takes for one epoch."""
        if self.trainer.max_steps == -1:
            raise TypeError("This stream of batches has no end.")
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
            u = torch.rand(self.batch_size, generator=_generator(self.seed, AUGMENTATION, step))
            for piece in range(self.pieces):
                rows = strided_share(self.batch_size, piece * self.trainer.world_size + self.trainer.global_rank, of)
                x, labels = self._fetch(step, rows) if whole is None else (whole[0][rows], _rows_of(whole[1], rows))
                if self.with_labels and labels is None:
                    raise ValueError("training.labels is set, but the streamed data have no labels.")
                x = self.data.augment(x, u[rows])
                yield Batch(x, labels if self.with_labels else None, rows, self.batch_size)

    def _fetch(self, step: int, rows: slice) -> tuple[Tensor, Tensor | None]:
        places = self._places(step)[rows]
        return self.examples[places], _rows_of(self.labels, places)

    def _places(self, step: int) -> Tensor:
        """Where the examples of a step are in the split, (batch_size,)."""
        n = len(self.examples)
        epoch, k = divmod(step, n // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(n, generator=_generator(self.seed, ORDER, epoch))
        return self._order[1][k * self.batch_size : (k + 1) * self.batch_size]


class InOrder:
    """The examples of a validation in batches, each shared among the devices.

    A batch with fewer examples than devices gives those that go without one of it, with no rows of theirs: a sharded
    network has to be called by all devices or by none.

    Args:
        examples: (N, \\*shape).
        labels: their class labels, (N,), or None.
        batch_size: examples per batch, on all devices together.
        trainer: tells the device.
        part: places of the examples that are taken, int64 (M,); None for all, in order.
        repeats: how often they are taken: with other times and other noise each time, which makes the mean over few
            examples less noisy.
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
    """The same batches, fetched by a thread while the device works."""

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
