"""Intermediate results of a scoring, for resuming it after an interruption."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ndm.storage.atomic import atomic_write, naming
from ndm.storage.texts import read_json

__all__ = ["MEASURED", "PartialScores"]

logger = logging.getLogger("ndm.scoring")

#: Files of the folder.
_OWN = re.compile(r"blocks|(\.settings\.[0-9a-f]+|settings)\.json")

#: Columns of a block.
MEASURED = ("nelbo", "nelbo_stderr", "log_prob", "log_prob_stderr", "solver_error")


class PartialScores:
    """The folder OUT.partial: the settings, and the completed blocks, each followed by a checksum.

    An incomplete block has no valid checksum, and is removed with all data after it.

    Attributes:
        rows: number of completed rows.
        blocks: number of completed blocks.

    Raises:
        ValueError: the folder has other settings, or is in use by another process.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.path = folder / "blocks"
        self.rows = self.blocks = 0

    def __enter__(self) -> PartialScores:
        self._require_own()
        self.folder.mkdir(exist_ok=True)
        self._file = open(self.path, "ab+")
        try:
            _lock(self._file, self.folder)
            self._claim(empty=self.path.stat().st_size == 0)
        except ValueError:
            self._file.close()
            raise
        for values in self.read():
            self._count(values)
        end = self._end()
        if self.path.stat().st_size > end:
            logger.warning("%s ends in an incomplete or damaged block, which is scored again", self.path)
            self._file.truncate(end)
        return self

    def __exit__(self, *exception: object) -> None:
        with naming(self.path):  # retries a failed write
            self._file.close()

    def append(self, values: np.ndarray) -> None:
        """Append a block, (n, 5), and flush it to the disk."""
        data = np.ascontiguousarray(values, "<f8").tobytes()
        with naming(self.path):
            self._file.write(data + self._checksum(data, self.blocks))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._count(values)

    def read(self) -> Iterator[np.ndarray]:
        """Iterate over the completed blocks, up to the first invalid one."""
        size, total = self.settings["batch_size"], self.settings["rows"]
        with open(self.path, "rb") as file:
            for block, start in enumerate(range(0, total, size)):
                n = min(size, total - start)
                data = file.read(8 * n * len(MEASURED))
                if file.read(4) != self._checksum(data, block):
                    return
                yield np.frombuffer(data, "<f8").reshape(n, len(MEASURED))

    def remove(self) -> None:
        """Delete the folder."""
        self._file.close()
        self.path.unlink()  # first: blocks without their settings cannot be resumed
        for left in self.folder.iterdir():
            if _OWN.fullmatch(left.name):
                left.unlink()
        with contextlib.suppress(OSError):  # it contains files of other programs
            self.folder.rmdir()

    def _require_own(self) -> None:
        """Raise an error if a folder of that name was not created by a scoring."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise ValueError(f"{self.folder} is not a folder with partial scores: move it to another place.")
        others = sorted(f.name for f in self.folder.glob("*") if f.is_symlink() or not _OWN.fullmatch(f.name))
        if others:
            raise ValueError(
                f"{self.folder} contains files that ndm did not write ({others[0]}): move them to another place."
            )

    def _claim(self, empty: bool) -> None:
        """Write the settings of a new scoring, or check that they match the existing ones."""
        path = self.folder / "settings.json"
        if empty:
            with atomic_write(path) as file:
                file.write((json.dumps(self.settings, indent=2) + "\n").encode())
            return
        try:
            old = dict(read_json(path))
        except (OSError, ValueError, TypeError):
            raise self._other("its settings.json is missing or damaged") from None
        new_settings = json.loads(json.dumps(self.settings))
        for name, value in new_settings.items():
            if old.get(name) != value:
                short = "" if name in ("model", "data") else f" ({old.get(name)} there, {value} here)"
                raise self._other(f"it was written with another {name}{short}")

    def _other(self, what: str) -> ValueError:
        return ValueError(
            f"{self.folder} cannot be resumed, because {what}: use the original options, choose another --out, or "
            "delete it."
        )

    def _count(self, values: np.ndarray) -> None:
        self.rows += len(values)
        self.blocks += 1

    def _end(self) -> int:
        """Return the end of the completed blocks in the file."""
        return 8 * len(MEASURED) * self.rows + 4 * self.blocks

    @staticmethod
    def _checksum(data: bytes, block: int) -> bytes:
        return struct.pack("<I", zlib.crc32(data, block))


def _lock(file: Any, folder: Path) -> None:
    """Lock the file against other processes; without effect if locks are not supported."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"Another process is using {folder}: wait for it to end, or choose another --out.") from None
