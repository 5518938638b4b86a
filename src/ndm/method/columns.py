r"""Columns of a table: atoms with codes, and a density or a grid with a monotone map.

A column is a set of atoms and, perhaps, a density (or a grid of values too many to be atoms). A row's latent vector x
is the concatenation, per column, of a code for the atom, in R^m, and of the value v, in R, where the column has a
density or a grid:

    kind of column                             atoms                       rest
    real                                       none                        density
    real with recurring values                 each such value             density
    whole numbers, few                         its levels, on a line       none
    whole numbers, many                        none, or recurring values   grid
    categorical, boolean, text                 its levels                  none
    any, with missing cells                    one more: "missing"         as above

Cells are numbers: the value, or for a categorical column the index of its level; NaN is a missing cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["KINDS", "Column", "ColumnMap", "ColumnMaps", "closeness", "codes_of", "log_frequencies", "on_grid"]

KINDS = ("real", "whole", "categorical")

#: Up to this many atoms the code is a simplex, K - 1 dimensions; beyond, a compact code of about 2 log2(K).
SIMPLEX_UP_TO = 12

#: A power below this is taken for 0, of which the transformation is a logarithm.
SMALL_POWER = 1e-9

#: Distance of the code "missing" from the line of whole numbers, in standard deviations.
BESIDE = 2.0


@dataclass(frozen=True)
class ColumnMap:
    r"""A monotone map of a column's values, v = (YJ_power((r - shift) / scale) - center) / spread.

    YJ is the transformation of Yeo and Johnson (Biometrika 87, 2000, equation 2.3), with a power in [0, 2], so that it
    is one-to-one from R to R; with power 1 the map is a standardisation. All computations are in float64.

    Args:
        shift: the values' mean.
        scale: the values' standard deviation, positive.
        power: in [0, 2].
        center: mean of the transformed values.
        spread: standard deviation of the transformed values, positive.
    """

    shift: float = 0.0
    scale: float = 1.0
    power: float = 1.0
    center: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and self.spread > 0 and 0 <= self.power <= 2):
            raise ValueError(f"A column's map has positive scales and a power in [0, 2], got {self}.")

    def forward(self, r: Tensor) -> Tensor:
        """v of the values r."""
        return ColumnMaps([self]).forward(r[..., None])[..., 0]

    def inverse(self, v: Tensor) -> Tensor:
        """r of v."""
        return ColumnMaps([self]).inverse(v[..., None])[..., 0]

    def log_slope(self, v: Tensor) -> Tensor:
        """log dv/dr at v, in nats."""
        return ColumnMaps([self]).log_slope(v[..., None])[..., 0]


class ColumnMaps:
    """The maps of several columns, each for one entry of the last dimension, (..., G).

    Args:
        maps: the maps, G of them.
    """

    def __init__(self, maps: Sequence[ColumnMap]) -> None:
        names = [field.name for field in fields(ColumnMap)]
        values = torch.tensor([[getattr(m, name) for name in names] for m in maps], dtype=torch.float64)
        self._values = values.reshape(-1, len(names)).T

    def _on(self, like: Tensor) -> Sequence[Tensor]:
        return self._values.to(like.device).unbind()

    def forward(self, r: Tensor) -> Tensor:
        """v of the values r, (..., G), in float64."""
        shift, scale, power, center, spread = self._on(r)
        return (_yeo_johnson((r.double() - shift) / scale, power) - center) / spread

    def inverse(self, v: Tensor) -> Tensor:
        """r of v, (..., G), in float64."""
        shift, scale, power, center, spread = self._on(v)
        return _yeo_johnson_inverse(v.double() * spread + center, power) * scale + shift

    def log_slope(self, v: Tensor) -> Tensor:
        """log dv/dr at v, (..., G), in nats, in float64."""
        _, scale, power, center, spread = self._on(v)
        u = _yeo_johnson_inverse(v.double() * spread + center, power)
        return (power - 1) * torch.sign(u) * torch.log1p(u.abs()) - scale.log() - spread.log()


def _yeo_johnson(u: Tensor, power: Tensor) -> Tensor:
    negative = u < 0
    own = torch.where(negative, 2 - power, power)
    a, small = torch.log1p(u.abs()), own < SMALL_POWER
    y = torch.where(small, a, torch.expm1(own * a) / torch.where(small, 1.0, own))
    return torch.where(negative, -y, y)


def _yeo_johnson_inverse(y: Tensor, power: Tensor) -> Tensor:
    negative = y < 0
    own = torch.where(negative, 2 - power, power)
    a, small = y.abs(), own < SMALL_POWER
    u = torch.expm1(torch.where(small, a, torch.log1p(own * a) / torch.where(small, 1.0, own)))
    return torch.where(negative, -u, u)


def log_frequencies(counts: Tensor) -> Tensor:
    """log pi of atoms with some counts, (K,), with half an occurrence added to each (Jeffreys' prior), in float64."""
    return ((counts + 0.5) / (counts + 0.5).sum()).log()


def closeness(e: Tensor, codes: Tensor) -> Tensor:
    r"""(\|e\|^2 - \|e - e_a\|^2) / 2 for each code e_a, largest for the nearest: (B, m), (K, m) -> (B, K)."""
    return e @ codes.T - codes.square().sum(1) / 2


def on_grid(values: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The nearest multiples of the steps between the ends, (..., G); a step of 0 is no grid.

    A step below 1 divides by its inverse, 3 / 10 = 0.3, where 3 * 0.1 is 0.30000000000000004.
    """
    some = torch.where(step > 0, step, 1.0)
    k = torch.round(values / some)
    found = torch.where(some < 1, k / torch.round(1 / some), k * some)
    return torch.where(step > 0, torch.minimum(torch.maximum(found, low), high) + 0.0, values)  # + 0.0: no -0


def codes_of(spec: Mapping[str, Any] | Sequence[Sequence[float]]) -> Tensor:
    """The codes of a column's atoms, float64 (K, m).

    Args:
        spec: the codes themselves, or one of ``{"simplex": K}``, the K corners of a regular simplex, of unit variance
            per dimension; ``{"compact": K}``, K distinct vectors of about 2 log2(K) dimensions; ``{"line": positions,
            "beside": n}``, positions on a line and n more atoms beside it.

    Raises:
        ValueError: the description is unknown.

    Example:
        >>> codes_of({"simplex": 2})
        tensor([[-1.],
                [ 1.]], dtype=torch.float64)
    """
    if not isinstance(spec, Mapping):
        return torch.tensor(spec, dtype=torch.float64).reshape(len(spec), -1)
    if "simplex" in spec:
        return _simplex(int(spec["simplex"]))
    if "compact" in spec:
        return _compact(int(spec["compact"]))
    if "line" in spec:
        line, beside = torch.tensor(spec["line"], dtype=torch.float64), int(spec.get("beside", 0))
        codes = torch.zeros(len(line) + beside, 1 + beside, dtype=torch.float64)
        codes[: len(line), 0] = line
        codes[len(line) :, 1:] = BESIDE * torch.eye(beside, dtype=torch.float64)
        return codes
    raise ValueError(f"A column's codes are a simplex, compact or a line, got {sorted(spec)}.")


def _simplex(k: int) -> Tensor:
    """The corners of a regular simplex around 0 in k - 1 dimensions, (k, k - 1), of unit variance per dimension."""
    corners = torch.zeros(k, k - 1, dtype=torch.float64)
    for i in range(1, k):  # Helmert's contrasts, which are orthogonal to (1, ..., 1)
        corners[:i, i - 1] = -1 / math.sqrt(i * (i + 1))
        corners[i, i - 1] = i / math.sqrt(i * (i + 1))
    return corners * math.sqrt(k)


def _compact(k: int) -> Tensor:
    m = 2 * math.ceil(math.log2(k))
    codes = np.random.RandomState(k).standard_normal((k, m))  # its stream is frozen by NumPy's policy
    return torch.from_numpy((codes - codes.mean(0)) / codes.std(0))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: its name.
        kind: ``real``, ``whole`` or ``categorical``.
        levels: the atoms: texts (or numbers and booleans) for a categorical column, else increasing numbers.
        counts: how often each atom occurs in the training rows, and last, the rest if there is one: (K,).
        other: whether there is an atom, after the levels, for all other categories.
        missing: whether there is an atom for missing cells, after the others.
        rest: ``density`` or ``grid`` if values that are not atoms occur, else None.
        map: the map of the values of a density or grid, a ColumnMap's fields.
        step: the distance of a grid's values.
        low: the lowest value of a grid, which stands for all values below it too.
        high: the highest one, likewise.
        storage: the type of a cell in the original table: ``float``, ``int``, ``bool``, ``text``, ``date`` or
            ``datetime``.

    Raises:
        ValueError: the fields do not fit together.
    """

    name: str
    kind: str = "real"
    levels: tuple[Any, ...] = ()
    counts: tuple[float, ...] = ()
    other: bool = False
    missing: bool = False
    rest: str | None = "density"
    map: ColumnMap = ColumnMap()
    step: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    storage: str = "float"

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.rest not in (None, "density", "grid"):
            raise ValueError(f"The column {self.name!r} has the kind {self.kind!r} and the rest {self.rest!r}.")
        if self.atoms + (self.rest is not None) != len(self.counts) or not len(self.counts):
            raise ValueError(f"The column {self.name!r} has {len(self.counts)} counts for {self.atoms} atoms.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Column:
        """The column of a dictionary, as from :meth:`plain`.

        Raises:
            ValueError: the dictionary is not one of a column.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(given, Mapping) or not set(given) <= known or "name" not in given:
            raise ValueError(f"A column is described by {', '.join(sorted(known))}, not by {given!r:.100}.")
        try:
            own: dict[str, Any] = {"map": ColumnMap(**given.get("map", {}))}
            own |= {name: tuple(given.get(name, ())) for name in ("levels", "counts")}
            return cls(**{**given, **own})
        except TypeError as error:
            raise ValueError(f"The description of the column {given['name']!r} is damaged: {error}.") from None

    def plain(self) -> dict[str, Any]:
        """The column as JSON types, without the fields at their defaults."""
        every = asdict(self) | {"levels": list(self.levels), "counts": list(self.counts)}
        defaults = {field.name: field.default for field in fields(self)}
        plain = {name: value for name, value in every.items() if getattr(self, name) != defaults[name]}
        return plain | {"counts": list(self.counts)}

    @property
    def atoms(self) -> int:
        """The number of atoms."""
        return len(self.levels) + self.other + self.missing

    @property
    def missing_index(self) -> int | None:
        """The index of the atom "missing"."""
        return len(self.levels) + self.other if self.missing else None

    @property
    def typical(self) -> float:
        """A cell that the column can hold, to stand for one that is not looked at."""
        if self.kind == "categorical":
            return 0.0
        return float(self.levels[0]) if self.levels else self.map.shift

    @property
    def on_a_line(self) -> bool:
        """Whether the atoms are whole numbers on a line."""
        return self.kind == "whole" and self.rest is None

    @property
    def codes(self) -> Any:
        """The description of the atoms' codes, see :func:`codes_of`."""
        k = len(self.counts)
        if k == 1:
            return [[]]
        if self.on_a_line:
            values, weights = np.array(self.levels, float), np.array(self.counts[: len(self.levels)]) + 1e-9
            mean = np.average(values, weights=weights)
            deviation = math.sqrt(np.average((values - mean) ** 2, weights=weights)) or 1.0
            return {"line": ((values - mean) / deviation).tolist(), "beside": k - len(self.levels)}
        return {"simplex" if k <= SIMPLEX_UP_TO else "compact": k}

    def layout(self) -> dict[str, Any]:
        """What a decoder has to know of the column, as JSON types: see :class:`ndm.MixedDecoder`."""
        plain: dict[str, Any] = {"codes": self.codes, "counts": list(self.counts), "rest": self.rest}
        if self.rest == "grid":
            plain |= {"map": asdict(self.map), "step": self.step}
            plain |= {name: value for name in ("low", "high") if math.isfinite(value := getattr(self, name))}
        return plain

    def index(self, cells: Tensor) -> Tensor:
        """The atom of each cell, int64 (B,), or for a value that is not an atom, their number.

        Raises:
            ValueError: a cell is missing, and the column has no atom for it; or a category is not one of the levels.
        """
        absent, levels = cells.isnan(), len(self.levels)
        if self.missing_index is None and absent.any():
            raise ValueError(
                f"The column {self.name!r} has {int(absent.sum())} missing cells, and had none in the training rows: "
                "fill or drop these rows, or train with missing cells."
            )
        cells = torch.where(absent, torch.zeros_like(cells), cells)
        if self.kind == "categorical":
            found = cells.long()
            if ((found < 0) | (found >= levels + self.other) | (found != cells)).any():
                raise ValueError(f"The column {self.name!r} has numbers that stand for none of its categories.")
        elif self.on_a_line:
            places = torch.tensor(self.levels, dtype=torch.float64, device=cells.device)
            found = torch.bucketize(cells, (places[1:] + places[:-1]) / 2)
        else:
            found = torch.full_like(cells, self.atoms, dtype=torch.long)
            for i, level in enumerate(self.levels):
                found[cells == level] = i
        if self.missing_index is not None:
            found[absent] = self.missing_index
        return found
