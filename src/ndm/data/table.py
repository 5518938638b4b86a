"""Tables of numbers, from CSV and Parquet files: one row an example, one column a dimension."""

from __future__ import annotations

import csv
import difflib
import glob
import importlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import SPLITS, Data, from_levels
from ndm.data.sources import _by_split, _line

__all__ = ["Table", "TableFile"]

logger = logging.getLogger("ndm.data")

_SUFFIXES = (".csv", ".parquet")

#: What a cell of a CSV file holds where there is no value, besides nothing.
_MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "-nan", "NULL", "Null", "null", "None", "n/a"})

_AT_ONCE = 65_536  # rows read before they are looked at

#: Of a column's standard deviation: what single precision may take away from its values.
_ROUNDING = 1e-3

_FEW = 20  # values, of so many rows, are not what a density is for
_LOOKED_AT = 10_000


class Table(Data):
    r"""The rows of a table, x in R^d, d being the number of columns: continuous, or with K levels a column.

    **Columns** are those named, in the order in which they are named, or else all that hold numbers, in the order of
    the file; the others are left out, which is logged. So are a column without a name, and one that pandas has written
    as an index. A missing, infinite or wrong value is refused, and its place is told.

    **Splits** are those of the files, where their names or their folders' names contain train, test or validation
    (valid, val), as for :class:`~ndm.data.Images`. What is lacking of validation and test is taken out of the training
    rows: with p the permutation ``numpy.random.RandomState(seed).permutation(N)`` of all N of them, the missing splits
    take their rows from the beginning of p, validation first, and every split keeps the order of the file.

    Values are kept in float32. Continuous ones are in the table's own units, and the model standardises them; a column
    that single precision would spoil (times in seconds since 1970 that differ by seconds) is refused.

    Args:
        path: a CSV file with a line of names on top, a Parquet file, a folder of such, or a pattern for them.
        columns: names of the columns to take; None for all that hold numbers.
        validation: rows of the validation split, where it is taken out of the training rows; None for a tenth.
        test: likewise of the test split.
        levels: K, if the columns hold the whole numbers 0 ... K - 1, which become x = 2 (k + 1/2) / K - 1; None if
            they are continuous.
        seed: of the permutation.

    Raises:
        ValueError: an argument is out of range. The files are read when they are first needed, and then: they are
            damaged, a column is unknown, not of numbers, constant or too large for single precision, a value is
            missing or not one of the levels, or there are too few rows.
        FileNotFoundError: on first use: there is nothing of that path.
        ImportError: on first use: pyarrow is not installed.
    """

    def __init__(
        self,
        path: str,
        columns: list[str] | None = None,
        validation: int | None = None,
        test: int | None = None,
        levels: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in {"validation": validation, "test": test}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}.")
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2, not {levels}.")
        if seed < 0:
            raise ValueError(f"The seed must not be negative, as {seed} is.")
        self.path = str(path)
        self.named = None if columns is None else tuple(columns)
        self.taken = {"validation": validation, "test": test}
        self.levels = levels
        self.seed = seed

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, (d,)."""
        return self._files["train"][0].choose(self.named)

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # a constant to others
        return (len(self.columns),)

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self._splits[name], None

    @cached_property
    def _files(self) -> dict[str, list[TableFile]]:
        return {split: [TableFile(file) for file in files] for split, files in _find(self.path).items()}

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        found = {split: self._read(files) for split, files in self._files.items()}
        for split, values in found.items():
            if len(values) == 0:
                raise ValueError(f"{self.path} has no rows{_of(split, found)}: there is nothing to learn from.")
        found |= self._taken_from(found["train"], [name for name in SPLITS if name not in found])
        if self.levels is None:
            self._check(found["train"])
            return {name: torch.from_numpy(found[name].astype(np.float32)) for name in SPLITS}
        return {name: from_levels(torch.from_numpy(found[name]).long(), self.levels) for name in SPLITS}

    def _read(self, files: Sequence[TableFile]) -> np.ndarray:
        pieces = [piece for file in files for piece in file.pieces(self.columns, levels=self.levels)]
        return np.concatenate([np.empty((0, len(self.columns))), *pieces])

    def _taken_from(self, rows: np.ndarray, missing: Sequence[str]) -> dict[str, np.ndarray]:
        """The missing splits, and what they leave to the training split; float64 (n, d)."""
        for name, count in self.taken.items():
            if count is not None and name not in missing:
                raise ValueError(f"{self.path} has a {name} split of its own: leave {name}={count} out.")
        n = len(rows)
        counts = [self.taken[name] or max(1, n // 10) for name in missing]
        if n - sum(counts) < 2:
            raise ValueError(
                f"{self.path} has {n} rows, too few to train on at least 2 and to take "
                f"{' and '.join(f'{c} for {name}' for c, name in zip(counts, missing, strict=True)) or 'none'} from."
            )
        order = np.random.RandomState(self.seed).permutation(n)  # whose stream is frozen by numpy's policy
        parts = np.split(order, np.cumsum(counts, dtype=int))
        return {name: rows[np.sort(part)] for name, part in zip([*missing, "train"], parts, strict=True)}

    def _check(self, train: np.ndarray) -> None:
        """Refuse columns of which a density cannot be learned, and speak of those of which it hardly can."""
        for name, column in zip(self.columns, train.T, strict=True):
            if column.min() == column.max():
                raise ValueError(
                    f"The column {name!r} of {self.path} is constant in the training split ({column[0]:g}), and so "
                    "has no density: name the others by columns=."
                )
            with np.errstate(over="ignore"):
                lost = np.abs(column - column.astype(np.float32)).max()
            spread = column.std()
            if not lost <= _ROUNDING * spread:
                raise ValueError(
                    f"The column {name!r} of {self.path} has values about {column.mean():.3g} that differ by "
                    f"{spread:.3g}, of which single precision would take away up to {lost:.2g}: subtract an offset, "
                    "or use another unit."
                )
            values = np.unique(column[:_LOOKED_AT]).size
            if len(column) > _FEW**2 and values <= _FEW:
                logger.warning(
                    "%s: the column %r takes %d values only, on which a density grows without end as a model learns: "
                    "leave it out by columns=, or give levels= if all columns are of whole numbers.",
                    self.path,
                    name,
                    values,
                )


def _of(split: str, splits: Iterable[str]) -> str:
    return f" in the {split} split" if len(list(splits)) > 1 else ""


def _find(path: str) -> dict[str, list[Path]]:
    """The files that a path names, by their splits, of which train is one."""
    local = Path(path).expanduser()
    if local.is_file():
        return {"train": [local]}  # whatever its name: one file has no other splits
    if local.is_dir():
        files = sorted(f for f in local.rglob("*") if f.suffix.lower() in _SUFFIXES and not f.name.startswith("."))
        if not files:
            raise FileNotFoundError(f"The folder {path} has neither CSV nor Parquet files in it.")
        return _by_split(files, local, path)
    files = [Path(f) for f in sorted(glob.glob(str(local), recursive=True))] if glob.has_magic(path) else []
    if not files:
        raise FileNotFoundError(f"There is no file, folder or match for {path}: look for a slip in it.")
    return _by_split(files, Path(os.path.commonpath([file.parent for file in files])), path)


class TableFile:
    """A CSV or Parquet file, read a piece at a time, so that memory is needed for a piece only.

    Args:
        path: the file, whose ending says which of the two it is.

    Raises:
        ValueError: its name ends otherwise.
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._is_csv = self.path.suffix.lower() == ".csv"
        if self.path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{path} is not a table: its name should end in {' or '.join(_SUFFIXES)}.")
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            importlib.import_module("pyarrow")
        except ModuleNotFoundError:
            raise ImportError("Tables need pyarrow: pip install 'ndm[tables]'.") from None

    # ---- columns

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all columns.

        Raises:
            ValueError: the file is empty or damaged, has no names, or has a name twice.
        """
        names = self._header() if self._is_csv else tuple(self._parquet().schema_arrow.names)
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"{self.path} has two columns of the name {twice!r}: rename one.")
        return names

    def choose(self, columns: Sequence[str] | None = None) -> tuple[str, ...]:
        """These columns, or all that hold numbers.

        Raises:
            ValueError: one is unknown, named twice or not of numbers, or there is none.
        """
        if columns is not None:
            if not columns:
                raise ValueError("columns names no column: leave it out to take all that hold numbers.")
            for i, name in enumerate(columns):
                if name in columns[:i]:
                    raise ValueError(f"columns names {name!r} twice.")
                if name not in self.names:
                    raise ValueError(f"{self.path} has no column {name!r}{_nearest(name, self.names)}")
            if not self._is_csv:  # of a CSV file the cells will tell
                self._refuse_other_types(columns)
            return tuple(columns)
        numbers = self._numbers_of_csv() if self._is_csv else self._numbers_of_parquet()
        others = [name or "(one without a name)" for name in self.names if name not in numbers]
        if not numbers:
            raise ValueError(f"{self.path} has no column of numbers: it has {', '.join(others)}.")
        if others:
            logger.warning("%s: left out %s, which is not of numbers or is an index.", self.path, ", ".join(others))
        return numbers

    def _header(self) -> tuple[str, ...]:
        first = next(self._lines(), None)
        if first is None:
            raise ValueError(f"{self.path} is empty: it should begin with a line of column names.")
        names = tuple(first[1])
        counted = [str(i) for i in range(len(names))]  # what pandas calls the columns of an array
        if all(_is_number(name) for name in names) and list(names) != counted:
            raise ValueError(f"{self.path} begins with a line of numbers: put a line of column names on top of it.")
        if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
            raise ValueError(f"{self.path} is not separated by commas: write it with commas.")
        return names

    def _numbers_of_csv(self) -> tuple[str, ...]:
        """The columns all of whose cells are numbers or missing, though not all missing."""
        import pyarrow as pa
        from pyarrow import compute

        numbers, seen = {name: True for name in self.names if name}, dict.fromkeys(self.names, False)
        for batch in self._csv(self.names, pa.string()):
            for name in [name for name, still in numbers.items() if still]:
                cells = batch.column(name)
                try:
                    compute.utf8_trim_whitespace(cells).cast(pa.float64())
                except pa.ArrowInvalid:
                    numbers[name] = False
                    some = [cell for cell in cells[:1000].to_pylist() if cell is not None]
                    if 2 * sum(map(_is_number, some)) > len(some):  # a column of numbers with a slip in it
                        raise self._wrong_cell([name], None) from None
                seen[name] = seen[name] or cells.null_count < len(cells)
        if not any(seen.values()):
            return tuple(name for name in numbers)  # no rows: whatever is wrong with that is not for here to say
        return tuple(name for name, still in numbers.items() if still and seen[name])

    def _numbers_of_parquet(self) -> tuple[str, ...]:
        schema = self._parquet().schema_arrow
        index = (schema.pandas_metadata or {}).get("index_columns", [])
        return tuple(field.name for field in schema if _is_numeric(field.type) and field.name not in index)

    def _refuse_other_types(self, columns: Sequence[str]) -> None:
        schema = self._parquet().schema_arrow
        for name in columns:
            if not _is_numeric(schema.field(name).type):
                raise ValueError(
                    f"The column {name!r} of {self.path} holds {schema.field(name).type} and not numbers: "
                    "leave it out of columns=."
                )

    # ---- rows

    def pieces(
        self, columns: Sequence[str], rows: int = _AT_ONCE, skip: int = 0, levels: int | None = None
    ) -> Iterator[np.ndarray]:
        """The values of some columns, ``rows`` rows at a time, the last piece being what is left: float64 (n, d).

        Args:
            columns: which, and in what order.
            rows: how many at a time.
            skip: leave so many out at the beginning.
            levels: K, if all values must be among 0 ... K - 1.

        Raises:
            ValueError: a value is missing, infinite, not a number or not one of the levels: the first such place is
                told, and how many more there are. Or the file is damaged.
        """
        waiting, count = [], 0
        for piece in self._all(columns, levels):
            if skip >= len(piece):
                skip -= len(piece)
                continue
            waiting.append(piece[skip:])
            count += len(piece) - skip
            skip = 0
            while count >= rows:
                joined = np.concatenate(waiting)
                yield joined[:rows]
                waiting, count = [joined[rows:]], count - rows
        if count:
            yield np.concatenate(waiting)

    def check(self, columns: Sequence[str], levels: int | None = None) -> int:
        """Read all rows, refuse what :meth:`pieces` refuses, and count them."""
        return sum(len(piece) for piece in self._all(columns, levels))

    def _all(self, columns: Sequence[str], levels: int | None) -> Iterator[np.ndarray]:
        self.choose(columns)
        for values in self._csv_values(columns) if self._is_csv else self._parquet_values(columns):
            if not _right(values, levels).all():
                raise self._wrong_cell(columns, levels)
            yield values

    def _csv_values(self, columns: Sequence[str]) -> Iterator[np.ndarray]:
        import pyarrow as pa

        for batch in self._csv(columns, pa.float64()):
            yield _stacked(batch.column(name) for name in columns)

    def _csv(self, columns: Sequence[str], kind: Any) -> Iterator[Any]:
        """Batches of a CSV file's columns, all read as one type."""
        import pyarrow as pa
        from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, open_csv

        self._header()
        if sum(1 for _ in zip(self._lines(), range(2), strict=False)) < 2:
            return  # names alone, which Arrow takes for an error
        convert = ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, kind),
            null_values=sorted(_MISSING),
            strings_can_be_null=True,
        )
        try:
            yield from open_csv(
                self.path,
                read_options=ReadOptions(block_size=1 << 22),
                parse_options=ParseOptions(newlines_in_values=True),
                convert_options=convert,
            )
        except pa.ArrowInvalid as error:
            raise self._wrong_cell(columns, None, _line(error)) from None

    def _parquet_values(self, columns: Sequence[str]) -> Iterator[np.ndarray]:
        import pyarrow as pa

        try:
            for batch in self._parquet().iter_batches(_AT_ONCE, columns=list(columns)):
                yield _stacked(batch.column(name).cast(pa.float64(), safe=False) for name in columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} cannot be read to its end: it may be damaged ({_line(error)}).") from None

    def _parquet(self) -> Any:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(self.path)
        except (pa.ArrowException, OSError):
            raise ValueError(f"{self.path} cannot be read as a Parquet file: it may be damaged.") from None

    # ---- saying what is wrong

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """The rows of a CSV file that are not empty, each with the number of the line it begins in, from 1."""
        try:
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                reader, line = csv.reader(file), 1
                for row in reader:
                    if row:
                        yield line, row
                    line = reader.line_num + 1
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is not text in UTF-8: write it anew in that encoding.") from None
        except csv.Error as error:
            raise ValueError(f"{self.path} cannot be read as CSV ({error}).") from None

    def _wrong_cell(self, columns: Sequence[str], levels: int | None, reason: str = "it may be damaged") -> ValueError:
        """What to raise for cells that are not as they should be, found by going through the file once more."""
        found = self._wrong_in_csv(columns, levels) if self._is_csv else self._wrong_in_parquet(columns, levels)
        first = next(found, None)
        if first is None:
            return ValueError(f"{self.path} cannot be read: {reason}.")
        more = sum(1 for _ in found)
        advice = "correct or remove such rows" + ("" if levels else ", or leave the column out by columns=")
        rest = f" ({more:,} more such cell{'s' * (more > 1)})" if more else ""
        return ValueError(f"In {self.path}, {first}{rest}: {advice}.")

    def _wrong_in_csv(self, columns: Sequence[str], levels: int | None) -> Iterator[str]:
        lines = self._lines()
        next(lines, None)
        places = {name: self.names.index(name) for name in columns}
        for line, row in lines:
            if len(row) != len(self.names):
                raise ValueError(
                    f"{self.path}, line {line}, has {len(row)} cells under {len(self.names)} column names."
                )
            for name, place in places.items():
                cell = row[place].strip()
                if not _is_number(cell):
                    held = "no value" if cell in _MISSING else f"the text {cell!r}"
                elif not _right(np.float64(cell), levels):
                    held = _described(float(cell), levels)
                else:
                    continue
                yield f"line {line}, the column {name!r} holds {held}"

    def _wrong_in_parquet(self, columns: Sequence[str], levels: int | None) -> Iterator[str]:
        start = 1
        for values in self._parquet_values(columns):
            for i, j in np.argwhere(~_right(values, levels)):
                yield f"row {start + i}, the column {columns[j]!r} holds {_described(values[i, j], levels)}"
            start += len(values)


def _right(values: np.ndarray | np.float64, levels: int | None) -> Any:
    """Whether each value is finite, and one of the levels 0 ... K - 1 if there are such."""
    if levels is None:
        return np.isfinite(values)
    return (values == np.floor(values)) & (values >= 0) & (values < levels)  # all false of NaN


def _described(value: float, levels: int | None) -> str:
    if math.isnan(value):
        return "no value"
    if math.isinf(value):
        return "an infinite value"
    return f"{value:g}, which is not one of the whole numbers 0 ... {(levels or 0) - 1} that levels={levels} stands for"


def _stacked(columns: Iterable[Any]) -> np.ndarray:
    """Columns of Arrow's side by side, (n, d); what is missing is NaN."""
    return np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number as Arrow reads it, infinity included."""
    try:
        return not math.isnan(float(cell)) and "_" not in cell
    except ValueError:
        return False


def _is_numeric(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def _nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about a wrong name: what may have been meant, or what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}."
