"""Rows of undecoded images with labels, and the selection of their columns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ndm.data.labels import MISSING

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["Rows", "first_line", "rows_of"]

#: Number of rows of which the labels are read at a time.
_AT_ONCE = 65_536

_LABELS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class Rows:
    """A split: rows of a table, each with an undecoded image and optionally a label.

    Attributes:
        table: the rows.
        image: name of the column of the images.
        label: name of the column of the labels, or None.
        count: number of rows, or None if it is unknown before all have been read.
        where: the name of the split within a message.
        names: the names of the classes, if given by the table.
        note: a note on the labels, or empty.
    """

    table: Dataset | IterableDataset
    image: str
    label: str | None
    count: int | None
    where: str
    names: tuple[str, ...] | None = None
    note: str = ""

    def take(self, n: int) -> Rows:
        """At most the first n rows."""
        count = None if self.count is None else min(n, self.count)
        return replace(self, table=self.table.take(n if count is None else count), count=count)

    def skip(self, n: int) -> Rows:
        """All but the first n rows."""
        count = None if self.count is None else max(0, self.count - n)
        return replace(self, table=self.table.skip(n if self.count is None else min(n, self.count)), count=count)

    def shuffled(self, seed: int, buffer: int) -> Rows:
        """The rows shuffled by a seed: fully if rows can be accessed in any order, else within a buffer."""
        import datasets

        if isinstance(self.table, datasets.IterableDataset):
            return replace(self, table=self.table.shuffle(seed=seed, buffer_size=buffer))
        return replace(self, table=self.table.shuffle(seed=seed, keep_in_memory=True))

    def spread(self) -> Rows:
        """The rows in a fixed random order if they can be accessed in any order, else unchanged."""
        import datasets

        if isinstance(self.table, datasets.IterableDataset):
            return self
        order = np.random.RandomState(0).permutation(len(self.table))  # its stream is frozen by NumPy's policy
        return replace(self, table=self.table.select(order, keep_in_memory=True))

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield image and label of each row; a missing label is -1."""
        for row in self._reading(self.table):
            yield row[self.image], MISSING if self.label is None else self._number(row[self.label])

    def pieces(self, n: int) -> Iterator[tuple[list[Any], list[int]]]:
        """Yield n rows at a time, which is faster."""
        for piece in self._reading(self.table.with_format("arrow").iter(batch_size=n)):
            images = piece.column(self.image).to_pylist()
            labels = [None] * len(images) if self.label is None else piece.column(self.label).to_pylist()
            yield images, [self._number(label) for label in labels]

    def labels(self) -> list[int] | None:
        """The labels of all rows, without reading images; None if the table has none."""
        if self.label is None:
            return None
        only = self.table.select_columns([self.label]).with_format("arrow")
        pieces = self._reading(only.iter(batch_size=_AT_ONCE))
        return [self._number(label) for piece in pieces for label in piece.column(self.label).to_pylist()]

    def _number(self, label: Any) -> int:
        """A label as an integer; -1 if it is missing (None or NaN)."""
        if label is None or (isinstance(label, float) and math.isnan(label)):
            return MISSING
        if label != int(label):
            raise ValueError(f"{self.where} has the label {label}: labels must be integers.")
        return int(label)

    def _reading(self, rows: Any) -> Iterator[Any]:
        import pyarrow

        try:
            yield from rows
        except MemoryError:  # includes Arrow's memory error
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise OSError(
                f"Rows of {self.where} cannot be read: a file may be damaged, or the network unavailable "
                f"({first_line(error)})."
            ) from None


def rows_of(table: Any, column: str | None, label_column: str | None, count: int | None, where: str) -> Rows:
    """The rows of a table of the ``datasets`` library.

    Args:
        table: the table.
        column: name of the column of the images; None to find it by its type.
        label_column: name of the column of the labels; None to find it by its type and name, if there is one.
        count: number of rows, if it is known.
        where: the name of the rows in messages.

    Raises:
        ValueError: the column does not exist, or the choice is ambiguous.
    """
    import datasets

    features = table.features or table._resolve_features().features
    image = _image_column(features, column, where)
    label = _label_column(features, label_column, where)
    if isinstance(features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    names = tuple(features[label].names) if label and isinstance(features[label], datasets.ClassLabel) else None
    note = "" if label else _unused(features)
    return Rows(table.select_columns([image] + [label] * (label is not None)), image, label, count, where, names, note)


def _image_column(features: Mapping[str, Any], column: str | None, where: str) -> str:
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    files = [name for name, feature in features.items() if _holds_bytes(feature)]
    if column is not None:
        _require(column, features, where)
        if column not in images + files:
            raise ValueError(f"The column {column!r} of {where} does not hold images: {features[column]}.")
        return column
    candidates = images or files
    if not candidates:
        raise ValueError(f"There is no column of images in {where}: its columns are {', '.join(features)}.")
    if len(candidates) > 1:
        raise ValueError(
            f"There are several columns of images in {where}, {', '.join(candidates)}: choose one with --data.column "
            "(column=)."
        )
    return candidates[0]


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return "bytes" in feature and _holds_bytes(feature["bytes"])
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(features: Mapping[str, Any], column: str | None, where: str) -> str | None:
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    whole = [name for name, feature in features.items() if re.fullmatch(r"u?int\d+", _kind(feature))]
    if column is not None:
        _require(column, features, where)
        # pandas converts integers with missing values to floats.
        if column not in whole and not re.fullmatch(r"float\d+|bool", _kind(features[column])):
            raise ValueError(f"The column {column!r} of {where} does not hold class numbers: {features[column]}.")
        return column
    if len(classes) == 1:
        return classes[0]
    named = [name for name in _LABELS if name in (classes or whole)]
    if len(named) == 1:
        return named[0]
    if named or classes:
        raise ValueError(
            f"There are several columns of labels in {where}, {', '.join(classes or named)}: choose one with "
            "--data.label_column (label_column=)."
        )
    return None


def _unused(features: Mapping[str, Any]) -> str:
    """A note about a column that has the name but not the type of labels."""
    named = next((name for name in _LABELS if name in features), None)
    if named is None:
        return ""
    kind = _kind(features[named])
    if kind.startswith("float"):
        return f"the column {named!r} holds {kind} and is not read: label_column={named} takes it for labels"
    return f"the column {named!r} holds {kind or 'no numbers'} and is not read: labels are whole numbers"


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", ""))


def _require(column: str, features: Mapping[str, Any], where: str) -> None:
    if column not in features:
        raise ValueError(f"There is no column {column!r} in {where}: its columns are {', '.join(features)}.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
