"""Files of tables for a model: reading the rows, and writing tables atomically."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ndm.data.columns import some
from ndm.data.kinds import Cells
from ndm.data.mixed import read_cells, rows_of_numbers
from ndm.data.tablefile import TableFile
from ndm.method.encoding import TableEncoding
from ndm.storage.atomic import atomic_path, refuse_if_being_written

__all__ = ["FileRows", "read_rows", "unused", "write_table"]


@dataclass(frozen=True)
class FileRows:
    """The rows of a file.

    Attributes:
        path: the file.
        cells: the cells of all columns of the file, by name; for a column of another type, that type.
        rows: the rows as numbers, (n, C), NaN for missing cells and for columns that were not read.
        columns: the names of the model's columns that were read.
        notes: sentences about values that training did not have.
    """

    path: Path
    cells: Mapping[str, Cells | str]
    rows: np.ndarray
    columns: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def read_rows(
    path: str | os.PathLike[str],
    encoding: TableEncoding,
    needed: Collection[str] | None = None,
    optional: Collection[str] = (),
) -> FileRows:
    """Read the columns of a model from a CSV or Parquet file.

    Args:
        path: the file.
        encoding: the columns of the model.
        needed: the names of the columns that the file must have; None for all.
        optional: the names of columns that are read if the file has them.

    Returns:
        The rows as numbers, (n, C), and the cells of the file.

    Raises:
        ValueError: the file has no rows, lacks a column, or has cells that the model has no value for.
        FileNotFoundError: the file does not exist.
    """
    cells = read_cells([TableFile(path, fixed=True)], texts=encoding.texts)
    wanted = [
        i
        for i, name in enumerate(encoding.names)
        if needed is None or name in needed or (name in optional and name in cells)
    ]
    notes: list[str] = []
    n = next((len(own.values) for own in cells.values() if isinstance(own, Cells)), 0)
    rows = np.full((n, len(encoding.table)), np.nan)
    if wanted:
        rows[:, wanted] = rows_of_numbers([encoding.table[i] for i in wanted], cells, str(path), notes.append)
    if n == 0:
        raise ValueError(f"{path} has no rows: it has only the names of {some(list(cells))}.")
    return FileRows(Path(path), cells, rows, tuple(encoding.names[i] for i in wanted), notes)


def unused(name: str, taken: Collection[str]) -> str:
    """A name with as many underscores at its end that it is not taken.

    Example:
        >>> unused("row", ["row", "a"])
        'row_'
    """
    while name in taken:
        name += "_"
    return name


def write_table(
    names: Sequence[str],
    columns: Sequence[Any],
    out: Path,
    replace: bool = False,
    digits: int | None = None,
    metadata: Mapping[bytes, bytes] | None = None,
) -> None:
    """Write columns to a CSV or Parquet file, atomically.

    Args:
        names: the names of the columns.
        columns: Arrow arrays, or (n,) arrays.
        out: the file.
        replace: whether an existing file may be replaced.
        digits: significant digits of real numbers in a CSV file; None for all.
        metadata: metadata of a Parquet file.

    Raises:
        FileExistsError: another process is writing the file, or it exists and may not be replaced.
        OSError: writing failed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    arrow = (pa.Array, pa.ChunkedArray)
    table = pa.Table.from_arrays([c if isinstance(c, arrow) else pa.array(c) for c in columns], list(names))
    with atomic_path(out, replace) as fresh:
        refuse_if_being_written(out, fresh)
        if out.suffix.lower() == ".parquet":
            parquet.write_table(table.replace_schema_metadata(dict(metadata or {})), fresh)
            return
        quoted = any("\r" in name for name in names)  # older Python versions do not quote these
        how: Any = {"quoting": csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, "lineterminator": "\n"}
        with open(fresh, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, **how)
            writer.writerow(names)
            for batch in table.to_batches(max_chunksize=65_536):
                writer.writerows(zip(*(_texts(column, digits) for column in batch.columns), strict=True))


def _texts(column: Any, digits: int | None) -> list[Any]:
    values = column.to_pylist()
    if digits is None:
        return values
    return [f"{v:.{digits}g}" if isinstance(v, float) else v for v in values]
