"""Sources of rows to score: tensors, table files or images, read in blocks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import Examples, from_levels
from ndm.data.columns import some
from ndm.data.mixed import read_cells, rows_of_numbers
from ndm.data.sources import find_source
from ndm.data.table import TableFile
from ndm.method.encoding import TableEncoding
from ndm.storage.atomic import sha256_of

__all__ = ["ExampleRows", "ImageRows", "LabelledRows", "MixedRows", "Rows", "TableRows"]

#: Number of rows read at a time for a checksum.
_AT_ONCE = 1024


@runtime_checkable
class Rows(Protocol):
    """Base class of examples that are read sequentially.

    Attributes:
        count: number of examples.
    """

    count: int

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        """Iterate over the examples from index ``skip``, in blocks of ``size``, (n, \\*shape)."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return an identifier of these rows, in JSON types."""
        ...


@runtime_checkable
class LabelledRows(Rows, Protocol):
    """Base class of examples that may have labels."""

    def labels(self, classes: int) -> Tensor | None:
        """Return the labels of all examples, (N,), for a model of so many classes; None if there are none."""
        ...


class ExampleRows:
    """Rows of a tensor, or of a split of a data set.

    Args:
        examples: (N, \\*shape).
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.count = len(examples)

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        for start in range(skip, self.count, size):
            yield self.examples[start : min(start + size, self.count)]

    def identity(self) -> dict[str, Any]:
        checksum = 0
        for block in self.blocks(_AT_ONCE, 0):
            checksum = zlib.crc32(block.cpu().contiguous().numpy().tobytes(), checksum)
        return {"examples": self.count, "checksum": checksum}


class TableRows:
    """Rows of a CSV or Parquet file, which are all checked before scoring.

    Args:
        path: the file.
        shape: shape of an example; the number of columns is its number of entries.
        columns: names and order of the columns; None for all numeric columns.
        levels: K, if the columns contain integers 0 ... K - 1.
        label: name of the column of labels, which is not one of ``columns``; None for no labels.

    Raises:
        ValueError: the file has other columns or no column of that name, is invalid for
            :class:`~ndm.data.table.TableFile`, or is empty.
        FileNotFoundError: the file does not exist.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        columns: Sequence[str] | None = None,
        levels: int | None = None,
        label: str | None = None,
    ) -> None:
        self.file = TableFile(path, fixed=True)
        self.shape, self.levels, self.label = tuple(shape), levels, label
        if label is not None:
            self.file.choose([label])  # checks that it is there
        self.columns = tuple(name for name in self.file.choose(columns) if name != label)
        if len(self.columns) != math.prod(self.shape):
            raise ValueError(
                f"The model expects {math.prod(self.shape)} columns, but {path} has {len(self.columns)} numeric "
                f"columns: {some(self.columns)}."
            )
        self.count = self.file.check(self.columns, levels)
        if self.count == 0:
            raise ValueError(f"{path} has no rows to score.")

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        for piece in self.file.pieces(self.columns, size, skip, self.levels):
            values = torch.from_numpy(piece)
            x = values if self.levels is None else from_levels(values.long(), self.levels)
            yield x.reshape(-1, *self.shape)

    def labels(self, classes: int) -> Tensor | None:
        return None if self.label is None else torch.from_numpy(self.file.all_of([self.label])[:, 0])

    def identity(self) -> dict[str, Any]:
        path = self.file.path
        return {"table": str(path.resolve()), "sha256": sha256_of(path), "columns": list(self.columns)}


class MixedRows:
    """Rows of a CSV or Parquet file with columns of several kinds, which are read as a whole.

    Args:
        path: the file.
        encoding: the columns of the model.

    Raises:
        ValueError: the file lacks a column or holds cells that the model has no value for, or is empty.
        FileNotFoundError: the file does not exist.
    """

    def __init__(self, path: str, encoding: TableEncoding) -> None:
        self.file = TableFile(path, fixed=True)
        self.encoding = encoding
        cells = read_cells([self.file], texts=encoding.texts)
        self.notes: list[str] = []
        numbers = rows_of_numbers(encoding.table, cells, path, self.notes.append)
        if len(numbers) == 0:
            raise ValueError(f"{path} has no rows to score.")
        for i, column in enumerate(encoding.table):
            holes = int(np.isnan(numbers[:, i]).sum())
            if holes and not column.missing:
                raise ValueError(
                    f"The column {column.name!r} of {path} has {holes:,} missing cells, and had none in the training: "
                    "fill them, remove their rows, or score the other cells with --missing left-out."
                )
        self.count = len(numbers)
        self._rows = torch.from_numpy(numbers)

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        for start in range(skip, self.count, size):
            yield self._rows[start : start + size]

    def identity(self) -> dict[str, Any]:
        path = self.file.path
        return {"table": str(path.resolve()), "sha256": sha256_of(path), "columns": list(self.encoding.names)}


class ImageRows:
    """Images of a source, in order, decoded on demand: see :class:`ndm.data.Images`.

    Args:
        path: as for Images.
        shape: shape of the model's images, (C, H, W).
        size: target size for resizing; None for no resizing.
        channels: 1 or 3 to convert all images to grey or colour; None for no conversion.
        split: split of the source; None if it has only one.
        background: background colour for transparent images; None to reject them.

    Raises:
        ValueError: the split does not exist or is ambiguous, or the source is damaged; while reading, an image has
            another shape.
        FileNotFoundError: the path or name does not exist.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        size: int | None = None,
        channels: int | None = None,
        split: str | None = None,
        background: str | None = "white",
    ) -> None:
        self.path, self.shape, self.size, self.channels = path, tuple(shape), size, channels
        self.background = background
        self.source = find_source(path)
        splits = self.source.load(False, None, None)
        if split is None and len(splits) > 1:
            raise ValueError(f"{path} has the splits {', '.join(splits)}: choose one.")
        self.split = split or next(iter(splits))
        if self.split not in splits:
            raise ValueError(f"{path} has no {self.split} split: it has {', '.join(splits)}.")
        self.rows = splits[self.split]
        if not self.rows.count:
            raise ValueError(f"There are no images in {self.rows.where}.")
        self.count: int = self.rows.count

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        from ndm.data.building import Decoder, name_of
        from ndm.data.pixels import from_pixels

        row = skip
        with Decoder(self.size, self.channels, self.shape, self.background) as decoder:
            for cells, _ in self.rows.skip(skip).pieces(size):
                names = [name_of(cell, f"in row {row + i}", self.rows) for i, cell in enumerate(cells)]
                yield from_pixels(torch.from_numpy(decoder(cells, names)))
                row += len(cells)

    def labels(self, classes: int) -> Tensor | None:
        names = self.rows.names
        if names is not None and len(names) != classes:
            raise ValueError(
                f"{self.rows.where} has {len(names)} classes, and the model {classes}, so that the labels may have "
                "another meaning: give all classes of the training, or the class of all images (--label K)."
            )
        found = self.rows.labels()
        return None if found is None else torch.tensor(found)

    def identity(self) -> dict[str, Any]:
        return {
            "images": self.source.fingerprint(),
            "split": self.split,
            "shape": [self.size, self.channels, self.background],
        }
