"""The file of a table with its missing cells filled: all other cells and columns as they are in the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ndm.data.arrow import open_parquet
from ndm.data.cells import lines
from ndm.data.frames import decoded, from_numbers, is_text
from ndm.data.kinds import Cells
from ndm.method.columns import Column
from ndm.tabular.files import FileRows, unused, write_table

__all__ = ["write_filled"]


def write_filled(
    file: FileRows, columns: Sequence[Column], filled: np.ndarray, out: Path, replace: bool = False
) -> None:
    """Write all columns of a file in their order, with the missing cells of the model's columns filled.

    With several copies of a row, the copies are consecutive, and a column ``row`` with its number from 0 is the first.

    Args:
        file: the file as it was read.
        columns: the columns of the model.
        filled: the rows without missing cells, (m n, C), the n copies of a row together.
        out: a CSV or Parquet file.
        replace: whether an existing file may be replaced.

    Raises:
        ValueError: the file changed since it was read.
        OSError: writing failed.
    """
    m = len(file.rows)
    n = len(filled) // m
    names, arrays, metadata = _original(file, as_text=out.suffix.lower() == ".csv")
    if any(len(array) != m for array in arrays):
        raise ValueError(f"{file.path} changed while it was read, and no file was written: run the command again.")
    places = np.repeat(np.arange(m), n)
    same = [array.type for array in arrays]
    for i, column in enumerate(columns):
        cells, at = file.cells[column.name], names.index(column.name)
        absent = np.isnan(file.rows[:, i])
        if absent.any() and isinstance(cells, Cells):
            new = from_numbers([column], filled[np.repeat(absent, n), i][:, None]).column(0)
            arrays[at] = _merged(arrays[at], places, np.repeat(absent, n), new, cells.storage)
        elif n > 1:
            arrays[at] = arrays[at].take(_indices(places))
    if n > 1:
        known = {column.name for column in columns}
        arrays = [a if name in known else a.take(_indices(places)) for name, a in zip(names, arrays, strict=True)]
        names, arrays = [unused("row", names), *names], [_indices(places), *arrays]
    keep = metadata if [array.type for array in arrays] == same else None  # pandas describes rows and types in it
    write_table(names, arrays, out, replace, metadata=keep)


def _original(file: FileRows, as_text: bool) -> tuple[list[str], list[Any], dict[bytes, bytes]]:
    """The columns of the file: their names, Arrow arrays, and metadata. Those of a CSV file are texts if wanted."""
    import pyarrow as pa

    if file.path.suffix.lower() != ".csv":
        table = open_parquet(file.path).read()
        return list(table.column_names), list(table.columns), dict(table.schema.metadata or {})
    rows = lines(file.path.expanduser())
    names = next(rows)[1]
    texts = [list(column) for column in zip(*(row for _, row in rows), strict=True)]
    if as_text:
        return names, [pa.array(column, pa.string()) for column in texts], {}
    arrays = []
    for name, column in zip(names, texts, strict=True):
        cells = file.cells.get(name)
        arrays.append(_typed(cells) if isinstance(cells, Cells) else pa.array(column, pa.string()))
    return names, arrays, {}


def _typed(cells: Cells) -> Any:
    """The cells of a CSV file as an Arrow array of their type."""
    import pyarrow as pa

    if cells.storage == "text":
        return pa.array(cells.values.tolist(), pa.string())
    kind = Column("", storage=cells.storage, counts=(1.0,))
    return from_numbers([kind], cells.values[:, None]).column(0).combine_chunks()


def _merged(array: Any, places: np.ndarray, absent: np.ndarray, new: Any, storage: str) -> Any:
    """The cells of an array at some places, and new cells where they are absent, in the type of the array if it fits.

    Args:
        array: the cells of the file, (m,).
        places: the rows, (m n,).
        absent: where the new cells are, bool (m n,).
        new: the new cells, in order.
        storage: the type of the file's cells, for a file of texts.
    """
    import pyarrow as pa

    array = decoded(array)
    if is_text(array.type) and not is_text(new.type):
        new = _as_text(new, storage)
    try:
        new = new.cast(array.type, safe=pa.types.is_integer(array.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # such as real numbers for a column of whole numbers
        array = _as_text(array) if is_text(new.type) else array.cast(new.type, safe=False)
    both = pa.concat_arrays([_one(array), _one(new)])
    order = places.copy()
    order[absent] = len(array) + np.arange(len(new))
    return both.take(_indices(order))


def _as_text(array: Any, storage: str = "") -> Any:
    """The cells as texts; whole numbers without a decimal point if ``storage`` is ``int``."""
    import pyarrow as pa

    values = array.to_pylist()
    if storage == "int":
        values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    return pa.array([None if v is None else str(v) for v in values], pa.string())


def _one(array: Any) -> Any:
    import pyarrow as pa

    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _indices(places: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(places, pa.int64())
