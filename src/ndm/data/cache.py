"""A folder that is made once, whatever happens: by one process at a time, and complete or not there at all."""

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

_CONTENTS = "contents.json"  # written last: what the folder holds

#: Bytes of a folder up to which its contents are compared with their checksums whenever it is opened: about a second.
VERIFIED = 1 << 30

#: Set to have those of larger folders compared as well.
VERIFY = "NDM_VERIFY_CACHE"


def cache_folder(given: str | None = None) -> Path:
    """Where caches lie: the folder given, else $NDM_CACHE, else ndm in the user's folder for caches."""
    chosen = given or os.environ.get("NDM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("ndm", appauthor=False)


def key_of(description: Mapping[str, Any]) -> str:
    """A short name for a description made of JSON's types: equal descriptions, equal names."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]


def made_once(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """See that a folder is there and complete, and return what its maker said about it.

    The maker writes into a temporary folder that takes the name when it is complete; meanwhile other processes that
    want the same folder wait. What a killed maker left is removed, and a damaged folder is made again: of another size,
    or, up to :data:`VERIFIED` bytes in all or where the environment variable ``NDM_VERIFY_CACHE`` is set, with other
    SHA-256 checksums than when it was made.

    Args:
        folder: the folder.
        make: writes the files into the folder that it is given, and returns facts about them, of JSON's types.

    Raises:
        OSError: the folder cannot be written.
    """
    facts = _facts(folder)
    if facts is not None:
        return facts
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        facts = _facts(folder)  # another process may have been faster
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
            unfinished.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return facts


def _facts(folder: Path) -> dict[str, Any] | None:
    """What the maker said about a folder, or None if it is not there or not as it was made."""
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
    """An array written to a ``.npy`` file piece by piece, whose length need not be known beforehand.

    Writing, unlike mapping a file of holes, says so when the disk is full.

    Args:
        path: the file, which is replaced.
        shape: shape of an entry: pieces are (n, \\*shape).
        dtype: type of the values.
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
        self._write_header()  # with the length; numpy leaves room for the first axis to grow
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
