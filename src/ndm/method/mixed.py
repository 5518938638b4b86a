r"""The decoder of tables with columns of several kinds.

A product over columns (the notation of :mod:`ndm.method.columns`):

    p(r_j | z_0) = p_j(a | z_0)                                     if r_j is the atom a
                 = p_j(rest | z_0) N(v_j; z_0 / alpha_0, e^gamma_0)  for a value of a density
                 = p_j(rest | z_0) P(cell of r_j | z_0)              for a value of a grid
    p_j(a | z_0) = softmax_a( log pi_a - |z_0 / alpha_0 - e_a|^2 / (2 e^gamma_0) )

The cell of a grid's value has the probability of N(z_0 / alpha_0, e^gamma_0) between the middles to its neighbours; the
cells at both ends are open. The weights pi_a are learned, from the frequencies of the atoms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ndm.method.columns import ColumnMap, ColumnMaps, closeness, codes_of, log_frequencies, on_grid
from ndm.method.decoders import Decoder, normal_nll
from ndm.method.schedules import NoiseLevel, per_example

__all__ = ["MixedDecoder"]

#: The squared distances of up to this many codes are kept in a table.
SMALL = 256

#: A cell narrower than this many standard deviations has the density at its middle times its width.
NARROW = 1e-3


class MixedDecoder(Decoder):
    """p(row | z_0), a product over the columns of a table.

    Args:
        columns: for each column ``codes``, the codes of its K atoms (:func:`ndm.method.columns.codes_of`), the last of
            which stands for the rest if there is one; ``counts``, their frequencies, (K,); ``rest``, ``density``,
            ``grid`` or null; for a grid its ``map``, ``step``, and the ends ``low`` and ``high``. See
            :meth:`ndm.method.encoding.TableEncoding.layouts`.

    Attributes:
        log_weights: log pi of all atoms of all columns, up to a constant per column.

    Raises:
        ValueError: there are no columns, or a description is invalid.
    """

    def __init__(self, columns: list) -> None:
        super().__init__()
        if not columns:
            raise ValueError("A MixedDecoder needs the columns of its table.")
        self.columns = columns
        self.parts = [_Part(column) for column in columns]
        self.log_weights = nn.Parameter(torch.cat([part.log_frequencies() for part in self.parts]))
        start = coordinate = 0
        for part in self.parts:
            part.weights, start = slice(start, start + len(part.codes)), start + len(part.codes)
            part.start, coordinate = coordinate, coordinate + part.dimensions
        self._grids = _Grids(self.parts)

    @property
    def discrete(self) -> bool:
        return any(part.m or part.rest == "grid" for part in self.parts)

    def restricted(self, columns: Sequence[int]) -> MixedDecoder:
        """The decoder of some of the columns, with the same weights."""
        own = MixedDecoder([self.columns[i] for i in columns])
        weights = [self.log_weights[self.parts[i].weights] for i in columns]
        own.log_weights = nn.Parameter(torch.cat(weights).detach().clone())
        return own

    def without(self, atoms: Mapping[int, int]) -> MixedDecoder:
        """A copy that gives some atoms, one per column number, probability zero."""
        own = MixedDecoder(self.columns)
        weights = self.log_weights.detach().clone()
        for column, atom in atoms.items():
            weights[self.parts[column].weights][atom] = -math.inf
        own.log_weights = nn.Parameter(weights, requires_grad=False)
        return own

    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        return self.nll_by_column(x, gap, gamma_0).sum(1)

    def nll_by_column(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        """-log p(r_j | z_0) of each column, (B, C), in nats; the arguments are those of :meth:`ndm.Decoder.nll`."""
        return self._by_column(x, gap, gap, gamma_0, 0.0)

    def expected_nll(self, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return self.expected_by_column(x, displacement, noise, level).sum(1)

    def expected_by_column(self, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """L_rec of each column, (B, C), in nats: exact for densities, from one sample of z_0 for codes and grids."""
        gap = displacement + per_example(level.sigma / level.alpha, x) * noise
        return self._by_column(x, gap, displacement, level.gamma, 0.5)

    def _by_column(self, x: Tensor, gap: Tensor, known: Tensor, gamma_0: Tensor, half: float) -> Tensor:
        """-log p(r_j | z_0), (B, C).

        Args:
            x: (B, d).
            gap: z_0 / alpha_0 - x, (B, d).
            known: of a density's gap the part that is not averaged over, (B, d).
            gamma_0: (B,).
            half: the average of the rest, in nats per density.
        """
        found = [torch.zeros_like(gamma_0)] * len(self.parts)
        values = self._values(x, gap, known, gamma_0, half)
        for number, part in enumerate(self.parts):
            if part.m:
                index = part.nearest(x[:, part.code])
                weights = self.log_weights[part.weights].to(x.dtype)
                found[number] = part.atom_nll(index, gap[:, part.code], gamma_0, weights)
            if part.rest is not None:
                value = values[part.start + part.m]
                own = value if not part.m else torch.where(index == len(part.codes) - 1, value, 0 * value)
                found[number] = found[number] + own
        return torch.stack(found, 1)

    def _values(self, x: Tensor, gap: Tensor, known: Tensor, gamma_0: Tensor, half: float) -> dict[int, Tensor]:
        """-log p of the values at each coordinate of a density or a grid, (B,)."""
        found: dict[int, Tensor] = {}
        at = [part.start + part.m for part in self.parts if part.rest == "density"]
        if at:
            every = normal_nll(known[:, at] ** 2, gamma_0[:, None]) + half
            found |= dict(zip(at, every.unbind(1), strict=True))
        at = self._grids.coordinates
        if at:
            found |= dict(zip(at, self._grids.nll(x[:, at], gap[:, at], gamma_0).unbind(1), strict=True))
        return found

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        """The most likely atom of each column, as its code, and z_0 / alpha_0 for the values."""
        x = z / per_example(level.alpha, z)
        for part in self.parts:
            if part.m:
                codes, weights = part.codes.to(x), self.log_weights[part.weights].to(x.dtype)
                near = closeness(x[:, part.code], codes) * torch.exp(-level.gamma)[:, None]
                index = (weights + near).argmax(1)
                x[:, part.code] = codes[index]
                if part.rest is not None:
                    at = part.start + part.m
                    x[:, at] = torch.where(index == len(codes) - 1, x[:, at], torch.zeros_like(x[:, at]))
        return x


class _Part:
    """The layout of one column."""

    def __init__(self, column: Mapping[str, Any]) -> None:
        try:
            self.codes = codes_of(column["codes"])
            self.counts = torch.tensor(column["counts"], dtype=torch.float64)
            self.rest = column["rest"]
            self.map = ColumnMap(**column.get("map", {}))
            self.step = float(column.get("step", 1.0))
            self.low, self.high = float(column.get("low", -math.inf)), float(column.get("high", math.inf))
        except (KeyError, TypeError) as error:
            raise ValueError(f"The description of a column is damaged: {column!r:.100} ({error}).") from None
        self.m = self.codes.shape[1]
        self.squares = torch.cdist(self.codes, self.codes).square() if len(self.codes) <= SMALL else None
        if self.rest not in (None, "density", "grid") or len(self.counts) != len(self.codes):
            raise ValueError(f"The description of a column is invalid: {column!r:.100}.")
        if self.m == 0 and self.rest is None:
            raise ValueError("A column with one atom and nothing else is constant: leave it out.")
        self.dimensions = self.m + (self.rest is not None)
        self.start, self.weights = 0, slice(0)

    @property
    def code(self) -> slice:
        """The coordinates of the code."""
        return slice(self.start, self.start + self.m)

    def log_frequencies(self) -> Tensor:
        """log pi, (K,)."""
        return log_frequencies(self.counts).float()

    def nearest(self, e: Tensor) -> Tensor:
        """The atom of exact codes, (B, m) -> (B,)."""
        return closeness(e, self.codes.to(e)).argmax(1)

    def atom_nll(self, index: Tensor, gap: Tensor, gamma_0: Tensor, weights: Tensor) -> Tensor:
        """-log p_j(a | z_0), (B,), from logits relative to that of a, in which |gap|^2 cancels."""
        codes = self.codes.to(gap)
        if self.squares is not None:
            squares = self.squares.to(gap)[index]
        else:
            squares = torch.cdist(codes[index], codes, compute_mode="donot_use_mm_for_euclid_dist").square()
        inner = (gap * codes[index]).sum(1, keepdim=True) - gap @ codes.T  # gap (e_a - e_b)
        logits = weights - weights[index][:, None] - (2 * inner + squares) / (2 * torch.exp(gamma_0))[:, None]
        # The own atom's logit is 0 exactly.
        logits = logits.scatter(1, index[:, None], 0.0)
        return logits.logsumexp(1)


class _Grids:
    """The grids of all columns, whose cells are computed together."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        own = [part for part in parts if part.rest == "grid"]
        self.coordinates = [part.start + part.m for part in own]
        self.maps = ColumnMaps([part.map for part in own])
        ends = [[part.step, part.low, part.high] for part in own]
        self._ends = torch.tensor(ends, dtype=torch.float64).reshape(-1, 3).T

    def nll(self, v: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        """-log of the probability of v's cell under N(v + gap, e^gamma_0), (B, G)."""
        step, lowest, highest = self._ends.to(v.device)
        value = on_grid(self.maps.inverse(v.detach()), step, lowest, highest)
        place = self.maps.forward(value)
        low, high = self.maps.forward(value - step / 2) - place, self.maps.forward(value + step / 2) - place
        scale, gap = torch.exp(-gamma_0.double() / 2)[:, None], gap.double()
        ends = value <= lowest, value >= highest
        return -_log_between((low - gap) * scale, (high - gap) * scale, *ends).to(v.dtype)


def _log_between(a: Tensor, b: Tensor, from_below: Tensor, to_above: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, float64, with finite gradients; at an open end a is -inf, or b is inf."""
    flip = ((a > 0) & ~from_below) | (from_below ^ to_above) & to_above  # to the lower tail
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    from_below, to_above = torch.where(flip, to_above, from_below), torch.where(flip, from_below, to_above)
    top = torch.where(to_above, torch.zeros_like(b), torch.special.log_ndtr(b))
    bottom = torch.special.log_ndtr(a)
    narrow = ~from_below & ~to_above & (b - a < NARROW)
    middle, width = (a + b) / 2, torch.where(narrow, b - a, torch.ones_like(b))
    density = -(middle**2) / 2 - math.log(2 * math.pi) / 2 + torch.log(width)
    plain = narrow | from_below
    difference = torch.where(plain, torch.full_like(a, -1.0), bottom - top)
    between = top + torch.where(from_below, torch.zeros_like(a), torch.log(-torch.expm1(difference)))
    return torch.where(narrow, density, between)
