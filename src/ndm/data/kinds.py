"""The kinds of a table's columns, found from the training rows.

The rules, for a column with n cells that are not missing:

* Left out: a column without a value, a constant one, and text of which more than half is unique, such as names.
* Categorical: text, booleans, and numbers of two values. The levels are ordered by frequency; those that occur once,
  and all beyond the 1,000 most frequent, are counted together as "other".
* Whole: numbers that are multiples of a step (1, 0.1, 0.01, ...; days for dates; days, hours, minutes
  or seconds for times), if at least half of the cells have a
  value that others have too. If there are at most 300 values, each of which occurs 5 times on average, they are atoms
  on a line, with the multiples between them if those are at most 4 times as many; else they are a grid.
* Real: all other numbers.
* In real columns and on grids, a value in at least 1% of the cells, and in 20 of them, is an atom of its own if it
  occurs five times as often as its neighbours.
* Missing cells are one more atom.
* Real values and grids get the map of Yeo and Johnson with the power of the greatest likelihood, if it improves on
  standardisation by 0.02 nats a cell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ndm.method.columns import KINDS, Column, ColumnMap, ColumnMaps

__all__ = ["Cells", "Found", "find_column"]

LINE_UP_TO, OFTEN, FILLED = 300, 5, 4
FEW = 20
MOST_LEVELS = 1_000
UNIQUE = 0.5
TIED = 0.5
ATOM_SHARE, ATOM_COUNT, ATOM_RATIO, MOST_ATOMS = 0.01, 20, 5.0, 8
MAP_GAIN = 0.02
STEPS = (1000.0, 100.0, 10.0, 5.0, 1.0, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 1e-4)
UNITS = {86_400.0: "days", 3_600.0: "hours", 60.0: "minutes", 1.0: "seconds"}  # of times, in seconds
ROUNDING = 1e-15  # of a quotient in double precision
_LOOKED_AT = 20_000


class Cells(NamedTuple):
    """The cells of a column.

    Attributes:
        values: float64 (n,) with NaN for missing cells; or for text, an object array with None.
        storage: ``float``, ``int``, ``bool``, ``text``, ``date`` or ``datetime``.
    """

    values: np.ndarray
    storage: str

    @property
    def absent(self) -> np.ndarray:
        """Whether each cell is missing, (n,)."""
        if self.storage == "text":
            return np.asarray(self.values == None, bool)  # noqa: E711 - of each element
        return np.isnan(self.values)


class Found(NamedTuple):
    """A column, or None, and the reason for its kind or for leaving it out."""

    column: Column | None
    reason: str


def find_column(name: str, cells: Cells, kind: str | None = None, others: Sequence[Cells] = ()) -> Found:
    """The column of the training cells.

    Args:
        name: its name.
        cells: the cells of the training rows.
        kind: the kind, if the user gives it.
        others: the cells of other splits: if they have missing cells or unknown categories, the column has an atom for
            these, even if the training rows have none.

    Raises:
        ValueError: the kind is unknown, or does not fit the cells.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"The kind of the column {name!r} must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {kind!r}."
        )
    absent = cells.absent
    present, holes = cells.values[~absent], int(absent.sum())
    if len(present) == 0:
        return Found(None, "holds no value")
    if cells.storage != "text" and not np.isfinite(present).all():
        raise ValueError(f"The column {name!r} holds infinite values: correct them, or leave the column out.")
    values, counts = _distinct(present, cells.storage)
    if len(values) == 1 and not holes:
        return Found(None, f"constant, {_shown(values[0], cells.storage)}")
    if cells.storage in ("text", "bool") or kind == "categorical" or (len(values) <= 2 and kind is None):
        if kind not in (None, "categorical"):
            what = "text" if cells.storage == "text" else "truth values"
            raise ValueError(f"The column {name!r} holds {what} and cannot be {kind}: make it categorical.")
        if cells.storage == "text" and kind is None and len(values) > UNIQUE * len(present) and len(present) > FEW:
            return Found(None, f"{len(values):,} different texts in {len(present):,} cells, such as names")
        found = _categorical(name, values, counts, holes, cells.storage)
    else:
        found = _of_numbers(name, present, values, counts, holes, cells.storage, kind)
    return _allowing(found, others)


