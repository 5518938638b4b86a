r"""Conditionals of a table: some columns given, some wanted, the others left out.

A column of a row is *given* (its clean code and value are inputs of the denoiser), *wanted* (it is diffused, and the
bound is over its coordinates) or *left out* (neither). With random states in training one network bounds
log p(r_A | r_B) for all sets of columns A and B. :func:`conditional` returns the model of r_A given r_B as a process of
its own, of which the bound, the likelihood and the samples are computed like those of any other; the given columns take
the place of the class labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, precision_of
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.encoding import TableEncoding
from ndm.method.mixed import MixedDecoder
from ndm.method.mixed_denoiser import GIVEN, LEFT_OUT, WANTED, MixedDenoiser
from ndm.method.schedules import NoiseLevel
from ndm.method.transforms.curve import Curve, PathValue, Transform
from ndm.method.transforms.linear import Identity

if TYPE_CHECKING:
    from ndm.method.process import Process

__all__ = [
    "GIVEN",
    "LEFT_OUT",
    "WANTED",
    "column_numbers",
    "conditional",
    "of_given_columns",
    "random_states",
    "state_labels",
    "stated",
]

#: Shares of the rows of a batch whose columns are all wanted, and of which one column is wanted and all others given.
JOINT, ONE = 0.4, 0.3


def random_states(n: int, columns: int, generator: torch.Generator | None = None) -> Tensor:
    """Random states of the columns of n rows, int64 (n, C), each with at least one wanted column.

    All columns are wanted in 40% of the rows, one given all others in 30%; in the rest each column has its own state,
    with shares of the states that vary from row to row.

    Args:
        n: the number of rows.
        columns: C.
        generator: the source of the random numbers.
    """
    device = None if generator is None else generator.device
    kind = torch.rand(n, 1, generator=generator, device=device)
    which = torch.randint(columns, (n, 1), generator=generator, device=device)
    share = torch.rand(n, 2, generator=generator, device=device).sort(1).values
    u = torch.rand(n, columns, generator=generator, device=device)
    mixed = torch.where(u < share[:, :1], WANTED, torch.where(u < share[:, 1:], GIVEN, LEFT_OUT))
    one = torch.full_like(mixed, GIVEN)
    states = torch.where(kind < JOINT, WANTED, torch.where(kind < JOINT + ONE, one, mixed))
    return states.scatter(1, which, torch.where(kind < JOINT, states.gather(1, which), WANTED))


def column_numbers(encoding: TableEncoding, names: Sequence[str | int]) -> list[int]:
    """The positions of columns given by name, or by number.

    Raises:
        ValueError: there is no such column, or it is named twice.
    """
    found = []
    for name in names:
        if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(encoding.names):
            found.append(name)
        elif name in encoding.names:
            found.append(encoding.names.index(str(name)))
        else:
            known = ", ".join(encoding.names[:20])
            raise ValueError(f"The model has no column {name!r}: its columns are {known}.")
    if len(set(found)) < len(found):
        raise ValueError(f"A column is named twice: {', '.join(map(str, names))}.")
    return found


def conditional(
    model: Process, wanted: Sequence[str | int], given: Sequence[str | int] = (), *, present: bool = False
) -> Process:
    r"""The model of some columns given others: p(r_wanted | r_given), with all other columns left out.

    Its data are rows of the wanted columns, (B, \|wanted\|), in the order of the table. Its labels are the codes and
    values of the given columns, (B, g): ``model.standardize(rows)[:, model.standardize.coordinates(given)]``.

    Args:
        model: a model of a table, trained with conditionals; or any model of a table, if all columns are wanted.
        wanted: the wanted columns, by name or number.
        given: the given ones.
        present: for samples, that no wanted cell is missing: the atom has probability zero.

    Raises:
        ValueError: the model has no such conditional, a column is unknown, or in both lists.
    """
    from ndm.method.process import Process

    encoding, denoiser = model.standardize, model.denoiser
    if not isinstance(encoding, TableEncoding):
        raise ValueError("This model is not of a table with columns: train one, as by ndm train table.")
    a, b = sorted(column_numbers(encoding, wanted)), sorted(column_numbers(encoding, given))
    if not a or set(a) & set(b):
        raise ValueError("The wanted columns must be at least one, and none of them may be given.")
    holes = {i: hole for i in a if (hole := encoding.table[i].missing_index) is not None} if present else {}
    if not b and len(a) == len(encoding.table) and not holes:
        return model
    if not isinstance(denoiser, MixedDenoiser) or not denoiser.knows(a, b):
        raise ValueError(
            "This model was not trained for that conditional: train it with --training.conditionals any, or with the "
            "given columns as --data.given."
        )
    coordinates = encoding.coordinates(a)
    states = torch.full((len(encoding.table),), LEFT_OUT)
    states[a], states[b] = WANTED, GIVEN
    part, decoder = encoding.restricted(a), model.decoder
    if isinstance(decoder, MixedDecoder):
        decoder = decoder.without(holes).restricted(a)
    denoiser = denoiser.without(holes) if holes else denoiser
    transform = model.transform
    if not isinstance(transform, Identity):
        transform = _SomeTransform(transform, coordinates, encoding.latent_shape[0])
    own = Process(
        model.schedule,
        transform,
        _SomeDenoiser(denoiser, coordinates, encoding.coordinates(b), states),
        decoder,
        model.reverse_variance,
        model.volatility,
        part,
    )
    return own.train(model.training)


def of_given_columns(model: Process, rows: Values, labels: Tensor | None) -> tuple[Process, Values, Tensor | None]:
    """For a model trained for one conditional: that conditional, its rows and its labels. Others are returned as given.

    Args:
        model: any model.
        rows: the data; for a model trained with given columns (B, C), in the order of the table.
        labels: class labels, or None.

    Raises:
        ValueError: a given cell is infinite, or missing or unknown to its column.
    """
    encoding, denoiser = model.standardize, model.denoiser
    if labels is not None or not isinstance(encoding, TableEncoding) or not isinstance(denoiser, MixedDenoiser):
        return model, rows, labels
    given = denoiser.given or []
    if not given:
        return model, rows, labels
    data = as_tensor(rows, "rows").double()
    wanted = [i for i in range(len(encoding.table)) if i not in given]
    seen = encoding.restricted(given)(data[:, given]).to(precision_of(model) or torch.float32)
    return conditional(model, wanted, given), data[:, wanted], seen


def _spread(x: Tensor, coordinates: Tensor, d: int) -> Tensor:
    """x, (..., k), at k of d coordinates, with zeros elsewhere."""
    full = x.new_zeros(*x.shape[:-1], d)
    return full.index_copy(-1, coordinates.to(x.device), x)


class _SomeDenoiser(BaseDenoiser):
    """The denoiser of some coordinates, given others as labels."""

    def __init__(self, base: MixedDenoiser, wanted: Tensor, given: Tensor, states: Tensor) -> None:
        super().__init__()
        self.base, self.wanted, self.given, self.states = base, wanted, given, states
        self.given_size = len(given)

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        d = self.base.dimensions
        if labels is None:
            if self.given_size:
                raise ValueError("The given columns are missing: pass their codes and values as labels.")
            seen = z.new_zeros(len(z), d)
        else:
            seen = _spread(labels.to(z), self.given, d)
        states = self.states.to(z.device).expand(len(z), -1)
        full = self.base.estimate(_spread(z, self.wanted, d), level, states=states, seen=seen)
        at = self.wanted.to(z.device)

        def residual(target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
            return full.residual(*(_spread(a, self.wanted, d) for a in (target, displacement, noise)))[:, at]

        return Estimate(mean=full.mean[:, at], residual=residual)

    def probabilities(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        """The probabilities of the atoms of a single wanted column, (B, K)."""
        d = self.base.dimensions
        seen = z.new_zeros(len(z), d) if labels is None else _spread(labels.to(z), self.given, d)
        states = self.states.to(z.device).expand(len(z), -1)
        every = self.base.probabilities(_spread(z, self.wanted, d), level, states, seen)
        return every[int((self.states == WANTED).nonzero()[0])]


def stated(model: Process, *, present: bool = False) -> Process:
    r"""The model of rows whose columns have a state of their own in every row, for samples.

    Its labels are the states and the given codes and values, (B, C + d): :func:`state_labels`. Of its samples, (B, C),
    the wanted cells are meant; the others are of no use.

    Args:
        model: a model of a table that was trained with conditionals.
        present: that no wanted cell is missing.

    Raises:
        ValueError: the model is not of a table, or was not trained with conditionals.
    """
    from ndm.method.process import Process

    encoding, denoiser = model.standardize, model.denoiser
    if not isinstance(encoding, TableEncoding) or not isinstance(denoiser, MixedDenoiser):
        raise ValueError("This model has no conditionals: train it with --training.conditionals any.")
    decoder = model.decoder
    holes = {i: hole for i, c in enumerate(encoding.table) if (hole := c.missing_index) is not None} if present else {}
    if holes:
        assert isinstance(decoder, MixedDecoder)
        denoiser, decoder = denoiser.without(holes), decoder.without(holes)
    own = Process(
        model.schedule, model.transform, _StatedDenoiser(denoiser), decoder, model.reverse_variance, model.volatility,
        encoding,
    )  # fmt: skip
    return own.train(model.training)


def state_labels(encoding: TableEncoding, rows: Tensor, states: Tensor) -> Tensor:
    """The labels of :func:`stated` for rows, (B, C), with states, (B, C): (B, C + d), in float64.

    Cells that are not given may be anything, NaN included.
    """
    fill = torch.tensor([column.typical for column in encoding.table], dtype=torch.float64)
    seen = encoding(torch.where(states == GIVEN, rows.double(), fill))
    return torch.cat([states.double(), seen], 1)


class _StatedDenoiser(BaseDenoiser):
    """The denoiser of the wanted columns of each row, with states and given values as labels."""

    def __init__(self, base: MixedDenoiser) -> None:
        super().__init__()
        self.base = base
        self.given_size = len(base.parts) + base.dimensions

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        if labels is None:
            raise ValueError("The states of the columns are missing: pass them with the given values as labels.")
        states, seen = labels[:, : len(self.base.parts)].long(), labels[:, len(self.base.parts) :]
        return self.base.estimate(z, level, states=states, seen=seen.to(z))


class _SomeCurve(Curve):
    def __init__(self, x: Tensor, whole: Curve, at: Tensor) -> None:
        super().__init__(x)
        self.whole, self.at = whole, at

    def displacement(self, gamma: Tensor) -> Tensor:
        return self.whole.displacement(gamma)[..., self.at]

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        displacement, slope = self.whole.displacement_with_derivative(gamma)
        return displacement[..., self.at], slope[..., self.at]

    def evaluate(self, gamma: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        displacement, slope, rest = self.whole.evaluate(gamma, others)
        return displacement[..., self.at], slope[..., self.at], rest[..., self.at]


class _SomeTransform(Transform):
    """F of some coordinates, with zeros at the others."""

    def __init__(self, base: Transform, wanted: Tensor, d: int) -> None:
        super().__init__()
        self.base, self.wanted, self.d = base, wanted, d

    def forward(self, x: Tensor) -> Curve:
        return _SomeCurve(x, self.base(_spread(x, self.wanted, self.d)), self.wanted.to(x.device))

    def difference(self, value: PathValue, x_hat: Tensor, residual: Tensor, evaluate: object) -> Tensor:
        return super().difference(value, x_hat, residual, evaluate)  # type: ignore[arg-type]
