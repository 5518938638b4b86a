"""What a command may do only if the process is its own, and not that of a program that calls :func:`ndm.cli.main`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["collect_garbage", "own", "spare_pandas"]

_own = False


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
