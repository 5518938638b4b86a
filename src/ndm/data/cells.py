"""Invalid cells of a table: their positions and error messages."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

__all__ = [
    "MISSING",
    "Cell",
    "Missing",
    "blank_lines_at_the_end",
    "check_header",
    "is_number",
    "is_right",
    "lines",
    "refusal",
    "short",
    "wrong_in_csv",
    "wrong_values",
]

#: Texts of missing cells in a CSV file, besides the empty text.
MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "-nan", "NULL", "Null", "null", "None", "n/a"})

#: The ways to handle rows with missing cells.
Missing = Literal["error", "drop"]

_NOTHING = "no value"
_LONGEST = 1 << 26  # the largest number of characters of a cell or a line


class Cell(NamedTuple):
    """An invalid cell: its position, its column's name, and its content as text."""

    place: str
    column: str
    held: str


def lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of its first line, from 1, without empty lines.

    With one column, an empty line is a row if other rows follow.

    Raises:
        ValueError: the file cannot be read as CSV in UTF-8.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))  # the default is 131,072 characters
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_bounded(file, path))
            line, width, empty = 1, 0, list[int]()
            for row in reader:
                if row:
                    yield from ((at, [""]) for at in empty)
                    yield line, row
                    width, empty = width or len(row), []
                elif width == 1:
                    empty.append(line)
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not encoded in UTF-8: convert it to UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV ({error}).") from None


#: The largest number in single precision, which models use.
LARGEST = float(np.finfo(np.float32).max)


def _bounded(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, with a limit on their length."""
    while line := file.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise ValueError(f"{path} has a line of more than {_LONGEST:,} characters: it is not a CSV table.")
        yield line


def wrong_in_csv(path: Path, names: Sequence[str], columns: Sequence[str], levels: int | None) -> Iterator[Cell]:
    """The cells of a CSV file's columns that are not numbers within float32's range, or not levels.

    Raises:
        ValueError: a line has more or fewer cells than there are names.
    """
    rows = lines(path)
    next(rows, None)
    every = {name: place for place, name in enumerate(names)}
    places = {name: every[name] for name in columns}
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(f"{path}, line {line}, has {len(row)} cells under {len(names)} column names.")
        for name, place in places.items():
            cell = row[place].strip()
            if not is_number(cell):
                held = _NOTHING if cell in MISSING else f"the text {short(cell)}"
            elif not is_right(np.float64(cell), levels):
                held = _described(float(cell), levels)
            else:
                continue
            yield Cell(f"line {line}", name, held)


def wrong_values(blocks: Iterable[np.ndarray], columns: Sequence[str], levels: int | None) -> Iterator[Cell]:
    """Like :func:`wrong_in_csv`, for blocks of numbers, (n, d)."""
    start = 1
    for values in blocks:
        for i, j in np.argwhere(~is_right(values, levels)):
            yield Cell(f"row {start + i}", columns[j], _described(values[i, j], levels))
        start += len(values)


def refusal(
    path: Path,
    found: Iterator[Cell],
    levels: int | None,
    reason: str,
    missing: Missing | None = None,
    fixed: bool = False,
) -> ValueError:
    """The error for invalid cells, with the position of the first one, the number of others, and advice.

    Args:
        path: the file.
        found: the invalid cells.
        levels: K, if the cells must be one of K levels.
        reason: the message if there is no invalid cell.
        missing: "drop" if missing cells are not invalid, "error" if the message may advise to drop them.
        fixed: the columns are those of a model, so none can be left out.
    """
    if missing == "drop":
        found = (cell for cell in found if cell.held != _NOTHING)
    first = next(found, None)
    if first is None:
        return ValueError(f"{path} cannot be read: {reason}.")
    more, rows, absent = 0, {first.place}, Counter({first.column: 1} if first.held == _NOTHING else {})
    for cell in found:
        more += 1
        rows.add(cell.place)
        absent[cell.column] += cell.held == _NOTHING
    rest = f" ({more:,} more such cell{'s' * (more > 1)})" if more else ""
    place = f"In {path}, {first.place}, the column {first.column!r} holds {first.held}{rest}"
    if missing == "error" and sum(absent.values()) == 1 + more:
        cells = ", ".join(f"{name} {n:,}" for name, n in absent.items() if n)
        rows_ = f"the {len(rows):,} rows with missing cells" if len(rows) > 1 else "that row"
        advice = f"give --data.missing drop (missing='drop') to leave out {rows_} ({cells})"
        return ValueError(f"{place}: {advice}, or select the other columns with --data.columns (columns=).")
    advice = "correct or remove such rows" + (
        "" if levels or fixed else ", or leave the column out with --data.columns (columns=)"
    )
    return ValueError(f"{place}: {advice}.")


def is_right(values: np.ndarray | np.float64, levels: int | None) -> Any:
    """Whether each value is finite in float32 and, with levels, one of 0 ... K - 1."""
    if levels is None:
        return np.abs(values) <= LARGEST  # false for NaN
    return (values == np.floor(values)) & (values >= 0) & (values < levels)  # all false for NaN


def is_number(cell: str) -> bool:
    """Whether a cell is a number as Arrow reads it, infinity included."""
    try:
        return not math.isnan(float(cell)) and "_" not in cell
    except ValueError:
        return False


def short(text: str) -> str:
    """A cell's text in quotes, truncated if it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _described(value: float, levels: int | None) -> str:
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "an infinite value"
    if levels is None:
        return f"{value:g}, which is larger than float32 holds ({LARGEST:.2g})"
    return f"{value:g}, which is not one of the whole numbers 0 ... {(levels or 0) - 1} that levels={levels} stands for"


def check_header(path: Path, names: Sequence[str], numbers_are_names: bool) -> None:
    """Raise a ValueError unless the first line of a CSV file holds the columns' names.

    Args:
        path: the file, for messages.
        names: the cells of its first line.
        numbers_are_names: whether the user has named columns by numbers.
    """
    if not names:
        raise ValueError(f"{path} is empty: it must begin with a line of column names.")
    counted = [str(i) for i in range(len(names))]  # pandas' names of an array's columns
    if all(is_number(name) for name in names) and list(names) != counted and not numbers_are_names:
        raise ValueError(f"{path} begins with a line of numbers: add a line of column names at the top.")
    if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        raise ValueError(f"{path} is not separated by commas: write it with commas.")


def blank_lines_at_the_end(path: Path, block: int) -> int:
    """The number of empty lines at the end of a file, which are not rows; at most ``block`` bytes are read."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - block))
        end = file.read()
    blank = end[len(end.rstrip(b"\r\n")) :].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return max(0, len(blank) - 1)  # the first newline ends the last row
