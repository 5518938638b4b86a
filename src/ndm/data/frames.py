"""Columns of text, numbers and dates as arrays, from files and frames, and back: by Apache Arrow."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ndm.data.cells import MISSING
from ndm.data.kinds import Cells
from ndm.method.columns import Column

__all__ = ["Numbers", "as_arrow", "as_texts", "cells_of", "from_numbers", "refuse_far", "to_numbers"]

#: A real value further from the training rows than this many standard deviations is refused in training.
FAR = 1e6

#: And anywhere from this one on: single precision ends at 3e38.
LARGEST = 1e30

#: Integers from this one on are not exact in double precision, and count as real numbers.
INEXACT = 2.0**53

_DAY = 86_400  # seconds


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
        if isinstance(data, Mapping):
            data = {name: pa.array(values, from_pandas=True) for name, values in data.items()}  # NaN among texts
        return pa.table(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The data are no table of columns with one type each ({reason:.200}).") from None


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise ImportError("Tables need pyarrow: pip install pyarrow.") from None


def cells_of(column: Any, text: bool = False) -> Cells | None:
    """The cells of an Arrow column; None for a type that is none of text, numbers, booleans and dates.

    Text of which every cell is a number, a date, or true or false is read as such. Times are in seconds, those with a
    time zone in UTC; fractions of a second are dropped.

    Args:
        column: the column, (n,).
        text: whether to keep text as it is.
    """
    pa = _arrow()
    column = decoded(column)
    kind = column.type
    if pa.types.is_null(kind):
        return Cells(np.full(len(column), np.nan), "float")
    if pa.types.is_boolean(kind):
        return Cells(_floats(column.cast(pa.int8())), "bool")
    if pa.types.is_integer(kind):
        return _whole(_floats(column))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Cells(_floats(column), "float")
    if pa.types.is_date(kind):
        return Cells(_floats(column.cast(pa.date32()).cast(pa.int32())), "date")
    if pa.types.is_timestamp(kind):
        return Cells(_seconds(column), "datetime")
    if is_text(kind):
        return _from_text(column, text)
    return None


def decoded(column: Any) -> Any:
    """An Arrow column with its values in place of a dictionary, and with text that all functions of Arrow accept.

    polars gives text as string views, for which many functions of Arrow have no implementation.
    """
    pa = _arrow()
    coded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if coded else column.type
    if not is_text(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(kind) if coded else column
    if not coded:
        return column.cast(pa.large_string())
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    decoded_chunks = [chunk.dictionary.cast(pa.large_string()).take(chunk.indices) for chunk in chunks]
    return pa.chunked_array(decoded_chunks, pa.large_string())


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of text."""
    pa = _arrow()
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == getattr(pa, "string_view", lambda: 0)()
    )


def _floats(column: Any) -> np.ndarray:
    pa = _arrow()
    return (
        np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
        if isinstance(column, pa.Array)
        else np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    )


def _whole(values: np.ndarray) -> Cells:
    with np.errstate(invalid="ignore"):  # NaN
        return Cells(values, "float" if (np.abs(values) >= INEXACT).any() else "int")


def _seconds(column: Any) -> np.ndarray:
    """Seconds since 1970, rounded down; in UTC where the column has a time zone."""
    pa = _arrow()
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    return np.floor(_floats(column.cast(pa.int64())) / per_second)


def _from_text(column: Any, text: bool) -> Cells:
    pa = _arrow()
    compute = importlib.import_module("pyarrow.compute")
    trimmed = compute.utf8_trim_whitespace(column)
    absent = compute.is_in(trimmed, value_set=pa.array(sorted(MISSING), trimmed.type))
    trimmed = compute.if_else(absent, None, trimmed)
    found = None if text else _parsed(trimmed)
    if found is not None:
        return found
    known = trimmed.drop_null().unique()
    objects = np.array([*known.to_pylist(), None], object)
    places = compute.fill_null(compute.index_in(trimmed, value_set=known), -1)
    return Cells(objects[np.asarray(places, np.int64)], "text")  # equal texts are one object


