"""Handling of Ctrl-C and SIGTERM, and messages about the files left by an interrupted command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["heeded", "set_stop_message", "set_stop_message_of", "stop_message", "terminable", "uninterrupted"]


#: Signals that end a process besides Ctrl-C. SIGHUP, if it exists, is sent when the terminal is closed. It may be
#: ignored, as by nohup.
_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Whether signals are delayed.
_delaying = False

#: What the running command leaves if it is stopped, or a function that finds it out.
_message: str | Callable[[], str] = ""


def heeded(numbers: Iterable[int]) -> list[int]:
    """The signals among some that are not ignored; Ctrl-C is ignored in the background job of a script."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def terminable(last: bool = False) -> Iterator[None]:
    """Convert SIGTERM (sent by clusters and ``kill``), SIGHUP and the errors they cause to KeyboardInterrupt.

    C libraries may report an interrupt during argument parsing as an invalid argument. The message of an earlier
    command is forgotten at the beginning, and that of this command is kept after the end, for what is stopped there.

    Args:
        last: whether the process ends after this. Signals then end it at once, so that Python's own end prints no
            traceback; otherwise the handlers are restored.
    """
    global _message
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    told = False

    def stop(signum: int, frame: object) -> None:
        nonlocal told
        told = True
        if signum != signal.SIGINT:
            signal.signal(signum, signal.SIG_IGN)  # do not interrupt saving again
        raise KeyboardInterrupt

    _message = ""
    before = {number: signal.signal(number, stop) for number in heeded(_ENDS)}
    # The handler is SIG_DFL in a process that `ndm.__main__` started.
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, *([signal.SIG_DFL] if last else [])):
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception:
        if told:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if last or handler is None else handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of this context, for example while saving files that belong together.

    They are then handled as they would have been; inside of another such context, at the end of that one.
    """
    global _delaying
    if _delaying or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    try:
        _delaying = True
        for number in (signal.SIGINT, *_ENDS):
            handler = signal.getsignal(number)
            if callable(handler):  # else it is ignored, or not set by Python
                before[number] = handler
                signal.signal(number, lambda signum, frame: came.append(signum))
        yield
    finally:
        _delaying = False
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            before[number](number, None)


def set_stop_message(message: str | Callable[[], str]) -> None:
    """Set what :func:`stop_message` returns until the running command has ended, also while it ends.

    Args:
        message: what the command leaves if it is stopped from here on, or a function that finds it out.
    """
    global _message
    _message = message


def set_stop_message_of(file: Path, written: str, otherwise: str) -> None:
    """Set the message of a stopped command: ``written`` if the file is new since this call, else ``otherwise``.

    A file that is renamed when complete may have been renamed just before the command is stopped.
    """
    before = _stamp(file)
    set_stop_message(lambda: otherwise if _stamp(file) in (before, None) else written)


def stop_message() -> str:
    """What the command that was started last leaves if it is stopped; empty if it has not said."""
    return _message if isinstance(_message, str) else _message()


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """A stamp that changes when the file is replaced; None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
