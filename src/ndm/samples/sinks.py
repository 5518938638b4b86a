"""Output files written block by block with low memory use: CSV, Parquet, NumPy's .npz, and pictures."""

from __future__ import annotations

import csv
import importlib
import io
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import to_levels
from ndm.data.frames import from_numbers
from ndm.method.encoding import TableEncoding

__all__ = ["SINKS", "Content", "Sink", "Spill"]

#: Maximum rows and values per Parquet row group. Small groups increase the footer, which is kept in memory.
ROWS, NUMBERS = 8_192, 2**22


class Content:
    """Description of the samples to write.

    Args:
        n: number of samples.
        shape: shape of a sample.
        levels: K of a K-level decoder.
        numbered: K if the data were read as level numbers.
        columns: column names of a table.
        labels: function from a slice to the class labels, (n,); None if there are none.
        encoding: the columns of a table of several kinds.
    """

    def __init__(
        self,
        n: int,
        shape: Sequence[int],
        levels: int | None = None,
        numbered: int | None = None,
        columns: Sequence[str] | None = None,
        labels: Callable[[slice], Tensor] | None = None,
        encoding: TableEncoding | None = None,
    ) -> None:
        self.encoding = encoding
        self.n, self.shape, self.levels, self.labels = n, tuple(shape), levels, labels
        self.names = [f"x{i}" for i in range(math.prod(shape))] if columns is None else list(columns)
        self._numbered = None if columns is None else numbered
        self.label = "label"
        while self.label in self.names:
            self.label += "_"

    def rows(self, x: Tensor) -> np.ndarray:
        """Convert samples to rows of a table, (n, d), in the values of the original table."""
        flat = x.flatten(1).numpy()
        if self._numbered is None:
            return flat
        flat = to_levels(flat, self._numbered)
        return flat if self.levels is None else np.rint(flat).astype(int)

    def table(self, x: Tensor) -> Any:
        """Convert rows of numbers, (n, C), to an Arrow table with texts and dates."""
        assert self.encoding is not None
        return from_numbers(self.encoding.table, x.numpy())

    def labels_of(self, where: slice) -> dict[str, np.ndarray]:
        """Return the label column of some rows; empty if there are no labels."""
        return {} if self.labels is None else {self.label: self.labels(where).numpy()}


class Sink(Protocol):
    """Base class of the writers. Samples are passed in order; the file is complete after :meth:`close`."""

    def __init__(self, file: BinaryIO, content: Content) -> None: ...

    def write(self, x: Tensor, where: slice) -> None:
        """Write a block of samples, (B, \\*shape), in at least float32, at the given position."""

    def close(self, whole: bool = True) -> None:
        """Write buffered data, or discard them if not ``whole``; the file stays open."""


class CsvSink:
    """CSV with a header and a line per sample; labels are the last column."""

    def __init__(self, file: BinaryIO, content: Content) -> None:
        self._content = content
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        names = [*content.names, *([] if content.labels is None else [content.label])]
        # Older Python versions do not quote names with a carriage return, which readers take for a line end.
        quoted = any("\r" in name for name in names)
        how: Any = {"quoting": csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, "lineterminator": "\n"}
        self._how = how
        csv.writer(self._text, **how).writerow(names)

    def write(self, x: Tensor, where: slice) -> None:
        labels = self._content.labels_of(where)
        if self._content.encoding is not None:
            columns = [column.to_pylist() for column in self._content.table(x).columns]
            csv.writer(self._text, **self._how).writerows(zip(*columns, *labels.values(), strict=True))
            return
        rows = self._content.rows(x)
        formats = ["%.9g"] * rows.shape[1] + ["%d"] * len(labels)
        np.savetxt(self._text, np.column_stack([rows, *labels.values()]), delimiter=",", fmt=formats)

    def close(self, whole: bool = True) -> None:
        self._text.detach()  # flushes the buffer


