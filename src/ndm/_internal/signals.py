"""Ctrl-C and SIGTERM: when they stop a command, and what is said of what it leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["telling", "terminable", "uninterrupted"]


#: What ends a process besides Ctrl-C: SIGHUP, where there is one, comes when its terminal is closed, unless it is
#: ignored, as by nohup.
_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Whether the command that is running was told to stop.
_told = False


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, which clusters and ``kill`` send, and SIGHUP be KeyboardInterrupts, and let a KeyboardInterrupt stay
    one.

    Libraries in C take one that comes while they look at an argument for a fault of the argument.
    """
    global _told
    if threading.current_thread() is not threading.main_thread():  # which alone may do so
        yield
        return

    def stop(signum: int, frame: object) -> None:
        global _told
        _told = True
        if signum != signal.SIGINT:
            signal.signal(signum, signal.SIG_IGN)  # what is being saved should not be stopped as well
        raise KeyboardInterrupt

    _told = False
    before = {number: signal.signal(number, stop) for number in _ENDS if signal.getsignal(number) != signal.SIG_IGN}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception:
        if _told:
            raise KeyboardInterrupt from None
        raise
    finally:
        _told = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until what is done here is done: the saving of files that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDS)}
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
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or (_told and isinstance(error, Exception))):
            raise
        raise KeyboardInterrupt(otherwise if _stamp(file) == before else written) from None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that takes its name; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
