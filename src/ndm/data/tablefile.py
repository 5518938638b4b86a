"""Reading of numeric CSV and Parquet files in pieces, and messages about invalid cells."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ndm.data.arrow import BLOCK, csv_blocks, is_numeric, open_parquet, pandas_index, stacked, without_last
from ndm.data.cells import (
    Missing,
    blank_lines_at_the_end,
    check_header,
    is_number,
    is_right,
    lines,
    refusal,
    short,
    wrong_in_csv,
    wrong_values,
)
from ndm.data.columns import counts_rows, is_counter, some, twice_in
from ndm.data.rows import first_line
from ndm.storage.memory import TooLargeError, require
from ndm.storage.texts import did_you_mean, require_regular

__all__ = ["TABLE_SUFFIXES", "TableFile", "require_table"]

logger = logging.getLogger("ndm.data")

TABLE_SUFFIXES = (".csv", ".parquet")

#: The largest number of columns of a table.
MOST_COLUMNS = 100_000

_AT_ONCE = 65_536  # rows read before they are checked
_CELLS_AT_ONCE = 1 << 22  # likewise, for wide tables
_BYTES = 32  # memory per cell: four copies in double precision while splitting
_SLIP = 0.05  # the largest fraction of text cells in a numeric column, which count as errors


def require_table(path: str | os.PathLike[str]) -> None:
    """Check that a path is a CSV or Parquet file, without reading it.

    Raises:
        ValueError: the suffix is unknown.
        FileNotFoundError: the file does not exist.
        ImportError: pyarrow is not installed.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"{path} is not a table: its name should end in {' or '.join(TABLE_SUFFIXES)}.")
    if file.exists():
        require_regular(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError("Tables need pyarrow: pip install pandas pyarrow.")


class TableFile:
    """A CSV or Parquet file that is read in pieces, so that only one piece is in memory.

    Args:
        path: the file; its suffix determines the format.
        say: called with a sentence about columns that are left out; None to log it as a warning.
        fixed: the columns are those of a model, so no message advises to leave one out.

    Attributes:
        dropped: number of rows with missing cells dropped by :meth:`pieces`.
        missing: number of missing cells in these rows, by column.

    Raises:
        ValueError: the suffix is unknown.
        FileNotFoundError: the file does not exist.
        ImportError: pyarrow is not installed.
    """

    def __init__(
        self, path: str | os.PathLike[str], say: Callable[[str], None] | None = None, fixed: bool = False
    ) -> None:
        self.path = Path(path).expanduser()
        self._say = say or self._log
        self.fixed = fixed
        self.dropped, self.missing = 0, Counter[str]()
        self._texts: dict[str, str] = {}  # why columns are not numeric
        self._names_are_numbers = False
        self._is_csv = self.path.suffix.lower() == ".csv"
        require_table(path)

    def _log(self, sentence: str) -> None:
        logger.warning("%s: %s", self.path, sentence.removeprefix("warning: "))

    # ---- columns

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The first row, which should contain the columns' names; empty if there is none.

        Raises:
            ValueError: the file is damaged, or has too many columns.
        """
        if self._is_csv:
            first = next(lines(self.path), None)
            names = () if first is None else tuple(first[1])
        else:
            names = tuple(self._schema.names)
        if len(names) > MOST_COLUMNS:
            raise ValueError(
                f"{self.path} has {len(names):,} columns, more than the limit of {MOST_COLUMNS:,}: write the columns "
                "you need to another file."
            )
        return names

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all columns.

        Raises:
            ValueError: the file is empty or damaged, has no names, or has a name twice.
        """
        names = self.header
        if self._is_csv:
            check_header(self.path, names, self._names_are_numbers)
        twice = twice_in(names)
        if twice is not None:
            raise ValueError(f"{self.path} has two columns named {twice!r}: rename one.")
        return names

    @cached_property
    def _places(self) -> dict[str, int]:
        """The position of each column by name."""
        return {name: place for place, name in enumerate(self.names)}

    def choose(self, columns: Sequence[str] | None = None) -> tuple[str, ...]:
        """The given columns, or all numeric ones.

        Raises:
            ValueError: a column is unknown, named twice or not numeric, or there are no columns.
        """
        if columns is not None:
            self._names_are_numbers = set(columns) <= set(self.header)  # numbers given as columns are names
            if not columns:
                raise ValueError("columns is empty: leave it out to use all numeric columns.")
            twice = twice_in(columns)
            if twice is not None:
                raise ValueError(f"columns contains {twice!r} twice.")
            self._require_known(columns)
            if not self._is_csv:  # CSV files have no types
                self._refuse_other_types(columns)
            return tuple(columns)
        numbers = self._numbers_of_csv() if self._is_csv else self._numbers_of_parquet()
        taken = set(numbers)
        left_out = {name: self._why_not(name) for name in self.names if name not in taken}
        if not numbers:
            others = some([name or "(one without a name)" for name in left_out])
            raise ValueError(f"{self.path} has no numeric column: it has {others}.")
        for name in filter(is_counter, numbers):
            if self._counts_rows(name):
                left_out[name] = "an index, which counts the rows"
            else:
                self._say(
                    f"warning: the column {name!r} is named like an index written by pandas, but does not count the "
                    "rows and is used as data: to leave it out, select the other columns with --data.columns (columns=)"
                )
        if left_out:
            reasons = some([f"{name or 'one without a name'} ({why})" for name, why in left_out.items()])
            self._say(f"left out columns: {reasons}")
        return tuple(name for name in numbers if name not in left_out)

    def _why_not(self, name: str) -> str:
        """The reason why a column is not used."""
        if not self._is_csv:
            kind = self._schema.field(name).type
            return "an index" if is_numeric(kind) else f"holds {kind}"
        return self._texts.get(name, "holds no value") if name else "an index"

    def _counts_rows(self, name: str) -> bool:
        try:
            return counts_rows(self.all_of([name])[:, 0])
        except TooLargeError:
            raise
        except ValueError:  # a missing or invalid cell is reported when the column is read
            return False

    def _numbers_of_csv(self) -> tuple[str, ...]:
        """The columns whose cells are numbers or missing, but not all missing."""
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
                    held = [cell for cell in cells[:1000].to_pylist() if cell is not None]
                    texts = [cell for cell in held if not is_number(cell)]
                    few = len(texts) <= _SLIP * len(held) or len(set(texts)) <= 2
                    if 2 * len(texts) < len(held) and few:  # a numeric column with an error in it
                        raise self._wrong_cell([name], None, missing="drop") from None
                    self._texts[name] = "text" if len(texts) == len(held) else f"text such as {short(texts[0])}"
                seen[name] = seen[name] or cells.null_count < len(cells)
        if not any(seen.values()):
            return tuple(name for name in numbers)  # a file without rows is reported elsewhere
        return tuple(name for name, still in numbers.items() if still and seen[name])

    def _numbers_of_parquet(self) -> tuple[str, ...]:
        index = pandas_index(self._schema)
        return tuple(field.name for field in self._schema if is_numeric(field.type) and field.name not in index)

    def _refuse_other_types(self, columns: Sequence[str]) -> None:
        for name in columns:
            if not is_numeric(self._schema.field(name).type):
                raise ValueError(
                    f"The column {name!r} of {self.path} holds {self._schema.field(name).type} and not numbers: "
                    + ("correct the file." if self.fixed else "leave it out of --data.columns (columns=).")
                )

    # ---- rows

    def pieces(
        self,
        columns: Sequence[str],
        rows: int = _AT_ONCE,
        skip: int = 0,
        levels: int | None = None,
        missing: Missing | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the values of some columns in pieces of ``rows`` rows (fewer in the last one), float64 (n, d).

        Args:
            columns: the columns, in order.
            rows: rows per piece.
            skip: number of rows to skip at the beginning.
            levels: K, if all values must be among 0 ... K - 1.
            missing: "drop" to drop and count rows with missing cells; "error" to raise an error that advises to drop
                them; None to raise an error without advice.

        Raises:
            ValueError: a value is missing, infinite, not a number or not one of the levels (with the first position and
                the number of others), or the file is damaged.
        """
        waiting, count = [], 0
        for piece in self._all(columns, levels, missing):
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

    def all_of(self, columns: Sequence[str], levels: int | None = None, missing: Missing | None = None) -> np.ndarray:
        """The values of some columns in all rows, float64 (n, d): see :meth:`pieces`.

        Raises:
            ValueError: the values do not fit in memory, or a value is invalid.
        """
        if not self._is_csv:
            self._require_room(self._parquet().metadata.num_rows, columns)
        found, count = [np.empty((0, len(columns)))], 0
        for piece in self.pieces(columns, levels=levels, missing=missing):
            found.append(piece)
            count += len(piece)
            self._require_room(count, columns)
        return np.concatenate(found)

    def _require_room(self, rows: int, columns: Sequence[str]) -> None:
        d = len(columns)
        require(
            _BYTES * rows * d,
            f"{self.path}, {rows:,} rows of {d:,} column{'s' * (d > 1)},",
            "use fewer columns with --data.columns (columns=), or write fewer rows to another file",
        )

    def arrow(self, columns: Sequence[str]) -> Any:
        """Some columns of all rows as an Arrow table: of a CSV file as text, of a Parquet file in their types.

        Raises:
            ValueError: there is no column of a name, the values do not fit in memory, or the file is damaged.
        """
        import pyarrow as pa

        self._require_known(columns)
        columns = [name for name in columns if name]
        if not self._is_csv:
            self._require_room(self._parquet().metadata.num_rows, columns)
            return self._parquet().read(columns=columns)
        batches, count = [], 0
        for batch in self._csv(columns, pa.string()):
            batches.append(batch)
            count += batch.num_rows
            self._require_room(count, columns)
        return pa.Table.from_batches(batches, pa.schema([(name, pa.string()) for name in columns]))

    def _require_known(self, columns: Sequence[str]) -> None:
        unknown = next((name for name in columns if name not in self._places), None)
        if unknown is not None:
            end = did_you_mean(unknown, self.names, f"it has {some(self.names)}")
            raise ValueError(f"{self.path} has no column {unknown!r}{end}")

    def check(self, columns: Sequence[str], levels: int | None = None) -> int:
        """Read all rows with the checks of :meth:`pieces`, and count them."""
        return sum(len(piece) for piece in self._all(columns, levels))

    def _all(self, columns: Sequence[str], levels: int | None, missing: Missing | None = None) -> Iterator[np.ndarray]:
        self.choose(columns)
        if missing == "drop":
            self.dropped, self.missing = 0, Counter()
        for values in self._csv_values(columns) if self._is_csv else self._parquet_values(columns):
            if missing == "drop":
                values = self._complete(values, columns)
            if not is_right(values, levels).all():
                raise self._wrong_cell(columns, levels, missing=missing)
            yield values

    def _complete(self, values: np.ndarray, columns: Sequence[str]) -> np.ndarray:
        """The rows without missing cells; the others are counted."""
        absent = np.isnan(values)
        for name, n in zip(columns, absent.sum(0).tolist(), strict=True):
            if n:
                self.missing[name] += n
        whole = ~absent.any(1)
        self.dropped += int((~whole).sum())
        return values[whole]

    def _csv_values(self, columns: Sequence[str]) -> Iterator[np.ndarray]:
        import pyarrow as pa

        for batch in self._csv(columns, pa.float64()):
            yield stacked(batch.column(name) for name in columns)

    def _csv(self, columns: Sequence[str], kind: Any) -> Iterator[Any]:
        """Batches of a CSV file's columns, all read as one type."""
        import pyarrow as pa

        names = self.names
        if sum(1 for _ in zip(lines(self.path), range(2), strict=False)) < 2:
            return  # only a header, for which Arrow raises an error
        try:
            if len(names) == 1:
                yield from without_last(
                    csv_blocks(self.path, names, columns, kind), blank_lines_at_the_end(self.path, BLOCK)
                )
            else:
                yield from csv_blocks(self.path, names, columns, kind)
        except pa.ArrowInvalid as error:
            raise self._wrong_cell(columns, None, first_line(error)) from None

    def _parquet_values(self, columns: Sequence[str]) -> Iterator[np.ndarray]:
        import pyarrow as pa

        try:
            rows = max(1, min(_AT_ONCE, _CELLS_AT_ONCE // len(columns)))
            for batch in self._parquet().iter_batches(rows, columns=list(columns)):
                yield stacked(batch.column(name).cast(pa.float64(), safe=False) for name in columns)
        except MemoryError:  # includes Arrow's memory error
            raise
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error)
            raise ValueError(f"{self.path} cannot be read completely: it may be damaged ({reason}).") from None

    def _parquet(self) -> Any:
        return open_parquet(self.path)

    @cached_property
    def _schema(self) -> Any:
        return self._parquet().schema_arrow

    # ---- error messages

    def _wrong_cell(
        self,
        columns: Sequence[str],
        levels: int | None,
        reason: str = "it may be damaged",
        missing: Missing | None = None,
    ) -> ValueError:
        """The error for invalid cells, which are found by reading the file again."""
        if self._is_csv:
            found = wrong_in_csv(self.path, self.names, columns, levels)
        else:
            found = wrong_values(self._parquet_values(columns), columns, levels)
        return refusal(self.path, found, levels, reason, missing, self.fixed)