class ParquetSink:
    """Parquet with a column per value of a sample; labels are the last column."""

    def __init__(self, file: BinaryIO, content: Content) -> None:
        self._file, self._content = file, content
        self._group = max(1, min(ROWS, NUMBERS // math.prod(content.shape)))
        self._waiting: list[tuple[Any, dict[str, np.ndarray]]] = []
        self._writer: Any = None

    def write(self, x: Tensor, where: slice) -> None:
        rows = self._content.rows(x) if self._content.encoding is None else self._content.table(x)
        self._waiting.append((rows, self._content.labels_of(where)))
        if sum(len(rows) for rows, _ in self._waiting) >= self._group:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        if self._content.encoding is not None:
            columns = dict(pa.concat_tables([rows for rows, _ in self._waiting]).to_pydict())
            schema = self._waiting[0][0].schema
            columns = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
        else:
            columns = dict(zip(self._content.names, np.concatenate([rows for rows, _ in self._waiting]).T, strict=True))
        for name in self._waiting[0][1]:
            columns[name] = np.concatenate([labels[name] for _, labels in self._waiting])
        self._waiting = []
        # NaN becomes a missing value, as in pandas.
        table = pa.table(
            {n: v if isinstance(v, pa.Array) else pa.array(v, from_pandas=True) for n, v in columns.items()}
        )
        if self._writer is None:
            # Dictionary encoding of distinct values only costs memory.
            recurring = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
            self._writer = ParquetWriter(self._file, table.schema, use_dictionary=recurring)
        self._writer.write_table(table)

    def close(self, whole: bool = True) -> None:
        if whole and self._waiting:
            self._write_group()
        if self._writer is not None:
            try:
                self._writer.close()
            finally:
                self._writer.is_open = False  # otherwise it would try again when deleted


class NpzSink:
    """The arrays ``x``, (n, \\*shape), and ``labels``, (n,), compressed as :func:`numpy.savez_compressed` does it."""

    def __init__(self, file: BinaryIO, content: Content) -> None:
        self._content = content
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self._member: Any = None

    def write(self, x: Tensor, where: slice) -> None:
        if self._member is None:
            self._member = self._begin("x", x.numpy().dtype, (self._content.n, *self._content.shape))
        self._member.write(np.ascontiguousarray(x.numpy()).tobytes())

    def _begin(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        member = self._zip.open(f"{name}.npy", "w", force_zip64=True)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        return member

    def close(self, whole: bool = True) -> None:
        if self._member is not None:
            self._member.close()
        if whole:
            self._write_labels()
        self._zip.close()

    def _write_labels(self) -> None:
        """Write the labels, recomputed because they follow all samples in the file."""
        if self._content.labels is None:
            return
        with self._begin("labels", np.dtype(np.int64), (self._content.n,)) as member:
            for start in range(0, self._content.n, ROWS):
                where = slice(start, min(start + ROWS, self._content.n))
                member.write(self._content.labels(where).numpy().astype(np.int64).tobytes())


class PictureSink:
    """Picture of images in a grid or of vectors as points; keeps all samples in memory."""

    #: Maximum numbers of samples and of values in a picture: 512 MB in float32.
    MOST, NUMBERS = 10_000, 2**27

    def __init__(self, file: BinaryIO, content: Content) -> None:
        self._file, self._content = file, content
        self._found: list[Tensor] = []

    @classmethod
    def most(cls, shape: Sequence[int]) -> int:
        """Return the maximum number of samples of a shape in a picture."""
        return max(1, min(cls.MOST, cls.NUMBERS // math.prod(shape)))

    def write(self, x: Tensor, where: slice) -> None:
        self._found.append(x)

    def close(self, whole: bool = True) -> None:
        if whole:
            picture = io.BytesIO()
            plotting = importlib.import_module("ndm.plotting")  # requires matplotlib
            plotting.save_grid(torch.cat(self._found), picture, self._content.levels)
            self._file.write(picture.getbuffer())


#: Writers by file suffix.
SINKS: dict[str, type[Sink]] = {".png": PictureSink, ".csv": CsvSink, ".npz": NpzSink, ".parquet": ParquetSink}


class Spill(io.RawIOBase):
    """Output file that is moved to the temporary folder, and continued there, if its disk is full.

    Args:
        path: the file, which must exist.
        name: file name in the temporary folder.

    Attributes:
        error: the error that caused the move; None if it was not moved.
        elsewhere: the new path.
    """

    def __init__(self, path: Path, name: str) -> None:
        super().__init__()
        self._path, self._name, self._ended = path, name, False
        self._file = path.open("r+b", buffering=0)
        self.error: OSError | None = None
        self.elsewhere: Path | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> Any:
        if self._ended:
            return memoryview(data).nbytes
        return self._tried(lambda: self._file.write(data))

    def sync(self) -> None:
        """Flush all data to the disk, which may still run out of space."""
        self._tried(lambda: os.fsync(self._file.fileno()))

    def _tried(self, work: Callable[[], Any]) -> Any:
        """Run an operation; if it fails, move the file and retry."""
        try:
            return work()
        except OSError as error:
            if self.error is not None:
                raise
            self.error = error
        self._move()
        return work()

    def _move(self) -> None:
        position = self._file.tell()
        self.elsewhere = Path(tempfile.mkdtemp(prefix="ndm-samples-")) / self._name
        shutil.copyfile(self._path, self.elsewhere)
        self._file.truncate(0)  # frees the space for other programs
        self._file.close()
        self._file = self.elsewhere.open("r+b", buffering=0)
        self._file.seek(position)

    def abandon(self) -> None:
        """Ignore all further writes, and remove the file in the temporary folder."""
        self._ended = True
        if self.elsewhere is not None:
            shutil.rmtree(self.elsewhere.parent, ignore_errors=True)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
