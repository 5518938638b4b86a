"""Columns of text, numbers and dates as arrays, from files and frames, and back: by Apache Arrow."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ndm.data.cells import MISSING
from ndm.data.kinds import Cells
from ndm.method.columns import Column

__all__ = ["Numbers", "as_arrow", "cells_of", "from_numbers", "to_numbers"]


def as_arrow(data: Any) -> Any:
    """A pandas or Polars DataFrame, a dictionary of lists, or an Arrow table, as an Arrow table.

    Raises:
        ValueError: it is none of these.
        ImportError: pyarrow is not installed.
    """
    pa = _arrow()
    if isinstance(data, pa.Table):
        return data
    try:
        if type(data).__module__.startswith("pandas"):
            return pa.Table.from_pandas(data, preserve_index=False)
        return pa.table(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The data are no table of columns with one type each ({reason:.200}).") from None


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise ImportError("Tables need pyarrow: pip install pyarrow.") from None


def cells_of(column: Any) -> Cells | None:
    """The cells of an Arrow column; None for a type that is none of text, numbers, booleans and dates.

    Text of which every cell is a number, or every cell is a date, is read as such.
    """
    pa = _arrow()
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if pa.types.is_null(kind):
        return Cells(np.full(len(column), np.nan), "float")
    if pa.types.is_boolean(kind):
        return Cells(_floats(column.cast(pa.int8())), "bool")
    if pa.types.is_integer(kind):
        return Cells(_floats(column), "int")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Cells(_floats(column), "float")
    if pa.types.is_date(kind):
        return Cells(_floats(column.cast(pa.date32()).cast(pa.int32())), "date")
    if pa.types.is_timestamp(kind):
        return Cells(_floats(column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())), "datetime")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == getattr(pa, "string_view", lambda: 0)():
        return _from_text(column)
    return None


def _floats(column: Any) -> np.ndarray:
    pa = _arrow()
    return (
        np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
        if isinstance(column, pa.Array)
        else np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    )


def _from_text(column: Any) -> Cells:
    pa = _arrow()
    compute = importlib.import_module("pyarrow.compute")
    trimmed = compute.utf8_trim_whitespace(column)
    absent = compute.is_in(trimmed, value_set=pa.array(sorted(MISSING), trimmed.type))
    trimmed = compute.if_else(absent, None, trimmed)
    for kind, storage in ((pa.float64(), "float"), (pa.date32(), "date"), (pa.timestamp("s"), "datetime")):
        try:
            found = trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
        if storage == "float":
            values = _floats(found)
            finite = values[np.isfinite(values)]
            texts = {t.lstrip("+-") for t in trimmed.drop_null().unique().to_pylist()[:1000]}
            if any(len(t) > 1 and t[0] == "0" and t.isdigit() for t in texts):
                break  # codes such as 00501
            whole = bool((finite == np.rint(finite)).all()) and not any("." in t for t in texts)
            return Cells(values, "int" if whole and len(finite) else "float")
        return Cells(_floats(found.cast(pa.int32() if storage == "date" else pa.int64())), storage)
    return Cells(np.array(trimmed.to_pylist(), object), "text")


class Numbers(NamedTuple):
    """Cells as the numbers of a column's encoding.

    Attributes:
        values: float64 (n,): values, indices of levels, NaN for missing cells.
        unseen: the number of cells with a category, or beyond the range of whole numbers, that training did not have.
    """

    values: np.ndarray
    unseen: int


def to_numbers(column: Column, cells: Cells) -> Numbers:
    """The cells of a column as numbers.

    A category that training did not have becomes "other". A whole number beyond the range of the training values
    becomes the smallest or largest one; one between the levels becomes the nearest.

    Raises:
        ValueError: the cells are of another type, or are of another category and the column has no "other".
    """
    if column.kind == "categorical":
        return _levels_of(column, cells)
    if cells.storage == "text":
        example = next((value for value in cells.values if value is not None), "")
        if example != "":
            raise ValueError(
                f"The column {column.name!r} holds text such as {str(example)[:40]!r}, and was a column of numbers in "
                "training: correct the file."
            )
        return Numbers(np.full(len(cells.values), np.nan), 0)
    dates = ("date", "datetime")
    other = (cells.storage in dates or column.storage in dates) and cells.storage != column.storage
    if other and not np.isnan(cells.values).all():
        raise ValueError(
            f"The column {column.name!r} is of the type {cells.storage}, and was {column.storage} in training."
        )
    values = cells.values
    if column.on_a_line:
        known = np.isin(values, column.levels) | np.isnan(values)
        return Numbers(values, int((~known).sum()))
    if column.rest == "grid":
        off = np.abs(np.rint(values / column.step) * column.step - values) > 1e-6 * column.step
        beyond = (values < column.low) | (values > column.high) | off
        beyond &= ~np.isin(values, column.levels) & ~np.isnan(values)
        return Numbers(values, int(beyond.sum()))
    return Numbers(values, 0)


def _levels_of(column: Column, cells: Cells) -> Numbers:
    text = column.storage == "text"
    if text and cells.storage != "text":  # categories such as 1, 2, 3 that were text elsewhere
        as_text = [None if np.isnan(v) else (f"{v:g}" if v == np.rint(v) else repr(v)) for v in cells.values]
        cells = Cells(np.array(as_text, object), "text")
    if not text and cells.storage == "text":
        example = next((value for value in cells.values if value is not None), "")
        raise ValueError(
            f"The column {column.name!r} holds the text {str(example)[:40]!r}, and held numbers in training."
        )
    places = {level: i for i, level in enumerate(column.levels)}
    rest = len(column.levels) if column.other else -1
    absent = cells.absent
    values = np.full(len(absent), np.nan)
    present = np.array([places.get(v if text else float(v), rest) for v in cells.values[~absent]], np.float64)
    unseen = int(((present == rest) & (rest >= 0)).sum() + (present < 0).sum())
    if (present < 0).any():
        wrong = cells.values[~absent][present < 0][0]
        raise ValueError(
            f"The column {column.name!r} holds {wrong!r}, and training had only "
            f"{', '.join(str(level) for level in column.levels[:12])}: correct or remove such rows."
        )
    values[~absent] = present
    return Numbers(values, unseen)


def from_numbers(columns: Sequence[Column], rows: np.ndarray) -> Any:
    """Rows of numbers, (n, C), as an Arrow table in the types of the original one; the category "other" is "(other)".

    Raises:
        ImportError: pyarrow is not installed.
    """
    pa = _arrow()
    arrays = [_array(column, rows[:, i]) for i, column in enumerate(columns)]
    return pa.table(dict(zip([column.name for column in columns], arrays, strict=True)))


OTHER = "(other)"


def _array(column: Column, values: np.ndarray) -> Any:
    pa = _arrow()
    absent = np.isnan(values)
    if column.kind == "categorical":
        levels: Iterable[Any] = [*column.levels, *([OTHER] if column.other else [])]
        found = np.array([*levels, None], object)[np.where(absent, -1, values).astype(int)]
        if column.storage == "text":
            return pa.array(found.tolist(), pa.string())
        values = np.array([np.nan if v is None else float(v) for v in found])
        absent = np.isnan(values)
    whole = np.where(absent, 0, np.rint(np.where(absent, 0, values))).astype(np.int64)
    if column.storage == "bool":
        return pa.array(whole.astype(bool), pa.bool_(), mask=absent)
    if column.storage == "int":
        return pa.array(whole, pa.int64(), mask=absent)
    if column.storage == "date":
        return pa.array(whole.astype("datetime64[D]"), pa.date32(), mask=absent)
    if column.storage == "datetime":
        return pa.array(whole.astype("datetime64[s]"), pa.timestamp("s"), mask=absent)
    return pa.array(values, pa.float64(), mask=absent)
