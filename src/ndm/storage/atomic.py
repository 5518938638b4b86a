"""Atomic writing of files and folders.

Data are written to a temporary file in the same folder, flushed to the disk, and renamed. After a crash, a full disk or
a killed process, the earlier file, or none, remains. A temporary file is locked by its writer, so that files left by
killed processes can be identified. They are removed by the next writer of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ndm._internal.signals import uninterrupted
from ndm.storage.texts import require_regular

__all__ = ["atomic_folder", "atomic_path", "atomic_write", "flush", "naming", "refuse_if_being_written", "sha256_of"]

#: The number of hexadecimal digits in a temporary name.
DIGITS = 8

#: The error numbers of failed writes to a disk.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file for writing that replaces ``path`` when it is complete.

    After an exception it is removed, and ``path`` is unchanged.

    Args:
        path: the file. The target of a symbolic link is replaced, not the link.

    Raises:
        OSError: writing fails.
    """
    with atomic_path(path) as fresh, fresh.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike[str], replace: bool = True, then: Callable[[], object] | None = None
) -> Iterator[Path]:
    """A temporary path, with the suffix of ``path``, whose file replaces ``path`` on exit.

    After an exception it is removed, and ``path`` is unchanged. An existing file's permissions are kept.

    Args:
        path: the file. The target of a symbolic link is replaced, not the link.
        replace: whether a file at ``path`` may be replaced.
        then: called when the file has its name; Ctrl-C and SIGTERM do not come in between.

    Raises:
        FileExistsError: ``path`` exists and may not be replaced; raised on exit at the latest.
        ValueError: ``path`` exists and is not a file.
        OSError: writing fails.
    """
    if Path(path).exists() and not Path(path).is_dir():
        require_regular(path)
    with _beside(path, _open_locked, lambda fresh: fresh.unlink(missing_ok=True)) as (place, fresh):
        yield fresh
        flush(fresh)
        if replace and place.exists():
            shutil.copymode(place, fresh)
        with uninterrupted():
            if replace:
                fresh.replace(place)
            else:
                _name_new(fresh, place)
            if then is not None:
                then()
        flush(place.parent)


def _name_new(fresh: Path, place: Path) -> None:
    """Rename a file if the new name does not exist."""
    try:
        os.link(fresh, place)  # unlike a rename, fails if the name exists
    except FileExistsError:
        raise _exists(place) from None
    except OSError:  # the file system does not support links
        if place.exists():
            raise _exists(place) from None
        fresh.rename(place)
    else:
        fresh.unlink()


def _exists(place: Path) -> FileExistsError:
    return FileExistsError(f"{place} was created by another program and was not replaced: move it to another place.")


