"""A lock that allows one training process per folder."""

from __future__ import annotations

import weakref
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["FolderLock"]

#: The locks held by this process, by folder.
_HELD: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """Locks a folder against other processes while the object and the process exist, or to the end of a ``with``.

    Locking a folder again in the same process releases the old lock. There is no lock if the file system does not
    support locks.

    Args:
        folder: the folder. The file ``.lock`` is created in it and not removed.

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

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        # An interrupt in here is raised; in the finalizer Python would print it and go on.
        self.let_go()


def _let_go(lock: FileLock) -> None:
    # The file is not deleted: otherwise one process could lock the deleted file and another one a new file.
    lock.release(force=True)
