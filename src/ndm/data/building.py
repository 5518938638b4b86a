"""Parallel decoding of images to files that are memory-mapped by a data set."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ndm.data.cache import ArrayFile
from ndm.data.decoding import BACKGROUND, DecodingError, Seen, decode, measure
from ndm.data.describing import row_hashes
from ndm.data.files import counted
from ndm.data.rows import Rows
from ndm.storage.memory import in_words

__all__ = ["ColouredError", "Decoder", "UnequalError", "build", "name_of", "write_split"]

_PIECE = 1024  # rows read and decoded before they are written
_SHARE = 64  # rows per thread task: Pillow releases the GIL while decoding
_LARGE = 128  # pixels: longer sides are mentioned in the summary


class ColouredError(ValueError):
    """A colour image after grey ones."""


class UnequalError(ValueError):
    """An image whose size differs from the previous ones."""


class Decoder:
    """Decodes images to one shape in threads.

    Args:
        size: see :func:`ndm.data.decoding.decode`.
        channels: likewise; None for that of the first image. Then colour images after a grey one raise an error, and
            grey images after a colour one are converted.
        shape: the required shape, (C, H, W); None for that of the first image.
        background: see :func:`ndm.data.decoding.decode`.

    Attributes:
        seen: counts of the images' properties.
    """

    def __init__(
        self,
        size: int | None,
        channels: int | None,
        shape: tuple[int, ...] | None = None,
        background: str | None = BACKGROUND,
    ) -> None:
        self.size, self.channels, self.shape = size, channels, shape
        self.background = background
        self.seen = Seen()
        self._shape_of = "others"
        self._threads = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __call__(self, cells: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        """The pixels of images, uint8 (n, C, H, W). The names are for messages.

        Raises:
            ValueError: an image cannot be decoded, or its shape differs from the others: see also
                :class:`ColouredError` and :class:`UnequalError`.
        """
        if self.shape is None:
            self.shape = self._one(cells[0], names[0], Seen()).shape
            self._shape_of = names[0]
        shares = [slice(i, i + _SHARE) for i in range(0, len(cells), _SHARE)]
        found = list(self._threads.map(lambda share: self._some(cells[share], names[share]), shares))
        for _, seen in found:
            self.seen.add(seen)
        return np.concatenate([pixels for pixels, _ in found])

    def _some(self, cells: Sequence[Any], names: Sequence[str]) -> tuple[np.ndarray, Seen]:
        assert self.shape is not None
        channels = self.channels or (3 if self.shape[0] == 3 else None)
        found, seen = np.empty((len(cells), *self.shape), np.uint8), Seen()
        for i, (cell, name) in enumerate(zip(cells, names, strict=True)):
            pixels = self._one(cell, name, seen, channels)
            if pixels.shape != self.shape:
                raise self._unlike(name, pixels.shape)
            found[i] = pixels
        return found, seen

    def _one(self, cell: Any, name: str, seen: Seen, channels: int | None = None) -> np.ndarray:
        try:
            return decode(cell, self.size, channels or self.channels, self.background, seen)
        except DecodingError as error:
            raise ValueError(f"The {name} {error}.") from None

    def _unlike(self, name: str, shape: tuple[int, ...]) -> ValueError:
        assert self.shape is not None
        if shape[1:] != self.shape[1:]:
            ours, theirs = (f"{s[2]} x {s[1]} pixels" for s in (self.shape, shape))
            return UnequalError(
                f"The {name} has {theirs} and the {self._shape_of} {ours}: give --data.size (size=) to resize all "
                "images."
            )
        return ColouredError(
            f"The {name} is a colour image, unlike the {self._shape_of}: give --data.channels 1 or 3 (channels=)."
        )


def write_split(rows: Rows, split: str, folder: Path, decoder: Decoder) -> tuple[int, bool]:
    """Write ``split.npy``, uint8 (N, C, H, W), and ``split-labels.npy``, int64 (N,), if there are labels.

    A split whose labels are all unknown (-1 on the hub) has no labels. The hashes of the images are written to
    ``split-hashes.npy``, uint64 (N,): see :func:`ndm.data.describing.row_hashes`.

    Returns:
        The number of images, and whether there are labels.

    Raises:
        ValueError: an image cannot be decoded, its shape differs from the others, or there are no images.
    """
    labels: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    with tqdm(total=rows.count, desc=f"decoding {split}", unit="image", disable=None) as bar:
        pieces = _decoded(rows, decoder)
        first = next(pieces, None)
        if first is None:
            raise ValueError(
                f"There are no images for the {split} split: {rows.where} has too few "
                "(if streaming, lower held or validation)."
            )
        _require_disk(folder, (rows.count or 0) * first[0][0].size, rows.where)
        with ArrayFile(folder / f"{split}.npy", first[0].shape[1:], np.uint8) as file:
            for images, their_labels in _chain(first, pieces):
                file.append(images)
                labels.append(their_labels)
                hashes.append(row_hashes([images]))
                bar.update(len(images))
    every = np.concatenate(labels)
    labelled = bool((every >= 0).any())
    if labelled:
        with ArrayFile(folder / f"{split}-labels.npy", (), np.int64) as file:
            file.append(every)
    with ArrayFile(folder / f"{split}-hashes.npy", (), np.uint64) as file:
        file.append(np.concatenate(hashes))
    return len(every), labelled


def _require_disk(folder: Path, size: int, where: str) -> None:
    """Raise an error if the disk has too little space for the decoded images.

    Raises:
        ValueError: there is too little space.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"The decoded images of {where} need {in_words(size)}, but the disk of {folder.parent} has only "
            f"{in_words(free)} free: set --data.cache to a folder on a larger disk, reduce --data.size, or give "
            "--data.streaming true."
        )


