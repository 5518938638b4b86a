"""Computation of the blocks of a scoring: in this process, in workers, or shared among the processes of a launcher."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ndm._internal.distributed import gather_in_order, rank, world_size
from ndm._internal.workers import Workers
from ndm.data.choosing import part_of
from ndm.scoring.partial import MEASURED, PartialScores
from ndm.scoring.rows import Rows
from ndm.scoring.scorer import Scorer

__all__ = ["Blocks", "measured"]

#: A block: its index, its rows, (n, \*shape), and their labels, (n,), if any.
Block = tuple[int, Tensor, Tensor | None]


@dataclass(frozen=True)
class Blocks:
    """The rows to score, in blocks of a size.

    Attributes:
        rows: the rows.
        labels: their classes, (N,), for a class-conditional model.
        count: number of rows to score, from the first.
        size: rows per block.
    """

    rows: Rows
    labels: Tensor | None
    count: int
    size: int

    @property
    def last(self) -> int:
        """The end of the last block, which is read completely: the noise of its rows depends on the block."""
        return min(self.rows.count, -(-self.count // self.size) * self.size)

    def read(self, first: int) -> Iterator[Block]:
        """Iterate over copies of the blocks from the index ``first``: a slice is pickled with the tensor it is of."""
        start = first * self.size
        if start >= self.count:
            return
        for block, x in enumerate(self.rows.blocks(self.size, start), first):
            yield block, x.clone(), None if self.labels is None else self.labels[start : start + len(x)].clone()
            start += self.size
            if start >= self.count:
                return

    def some_solved(self, partial: PartialScores, n: int, seed: int) -> tuple[Tensor, Tensor | None] | None:
        """Return at most n random rows with a finite log-likelihood, (n, \\*shape), and their labels; None if there are
        none.
        """
        solved = np.concatenate([np.isfinite(block[:, MEASURED.index("log_prob")]) for block in partial.read()])
        places = np.flatnonzero(solved)
        if len(places) == 0:
            return None
        places = places[part_of(len(places), n, seed).numpy()]
        found, row = [], int(places[0])
        for block in self.rows.blocks(self.size if len(places) > 1 else 1, row):
            found.append(block[torch.from_numpy(places[(places >= row) & (places < row + len(block))] - row)])
            row += len(block)
            if row > places[-1]:
                break
        return torch.cat(found), None if self.labels is None else self.labels[torch.from_numpy(places)]


def measured(scorer: Scorer, blocks: Blocks, first: int, workers: int) -> Generator[np.ndarray, None, None]:
    """Compute the scores of the blocks from the index ``first``, in order.

    Args:
        scorer: the prepared scorer.
        blocks: the blocks.
        first: index of the first block.
        workers: number of worker processes; with one there is none, and the blocks are computed here.

    Yields:
        The scores of a block, (n, 5), in every process of a launcher.
    """
    jobs, number = blocks.read(first), -(-blocks.last // blocks.size) - first
    if min(workers, number) > 1:
        with Workers(min(workers, number), scorer) as pool:
            for values, kind in pool.map(jobs):
                scorer.kind = kind or scorer.kind
                yield values
    elif world_size() > 1:
        mine = (torch.from_numpy(scorer.measure(*job)) for job in islice(jobs, rank(), None, world_size()))
        left = max(0, blocks.last - first * blocks.size)
        like = torch.empty(0, len(MEASURED), dtype=torch.float64)
        for values in gather_in_order(mine, blocks.size, left, like):  # a block of each process
            yield from (part.numpy() for part in values.split(blocks.size))
    else:
        for job in jobs:
            yield scorer.measure(*job)
