"""Which files of a folder are read, and which are left out, by their kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ndm.storage.texts import require_regular

__all__ = ["IMAGE_SUFFIXES", "Found", "by_suffix", "counted", "left_out_line", "walk"]

#: Endings of image files, and the formats that they stand for.
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

_MOST = 8  # kinds that a line counts one by one


@dataclass
class Found:
    """The files of a folder.

    Attributes:
        files: those that are read, by kind, in a fixed order.
        left_out: how many others there are, by their ending or by what they are.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def walk(folder: Path, kinds: Mapping[str, str]) -> Found:
    """All files in a folder and below it. Symbolic links to files and folders are followed, but not in a circle.

    Hidden files and folders, whose names begin with a dot, are left out: such are what downloads leave behind.

    Args:
        folder: where to begin.
        kinds: the endings of the files to be read, in small letters, each with the name of its kind.

    Raises:
        ValueError: a file with such an ending is no regular file but a pipe, a device or the like.
    """
    found = Found({kind: [] for kind in kinds.values()})
    above = {str(folder): frozenset([os.path.realpath(folder)])}  # the folders that a folder is in
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
    """How many files there are of each ending."""
    return Counter(map(_ending, files))


def counted(counts: Mapping[str, int], most: int = _MOST) -> str:
    """Counts as words, the greatest first: "80 PNG, 4 GIF"."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    words = [f"{n:,} {name}" for name, n in ordered[:most]]
    if ordered[most:]:
        words.append(f"{sum(n for _, n in ordered[most:]):,} of {len(ordered) - most} other kinds")
    return ", ".join(words)


def left_out_line(left_out: Mapping[str, int], read: str) -> list[str]:
    """The line about what was left out, if anything was. ``read`` says what is read, as in "images"."""
    n = sum(left_out.values())
    return [f"left out: {counted(left_out)} ({read} are read)"] if n else []
