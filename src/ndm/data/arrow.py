"""Helpers for Arrow, the library that reads CSV and Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ndm.data.cells import MISSING
from ndm.storage.texts import parse_json, require_regular

__all__ = [
    "BLOCK",
    "csv_blocks",
    "is_numeric",
    "open_parquet",
    "pandas_index",
    "require_moderate",
    "stacked",
    "without_last",
]

#: Bytes of a CSV file that Arrow reads at once, at first and at most; a row must fit.
BLOCK, LARGEST_BLOCK = 1 << 22, 1 << 28


#: The largest size of a Parquet file's metadata in bytes (about 190 per column and row group), for which Arrow needs
#: about 20 times as much memory.
MOST_METADATA = 1 << 25


def require_moderate(path: Path) -> None:
    """Raise an error for a Parquet file with too much metadata, before they are read.

    Raises:
        ValueError: the metadata are too large.
        OSError: reading fails.
    """
    require_regular(path)
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        end = file.read(8)
    size = int.from_bytes(end[:4], "little") if end[4:] == b"PAR1" else 0
    if size > MOST_METADATA:
        raise ValueError(
            f"The metadata of {path} have {size:,} bytes, more than the limit of {MOST_METADATA:,}: write a file with "
            "fewer columns or larger row groups."
        )


def open_parquet(path: Path) -> Any:
    """Open a Parquet file and read its metadata.

    Raises:
        ValueError: the file is damaged, or its metadata are too large.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    require_moderate(path)
    try:
        return ParquetFile(path)
    except MemoryError:  # includes Arrow's memory error
        raise
    except (pa.ArrowException, OSError) as error:
        many = ", or have too many columns" if "thrift" in str(error).lower() else ""
        raise ValueError(f"{path} cannot be read as a Parquet file: it may be damaged{many}.") from None


def without_last(batches: Iterator[Any], n: int) -> Iterator[Any]:
    """The batches without the last n rows overall."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        while waiting and sum(b.num_rows for b in waiting[1:]) >= n:
            yield waiting.pop(0)
    for batch in waiting:
        rest = sum(b.num_rows for b in waiting) - n
        kept = batch.slice(0, max(0, min(batch.num_rows, rest)))
        n -= batch.num_rows - kept.num_rows
        waiting = waiting[1:]
        if kept.num_rows:
            yield kept


def stacked(columns: Iterable[Any]) -> np.ndarray:
    """Stack Arrow columns as an array, (n, d); missing values are NaN."""
    return np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)


def is_numeric(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def pandas_index(schema: Any) -> frozenset[str]:
    """The columns that contain a pandas index, according to the schema's metadata."""
    try:
        index = parse_json((schema.metadata or {}).get(b"pandas", b"{}").decode())["index_columns"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return frozenset()
    return frozenset(name for name in index if isinstance(name, str)) if isinstance(index, list) else frozenset()


def csv_blocks(path: Path, names: Sequence[str], columns: Sequence[str], kind: Any) -> Iterator[Any]:
    """Batches of a CSV file's columns, all read as one type, in blocks large enough for the longest row.

    Args:
        path: the file.
        names: the names of all its columns.
        columns: the names of those to read.
        kind: the Arrow type.
    """
    import pyarrow as pa
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, open_csv

    convert = ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, kind),
        null_values=sorted(MISSING),
        strings_can_be_null=True,
    )
    # With one column, an empty line is a row with a missing value, as are lines of commas otherwise.
    parse = ParseOptions(newlines_in_values=True, ignore_empty_lines=len(names) > 1)
    block, done = BLOCK, 0
    while True:
        skip = done
        try:
            read = ReadOptions(block_size=block)
            for batch in open_csv(path, read_options=read, parse_options=parse, convert_options=convert):
                fresh = batch.slice(min(skip, batch.num_rows))
                skip -= batch.num_rows - fresh.num_rows
                done += fresh.num_rows
                if fresh.num_rows:
                    yield fresh
            return
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or block >= LARGEST_BLOCK:
                raise
            block *= 8
