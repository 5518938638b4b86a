"""Tables of numbers from CSV and Parquet files, with one row per example and one column per dimension."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import SPLITS, Data, from_levels
from ndm.data.cells import Missing
from ndm.data.columns import as_names, check_column, counts_rows, dependent_columns, far_values, few_values, kinds_line
from ndm.data.files import left_out_line, walk
from ndm.data.mixed import Reader, TableSplits, checked_given
from ndm.data.sources import by_split
from ndm.data.tablefile import TABLE_SUFFIXES, TableFile
from ndm.method.columns import KINDS
from ndm.method.encoding import TableEncoding
from ndm.storage.texts import require_regular

__all__ = ["Table", "TableFile"]

logger = logging.getLogger("ndm.data")

_SHORT = 10  # rows, below which a column may be a counter by chance
_MANY = 0.2  # fraction of dropped rows that causes a warning


class Table(Data):
    r"""The rows of a table: numbers, numbers of K levels, or with ``kinds="auto"`` columns of any kind.

    **Kinds**: with ``kinds="auto"`` the kind of each column, real, whole or categorical, is found from the training
    rows (:mod:`ndm.data.kinds`), and missing cells are values of their own. An example is a row of numbers, one per
    column: a value, the index of a category, or NaN for a missing cell. :attr:`encoding` maps it to x.

    **Columns** are those in ``columns``, in that order, or else all numeric columns in the order of the file; others
    are left out. Columns without a name and pandas indices, ``Unnamed: 0``, are also left out if they count the rows.
    An infinite or invalid value raises an error with its position, and so does a missing value, depending on
    ``missing``.

    **Splits** are those of the files, if their names or their folders' names contain train, test or validation (valid,
    val), as for :class:`~ndm.data.Images`. Missing validation and test splits are taken from the training rows: with p
    the permutation ``numpy.random.RandomState(seed).permutation(N)`` of all N rows, the missing splits get rows from
    the beginning of p, validation first, and every split keeps the order of the file.

    Values are stored in float32. Continuous values are in the table's original units, and the model standardises them.
    A column that loses too much in single precision (such as times in seconds since 1970 that differ by seconds) raises
    an error. There is a warning for columns with few distinct values or with outliers, whose density is hard to learn,
    in :meth:`summary`, or in the log if the rows are read without it.

    Args:
        path: a CSV file with a header, a Parquet file, a folder of such files, or a pattern for them.
        columns: names of the columns to use; None for all numeric columns. Names converted by YAML (NO to False, 400 to
            a number) are accepted.
        validation: rows of the validation split, if taken from the training rows; None for a tenth.
        test: likewise for the test split.
        levels: K, if the columns contain the integers k = 0 ... K - 1, which are converted to x = 2 (k + 1/2) / K - 1;
            None for continuous columns.
        seed: the seed of the permutation.
        missing: "error" to raise an error for missing cells, "drop" to drop and count rows with missing cells, "atom"
            to model them; None for "atom" if the kinds are found, else "error".
        kinds: "numeric" for columns of real numbers (or levels), "auto" to find the kind of each, or a dictionary with
            the kinds of some columns, ``real``, ``whole`` or ``categorical``, to find those of the others. With
            ``levels`` it has no effect.
        given: names of columns that are given: the model is of the density of the others given these.

    Raises:
        ValueError: an argument is out of range. On first use: a file is damaged, a column is unknown, not numeric,
            constant or too large for single precision, a value is missing or not one of the levels, or there are too
            few rows.
        FileNotFoundError: on first use: the path does not exist.
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
        missing: Literal["error", "drop", "atom"] | None = None,
        kinds: Literal["numeric", "auto"] | dict[str, str] = "numeric",
        given: list[str] | None = None,
    ) -> None:
        for name, value in {"validation": validation, "test": test}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}.")
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2, not {levels}.")
        if seed < 0:
            raise ValueError(f"The seed must not be negative, got {seed}.")
        if missing not in (None, "error", "drop", "atom"):
            raise ValueError(f"missing must be error, drop or atom, not {missing!r}.")
        self._given = None if given is None else _names(given)
        self.kinds = "numeric" if levels is not None else _checked_kinds(kinds)
        if missing == "atom" and self.kinds == "numeric":
            raise ValueError('missing="atom" models missing cells, for which the kinds of the columns must be "auto".')
        self.path = str(path)
        self.named: tuple[Any, ...] | None = None if columns is None else _names(columns)
        self.taken = {"validation": validation, "test": test}
        self.levels = levels
        self.seed = seed
        self.missing: Missing = "drop" if missing == "drop" else "error"
        self._holes_allowed = missing in (None, "atom")
        self._notes: list[str] = []
        self._told = 0  # the number of notes already logged

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, (d,)."""
        if self._mixed is not None:
            return tuple(column.name for column in self._mixed.columns)
        first = self._files["train"][0]
        named = None if self.named is None else as_names(self.named, first.header, self.path)
        return first.choose(named)

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # constant for users
        return (len(self.columns),)

    @cached_property
    def encoding(self) -> TableEncoding | None:
        """The map from rows to latent vectors; None for ``kinds="numeric"``."""
        return None if self._mixed is None else TableEncoding.of(self._mixed.columns)

    @property
    def given(self) -> tuple[str, ...]:
        """The columns that are given."""
        if not self._given:
            return ()
        if self._mixed is None:
            raise ValueError('given names columns, for which the kinds of the columns must be "auto".')
        return checked_given(as_names(self._given, self.columns, self.path), self.columns, self.path)

    @cached_property
    def _mixed(self) -> TableSplits | None:
        if self.kinds == "numeric":
            return None
        first = self._files["train"][0]
        named = None if self.named is None else as_names(self.named, first.header, self.path)
        kinds = self.kinds if isinstance(self.kinds, dict) else {}
        reader = Reader(self.path, self._files, named, kinds, self.missing == "drop", self._divided)
        mixed = reader.read()
        holes = {
            c: int(np.isnan(v).sum())
            for c, v in zip((c.name for c in mixed.columns), mixed.rows["train"].T, strict=True)
        }
        if not self._holes_allowed and self.missing == "error" and any(holes.values()):
            cells = ", ".join(f"{name} {n:,}" for name, n in holes.items() if n)
            raise ValueError(
                f"{self.path} has missing cells ({cells}): give --data.missing atom to model them, or drop to "
                "leave out their rows."
            )
        return mixed

    def _divided(self, n: int, missing: Sequence[str]) -> dict[str, np.ndarray]:
        found = self._taken_from(np.arange(n)[:, None], missing)
        return {name: rows[:, 0] for name, rows in found.items()}

    def summary(self) -> list[str]:
        """What was read and left out, the columns, the splits, duplicates and warnings: see :meth:`Data.summary`."""
        if self._mixed is not None:
            total, d = sum(map(len, self._mixed.rows.values())), len(self.columns)
            lines = [f"data: the table {self.path}, {total:,} rows of {d} column{'s' * (d > 1)}", *self._found[1]]
            return [*lines, *self._mixed.lines, *self._split_lines()]
        splits, self._told = self._splits, len(self._notes)
        rows, d = sum(map(len, splits.values())), len(self.columns)
        kind = "continuous" if self.levels is None else f"of {self.levels} levels"
        lines = [f"data: the table {self.path}, {rows:,} rows of {d} column{'s' * (d > 1)}, {kind}", *self._found[1]]
        if self.levels is None:
            lines.append(kinds_line(self.columns, splits["train"].numpy()))
        return lines + self._notes + self._split_lines()

    def _contents(self) -> Iterator[str | Tensor | np.ndarray]:
        yield "\n".join(self.columns)
        if self.encoding is not None:
            yield repr([column.plain() for column in self.encoding.table])
        yield from super()._contents()

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        if self._mixed is not None:
            return torch.from_numpy(self._mixed.rows[name]), None
        split = self._splits[name]
        for note in self._notes[self._told :]:
            logger.warning("%s: %s", self.path, note.removeprefix("warning: "))
        self._told = len(self._notes)
        return split, None

    @cached_property
    def _found(self) -> tuple[dict[str, list[Path]], list[str]]:
        return _find(self.path)

    @cached_property
    def _files(self) -> dict[str, list[TableFile]]:
        return {
            split: [TableFile(file, say=self._notes.append) for file in files]
            for split, files in self._found[0].items()
        }

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        found = {split: self._read(split, files) for split, files in self._files.items()}
        self._warn_of_counters(found["train"])
        found |= self._taken_from(found["train"], [name for name in SPLITS if name not in found])
        if self.levels is None:
            columns = dict(zip(self.columns, found["train"].T, strict=True))
            for name, column in columns.items():
                check_column(name, column, self.path)
            spoken_of = [*few_values(columns), *dependent_columns(columns)]
            for i, name in enumerate(self.columns):
                spoken_of += far_values(name, np.concatenate([rows[:, i] for rows in found.values()]))
            self._notes += [f"warning: {sentence}" for sentence in spoken_of]
            return {name: torch.from_numpy(found[name].astype(np.float32)) for name in SPLITS}
        return {name: from_levels(torch.from_numpy(found[name]).long(), self.levels) for name in SPLITS}

    def _read(self, split: str, files: Sequence[TableFile]) -> np.ndarray:
        every = [file.all_of(self.columns, self.levels, self.missing) for file in files]
        rows = every[0] if len(every) == 1 else np.concatenate(every)
        dropped = sum(file.dropped for file in files)
        cells = sum((file.missing for file in files), Counter[str]())
        columns = ", ".join(f"{name} {n:,}" for name, n in cells.items())
        where = _of(split, self._files)
        if len(rows) == 0:
            if dropped:
                raise ValueError(
                    f"Every row of {self.path}{where} has a missing cell ({columns}): select other columns with "
                    "--data.columns (columns=)."
                )
            raise ValueError(f"{self.path} has no rows{where}.")
        if dropped:
            total = dropped + len(rows)
            many = "warning: " if dropped > _MANY * total else ""
            self._notes.append(f"{many}left out {dropped:,} of {total:,} rows{where} with missing cells: {columns}")
        return rows

    def _warn_of_counters(self, rows: np.ndarray) -> None:
        """Add a note on columns that count the rows, unless they were requested."""
        if self.named is not None or self.levels is not None or len(rows) < _SHORT:
            return
        for name, column in zip(self.columns, rows.T, strict=True):
            if counts_rows(column, in_order=True):
                self._notes.append(
                    f"warning: the column {name!r} only counts the rows: select the other columns with --data.columns "
                    "(columns=)"
                )

    def _taken_from(self, rows: np.ndarray, missing: Sequence[str]) -> dict[str, np.ndarray]:
        """The missing splits and the remaining training rows, float64 (n, d)."""
        for name, count in self.taken.items():
            if count is not None and name not in missing:
                raise ValueError(f"{self.path} already has a {name} split: leave {name}={count} out.")
        n = len(rows)
        counts = [self.taken[name] or max(1, n // 10) for name in missing]
        if n - sum(counts) < 2:
            raise ValueError(
                f"{self.path} has {n} row{'s' * (n != 1)}, too few: training needs at least 2, after taking "
                f"{' and '.join(f'{c} for {name}' for c, name in zip(counts, missing, strict=True)) or 'none'}."
            )
        order = np.random.RandomState(self.seed).permutation(n)  # its stream is frozen by NumPy's policy
        parts = np.split(order, np.cumsum(counts, dtype=int))
        return {name: rows[np.sort(part)] for name, part in zip([*missing, "train"], parts, strict=True)}


def _checked_kinds(kinds: Any) -> Any:
    if isinstance(kinds, dict):
        wrong = next((kind for kind in kinds.values() if kind not in KINDS), None)
        if wrong is not None:
            raise ValueError(f"kinds must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {wrong!r}.")
        return {str(name): kind for name, kind in kinds.items()}
    if kinds not in ("numeric", "auto"):
        raise ValueError(f'kinds must be "numeric", "auto" or a dictionary, not {kinds!r}.')
    return kinds


def _names(columns: Any) -> tuple[Any, ...]:
    """The given names; a single name need not be in a list."""
    return (columns,) if isinstance(columns, str) or not isinstance(columns, Iterable) else tuple(columns)


def _of(split: str, splits: Iterable[str]) -> str:
    return f" in the {split} split" if len(list(splits)) > 1 else ""


def _find(path: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The files at a path by split, including train, and the lines about other files."""
    local = Path(path).expanduser()
    if local.is_file():
        return {"train": [local]}, []  # the name is ignored: a single file is the training split
    if local.exists() and not local.is_dir():
        require_regular(local)
    if local.is_dir():
        found = walk(local, dict.fromkeys(TABLE_SUFFIXES, "tables"))
        files = sorted(found.files["tables"])
        lines = left_out_line(found.left_out, "CSV and Parquet files")
        if not files:
            raise FileNotFoundError(f"The folder {path} has neither CSV nor Parquet files in it.")
        return by_split(files, local, path), [f"files: {len(files):,} CSV or Parquet in {path}", *lines]
    files = [Path(f) for f in sorted(glob.glob(str(local), recursive=True))] if glob.has_magic(path) else []
    if not files:
        raise FileNotFoundError(f"No file or folder matches {path}: check its spelling.")
    below = Path(os.path.commonpath([file.parent for file in files]))
    return by_split(files, below, path), [f"files: {len(files):,} of {path}"]
