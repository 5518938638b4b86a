"""Several processes at the same work: who this one is, and how what each has found is put together.

Processes are started by ``torchrun`` or a cluster's launcher, which tell each its place by environment variables, or by
Lightning during training. Without them all of this is about one process, and costs nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather",
    "all_reduce",
    "gather_in_order",
    "is_first",
    "process_group",
    "rank",
    "shard",
    "strided_share",
    "world_size",
]


#: Seconds that a process waits for the others to be there.
PATIENCE = 120.0


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _running() else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that a launcher has started, if it has, and part from them at the end; the device to work on.

    Args:
        device: ``auto``, or one of torch's. Each process of a node takes a GPU of its own.

    Raises:
        ValueError: the device is not there, or the processes cannot reach each other.
        ConnectionError: another process has ended before its work was done.
    """
    joining = _processes() > 1 and not _running()
    try:
        place = torch.device(_chosen(device))
        if joining:
            if place.type == "cuda":
                torch.cuda.set_device(place)
            _join("nccl" if place.type == "cuda" else "gloo")
        if place.type == "meta":
            raise ValueError("it holds no numbers")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if joining:
            raise ValueError(f"The processes cannot reach each other: {reason}") from None
        raise ValueError(f"The device {device!r} is not there or not a device ({reason}); try --device cpu.") from None
    try:
        yield place
    except RuntimeError as error:
        if not (joining and _is_of_the_others(error)):
            raise
        raise ConnectionError(
            f"Another of the {world_size()} processes has ended, or has not answered in time, and so process {rank()} "
            "ends: see what that one has said. The same command starts again."
        ) from None
    finally:
        if joining:
            dist.destroy_process_group()


def _processes() -> int:
    """How many processes the launcher says there are."""
    number = os.environ.get("WORLD_SIZE") or "1"
    if not number.isdecimal():
        raise ValueError(f"The environment has WORLD_SIZE={number}, which should be a number: correct or unset it.")
    return int(number)


def _join(backend: str) -> None:
    """Find the other processes, for :data:`PATIENCE` at most.

    PyTorch waits in C, where no handler of a signal is called: until they are found, signals end the process at once.
    """
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
        store.set_timeout(dist.default_pg_timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _is_of_the_others(error: RuntimeError) -> bool:
    """Whether an error comes of what connects the processes: Gloo's are known by their text only."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _chosen(device: str) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def shard(jobs: int) -> range:
    """Which of so many jobs, numbered from 0, are this process's."""
    return range(rank(), jobs, world_size())


def strided_share(total: int, index: int, of: int) -> slice:
    """The rows of a batch of ``total`` that are share number ``index`` of ``of``: every of-th one."""
    return slice(index, total, of)


def all_gather(values: Tensor, places: Tensor, total: int) -> Tensor:
    """All the values that the processes have found, in their places, (total, ...), the same in every process.

    Args:
        values: what this process has found, (n, ...), of the same type in all of them; each may have its own n.
        places: where they belong, integers in [0, total), (n,); every place is filled by exactly one process.
        total: how many there are in all.
    """
    whole = torch.zeros((total, *values.shape[1:]), dtype=values.dtype, device=values.device)
    whole[places.to(values.device)] = values
    return all_reduce(whole)  # every place is zero in all processes but one, so that the sum is exact


def gather_in_order(found: Iterator[Tensor], size: int, total: int, like: Tensor) -> Iterator[Tensor]:
    """The blocks that the processes find, in their order, the same in every process: as many as there are processes at
    a time, so that memory holds no more.

    Args:
        found: the blocks of this process, (size, ...), the last of all maybe smaller: those numbered by :func:`shard`.
        size: how many values are in a block.
        total: how many there are in all.
        like: of the shape, (0, ...), and the type of the blocks, for a process that has none.
    """
    if world_size() == 1:
        yield from found
        return
    for start in range(0, total, size * world_size()):
        stop = min(total, start + size * world_size())
        values = next(found, like)
        yield all_gather(values, rank() * size + torch.arange(len(values)), stop - start)


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, the same in every one."""
    if world_size() == 1:
        return values
    there = values.cuda() if dist.get_backend() == "nccl" else values.cpu()
    there = there.clone() if there is values else there
    dist.all_reduce(there)
    return there.to(values.device)
