"""A folder that one process trains in at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["FolderLock"]

#: The locks that this process holds, by the folder.
_HELD: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """Keeps other processes out of a folder, for as long as there is a reference to it and the process lives.

    A process that locks a folder again lets go of the old lock. Where the file system has no locks, nothing is locked.

    Args:
        folder: the folder, in which the file ``.lock`` is written, which stays.

    Raises:
        FileExistsError: another process has locked it.
    """

    let_go: weakref.finalize

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        if (own := _HELD.pop(folder, None)) is not None:
            own.let_go()
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise FileExistsError(
                f"Another process is training in {folder}: wait until it has ended, or choose another --out."
            ) from None
        except (OSError, NotImplementedError):
            pass
        self.let_go = weakref.finalize(self, _let_go, lock)
        _HELD[folder] = self


def _let_go(lock: FileLock) -> None:
    # The file stays: who had opened it before it was deleted could lock it, and another process a new one.
    lock.release(force=True)
