"""Work shared among processes: their ranks, and collective operations on their results.

Processes are started by ``torchrun`` or a cluster's launcher, which set each process's rank in environment variables,
or by Lightning during training. Otherwise there is one process, and these functions have no overhead.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ndm._internal.signals import heeded

__all__ = [
    "all_gather",
    "all_reduce",
    "from_first",
    "from_some",
    "gather_in_order",
    "is_first",
    "process_group",
    "rank",
    "shard",
    "strided_share",
    "world_size",
]


AnyT = TypeVar("AnyT")

#: Seconds that a process waits for the others to join.
PATIENCE = 120.0


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _running() else 1


def is_first() -> bool:
    """Whether this process writes files and messages for all processes."""
    return rank() == 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Join the process group of a launcher, if there is one, and leave it on exit. Yields the device to use.

    Args:
        device: ``auto``, or a torch device. Each process of a node uses its own GPU.

    Raises:
        ValueError: the device is not available, or the processes cannot connect.
        ConnectionError: another process ended early.
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
        raise ValueError(
            f"The device {device!r} is not available ({reason}): choose another device, such as cpu."
        ) from None
    try:
        yield place
    except RuntimeError as error:
        if not (joining and _is_of_the_others(error)):
            raise
        raise ConnectionError(
            f"Process {rank()} of {world_size()} stops because another process failed or did not respond in time: see "
            "the output of that process, and run the same command again."
        ) from None
    finally:
        if joining:
            dist.destroy_process_group()


def _processes() -> int:
    """The number of processes according to the launcher."""
    number = os.environ.get("WORLD_SIZE") or "1"
    if not number.isdecimal():
        raise ValueError(f"The environment variable WORLD_SIZE must be a number, got {number!r}: correct or unset it.")
    return int(number)


def _join(backend: str) -> None:
    """Connect to the other processes, waiting at most :data:`PATIENCE` seconds.

    PyTorch waits in C, where Python's signal handlers do not run, so signals end the process immediately until then.
    """
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heeded(numbers)}
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
        store.set_timeout(dist.default_pg_timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _is_of_the_others(error: RuntimeError) -> bool:
    """Whether an error comes from the connection between processes; Gloo's are identified by their text."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _chosen(device: str) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def shard(jobs: int) -> range:
    """The indices of this process's jobs, out of ``jobs`` jobs numbered from 0."""
    return range(rank(), jobs, world_size())


def strided_share(total: int, index: int, of: int) -> slice:
    """The rows of share number ``index`` out of ``of`` of a batch of ``total`` rows: every of-th row."""
    return slice(index, total, of)


def all_gather(values: Tensor, places: Tensor, total: int) -> Tensor:
    """Gather the values of all processes in their places, (total, ...); the result is the same in every process.

    Args:
        values: this process's values, (n, ...), with the same dtype in all processes; n may differ between processes.
        places: their indices in the result, integers in [0, total), (n,); each index is used by exactly one process.
        total: the total number of values.
    """
    whole = torch.zeros((total, *values.shape[1:]), dtype=values.dtype, device=values.device)
    whole[places.to(values.device)] = values
    return all_reduce(whole)  # each entry is zero in all processes but one, so the sum is exact


def gather_in_order(found: Iterator[Tensor], size: int, total: int, like: Tensor) -> Iterator[Tensor]:
    """Yield the blocks of all processes in order, the same in every process. Only one block per process is in memory.

    Args:
        found: the blocks of this process, (size, ...), those with the indices of :func:`shard`; the last block may be
            smaller.
        size: the number of values per block.
        total: the total number of values.
        like: a tensor of shape (0, ...) with the blocks' dtype, for a process without blocks.
    """
    if world_size() == 1:
        yield from found
        return
    for start in range(0, total, size * world_size()):
        stop = min(total, start + size * world_size())
        values = next(found, like)
        yield all_gather(values, rank() * size + torch.arange(len(values)), stop - start)


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, the same in each process."""
    if world_size() == 1:
        return values
    there = values.cuda() if dist.get_backend() == "nccl" else values.cpu()
    there = there.clone() if there is values else there
    work = dist.all_reduce(there, async_op=True)
    while there.device.type == "cpu" and not work.is_completed():
        time.sleep(1e-4)  # unlike PyTorch's own waiting, this can be interrupted
    work.wait()
    return there.to(values.device)


def from_first(value: AnyT) -> AnyT:
    """The value of the first process, in every process. It must be picklable."""
    if world_size() == 1:
        return value
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def from_some(value: AnyT) -> AnyT:
    """The value of the first process where it is not empty, in every process. It must be picklable."""
    if world_size() == 1:
        return value
    values: list[AnyT] = [value] * world_size()
    dist.all_gather_object(values, value)
    return next((found for found in values if found), value)
