"""Cache folders that are created atomically by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ndm.storage.atomic import flush, sha256_of
from ndm.storage.texts import read_json

__all__ = ["ArrayFile", "cache_folder", "key_of", "made_once"]

_CONTENTS = "contents.json"  # written last: the contents of the folder

#: The largest size in bytes of a folder whose checksums are verified whenever it is opened, which takes about a second.
VERIFIED = 1 << 30

#: If set, the checksums of larger folders are verified too.
VERIFY = "NDM_VERIFY_CACHE"


def cache_folder(given: str | None = None) -> Path:
    """The cache folder: ``given``, else $NDM_CACHE, else ndm in the user's cache folder."""
    chosen = given or os.environ.get("NDM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("ndm", appauthor=False)


def key_of(description: Mapping[str, Any]) -> str:
    """A short key for a description of JSON types; equal descriptions have equal keys."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]


def made_once(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Ensure that a folder exists and is complete, and return the facts recorded when it was created.

    ``make`` writes to a temporary folder that is renamed when complete; other processes that need the same folder wait.
    Remains of killed processes are removed, and a damaged folder is created again. It is damaged if its size has
    changed or, up to :data:`VERIFIED` bytes or if the environment variable ``NDM_VERIFY_CACHE`` is set, if its SHA-256
    checksums have changed.

    Args:
        folder: the folder.
        make: writes the files to the given folder and returns facts about them as JSON types.

    Raises:
        OSError: the folder cannot be written.
    """
    facts = _facts(folder)
    if facts is not None:
        return facts
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        facts = _facts(folder)  # another process may have created it
        if facts is not None:
            return facts
        for left in folder.parent.glob(f"{folder.name}.making-*"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
        try:
            facts = dict(make(unfinished))
            made = sorted(unfinished.iterdir())
            files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in made}
            (unfinished / _CONTENTS).write_text(json.dumps({"files": files, "facts": facts}, indent=1))
            for file in unfinished.iterdir():
                flush(file)
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.chmod(0o777 & ~_umask())  # mkdtemp's folders are accessible only to their owner
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return facts


def _facts(folder: Path) -> dict[str, Any] | None:
    """The facts recorded for a folder, or None if it does not exist or has changed."""
    try:
        contents = read_json(folder / _CONTENTS)
        verified = bool(os.environ.get(VERIFY)) or sum(file["bytes"] for file in contents["files"].values()) <= VERIFIED
        for name, file in contents["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != file["bytes"]:
                return None
            if name.endswith(".npy"):
                np.load(folder / name, mmap_mode="r")  # reads the header only
            if verified and sha256_of(folder / name) != file["sha256"]:
                return None
        return dict(contents["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class ArrayFile:
    """An array written to a ``.npy`` file in pieces, with a length that need not be known in advance.

    Unlike writing to a memory-mapped sparse file, it raises an error when the disk is full.

    Args:
        path: the file; an existing one is replaced.
        shape: shape of one entry; pieces are (n, \\*shape).
        dtype: dtype of the values.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.length = 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, piece: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(piece, self.dtype).data)
        self.length += len(piece)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()  # with the final length; NumPy reserves space for it
        self._file.close()

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_header(self) -> None:
        facts = {
            "shape": (self.length, *self.shape),
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(self.dtype),
        }
        np.lib.format.write_array_header_1_0(self._file, facts)
