"""Blocks of samples drawn by worker processes on one computer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ndm._internal.workers import Workers
from ndm.inference.options import SamplerOptions
from ndm.inference.sampling import sample_batches
from ndm.model import NDM

__all__ = ["draw_by_workers"]


@dataclass(frozen=True)
class _Draw:
    """Draws a block of :func:`ndm.sample_batches`, given its index and labels."""

    model: NDM
    n: int
    shape: tuple[int, ...]
    options: SamplerOptions
    seed: int
    batch_size: int
    half: bool

    def __call__(self, job: tuple[int, Tensor | None]) -> np.ndarray:
        block, labels = job
        drawn = sample_batches(
            self.model, self.n, self.shape, self.options, seed=self.seed, batch_size=self.batch_size,
            labels=None if labels is None else lambda where: labels, rank=block,
            world_size=_number(self.n, self.batch_size), progress=False,
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            _, x = next(drawn)
        return x.numpy()


def draw_by_workers(
    workers: int,
    model: NDM,
    n: int,
    shape: Sequence[int],
    options: SamplerOptions,
    *,
    seed: int,
    batch_size: int,
    labels: Callable[[slice], Tensor] | None = None,
    half: bool = False,
) -> Iterator[Tensor]:
    """Draw the samples of :func:`ndm.sample_batches` in worker processes, each with one thread.

    Args:
        workers: number of processes, at most one per block.
        model: the model, on the CPU.
        n: number of samples.
        shape: shape of a sample.
        options: the sampler.
        seed: seed of the samples.
        batch_size: samples per block.
        labels: function from a slice to the classes of its samples; None for a model without classes.
        half: run the networks in bfloat16.

    Yields:
        The blocks in order, (B, \\*shape).

    Raises:
        ChildProcessError: a worker process was killed.
    """
    number = _number(n, batch_size)

    def jobs() -> Iterator[tuple[int, Tensor | None]]:
        for block in range(number):
            where = slice(block * batch_size, min(n, (block + 1) * batch_size))
            yield block, None if labels is None else labels(where)

    draw = _Draw(model, n, tuple(shape), options, seed, batch_size, half)
    with Workers(min(workers, number), draw) as pool, tqdm(total=n, desc="sampling", disable=None, leave=False) as bar:
        for x in pool.map(jobs()):
            bar.update(len(x))
            yield torch.from_numpy(x)


def _number(n: int, batch_size: int) -> int:
    """The number of blocks."""
    return -(-n // batch_size)