def refuse_if_being_written(path: str | os.PathLike[str], own: Path | None = None) -> None:
    """Raise FileExistsError if another process is writing the file.

    If two processes start at the same time and call this after creating their temporary files, at least one fails.

    Args:
        path: the file.
        own: the temporary file of this process, if it is writing the file.
    """
    where = Path(os.path.realpath(path))
    for other in _temporaries(where):
        if other != own and _is_locked(other):
            raise FileExistsError(f"Another process is writing {path}: wait for it, or choose another name.")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that replaces ``path`` on exit.

    An earlier folder is moved to :func:`aside` during the exchange, and then removed.

    Raises:
        OSError: writing fails.
    """
    with _beside(path, _make_locked, lambda fresh: shutil.rmtree(fresh, ignore_errors=True)) as (place, fresh):
        yield fresh
        for file in fresh.iterdir():
            flush(file)
        flush(fresh)
        with uninterrupted():
            _exchange(fresh, place)
        flush(place.parent)


@contextlib.contextmanager
def _beside(
    path: str | os.PathLike[str], make: Callable[[Path], int | None], remove: Callable[[Path], object]
) -> Iterator[tuple[Path, Path]]:
    """The target of a path, and a temporary file or folder beside it, which is removed on exit.

    Args:
        path: the requested path, possibly a symbolic link.
        make: creates the temporary file or folder; returns a descriptor that holds its lock, or None.
        remove: removes it if it exists.
    """
    place = Path(os.path.realpath(path))
    sweep(place)
    fresh, held = place.with_name(_temporary(place)), None
    with naming(path, fresh):
        try:
            held = make(fresh)
            yield place, fresh
        finally:
            with uninterrupted():
                remove(fresh)
                if held is not None:
                    os.close(held)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """Add the path to errors of writing, which otherwise have no file name or a temporary one. Errors that libraries
    raise for an OSError become OSErrors.

    Args:
        path: the file or folder being written.
        temporary: its temporary path.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        if error.filename is None and error.errno in _OF_A_DISK:
            name = os.fspath(path)
        elif temporary is not None and (name == str(temporary) or name.startswith(f"{temporary}{os.sep}")):
            name = os.fspath(path) + name[len(str(temporary)) :]
        else:
            raise
        raise OSError(error.errno, error.strerror, name) from None
    except RuntimeError as error:  # raised by torch.save for an OSError
        if not isinstance(error.__context__, OSError) or error.__context__.errno is None:
            raise
        raise OSError(error.__context__.errno, error.__context__.strerror, os.fspath(path)) from None


def aside(path: Path) -> Path:
    """The path of an earlier folder during the exchange with the new one."""
    return path.with_name(f".{path.name}-old")


def _exchange(fresh: Path, path: Path) -> None:
    old = aside(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Flush a file's contents, or the names in a folder, to the disk.

    Otherwise a rename may reach the disk before the contents.
    """
    held = _open_folder(path) if path.is_dir() else os.open(path, os.O_RDWR)
    if held is None:
        return
    try:
        os.fsync(held)
    except OSError:
        if not path.is_dir():  # some file systems do not support it for folders
            raise
    finally:
        os.close(held)


def sweep(path: Path) -> None:
    """Remove temporary files and folders of ``path`` left by killed processes."""
    for left in _temporaries(path):
        with contextlib.suppress(OSError):
            held = _open_folder(left) if left.is_dir() else os.open(left, os.O_RDWR)
            if held is None:
                continue
            try:
                if not _try_lock(held):
                    continue  # being written by another process
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
            finally:
                os.close(held)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal digits.

    Raises:
        OSError: reading fails.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 17):
            found.update(piece)
    return found.hexdigest()


def _temporaries(path: Path) -> list[Path]:
    """All temporary files and folders of ``path``."""
    return list(path.parent.glob(f".{glob.escape(path.stem)}.{'[0-9a-f]' * DIGITS}{glob.escape(path.suffix)}"))


def _temporary(path: Path) -> str:
    return f".{path.stem}.{secrets.token_hex(DIGITS // 2)}{path.suffix}"


def _open_folder(path: Path) -> int | None:
    """A descriptor of a folder; None if the system has none."""
    return os.open(path, os.O_RDONLY) if hasattr(os, "O_DIRECTORY") else None


def _open_locked(fresh: Path) -> int:
    """Create a temporary file; returns a descriptor that holds its lock."""
    while True:
        held = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _try_lock(held, wait=True)  # another process may be testing the lock
        if os.fstat(held).st_nlink:
            return held
        os.close(held)  # removed by another writer before it was locked


def _make_locked(fresh: Path) -> int | None:
    """Create a temporary folder; returns a descriptor that holds its lock, or None if not supported."""
    fresh.mkdir()
    held = _open_folder(fresh)
    if held is not None:
        _try_lock(held)
    return held


def _is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file."""
    try:
        import fcntl

        held = os.open(path, os.O_RDWR)
    except (ModuleNotFoundError, OSError):
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system does not support locks
        return False
    finally:
        os.close(held)
    return False


def _try_lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed. Returns whether it succeeded; false if locks are not supported."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