def _distinct(present: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in order, and how often each occurs."""
    if storage != "text":
        return np.unique(present, return_counts=True)
    found = sorted(Counter(map(str, present.tolist())).items())
    return np.array([text for text, _ in found], object), np.array([n for _, n in found])


def _allowing(found: Found, others: Sequence[Cells]) -> Found:
    """The column with the atoms that the other splits need."""
    column = found.column
    if column is None:
        return found
    counts, reason = list(column.counts), found.reason
    if column.kind == "categorical" and not column.other:
        known = set(column.levels)
        text = column.storage == "text"
        comparable = [c.values[~c.absent] for c in others if (c.storage == "text") == text]
        new = {level_of(v, column.storage) for found in comparable for v in set(found.tolist())}
        if new - known:
            counts.insert(len(column.levels), 0.0)
            column = replace(column, other=True, counts=tuple(counts))
    if not column.missing and any(c.absent.any() for c in others):
        counts.insert(column.atoms, 0.0)
        column = replace(column, missing=True, counts=tuple(counts))
        reason += ", missing cells in other splits only"
    return Found(column, reason)


def _of_numbers(
    name: str, present: np.ndarray, values: np.ndarray, counts: np.ndarray, holes: int, storage: str, kind: str | None
) -> Found:
    step, n = _step(values, storage), len(present)
    tied = counts[counts > 1].sum() / n
    few = len(values) <= LINE_UP_TO and n >= OFTEN * len(values)
    if kind == "real" or (kind is None and not few and (step is None or tied < TIED)):
        return _real(name, present, values, counts, holes, storage)
    if few or (kind == "whole" and len(values) <= LINE_UP_TO and step is None):
        return _on_a_line(name, present, values, counts, holes, storage, step)
    if step is None:
        raise ValueError(
            f"The column {name!r} has values that are multiples of no step of 0.0001 or more: make it real."
        )
    return _on_a_grid(name, present, values, counts, holes, storage, step)


def _missing(holes: int) -> str:
    return f", {holes:,} missing" if holes else ""


# ---- categories


def level_of(value: Any, storage: str) -> Any:
    """A cell as a level: a text, or for numbers a Python number that JSON keeps."""
    return str(value) if storage == "text" else float(value)


def _categorical(name: str, values: np.ndarray, counts: np.ndarray, holes: int, storage: str) -> Found:
    order = np.argsort(-counts, kind="stable")[:MOST_LEVELS]
    often = order[counts[order] > 1] if storage == "text" and len(values) > 2 else order
    kept = often if len(often) else order
    levels = tuple(level_of(value, storage) for value in values[kept].tolist())
    rest = int(counts.sum() - counts[kept].sum())
    other = storage == "text" and len(values) > 2
    own = [*counts[kept].tolist(), *([rest] if other else []), *([holes] if holes else [])]
    column = Column(name, "categorical", levels, tuple(own), other=other, missing=holes > 0, rest=None, storage=storage)
    merged = f", {len(values) - len(levels):,} rare ones together as other" if rest else ""
    one, many = ("category", "categories") if storage == "text" else ("value", "values")
    return Found(column, f"{len(values):,} {one if len(values) == 1 else many}{merged}{_missing(holes)}")


# ---- numbers


def _step(values: np.ndarray, storage: str) -> float | None:
    """The largest step of which all distinct values are multiples."""
    if storage == "date":
        return 1.0
    for step in {"int": STEPS[:5], "datetime": tuple(UNITS)}.get(storage, STEPS):
        k = values / step
        largest = np.abs(k).max()
        if largest < 2**40 and np.abs(k - np.rint(k)).max() < max(1e-6, ROUNDING * largest):
            return step
    return None


def _on_a_line(
    name: str, present: np.ndarray, values: np.ndarray, counts: np.ndarray, holes: int, storage: str, step: float | None
) -> Found:
    levels = values
    if step is not None and round((values[-1] - values[0]) / step) + 1 <= min(LINE_UP_TO, FILLED * len(values)):
        first = round(values[0] / step)
        levels = np.round(np.arange(first, first + round((values[-1] - values[0]) / step) + 1) * step, 10)
    own = np.zeros(len(levels))
    np.add.at(own, np.abs(levels[None] - values[:, None]).argmin(1), counts)
    column = Column(
        name, "whole", tuple(levels.tolist()), (*own.tolist(), *([holes] if holes else [])), missing=holes > 0,
        rest=None, storage=storage,
    )  # fmt: skip
    ends = f"from {_shown(levels[0], storage)} to {_shown(levels[-1], storage)}"
    return Found(column, f"{len(levels):,} values {ends}{_missing(holes)}")


def _on_a_grid(
    name: str, present: np.ndarray, values: np.ndarray, counts: np.ndarray, holes: int, storage: str, step: float
) -> Found:
    atoms = _atoms(values, counts, len(present))
    rest = present[~np.isin(present, atoms)]
    found = Column(
        name, "whole", tuple(atoms), _counts(present, atoms, holes, len(rest)), missing=holes > 0, rest="grid",
        map=_map(rest), step=step, low=float(rest.min()), high=float(rest.max()), storage=storage,
    )  # fmt: skip
    units = {"date": "days", "datetime": UNITS.get(step, "seconds")}
    unit = units.get(storage, f"multiples of {step:g}")
    ends = f"from {_shown(values[0], storage)} to {_shown(values[-1], storage)}"
    return Found(found, f"{unit} {ends}{_said(atoms)}{_missing(holes)}")


def _shown(value: Any, storage: str) -> str:
    if storage == "text":
        return f"{value:.20}"
    if storage == "bool":
        return str(bool(value))
    if storage == "date":
        return str(np.datetime64(int(value), "D"))
    return str(np.datetime64(int(value), "s")) if storage == "datetime" else f"{value:g}"


def _real(name: str, present: np.ndarray, values: np.ndarray, counts: np.ndarray, holes: int, storage: str) -> Found:
    atoms = _atoms(values, counts, len(present))
    rest = present[~np.isin(present, atoms)]
    if len(np.unique(rest)) < 2:
        return _on_a_line(name, present, values, counts, holes, storage, None)
    column = Column(
        name, "real", tuple(atoms), _counts(present, atoms, holes, len(rest)), missing=holes > 0, map=_map(rest),
        storage=storage,
    )  # fmt: skip
    return Found(column, f"real{_said(atoms)}{_missing(holes)}")


def _counts(present: np.ndarray, atoms: Sequence[float], holes: int, rest: int) -> tuple[float, ...]:
    return (*(int((present == a).sum()) for a in atoms), *([holes] if holes else []), rest)


def _said(atoms: Sequence[float]) -> str:
    return f", recurring {', '.join(f'{a:g}' for a in atoms)}" if atoms else ""


def _atoms(values: np.ndarray, counts: np.ndarray, n: int) -> list[float]:
    """The values that recur: in many cells, and much more often than their neighbours."""
    often = np.flatnonzero(counts >= max(ATOM_COUNT, ATOM_SHARE * n))
    found = []
    for i in often[np.argsort(-counts[often], kind="stable")][: 4 * MOST_ATOMS]:
        near = np.r_[counts[max(0, i - 5) : i], counts[i + 1 : i + 6]]
        if len(near) and counts[i] >= ATOM_RATIO * max(1.0, float(np.median(near))):
            found.append(float(values[i]))
    return sorted(found[:MOST_ATOMS])


def _map(values: np.ndarray) -> ColumnMap:
    """The map of the greatest likelihood of a normal distribution, by a search over the power."""
    largest = float(np.abs(values).max()) or 1.0  # squares of values such as 1e200 and 1e-200 leave the range
    shift, scale = float((values / largest).mean() * largest), float((values / largest).std() * largest) or 1.0
    some = values if len(values) <= _LOOKED_AT else np.random.RandomState(0).choice(values, _LOOKED_AT, replace=False)
    r = torch.from_numpy(np.asarray(some, np.float64))
    plain = ColumnMap(shift, scale)

    def likelihoods(powers: Sequence[float]) -> np.ndarray:
        maps = ColumnMaps([replace(plain, power=power) for power in powers])
        v = maps.forward(r[:, None].expand(-1, len(powers)))
        found = (maps.log_slope(v).mean(0) - v.std(0, unbiased=False).log()).numpy()
        return np.where(np.isfinite(found), found, -math.inf)

    powers = np.linspace(0, 2, 21)
    best = powers[likelihoods(powers.tolist()).argmax()]
    powers = np.r_[1.0, np.clip(np.linspace(best - 0.1, best + 0.1, 21), 0, 2)]
    found = likelihoods(powers.tolist())
    power = float(powers[found.argmax()]) if found.max() > found[0] + MAP_GAIN else 1.0
    own = replace(plain, power=power)
    v = own.forward(torch.from_numpy(np.asarray(values, np.float64)))
    return replace(own, center=float(v.mean()), spread=float(v.std(unbiased=False)) or 1.0)
