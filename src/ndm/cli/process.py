"""What a command may do only if the process is its own, and not that of a program that calls :func:`ndm.cli.main`."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["collect_garbage", "output_failed", "own", "spare_pandas", "watch_output"]

_own = False


class _Output(io.FileIO):
    """The standard output, which records whether it could not be written."""

    failed = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            self.failed = True
            raise


_output: _Output | None = None


def watch_output() -> None:
    """Record from here on whether the standard output can be written, see :func:`output_failed`.

    An error that is raised by a write does not say of which file it is.
    """
    global _output
    stream = sys.stdout
    if not _own or stream is not sys.__stdout__ or not isinstance(stream, io.TextIOWrapper):
        return
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):  # the console of Windows
        return
    with suppress(OSError, ValueError):  # of a stream without a descriptor
        stream.flush()
        _output = _Output(stream.fileno(), "wb", closefd=False)
        lines = stream.line_buffering or stream.write_through
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_output), stream.encoding, stream.errors, line_buffering=lines)


def output_failed() -> bool:
    """Whether the standard output of this process could not be written."""
    return _output is not None and _output.failed


def own() -> None:
    """Record that this process runs one command and ends.

    Garbage is not collected until :func:`collect_garbage`: during imports nothing is found, in a fifth of their time.
    """
    global _own
    _own = True
    gc.disable()


def collect_garbage() -> None:
    """Collect the garbage of this process, except among the objects that there are, such as imported modules."""
    if _own and not gc.isenabled():
        gc.freeze()
        gc.enable()


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, which takes a third of the time of PyTorch and is used by no table command.

    pyarrow imports pandas when it makes its first array, and remembers whether that succeeded. In the process of
    another program, in which pyarrow may be asked for data frames later, nothing is done.
    """
    if not _own or "pandas" in sys.modules:
        return
    with suppress(ModuleNotFoundError), _without("pandas"):  # pyarrow's absence is reported when a table is read
        import pyarrow

        pyarrow.scalar(0)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Make an import of a package fail, as if it were not installed."""

    class Absent:
        """A finder of modules that comes before the others."""

        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent)
    try:
        yield
    finally:
        sys.meta_path.remove(Absent)
