"""Cells of a table that are not as they should be: where they are, and what to say of them."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

__all__ = [
    "MISSING",
    "Cell",
    "Missing",
    "is_number",
    "is_right",
    "lines",
    "refusal",
    "short",
    "wrong_in_csv",
    "wrong_values",
]

#: What a cell of a CSV file holds where there is no value, besides nothing.
MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "-nan", "NULL", "Null", "null", "None", "n/a"})

#: What is done about rows with missing cells.
Missing = Literal["error", "drop"]

_NOTHING = "no value"
_LONGEST = 1 << 26  # characters of a cell, or of a line


class Cell(NamedTuple):
    """A cell that is not as it should be: where it is, under which name, and what it holds, as words."""

    place: str
    column: str
    held: str


def lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of the line it begins in, from 1; but no empty lines.

    With one column, an empty line is a row if others follow.

    Raises:
        ValueError: the file cannot be read as CSV in UTF-8.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))  # by itself it is 131,072 characters
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
        raise ValueError(f"{path} is not text in UTF-8: write it anew in that encoding.") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV ({error}).") from None


#: The largest number that single precision holds, in which models compute.
LARGEST = float(np.finfo(np.float32).max)


def _bounded(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, of which none may fill the memory."""
    while line := file.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise ValueError(f"{path} has a line of more than {_LONGEST:,} characters: it is no table.")
        yield line


def wrong_in_csv(path: Path, names: Sequence[str], columns: Sequence[str], levels: int | None) -> Iterator[Cell]:
    """The cells of a CSV file's columns that are not numbers within float32's range, or not one of the levels.

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
    """The same of numbers that have been read, (n, d) at a time."""
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
    """What to raise for wrong cells: where the first one is, how many more there are, and what can be done.

    Args:
        path: the file.
        found: the wrong cells.
        levels: K, if the cells were to hold one of K levels.
        reason: what to say if there is none.
        missing: "drop" if missing cells are none of the wrong ones, "error" if they might be dropped.
        fixed: the columns are those of a model, and none can be left out.
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
        return ValueError(f"{place}: {advice}, or name the other columns by columns=.")
    advice = "correct or remove such rows" + ("" if levels or fixed else ", or leave the column out by columns=")
    return ValueError(f"{place}: {advice}.")


def is_right(values: np.ndarray | np.float64, levels: int | None) -> Any:
    """Whether float32 holds each value, infinity not being one, and whether it is one of the levels 0 ... K - 1."""
    if levels is None:
        return np.abs(values) <= LARGEST  # false of NaN
    return (values == np.floor(values)) & (values >= 0) & (values < levels)  # all false of NaN


def is_number(cell: str) -> bool:
    """Whether a cell is a number as Arrow reads it, infinity included."""
    try:
        return not math.isnan(float(cell)) and "_" not in cell
    except ValueError:
        return False


def short(text: str) -> str:
    """A cell's text in quotes, the beginning of it if it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _described(value: float, levels: int | None) -> str:
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "an infinite value"
    if levels is None:
        return f"{value:g}, which is larger than float32 holds ({LARGEST:.2g})"
    return f"{value:g}, which is not one of the whole numbers 0 ... {(levels or 0) - 1} that levels={levels} stands for"
