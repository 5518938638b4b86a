"""Ctrl-C and SIGTERM: when they stop a command, and what is said of what it leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["telling", "terminable", "uninterrupted"]


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, which clusters and ``kill`` send, be a KeyboardInterrupt."""

    def stop(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is being saved should not be stopped as well
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone may do so
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until what is done here is done: the saving of files that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):  # else it is ignored, or another program's
            signal.signal(number, lambda signum, frame: came.append(signum))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        if came:
            raise KeyboardInterrupt


@contextmanager
def telling(file: Path, written: str, otherwise: str) -> Iterator[None]:
    """Let a KeyboardInterrupt say what is left: ``written`` if the file is another one than before, or ``otherwise``.

    A file that takes its name when it is whole may have done so just before the command was stopped.
    """
    before = _stamp(file)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(otherwise if _stamp(file) == before else written) from None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that takes its name; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