def _parsed(trimmed: Any) -> Cells | None:
    """The cells of text of which every cell is a number, a date, a time, or true or false."""
    pa = _arrow()
    zoned, plain = pa.timestamp("us", "UTC"), pa.timestamp("us")
    for kind, storage in ((pa.float64(), "float"), (pa.date32(), "date"), (plain, "datetime"), (zoned, "datetime")):
        try:
            found = trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
        if storage == "date":
            return Cells(_floats(found.cast(pa.int32())), storage)
        return _numbers(trimmed, _floats(found)) if storage == "float" else Cells(_seconds(found), storage)
    texts = set(trimmed[:1000].to_pylist())
    if texts <= {None, *_TRUTHS} and set(trimmed.unique().to_pylist()) <= {None, *_TRUTHS}:
        return Cells(_floats(trimmed.cast(pa.bool_()).cast(pa.int8())), "bool")
    return None


_TRUTHS = ("true", "false", "True", "False", "TRUE", "FALSE")


def _numbers(trimmed: Any, values: np.ndarray) -> Cells | None:
    """Numbers that were text; None for codes such as 00501."""
    compute = importlib.import_module("pyarrow.compute")
    if compute.any(compute.match_substring_regex(trimmed, r"^[+-]*0[0-9]+$")).as_py():
        return None
    finite = values[np.isfinite(values)]
    whole = len(finite) > 0 and bool((finite == np.rint(finite)).all())
    if whole and not compute.any(compute.match_substring(trimmed, ".")).as_py():
        return _whole(values)
    return Cells(values, "float")


