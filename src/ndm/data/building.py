"""Decoding many images at once, and writing them to the files that a data set is mapped from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ndm.data.cache import ArrayFile
from ndm.data.decoding import DecodingError, decode
from ndm.data.sources import Rows

__all__ = ["Decoder", "name_of", "write_split"]

_PIECE = 1024  # rows read and decoded before they are written
_SHARE = 64  # of these, a thread's at a time: Pillow lets go of the interpreter while it decodes


class Decoder:
    """Decodes images to one shape, in threads.

    Args:
        size: as :func:`ndm.data.decoding.decode` takes it.
        channels: likewise; None to take the first image's, which a coloured image among grey ones then is refused by,
            while a grey one among coloured ones is made to fit.
        shape: the shape to be, (C, H, W); None to take the first image's.
    """

    def __init__(self, size: int | None, channels: int | None, shape: tuple[int, ...] | None = None) -> None:
        self.size, self.channels, self.shape = size, channels, shape
        self._shape_of = "others"
        self._threads = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __call__(self, cells: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        """The pixels of images, uint8 (n, C, H, W). The names are for messages.

        Raises:
            ValueError: an image cannot be decoded, or is not of the others' shape.
        """
        if self.shape is None:
            self.shape = self._one(cells[0], names[0]).shape
            self._shape_of = names[0]
        shares = [slice(i, i + _SHARE) for i in range(0, len(cells), _SHARE)]
        return np.concatenate(list(self._threads.map(lambda share: self._some(cells[share], names[share]), shares)))

    def _some(self, cells: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        assert self.shape is not None
        channels = self.channels or (3 if self.shape[0] == 3 else None)
        found = np.empty((len(cells), *self.shape), np.uint8)
        for i, (cell, name) in enumerate(zip(cells, names, strict=True)):
            pixels = self._one(cell, name, channels)
            if pixels.shape != self.shape:
                raise ValueError(self._unequal(name, pixels.shape))
            found[i] = pixels
        return found

    def _one(self, cell: Any, name: str, channels: int | None = None) -> np.ndarray:
        try:
            return decode(cell, self.size, channels or self.channels)
        except DecodingError as error:
            raise ValueError(f"The {name} {error}.") from None

    def _unequal(self, name: str, shape: tuple[int, ...]) -> str:
        assert self.shape is not None
        if shape[1:] != self.shape[1:]:
            ours, theirs = (f"{s[2]} x {s[1]} pixels" for s in (self.shape, shape))
            return f"The {name} has {theirs} and the {self._shape_of} {ours}: give a size=, to which all are resized."
        return f"The {name} has colours and the {self._shape_of} has none: give channels=1 or channels=3."


def write_split(rows: Rows, split: str, folder: Path, decoder: Decoder) -> tuple[int, bool]:
    """Write ``split.npy``, uint8 (N, C, H, W), and ``split-labels.npy``, int64 (N,), if there are labels.

    A split none of whose labels is known (the hub writes -1 for labels that are withheld) has none.

    Returns:
        The number of images, and whether there are labels.

    Raises:
        ValueError: an image cannot be decoded or is not of the others' shape, or there is none.
    """
    labels: list[np.ndarray] = []
    with tqdm(total=rows.count, desc=f"decoding {split}", unit="image", disable=None) as bar:
        pieces = _decoded(rows, decoder)
        first = next(pieces, None)
        if first is None:
            raise ValueError(
                f"There are no images for the {split} split: {rows.where} has too few "
                "(if streaming, lower held or validation)."
            )
        with ArrayFile(folder / f"{split}.npy", first[0].shape[1:], np.uint8) as file:
            for images, their_labels in _chain(first, pieces):
                file.append(images)
                labels.append(their_labels)
                bar.update(len(images))
    every = np.concatenate(labels)
    labelled = bool((every >= 0).any())
    if labelled:
        with ArrayFile(folder / f"{split}-labels.npy", (), np.int64) as file:
            file.append(every)
    return len(every), labelled


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
    """What to call an image in a message: by its file, if it says which, else by its place."""
    path = cell.get("path") if isinstance(cell, dict) else None
    return f"image {path or place} of {rows.where}"