def _chain(first: tuple[np.ndarray, np.ndarray], rest: Iterable[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield first
    yield from rest


def _decoded(rows: Rows, decoder: Decoder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    row = 0
    for cells, labels in rows.pieces(_PIECE):
        names = [name_of(cell, f"in row {row + i}", rows) for i, cell in enumerate(cells)]
        yield decoder(cells, names), np.asarray(labels, np.int64)
        row += len(cells)


def name_of(cell: Any, place: str, rows: Rows) -> str:
    """The name of an image in messages: its file, if known, else its position."""
    path = cell.get("path") if isinstance(cell, dict) else None
    return f"image {path or place} of {rows.where}"


def build(
    splits: Mapping[str, Rows],
    folder: Path,
    path: str,
    size: int | None,
    channels: int | None,
    background: str | None,
    streaming: bool,
) -> dict[str, Any]:
    """Decode the images of all splits to one shape and write them to a folder: see :func:`write_split`.

    If ``channels`` is None, all images are converted to colour if one of them is in colour.

    Args:
        splits: the rows of each split.
        folder: the output folder.
        path: the source, for messages.
        size: see :func:`ndm.data.decoding.decode`, also for the next two.
        channels: likewise.
        background: likewise.
        streaming: the rows are remote and are not read again to count image sizes.

    Returns:
        Facts as JSON types: ``labelled`` by split, the names of the ``classes``, and ``lines`` about the images.

    Raises:
        ValueError: an image cannot be decoded, or the images are of several sizes.
    """
    try:
        with Decoder(size, channels, background=background) as decoder:
            labelled = {name: write_split(rows, name, folder, decoder)[1] for name, rows in splits.items()}
    except ColouredError:
        if channels is not None:
            raise
        return build(splits, folder, path, size, 3, background, streaming)
    except UnequalError as error:
        raise ValueError(str(error) if streaming else _several_sizes(splits.values(), path)) from None
    assert decoder.shape is not None
    train = splits["train"]
    notes = [f"labels: {train.note}"] if train.note else []
    lines = _lines_about(decoder.seen, size, decoder.shape) + notes
    return {"labelled": labelled, "classes": list(train.names or ()), "lines": lines}


def _lines_about(seen: Seen, size: int | None, shape: tuple[int, ...]) -> list[str]:
    """Lines about the original images and their conversion."""
    lines = [f"modes: {counted(seen.modes)}"]
    if len(seen.sizes) == 1:
        ((width, height),) = seen.sizes
        sizes = f"all {width} x {height}"
    else:
        sizes = f"{len(seen.sizes):,} sizes, most often {_most_common(seen.sizes)}"
    if size is None:
        lines.append(f"sizes: {sizes} pixels")
        if max(shape[1:]) > _LARGE:
            lines.append(f"warning: images of {shape[2]} x {shape[1]} pixels take long: --data.size 64 resizes them")
        return lines + _done(seen)
    small = sum(n for sides, n in seen.sizes.items() if min(sides) < size)
    enlarged = f"; {small:,} images are enlarged by this" if small else ""
    resized = f", resized to {size} pixels the shorter side, and the middle cropped{enlarged}"
    return [*lines, f"sizes: {sizes} pixels{'' if set(seen.sizes) == {(size, size)} else resized}", *_done(seen)]


def _done(seen: Seen) -> list[str]:
    return [f"images {what}: {n:,}" for what, n in seen.done.items()]


def _several_sizes(splits: Iterable[Rows], path: str) -> str:
    """The message for images of several sizes: the sizes, from the headers, and the option to set."""
    sizes = Counter(measure(cell) for rows in splits for cells, _ in rows.pieces(_PIECE) for cell in cells)
    sizes.pop((0, 0), None)
    side = min(sizes.most_common(1)[0][0])
    advice = max(4, min(64, 2 ** int(math.log2(side))))  # a power of two, which suits most networks
    return (
        f"{path} has images of {len(sizes):,} sizes, most often {_most_common(sizes)} pixels: give --data.size "
        f"{advice} (size={advice}) to resize the shorter sides to {advice} pixels and crop the centres; or remove "
        "images of other sizes."
    )


def _most_common(sizes: Counter[tuple[int, int]]) -> str:
    return ", ".join(f"{width} x {height} ({n:,})" for (width, height), n in sizes.most_common(3))
