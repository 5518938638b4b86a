"""Handling of Ctrl-C and SIGTERM, and messages about the files left by an interrupted command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["telling", "terminable", "uninterrupted"]


#: Signals that end a process besides Ctrl-C. SIGHUP, if it exists, is sent when the terminal is closed. It may be
#: ignored, as by nohup.
_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Whether the running command has been asked to stop.
_told = False


@contextmanager
def terminable() -> Iterator[None]:
    """Convert SIGTERM (sent by clusters and ``kill``), SIGHUP and the errors they cause to KeyboardInterrupt.

    C libraries may report an interrupt during argument parsing as an invalid argument.
    """
    global _told
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def stop(signum: int, frame: object) -> None:
        global _told
        _told = True
        if signum != signal.SIGINT:
            signal.signal(signum, signal.SIG_IGN)  # do not interrupt saving again
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
    """Delay Ctrl-C and SIGTERM until the end of this context, for example while saving files that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDS)}
    for number, handler in before.items():
        if callable(handler):  # else it is ignored, or not set by Python
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
    """Add a message to a KeyboardInterrupt: ``written`` if the file has changed, else ``otherwise``.

    A file that is renamed when complete may have been renamed just before the interrupt.
    """
    before = _stamp(file)
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or (_told and isinstance(error, Exception))):
            raise
        raise KeyboardInterrupt(otherwise if _stamp(file) == before else written) from None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """A stamp that changes when the file is replaced; None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
