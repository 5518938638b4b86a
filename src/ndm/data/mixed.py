"""The rows of a table with columns of several kinds: reading, the choice of the columns, and rows as numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ndm.data.columns import counts_rows, is_counter, some
from ndm.data.frames import Numbers, cells_of, to_numbers
from ndm.data.kinds import Cells, find_column
from ndm.data.tablefile import TableFile
from ndm.method.columns import Column
from ndm.storage.texts import did_you_mean

__all__ = ["MixedRows", "find_columns", "read_cells", "rows_of_numbers"]

logger = logging.getLogger("ndm.data")

_SHORT = 10  # rows, below which a column may be a counter by chance


@dataclass(frozen=True)
class MixedRows:
    """The columns, the rows of each split as numbers, (n, C), and sentences about both."""

    columns: tuple[Column, ...]
    rows: Mapping[str, np.ndarray]
    lines: Sequence[str]


def read_cells(files: Sequence[TableFile], names: Sequence[str] | None = None) -> dict[str, Cells | str]:
    """The cells of the columns of files; for a column of another type, that type.

    Args:
        files: the files, which have the same columns.
        names: the columns; None for all.

    Raises:
        ValueError: a file is damaged, or has no column of a name.
    """
    first = files[0]
    wanted = list(first.names) if names is None else list(names)
    found: dict[str, Cells | str] = {}
    tables = [file.arrow(wanted) for file in files]
    for name in wanted:
        if not name:
            continue
        parts = [cells_of(table.column(name)) for table in tables]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            found[name] = str(tables[0].schema.field(name).type)
            continue
        found[name] = _joined(known)
    return found


def _joined(parts: Sequence[Cells]) -> Cells:
    """The cells of several files; of several types if one file has text or numbers that are not whole."""
    if len(parts) == 1:
        return parts[0]
    kinds = {part.storage for part in parts if not part.absent.all()}
    if "text" in kinds and len(kinds) > 1:
        texts = [part.values if part.storage == "text" else _as_text(part) for part in parts]
        return Cells(np.concatenate(texts), "text")
    storage = "float" if len(kinds) > 1 else next(iter(kinds), "float")
    if storage == "text":
        empty = (np.full(len(part.values), None, object) for part in parts)
        values = [part.values if part.storage == "text" else e for part, e in zip(parts, empty, strict=True)]
        return Cells(np.concatenate(values), "text")
    return Cells(np.concatenate([_numbers(part) for part in parts]), storage)


def _as_text(part: Cells) -> np.ndarray:
    return np.array([None if np.isnan(v) else f"{v:g}" for v in part.values], object)


def _numbers(part: Cells) -> np.ndarray:
    return np.full(len(part.values), np.nan) if part.storage == "text" else part.values


def find_columns(
    train: Mapping[str, Cells | str],
    others: Sequence[Mapping[str, Cells | str]] = (),
    kinds: Mapping[str, str] | None = None,
    given: bool = False,
    where: str = "the table",
) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of a table, and lines about them.

    Args:
        train: the cells of the training rows, by column, as from :func:`read_cells`.
        others: the cells of other splits.
        kinds: the kinds of some columns, which override those found.
        given: whether the user has named the columns, so that an index is not left out.
        where: the table, for messages.

    Raises:
        ValueError: no column is of use, or ``kinds`` names an unknown column or kind.
    """
    for name in kinds or {}:
        if name not in train:
            raise ValueError(
                f"kinds names {name!r}{did_you_mean(name, list(train), f'{where} has {some(list(train))}')}"
            )
    columns: list[Column] = []
    out: list[str] = []
    reasons: dict[str, list[str]] = {}
    for name, cells in train.items():
        if isinstance(cells, str):
            out.append(f"{name} (of the type {cells})")
            continue
        if not given and cells.storage != "text" and is_counter(name) and counts_rows(cells.values):
            out.append(f"{name} (an index, which counts the rows)")
            continue
        rest = [c for other in others if isinstance(c := other.get(name), Cells)]
        column, reason = find_column(name, cells, (kinds or {}).get(name), rest)
        if column is None:
            out.append(f"{name} ({reason})")
            continue
        columns.append(column)
        reasons.setdefault(column.kind, []).append(
            f"{name} ({reason.removeprefix('real, ')})" if reason != "real" else name
        )
    if not columns:
        raise ValueError(f"{where} has no column to learn from; left out: {some(out)}.")
    lines = [f"{kind} columns: {some(reasons[kind])}" for kind in ("real", "whole", "categorical") if kind in reasons]
    if out:
        lines.append(f"left out columns: {some(out)}")
    return tuple(columns), lines


