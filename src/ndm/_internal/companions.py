"""Processes of one computer that share work as the processes of a launcher do, started by the first of them."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

from ndm._internal.signals import uninterrupted
from ndm._internal.workers import ending, one_thread, packed, serve_parent, started, unpacked

__all__ = ["companions"]

#: Seconds to wait for the error of a process that left the group.
_PATIENCE = 10.0


@contextlib.contextmanager
def companions(number: int, follow: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Make this process the first of ``number`` processes, each with one thread, as if a launcher had started them.

    They connect in :func:`ndm._internal.distributed.process_group`. The others call ``follow(ready, *arguments)``,
    which calls ``ready()`` before it connects, and end with this context. They print nothing.

    Raises:
        ChildProcessError: another process was killed.
        Exception: the first error of another process.
    """
    if number == 1:
        yield
        return
    store = dist.TCPStore("127.0.0.1", 0, number, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",  # the store is that of this function
    }  # fmt: skip
    group: list[tuple[Connection, Any]] = []
    try:
        for rank in range(1, number):
            group.append(started(_accompany, {**shared, "RANK": str(rank)}, follow, arguments))
        for channel, process in group:  # here signals have an effect, but not while the processes connect
            _receive(channel, process)
        with _environment({**shared, "RANK": "0"}), one_thread():
            yield
    except ConnectionError as error:
        raise _cause(group, error) from None
    finally:
        with uninterrupted():
            for channel, process in group:
                process.kill()
                process.join()
                channel.close()


def _accompany(
    channel: Connection, environment: Mapping[str, str], follow: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    serve_parent()
    os.environ.update(environment)
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            follow(lambda: channel.send_bytes(packed((None,))), *arguments)
        except Exception as error:
            channel.send_bytes(packed((error, traceback.format_exc())))


def _receive(channel: Connection, process: Any) -> None:
    """Wait for a message of another process, and raise the error in it, if any."""
    try:
        message = channel.recv_bytes()
    except (EOFError, OSError):
        raise ending(process) from None
    unpacked(message)


def _cause(group: list[tuple[Connection, Any]], error: Exception) -> Exception:
    """The error because of which a process left the group; if none is known, that of this process."""
    for channel, process in group:
        try:
            if channel.poll(_PATIENCE):
                _receive(channel, process)
        except ConnectionError:  # it stopped because of another one
            continue
        except Exception as cause:
            return cause
    return error


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
