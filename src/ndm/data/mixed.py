"""The rows of a table with columns of several kinds: reading, the choice of the columns, and rows as numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ndm.data.columns import counts_rows, is_counter, some, twice_in
from ndm.data.frames import Numbers, as_texts, cells_of, is_text, refuse_far, to_numbers
from ndm.data.kinds import Cells, find_column
from ndm.data.tablefile import TableFile
from ndm.method.columns import Column
from ndm.storage.texts import did_you_mean

__all__ = ["TableSplits", "checked_given", "find_columns", "read_cells", "rows_of_numbers"]

logger = logging.getLogger("ndm.data")

#: 90% of a column's values, after its map, have at least this range in standard deviations (a normal one has 3.3).
SPREAD = 0.01

_SHORT = 10  # rows, below which a column may be a counter by chance


@dataclass(frozen=True)
class TableSplits:
    """The columns, the rows of each split as numbers, (n, C), and sentences about both."""

    columns: tuple[Column, ...]
    rows: Mapping[str, np.ndarray]
    lines: Sequence[str]


def read_cells(
    files: Sequence[TableFile], names: Sequence[str] | None = None, texts: Collection[str] = ()
) -> dict[str, Cells | str]:
    """The cells of the columns of files; for a column of another type, that type.

    Args:
        files: the files, which have the same columns.
        names: the columns; None for all, without those that have no name.
        texts: names of columns of text, such as codes, which is not read as numbers or dates.

    Raises:
        ValueError: a file is damaged, or has no column of a name; or there are no names, or one twice.
    """
    first = files[0]
    wanted = [name for name in first.names if name] if names is None else list(names)
    if names is not None and not wanted:
        raise ValueError("columns is empty: leave it out to use all columns.")
    twice = twice_in(wanted)
    if twice is not None:
        raise ValueError(f"columns contains {twice!r} twice.")
    if not wanted or "" in wanted:
        what = "columns has a column without a name" if wanted else "There is no column with a name"
        raise ValueError(f"{what}: {first.path} has {some([name or '(one without a name)' for name in first.names])}.")
    tables = [file.arrow(wanted) for file in files]
    return {name: _joined([table.column(name) for table in tables], name in texts) for name in wanted}


def _joined(columns: Sequence[Any], text: bool) -> Cells | str:
    """The cells of a column of several files: text if one file has text, and if the types differ otherwise.

    Whole numbers and others are of one type.
    """
    found = [cells_of(column, text) for column in columns]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return str(columns[found.index(None)].type)
    if len(parts) == 1:
        return parts[0]
    kinds = {part.storage for part in parts if not part.absent.all()}
    if kinds == {"int", "float"}:
        kinds = {"float"}
    storage = "text" if len(kinds) > 1 else next(iter(kinds), "float")
    if storage == "text":
        if not text and any(is_text(column.type) for column in columns):
            return _joined(columns, True)  # with the text of the numbers in the file
        return Cells(np.concatenate([as_texts(part) for part in parts]), "text")
    return Cells(np.concatenate([_numbers(part) for part in parts]), storage)


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
            if name in (kinds or {}):
                raise ValueError(
                    f"The column {name!r} of {where} is of the type {cells}, which cannot be {(kinds or {})[name]}: "
                    "leave it out of kinds."
                )
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


def checked_given(given: Sequence[str], names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of the given columns.

    Args:
        given: the names.
        names: the names of all columns of the model.
        where: the table, for messages.

    Raises:
        ValueError: a name is unknown or occurs twice, or no other column is left.
    """
    unknown, twice = next((name for name in given if name not in names), None), twice_in(given)
    if unknown is not None:
        end = did_you_mean(unknown, list(names), f"the columns of {where} that can be used are {some(list(names))}")
        raise ValueError(f"given names {unknown!r}{end}")
    if twice is not None:
        raise ValueError(f"given contains {twice!r} twice.")
    if len(given) == len(names):
        raise ValueError(f"given names all columns of {where} that can be used: leave one out, to learn its density.")
    return tuple(given)


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

    def read(self) -> TableSplits:
        """Read the files, divide the rows, and choose the columns.

        Raises:
            ValueError: as for :class:`ndm.data.Table`.
        """
        cells = self._cells()
        if self.drop:
            cells = {split: self._complete(own, split) for split, own in cells.items()}
        absent = [name for name in ("validation", "test") if name not in cells]
        parts = self.divide(_count(cells["train"]), absent)
        every = cells["train"]
        cells |= {split: _taken(every, rows) for split, rows in parts.items()}
        others = [own for split, own in cells.items() if split != "train"]
        if self.names is None and "" in self.files["train"][0].names:
            self.lines.append("left out a column without a name")
        columns, lines = find_columns(cells["train"], others, self.kinds, self.names is not None, self.path)
        places = {
            split: f"{self.path} ({split} split)" if self.files.keys() > {"train"} else self.path for split in cells
        }
        rows = {split: rows_of_numbers(columns, own, places[split]) for split, own in cells.items()}
        for split in ("train", "validation"):
            refuse_far(columns, rows[split], where=f" of {places[split]}")
        notes = _counters(columns, rows["train"]) if self.names is None else []
        return TableSplits(columns, rows, [*lines, *self.lines, *notes, *outliers(columns, rows["train"])])

    def _cells(self) -> dict[str, dict[str, Cells | str]]:
        """The cells of the splits that have files; what is text in one of them is text in all."""
        cells = {split: read_cells(files, self.names) for split, files in self.files.items()}
        for split, own in cells.items():
            if all(isinstance(c, str) for c in own.values()):
                out = [f"{name} (of the type {kind})" for name, kind in own.items()]
                raise ValueError(f"{self.path} has no column to learn from in the {split} split; it has {some(out)}.")
            if not _count(own):
                raise ValueError(f"{self.path} has no rows in the {split} split: there is nothing to learn from.")
        texts = {name for name, c in cells["train"].items() if isinstance(c, Cells) and c.storage == "text"}
        for split, own in cells.items():
            other = [name for name in texts & set(own) if isinstance(c := own[name], Cells) and c.storage != "text"]
            if other:
                own |= read_cells(self.files[split], other, texts)
        return cells

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


def outliers(columns: Sequence[Column], rows: np.ndarray) -> list[str]:
    """Warnings about real columns in which a few values are so far away that the others hardly differ.

    Args:
        columns: the columns.
        rows: the training rows, (n, C).
    """
    found = []
    for column, values in zip(columns, rows.T, strict=True):
        if column.rest != "density":
            continue
        rest = values[~(np.isnan(values) | np.isin(values, column.levels))]
        v = column.map.forward(torch.from_numpy(rest)).numpy()
        low, high = np.quantile(v, [0.05, 0.95])
        if high - low < SPREAD:
            found.append(
                f"warning: the column {column.name!r} holds {rest[np.abs(v).argmax()]:g}, far from all other values, "
                f"90% of which lie within {high - low:.2g} standard deviations: correct or remove such rows"
            )
    return found


def _counters(columns: Sequence[Column], rows: np.ndarray) -> list[str]:
    if len(rows) < _SHORT:
        return []
    return [
        f"warning: the column {column.name!r} has another whole number in every row, as an index has, and says nothing "
        "about the others: name the others by columns="
        for column, values in zip(columns, rows.T, strict=True)
        if column.kind != "categorical" and counts_rows(values)
    ]
