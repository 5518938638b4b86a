"""Selection of the files of a folder by kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ndm.storage.texts import require_regular

__all__ = ["IMAGE_SUFFIXES", "Found", "by_suffix", "counted", "left_out_line", "walk"]

#: Suffixes of image files and their formats.
IMAGE_SUFFIXES = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
}

_MOST = 8  # the largest number of kinds counted separately in a line


@dataclass
class Found:
    """The files of a folder.

    Attributes:
        files: the files to read, by kind, in a fixed order.
        left_out: numbers of other files, by suffix or type.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def walk(folder: Path, kinds: Mapping[str, str]) -> Found:
    """Find all files in a folder and its subfolders. Symbolic links are followed, without cycles.

    Hidden files and folders (with a leading dot), such as remains of downloads, are left out.

    Args:
        folder: the folder.
        kinds: suffixes of the files to read, in lower case, with the names of their kinds.

    Raises:
        ValueError: a file with such a suffix is not a regular file (for example a pipe or a device).
    """
    found = Found({kind: [] for kind in kinds.values()})
    above = {str(folder): frozenset([os.path.realpath(folder)])}  # the parents of each folder
    for parent, folders, names in os.walk(folder, followlinks=True):
        entered, kept = above.pop(parent), []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            if name.startswith("."):
                found.left_out["hidden folder"] += 1
            elif real in entered:
                found.left_out["link to a folder that it is in"] += 1
            else:
                above[path] = entered | {real}
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            _sort(Path(parent, name), kinds, found)
    return found


def _sort(file: Path, kinds: Mapping[str, str], found: Found) -> None:
    kind = kinds.get(file.suffix.lower())
    if file.name.startswith("."):
        found.left_out["hidden file"] += 1
    elif kind is None:
        found.left_out[_ending(file)] += 1
    elif not file.exists():
        found.left_out["broken link"] += 1
    else:
        require_regular(file)
        found.files[kind].append(file)


def _ending(file: Path) -> str:
    return file.suffix.lower() or "file without an ending"


def by_suffix(files: Sequence[Path]) -> Counter[str]:
    """The number of files per suffix."""
    return Counter(map(_ending, files))


def counted(counts: Mapping[str, int], most: int = _MOST) -> str:
    """Counts as text, the largest first: "80 PNG, 4 GIF"."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    words = [f"{n:,} {name}" for name, n in ordered[:most]]
    if ordered[most:]:
        words.append(f"{sum(n for _, n in ordered[most:]):,} of {len(ordered) - most} other kinds")
    return ", ".join(words)


def left_out_line(left_out: Mapping[str, int], read: str) -> list[str]:
    """The line about files that were left out, if any. ``read`` names what is read, for example "images"."""
    n = sum(left_out.values())
    return [f"left out: {counted(left_out)} ({read} are read)"] if n else []