def rows_of_numbers(
    columns: Sequence[Column], cells: Mapping[str, Cells | str], where: str, say: Callable[[str], None] | None = None
) -> np.ndarray:
    """The rows of a table as numbers, (n, C), float64 with NaN for missing cells.

    Args:
        columns: the columns.
        cells: their cells by name.
        where: the table, for messages.
        say: called with a sentence about values that training did not have.

    Raises:
        ValueError: a column is absent, of another type, or holds infinite values.
    """
    found: list[Numbers] = []
    for column in columns:
        own = cells.get(column.name)
        if own is None:
            raise ValueError(
                f"{where} has no column {column.name!r}, which the model needs: it has {some(list(cells))}."
            )
        if isinstance(own, str):
            raise ValueError(f"The column {column.name!r} of {where} is of the type {own}, which cannot be read.")
        numbers = to_numbers(column, own)
        if np.isinf(numbers.values).any():
            raise ValueError(
                f"The column {column.name!r} of {where} holds infinite values: correct or remove such rows."
            )
        found.append(numbers)
    if say is not None:
        for column, numbers in zip(columns, found, strict=True):
            if numbers.unseen:
                what = {"categorical": "categories unknown to the model, counted as other"}.get(
                    column.kind, "values outside of those of the training rows, taken for the nearest one"
                )
                say(f"the column {column.name!r} has {numbers.unseen:,} cells with {what}")
    return np.stack([numbers.values for numbers in found], 1)


@dataclass
class Reader:
    """Splits of a table with columns of several kinds.

    Args:
        path: the table, for messages.
        files: the files of each split.
        names: the columns to use; None for all.
        kinds: kinds given by the user.
        drop: whether to leave out rows with missing cells.
        divide: function from the number of rows and the splits that have no file to the rows of each split.
    """

    path: str
    files: Mapping[str, Sequence[TableFile]]
    names: Sequence[str] | None
    kinds: Mapping[str, str]
    drop: bool
    divide: Callable[[int, Sequence[str]], Mapping[str, np.ndarray]]
    lines: list[str] = field(default_factory=list)

    def read(self) -> MixedRows:
        """Read the files, divide the rows, and choose the columns.

        Raises:
            ValueError: as for :class:`ndm.data.Table`.
        """
        cells = {split: read_cells(files, self.names) for split, files in self.files.items()}
        for split, own in cells.items():
            if not _count(own):
                raise ValueError(f"{self.path} has no rows in the {split} split: there is nothing to learn from.")
        if self.drop:
            cells = {split: self._complete(own, split) for split, own in cells.items()}
        absent = [name for name in ("validation", "test") if name not in cells]
        parts = self.divide(_count(cells["train"]), absent)
        every = cells["train"]
        cells |= {split: _taken(every, rows) for split, rows in parts.items()}
        others = [own for split, own in cells.items() if split != "train"]
        columns, lines = find_columns(cells["train"], others, self.kinds, self.names is not None, self.path)
        rows = {split: rows_of_numbers(columns, own, self.path) for split, own in cells.items()}
        notes = _counters(columns, rows["train"]) if self.names is None else []
        return MixedRows(columns, rows, [*lines, *self.lines, *notes])

    def _complete(self, cells: dict[str, Any], split: str) -> dict[str, Any]:
        every = np.stack([own.absent for own in cells.values() if isinstance(own, Cells)])
        absent: np.ndarray = np.asarray(every.any(axis=0))
        if absent.any():
            self.lines.append(f"left out {int(absent.sum()):,} of {len(absent):,} rows with missing cells in {split}")
        if absent.all():
            raise ValueError(f"Every row of {self.path} has a missing cell: use --data.missing atom, or other columns.")
        return _taken(cells, np.flatnonzero(~absent))


def _count(cells: Mapping[str, Cells | str]) -> int:
    return next((len(own.values) for own in cells.values() if isinstance(own, Cells)), 0)


def _taken(cells: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return {n: c if isinstance(c, str) else Cells(c.values[rows], c.storage) for n, c in cells.items()}


def _counters(columns: Sequence[Column], rows: np.ndarray) -> list[str]:
    if len(rows) < _SHORT:
        return []
    return [
        f"warning: the column {column.name!r} has another whole number in every row, as an index has, and says nothing "
        "about the others: name the others by columns="
        for column, values in zip(columns, rows.T, strict=True)
        if column.kind != "categorical" and counts_rows(values)
    ]
