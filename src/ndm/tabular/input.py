"""Tables given in Python: DataFrames, Arrow tables and arrays, as cells, and a data set of them for training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import Data
from ndm.data.frames import OTHER, as_arrow, as_texts, cells_of, from_numbers
from ndm.data.kinds import Cells
from ndm.data.mixed import checked_given, find_columns, outliers, rows_of_numbers
from ndm.method.columns import Column
from ndm.method.encoding import TableEncoding

__all__ = ["FrameData", "cells_of_input", "in_the_form_of", "is_frame"]


def is_frame(data: Any) -> bool:
    """Whether the data have named columns: a DataFrame, an Arrow table or a dictionary."""
    if hasattr(data, "tocsr"):  # a sparse matrix, which may be a dictionary too
        return False
    return isinstance(data, Mapping) or hasattr(data, "columns") or hasattr(data, "column_names")


def cells_of_input(data: Any, texts: Collection[str] = ()) -> dict[str, Cells | str]:
    """The cells of each column of a table or an (n, d) array, whose columns are then x0, x1, ...

    Args:
        data: the table, or the array.
        texts: names of columns of text, whose cells are not read as numbers.

    Raises:
        ValueError: the data are neither, or have two columns of one name.
    """
    if not is_frame(data):
        array = np.asarray(data)
        if array.dtype.kind in "OUS":
            return {f"x{i}": _objects(array[:, i], f"x{i}" in texts) for i in range(array.shape[1])}
        kind = {"b": "bool", "i": "int", "u": "int"}.get(array.dtype.kind, "float")
        return {f"x{i}": Cells(array[:, i].astype(np.float64), kind) for i in range(array.shape[1])}
    table = as_arrow(data)
    names = [str(name) for name in table.column_names]
    if len(set(names)) < len(names):
        raise ValueError("Two columns of the table have the same name: rename one.")
    found: dict[str, Cells | str] = {}
    for name, column in zip(names, table.columns, strict=True):
        cells = cells_of(column, name in texts)
        found[name] = str(column.type) if cells is None else cells
    return found


def _objects(values: np.ndarray, text: bool = False) -> Cells:
    """The cells of an array of Python objects, read as text or by their types."""
    absent = np.array([v is None or v != v for v in values], bool)
    as_text = [None if gone else str(v) for v, gone in zip(values, absent, strict=True)]
    if text:
        return Cells(np.array(as_text, object), "text")
    try:
        return Cells(np.where(absent, np.nan, values).astype(np.float64), "float")
    except (ValueError, TypeError):
        pass
    try:
        found = cells_of(as_arrow({"values": values}).column(0))
    except ValueError:  # several types
        found = None
    return Cells(np.array(as_text, object), "text") if found is None else found


def in_the_type_of(column: Column, values: np.ndarray) -> np.ndarray:
    """Numbers of a column as truth values, or as datetime64 for dates and times; others as they are.

    Args:
        column: the column.
        values: its values, of any shape, in days or seconds for dates and times.
    """
    if column.storage == "bool":
        return values.astype(bool)
    if column.storage in ("date", "datetime"):
        return np.rint(values).astype(np.int64).astype(f"datetime64[{'D' if column.storage == 'date' else 's'}]")
    return values.astype(np.int64) if column.storage == "int" and column.kind == "categorical" else values


def names_of_levels(column: Column) -> list[str]:
    """The levels of a column without a density as texts; last "(other)" if there is one."""
    levels = list(column.levels)
    if column.storage != "text":
        levels = as_texts(Cells(np.array(levels, np.float64), column.storage)).tolist()
    return [*levels, *([OTHER] if column.other else [])]


def in_the_form_of(like: Any, columns: Sequence[Column], rows: np.ndarray) -> Any:
    """Rows of numbers, (n, C), as a DataFrame, an Arrow table or an array, as the fitted data were.

    Args:
        like: ``pandas``, ``polars``, ``arrow`` or ``array``.
        columns: the columns.
        rows: the numbers.
    """
    if like == "array" and all(column.storage not in ("text", "date", "datetime") for column in columns):
        values = rows.copy()
        for i, column in enumerate(columns):
            if column.kind == "categorical":
                levels = np.array([*map(float, column.levels), np.nan])
                values[:, i] = levels[np.where(np.isnan(rows[:, i]), len(column.levels), rows[:, i]).astype(int)]
        return values
    table = from_numbers(columns, rows)
    if like == "array":
        return np.stack([np.array(column.to_pylist(), object) for column in table.columns], 1)
    if like == "arrow":
        return table
    if like == "polars":
        import polars

        return polars.from_arrow(table)
    return table.to_pandas()


def form_of(data: Any) -> str:
    """``pandas``, ``polars``, ``arrow`` or ``array``."""
    module = type(data).__module__.partition(".")[0]
    if module in ("pandas", "polars"):
        return module
    if module == "pyarrow":
        return "arrow"
    return "pandas" if is_frame(data) else "array"


class FrameData(Data):
    """A table in memory, divided at random into training and validation rows.

    Args:
        cells: the cells of each column.
        validation: the share of the rows for validation.
        seed: the seed of the division.
        kinds: kinds of some columns, which override those found.
        given: names of the columns that are given.

    Raises:
        ValueError: there are fewer than 3 rows, or no column of use; or an argument is out of range.
    """

    levels = None

    def __init__(
        self,
        cells: Mapping[str, Cells | str],
        validation: float = 0.1,
        seed: int = 0,
        kinds: Mapping[str, str] | None = None,
        given: Sequence[str] = (),
    ) -> None:
        n = next((len(c.values) for c in cells.values() if isinstance(c, Cells)), 0)
        if n < 3:
            raise ValueError(f"There are n_samples = {n} rows, and training and validation need at least 3.")
        if not 0 < validation < 1:
            raise ValueError(f"validation is a share of the rows, between 0 and 1, not {validation}.")
        order = np.random.RandomState(seed % 2**32).permutation(n)
        held = min(n - 2, max(1, round(n * validation)))
        places = {"validation": np.sort(order[:held]), "train": np.sort(order[held:])}
        parts = {
            split: {k: c if isinstance(c, str) else Cells(c.values[rows], c.storage) for k, c in cells.items()}
            for split, rows in places.items()
        }
        self.table, self.lines = find_columns(parts["train"], [parts["validation"]], kinds, True)
        self._rows = {
            split: torch.from_numpy(rows_of_numbers(self.table, own, "the table")) for split, own in parts.items()
        }
        self.lines += outliers(self.table, self._rows["train"].numpy())
        self._given = checked_given(tuple(given), self.columns, "the table")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # constant for users
        return (len(self.table),)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.table)

    @cached_property
    def encoding(self) -> TableEncoding:
        return TableEncoding.of(self.table)

    @property
    def given(self) -> tuple[str, ...]:
        return self._given

    @property
    def _present(self) -> tuple[str, ...]:
        return ("train", "validation")

    def summary(self) -> list[str]:
        return [f"data: {sum(map(len, self._rows.values())):,} rows of {len(self.table)} columns", *self.lines]

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        if name not in self._rows:
            raise ValueError("A table that is fitted has no test split.")
        return self._rows[name], None