def as_texts(cells: Cells) -> np.ndarray:
    """The cells as texts, an object array (n,) with None for missing cells: 12, 0.5, True, 2020-01-31."""
    if cells.storage == "text":
        return cells.values
    absent = cells.absent
    values, texts = cells.values[~absent], np.full(len(absent), None, object)
    if cells.storage in ("date", "datetime"):
        found = values.astype(np.int64).astype(f"datetime64[{'D' if cells.storage == 'date' else 's'}]").astype(str)
    elif cells.storage == "bool":
        found = np.where(values == 1, "True", "False")
    else:
        found = np.array([str(int(v)) if v.is_integer() else repr(v) for v in values.tolist()], object)
    texts[~absent] = found
    return texts


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
        ValueError: the cells are of another type, or are of another category and the column has no "other", or a real
            value is far from all of the training rows.
    """
    if column.kind == "categorical":
        return _levels_of(column, cells)
    cells = _of_type(column, cells)
    values = cells.values
    if column.on_a_line:
        known = np.isin(values, column.levels) | np.isnan(values)
        return Numbers(values, int((~known).sum()))
    if column.rest == "grid":
        off = np.abs(np.rint(values / column.step) * column.step - values) > 1e-6 * column.step
        beyond = (values < column.low) | (values > column.high) | off
        beyond &= ~np.isin(values, column.levels) & ~np.isnan(values)
        return Numbers(values, int(beyond.sum()))
    refuse_far([column], values[:, None], LARGEST)
    return Numbers(values, 0)


def refuse_far(columns: Sequence[Column], rows: np.ndarray, most: float = FAR, where: str = "") -> None:
    """Refuse rows, (n, C), with a real value too far from the training rows.

    Args:
        columns: the columns.
        rows: the rows as numbers.
        most: the largest distance from the mean, in standard deviations.
        where: " of" and the table, for messages.

    Raises:
        ValueError: a value is further away.
    """
    for column, values in zip(columns, rows.T, strict=True):
        if column.rest != "density":
            continue
        v = column.map.forward(torch.tensor(values, dtype=torch.float64)).abs().numpy()
        v = np.where(np.isinf(values) | np.isnan(values) | np.isin(values, column.levels), 0, v)
        if not (v <= most).all():
            raise ValueError(
                f"The column {column.name!r}{where} holds {values[v.argmax()]:g}, which is more than {most:,g} "
                "standard deviations from the mean of the training rows: correct or remove such rows."
            )


def _of_type(column: Column, cells: Cells) -> Cells:
    """The cells of a column of numbers or dates in its type."""
    if cells.absent.all():
        return Cells(np.full(len(cells.values), np.nan), column.storage)
    if cells.storage == "text":
        example = next(value for value in cells.values if value is not None)
        raise ValueError(
            f"The column {column.name!r} holds text such as {str(example)[:40]!r}, and was a column of numbers or "
            "dates in training: correct the file."
        )
    both = (column.storage, cells.storage)
    if both == ("datetime", "date"):
        return Cells(cells.values * _DAY, "datetime")
    if both == ("date", "datetime") and not (cells.values % _DAY > 0).any():
        return Cells(cells.values / _DAY, "date")
    if both[0] != both[1] and not {"date", "datetime"}.isdisjoint(both):
        was, is_ = (_TYPES[storage] for storage in both)
        raise ValueError(
            f"The column {column.name!r} holds {is_}, and held {was} in training: convert it to {was}, or correct the "
            "file."
        )
    return cells


_TYPES = {
    "float": "numbers", "int": "numbers", "bool": "truth values", "date": "dates", "datetime": "dates with times",
    "text": "text",
}  # fmt: skip


def _levels_of(column: Column, cells: Cells) -> Numbers:
    """The index of the level of each cell."""
    text = column.storage == "text"
    if text:  # categories such as 1, 2, 3 that were text elsewhere
        places = _places_of_texts(column, as_texts(cells))
    elif cells.storage == "text" and not cells.absent.all():
        example = next(value for value in cells.values if value is not None)
        raise ValueError(
            f"The column {column.name!r} holds the text {str(example)[:40]!r}, and held "
            f"{_TYPES[column.storage]} in training: correct the file."
        )
    else:
        places = _places_of_numbers(column, _of_type(column, cells).values)
    rest = float(len(column.levels))
    unseen = places == rest
    if unseen.any() and not column.other:
        wrong = cells.values[unseen][0]
        raise ValueError(
            f"The column {column.name!r} holds {wrong if text else float(wrong)!r}, and training had only "
            f"{', '.join(str(level) for level in column.levels[:12])}{', ...' * (len(column.levels) > 12)}: correct or "
            "remove such rows."
        )
    return Numbers(places, int(unseen.sum()))


def _places_of_texts(column: Column, texts: np.ndarray) -> np.ndarray:
    pa, compute = _arrow(), importlib.import_module("pyarrow.compute")
    levels = pa.array([str(level) for level in column.levels], pa.large_string())
    cells = pa.array(texts, pa.large_string(), from_pandas=True)
    places = compute.fill_null(compute.index_in(cells, value_set=levels), len(levels)).cast(pa.float64())
    return np.where(np.asarray(cells.is_null()), np.nan, np.asarray(places))


def _places_of_numbers(column: Column, values: np.ndarray) -> np.ndarray:
    levels = np.array(column.levels, np.float64)
    order = np.argsort(levels)
    near = order[np.searchsorted(levels, values, sorter=order).clip(0, len(levels) - 1)]
    places = np.where(levels[near] == values, near, len(levels)).astype(np.float64)
    return np.where(np.isnan(values), np.nan, places)


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
        values = np.array([np.nan if v is None or v is OTHER else float(v) for v in found])
        absent = np.isnan(values)
    # The limits are those of 64 bits, and for dates and times those of the years 1 to 9999.
    low, high = {"date": (-719_162, 2_932_896), "datetime": (-62_135_596_800, 253_402_300_799)}.get(
        column.storage, (-(2.0**63), 2.0**63 - 1024)
    )
    whole = np.rint(np.where(absent, 0, values)).clip(low, high).astype(np.int64)
    if column.storage == "bool":
        return pa.array(whole.astype(bool), pa.bool_(), mask=absent)
    if column.storage == "int":
        return pa.array(whole, pa.int64(), mask=absent)
    if column.storage == "date":
        return pa.array(whole.astype("datetime64[D]"), pa.date32(), mask=absent)
    if column.storage == "datetime":
        return pa.array(whole.astype("datetime64[s]"), pa.timestamp("s"), mask=absent)
    return pa.array(values, pa.float64(), mask=absent)
