r"""The map between the rows of a table, one number per column, and the latent vectors x of the process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor
from ndm.method.columns import Column, ColumnMaps, closeness, codes_of, on_grid
from ndm.method.parts import Part

__all__ = ["TableEncoding"]


class TableEncoding(Part):
    """Rows of a table to x and back: a code for the atom of a column, and a value where it has a density or a grid.

    In an :class:`ndm.NDM` it takes the place of :class:`ndm.Standardize`. The log-density of a row is with respect to
    the product, over columns, of counting measure on the atoms plus Lebesgue measure, in the column's own units.

    Args:
        columns: the columns, as :meth:`ndm.method.columns.Column.plain` describes them.

    Raises:
        ValueError: there are no columns, or a description is invalid.
    """

    def __init__(self, columns: list) -> None:
        super().__init__()
        if not columns:
            raise ValueError("A table's encoding needs at least one column.")
        self.table: tuple[Column, ...] = tuple(Column.of(column) for column in columns)
        self._codes = [codes_of(column.codes) for column in self.table]
        self._rest = [i for i, column in enumerate(self.table) if column.rest is not None]
        rest = [self.table[i] for i in self._rest]
        self._maps = ColumnMaps([column.map for column in rest])
        ends = [[c.step if c.rest == "grid" else 0.0, c.low, c.high] for c in rest]
        self._grid = torch.tensor(ends, dtype=torch.float64).reshape(-1, 3).T

    @classmethod
    def of(cls, columns: Sequence[Column]) -> TableEncoding:
        """The encoding of columns."""
        return cls([column.plain() for column in columns])

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, (C,)."""
        return tuple(column.name for column in self.table)

    @property
    def texts(self) -> frozenset[str]:
        """The names of the columns of text, whose cells are not read as numbers, such as codes 1.50 and 007."""
        return frozenset(column.name for column in self.table if column.storage == "text")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a row: (C,)."""
        return (len(self.table),)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of x: (d,)."""
        return (self.slices[-1].stop,)

    def latent(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape of x for rows of a shape.

        Raises:
            ValueError: the rows have another number of columns.
        """
        if tuple(shape) != self.shape:
            raise ValueError(f"The model is for rows of {self.shape[0]} columns, not of shape {shape}.")
        return self.latent_shape

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The coordinates of each column in x: its code and its value."""
        found, start = [], 0
        for column, codes in zip(self.table, self._codes, strict=True):
            stop = start + codes.shape[1] + (column.rest is not None)
            found.append(slice(start, stop))
            start = stop
        return tuple(found)

    @property
    def discrete(self) -> bool:
        """Whether a column has atoms or a grid, so that x has no density."""
        return any(column.atoms or column.rest == "grid" for column in self.table)

    def layouts(self, columns: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """The arguments of :class:`ndm.MixedDecoder` for some columns, by default all."""
        return [self.table[i].layout() for i in (range(len(self.table)) if columns is None else columns)]

    def restricted(self, columns: Sequence[int]) -> TableEncoding:
        """The encoding of some of the columns."""
        return TableEncoding.of([self.table[i] for i in columns])

    def coordinates(self, columns: Iterable[int]) -> Tensor:
        """The coordinates in x of some columns, int64."""
        found = [torch.arange(self.slices[i].start, self.slices[i].stop) for i in columns]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def forward(self, data: Values) -> Tensor:
        """x of rows, (B, C) -> (B, d), in float64.

        Raises:
            ValueError: a cell is infinite, or missing or unknown to its column.
        """
        data = as_tensor(data).double()
        if data.isinf().any():
            raise ValueError("The data contain infinite values; remove or replace them.")
        x = data.new_zeros(len(data), *self.latent_shape)
        is_value = torch.ones(len(data), len(self._rest), dtype=torch.bool, device=data.device)
        for i, (column, codes, where) in enumerate(zip(self.table, self._codes, self.slices, strict=True)):
            index, m = column.index(data[:, i]), codes.shape[1]
            if m:
                x[:, where.start : where.start + m] = codes.to(x)[index]
            if column.rest is not None and column.atoms:
                is_value[:, self._rest.index(i)] = index == column.atoms
        if self._rest:
            step, low, high = self._grid.to(x.device)
            r = torch.where(is_value, data[:, self._rest], torch.zeros_like(data[:, :1]))
            v = torch.where(is_value, self._maps.forward(on_grid(r, step, low, high)), torch.zeros_like(r))
            x[:, [self.slices[i].stop - 1 for i in self._rest]] = v
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """The rows of x, (B, d) -> (B, C), in float64: of each column the nearest atom, or the value."""
        x = x.double()
        rows = x.new_empty(len(x), len(self.table))
        if self._rest:
            v = x[:, [self.slices[i].stop - 1 for i in self._rest]]
            rows[:, self._rest] = on_grid(self._maps.inverse(v), *self._grid.to(x.device))
        for i, column in enumerate(self.table):
            index = self.index(x, i)
            if column.atoms:
                values = x.new_tensor([self._value_of(column, atom) for atom in range(column.atoms)])
                atom = index < column.atoms
                rows[atom, i] = values[index[atom]]
        return rows

    def index(self, x: Tensor, column: int) -> Tensor:
        """The atom of each row, (B,): the one whose code is nearest; the number of atoms for the rest."""
        where, codes = self.slices[column], self._codes[column].to(x)
        e = x[:, where.start : where.start + codes.shape[1]]
        return closeness(e, codes).argmax(1)

    @staticmethod
    def _value_of(column: Column, atom: int) -> float:
        if atom == column.missing_index:
            return float("nan")
        return float(atom) if column.kind == "categorical" else float(column.levels[atom])

    def log_det(self, x: Tensor) -> Tensor:
        """``log |dv/dr|`` summed over the columns whose value is from a density, (B,), in nats.

        It is 0 for an atom and for a grid, whose measure is counting measure.
        """
        return self.log_det_by_column(x).sum(1).to(x.dtype)

    def log_det_by_column(self, x: Tensor) -> Tensor:
        """The same for each column, (B, C), in float64."""
        found = x.new_zeros(len(x), len(self.table), dtype=torch.float64)
        for i, (column, where) in enumerate(zip(self.table, self.slices, strict=True)):
            if column.rest == "density":
                slope = column.map.log_slope(x[:, where.stop - 1])
                own = self.index(x, i) == column.atoms if column.atoms else torch.ones(len(x), dtype=torch.bool)
                found[:, i] = torch.where(own.to(x.device), slope, torch.zeros_like(slope))
        return found

    def sum_by_column(self, x: Tensor) -> Tensor:
        """The sum over the coordinates of each column, (B, d) -> (B, C)."""
        return torch.stack([x[:, where].sum(1) for where in self.slices], 1)

    def extra_repr(self) -> str:
        return ", ".join(f"{column.name}: {column.kind}" for column in self.table)
