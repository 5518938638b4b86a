r"""Samples given some columns, missing cells, and explanations, of a model of a table.

Rows are numbers, (n, C), as for :func:`ndm.tabular.log_prob`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, precision_of
from ndm._internal.random import seed_of
from ndm.inference.options import SamplerOptions
from ndm.inference.sampling import default_sampler, sample
from ndm.method.conditionals import GIVEN, LEFT_OUT, WANTED, column_numbers, conditional, state_labels, stated
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.model import NDM
from ndm.tabular.densities import BLOCK, TIMES, given_values, groups, log_prob, table_of

__all__ = ["class_probabilities", "explain", "impute", "percentiles", "sample_given"]


@torch.no_grad()
def sample_given(
    model: NDM,
    rows: Values,
    given: Sequence[str | int],
    wanted: Sequence[str | int] | None = None,
    *,
    n: int = 1,
    steps: int | None = None,
    seed: int = 0,
    present: bool = False,
    sampler: SamplerOptions | None = None,
    **options: Any,
) -> Tensor:
    """n samples of the wanted columns for each row, given others of its columns.

    Args:
        model: the model.
        rows: (m, C); only the given columns are used.
        given: names or numbers of columns. A given cell that is missing is a value, if the column has missing cells in
            training, and is left out otherwise.
        wanted: likewise; by default all others.
        n: the number of samples for each row.
        steps: sampling steps; by default those of :func:`ndm.inference.sampling.default_sampler`.
        seed: the seed of the random numbers.
        present: whether no sampled cell is missing.
        sampler: the sampler.
        options: fields of the sampler to replace.

    Returns:
        (m n, C), the samples of a row together: given cells as they are, NaN in columns that are left out.

    Raises:
        ValueError: a column is unknown, or the model was not trained for this conditional.
    """
    encoding = table_of(model)
    data = as_tensor(rows, "rows").double()
    b = sorted(column_numbers(encoding, given))
    a = [i for i in range(len(encoding.table)) if i not in b] if wanted is None else column_numbers(encoding, wanted)
    _require_conditional(model, a, b)
    states = torch.full(data.shape, LEFT_OUT)
    states[:, a] = WANTED
    states[:, b] = torch.where(_visible(encoding, data[:, b], b), GIVEN, LEFT_OUT)
    found = _draw(model, data, states, n, _sampler(model, sampler, steps, options), seed, present)
    result = torch.full((len(data) * n, len(encoding.table)), math.nan, dtype=torch.float64)
    result[:, b] = data[:, b].repeat_interleave(n, 0)
    result[:, a] = found[:, a]
    return result


def _require_conditional(model: NDM, wanted: list[int], given: list[int]) -> None:
    """Raise an error if the model does not know p(wanted | given)."""
    conditional(model, wanted, given)


def _visible(encoding: TableEncoding, cells: Tensor, columns: Sequence[int]) -> Tensor:
    """Whether a given cell, (n, g), can be seen: it is there, or the column has an atom for missing cells."""
    return ~cells.isnan() | torch.tensor([encoding.table[i].missing for i in columns], dtype=torch.bool)


@torch.no_grad()
def _draw(
    model: NDM, data: Tensor, states: Tensor, n: int, sampler: SamplerOptions, seed: int, present: bool
) -> Tensor:
    """n samples for each row with its states, (m n, C), of which the wanted cells are meant."""
    encoding, own = table_of(model), stated(model, present=present)
    labels = state_labels(encoding, data, states).to(precision_of(model) or torch.float32).repeat_interleave(n, 0)
    found = [
        sample(
            own, len(some), encoding.shape, sampler, progress=False, labels=some,
            generator=torch.Generator().manual_seed(seed_of(seed, number)),
        )
        for number, some in enumerate(labels.split(BLOCK))
    ]  # fmt: skip
    return torch.cat(found).double() if found else torch.zeros(0, len(encoding.table), dtype=torch.float64)


def _sampler(model: NDM, sampler: SamplerOptions | None, steps: int | None, options: dict[str, Any]) -> SamplerOptions:
    """The sampler, by default that of the model, with the replaced fields."""
    changes = options if steps is None else {**options, "steps": steps}
    return default_sampler(model, **changes) if sampler is None else sampler.changed(**changes)


def impute(model: NDM, rows: Values, *, n: int = 1, steps: int | None = None, seed: int = 0, **options: Any) -> Tensor:
    """Fill the missing cells of each row n times, given its observed cells.

    Args:
        model: a model trained with ``conditionals="any"``.
        rows: (m, C), NaN for missing cells.
        n: the number of copies of each row.
        steps: sampling steps; by default those of :func:`ndm.inference.sampling.default_sampler`.
        seed: the seed of the random numbers.
        options: fields of the sampler to replace.

    Returns:
        (m n, C) without missing cells, the copies of a row together.

    Raises:
        ValueError: the model was not trained with conditionals.
    """
    data = as_tensor(rows, "rows").double()
    absent = data.isnan()
    result = data.repeat_interleave(n, 0)
    holes = absent.any(1).nonzero()[:, 0]
    if len(holes) == 0:
        return result
    _require_any(model)
    states = torch.where(absent[holes], WANTED, GIVEN)
    found = _draw(model, data[holes], states, n, _sampler(model, None, steps, options), seed, True)
    places = (holes[:, None] * n + torch.arange(n)).flatten()
    wanted = absent[holes].repeat_interleave(n, 0)
    result[places] = torch.where(wanted, found, result[places])
    return result


def _require_any(model: NDM) -> None:
    denoiser = model.denoiser
    if not (isinstance(denoiser, MixedDenoiser) and denoiser.conditionals == "any"):
        raise ValueError("This model has no conditionals: train it with --training.conditionals any.")


@torch.no_grad()
def class_probabilities(
    model: NDM, rows: Values, column: str | int, given: Sequence[str | int] | None = None, *, seed: int = 0
) -> Tensor:
    """p(level | given) of a column with levels, (n, K), by the denoiser at the highest noise level.

    There z holds no information on the column, and the posterior of its atom is its conditional distribution. Missing
    cells of the column itself have probability zero.

    Args:
        model: a model that knows this conditional.
        rows: (n, C).
        column: a column without a density: categorical, or whole numbers on a line.
        given: names or numbers of columns; by default all others.
        seed: the seed of z.

    Raises:
        ValueError: the column has a density, or the model was not trained for this conditional.
    """
    encoding = table_of(model)
    (place,) = column_numbers(encoding, [column])
    spec = encoding.table[place]
    if spec.rest is not None:
        raise ValueError(f"The column {spec.name!r} has values with a density, and no list of levels: take quantiles.")
    others = [i for i in range(len(encoding.table)) if i != place]
    b = others if given is None else column_numbers(encoding, given)
    data = as_tensor(rows, "rows").double()
    levels = spec.atoms - spec.missing
    result = torch.zeros(len(data), levels, dtype=torch.float64)
    seen = data.clone()
    seen[:, place] = math.nan
    draws = 8
    for places, _, g in groups(encoding, seen, [], sorted(b), "value"):
        own = conditional(model, [place], g, present=True)
        labels = given_values(model, encoding, seen[places], g)
        generator = torch.Generator().manual_seed(seed)
        # The same z for all rows, so that the probabilities of a row do not depend on the other rows.
        d = own.latent_shape(own.standardize.shape)[0]  # type: ignore[union-attr]
        every = torch.randn(draws, d, generator=generator).to(precision_of(model) or torch.float32)
        for i in range(0, len(places), BLOCK):
            block = slice(i, i + BLOCK)
            some, here = None if labels is None else labels[block], places[block]
            for z in every:
                level = own.schedule(torch.ones(len(here), dtype=z.dtype))
                p = own.denoiser.probabilities(z.expand(len(here), -1), level, some)  # type: ignore[operator]
                result[here] += p[:, :levels].double() / draws
    return result / result.sum(1, keepdim=True)


def explain(
    model: NDM, rows: Values, *, method: str = "auto", times: int = TIMES, seed: int = 0, **options: Any
) -> tuple[Tensor, str]:
    """How likely each cell is: log p(column | all others) where the model has conditionals, else the bound's split.

    Args:
        model: the model.
        rows: (n, C).
        method: as for :func:`log_prob`.
        times: noise levels of a bound.
        seed: the seed of the random numbers.
        options: of :func:`ndm.log_likelihood`.

    Returns:
        (n, C) in nats, lower for an unlikely cell, and what it is. The split of the bound sums to minus the bound.
    """
    encoding = table_of(model)
    data = as_tensor(rows, "rows").double()
    denoiser, c = model.denoiser, len(encoding.table)
    if isinstance(denoiser, MixedDenoiser) and denoiser.conditionals == "any":
        found = [
            log_prob(
                model, data, [i], [j for j in range(c) if j != i], method=method, times=times, seed=seed, **options
            )
            for i in range(c)
        ]
        return torch.stack([one.values for one in found], 1), "log p(column | the others)"
    total = torch.zeros(len(data), c, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(data), BLOCK):
            x = data[start : start + BLOCK]
            generator = torch.Generator().manual_seed(seed_of(seed, start))
            for i in range(times):
                u = (i + torch.rand(len(x), generator=generator, dtype=torch.float64)) / times
                terms = model.bound(x, times=u, generator=generator, by_column=True)
                assert terms.columns is not None
                total[start : start + BLOCK] -= terms.columns.double() / times
    return total, "minus the column's share of the bound"


def percentiles(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The conformal p-value of each score among those of rows that were not trained on: (1 + #{r <= s}) / (m + 1).

    For a row of the same distribution it is at most p with probability at most p (Vovk et al., Algorithmic Learning in
    a Random World, 2005). A score that is NaN is of a row too far from the data to be solved, and counts as -inf.

    Args:
        scores: (n,), in nats, lower for an abnormal row.
        reference: the scores of m rows that were not trained on, (m,).

    Returns:
        (n,), in (0, 1].
    """
    order = np.sort(np.where(np.isnan(reference), -np.inf, reference))
    below = np.searchsorted(order, np.where(np.isnan(scores), -np.inf, scores), side="right")
    return (1 + below) / (len(order) + 1)
