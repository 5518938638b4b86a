r"""Questions to a model of a table: log p(wanted | given), samples given some columns, missing cells, explanations.

Rows are numbers, (n, C), one per column of ``model.standardize``: a value, the index of a category, or NaN for a
missing cell (:func:`ndm.data.mixed.rows_of_numbers`). Rows are grouped by the cells that are missing, and every group
is a conditional of its own (:func:`ndm.method.conditionals.conditional`).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, precision_of
from ndm._internal.random import Drawn, seed_of
from ndm.inference.likelihood import log_likelihood
from ndm.inference.sampling import sample
from ndm.method.conditionals import column_numbers, conditional
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.process import Process
from ndm.model import NDM

__all__ = ["LogProb", "class_probabilities", "explain", "impute", "log_prob", "sample_given"]

#: Rows computed at a time.
BLOCK = 512

#: What a missing cell among the wanted and the given columns means.
MISSING = ("value", "left out")

#: Up to this many dimensions of z the divergence of the ODE is exact; draws of z_0 for each row.
EXACT_UP_TO, SAMPLES = 32, 4

#: Noise levels of a bound.
TIMES = 64

#: Steps of conditional samples.
STEPS = 100


class LogProb(NamedTuple):
    """log p of each row in nats, (n,), the standard error of each, and what it is."""

    values: Tensor
    stderr: Tensor
    kind: str


def table_of(model: Process) -> TableEncoding:
    """The encoding of a model of a table.

    Raises:
        ValueError: the model is not of a table with an encoding.
    """
    if not isinstance(model.standardize, TableEncoding):
        raise ValueError("This model is not of a table with columns of several kinds: train it by ndm train table.")
    return model.standardize


def log_prob(
    model: NDM,
    rows: Values,
    wanted: Sequence[str | int] | None = None,
    given: Sequence[str | int] | None = None,
    *,
    missing: str = "value",
    method: str = "auto",
    times: int = TIMES,
    seed: int = 0,
    **options: Any,
) -> LogProb:
    """log p(wanted | given) of each row, with all other columns left out.

    For columns that are all real it is the density of the reverse ODE, else a lower bound on log p, by draws of z_0
    from q(z_0 | x) (:func:`ndm.log_likelihood`); with ``method="bound"`` it is minus the bound of the SDE.

    Args:
        model: the model.
        rows: (n, C).
        wanted: names or numbers of columns; by default all that are not given.
        given: likewise; by default those of the model, usually none.
        missing: ``value``: a missing cell is a value of its column; ``left out``: it is left out, so that the result is
            the log-probability of the observed cells. This needs a model trained with ``conditionals="any"``.
        method: ``auto``, or ``bound``, which is faster and has a larger error of each row.
        times: noise levels of a bound.
        seed: the seed of the random numbers.
        options: of :func:`ndm.log_likelihood`, such as ``samples`` and ``tolerance``.

    Returns:
        The values in nats, float64, with standard errors (0 where nothing is random).

    Raises:
        ValueError: a column is unknown, or the model was not trained for this conditional.
    """
    if missing not in MISSING or method not in ("auto", "bound"):
        raise ValueError('missing must be "value" or "left out", and method "auto" or "bound".')
    encoding = table_of(model)
    data = as_tensor(rows, "rows").double()
    a, b = _roles(model, encoding, wanted, given)
    values, errors, kind = torch.zeros(len(data), dtype=torch.float64), torch.zeros(len(data), dtype=torch.float64), ""
    for places, w, g in _groups(encoding, data, a, b, missing):
        if not w:
            continue
        own = conditional(model, w, g)
        x, labels = data[places][:, w], _given(model, encoding, data[places], g)
        for i in range(0, len(places), BLOCK):
            block = slice(i, i + BLOCK)
            some = None if labels is None else labels[block]
            generator = torch.Generator().manual_seed(seed)
            if method == "bound":
                found, kind = _bound(own, x[block], some, times, generator), "minus the bound of the SDE"
            else:
                found, kind = _likelihood(own, x[block], some, generator, options)
            values[places[block]], errors[places[block]] = found
    if missing == "left out":
        kind += ", of the observed cells"
    return LogProb(values, errors, kind)


def _roles(
    model: Process, encoding: TableEncoding, wanted: Sequence[str | int] | None, given: Sequence[str | int] | None
) -> tuple[list[int], list[int]]:
    denoiser = model.denoiser
    if given is None:
        given = list((isinstance(denoiser, MixedDenoiser) and denoiser.given) or []) if wanted is None else []
    b = column_numbers(encoding, given)
    a = [i for i in range(len(encoding.table)) if i not in b] if wanted is None else column_numbers(encoding, wanted)
    return sorted(a), sorted(b)


def _groups(
    encoding: TableEncoding, data: Tensor, a: list[int], b: list[int], missing: str
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """The rows by the columns that are wanted and given in them."""
    if data.ndim != 2 or data.shape[1] != len(encoding.table):
        raise ValueError(f"The rows must have {len(encoding.table)} columns, and have the shape {tuple(data.shape)}.")
    absent = data.isnan()
    if missing == "value":  # a column without such a value cannot be seen, but others can
        absent = absent & torch.tensor([not column.missing for column in encoding.table])
        hole = absent[:, a].any(0)
        if hole.any():
            name = encoding.names[a[int(hole.nonzero()[0])]]
            raise ValueError(
                f"The column {name!r} has missing cells, and had none in the training: fill them, or leave missing "
                'cells out (missing="left out").'
            )
    patterns, where = torch.unique(absent, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        places = (where == number).nonzero()[:, 0]
        yield places, [i for i in a if not pattern[i]], [i for i in b if not pattern[i]]


def _given(model: Process, encoding: TableEncoding, rows: Tensor, given: Sequence[int]) -> Tensor | None:
    """The codes and values of the given columns, (n, g)."""
    if not given:
        return None
    return encoding.restricted(given)(rows[:, given]).to(precision_of(model) or torch.float32)


def _likelihood(
    own: Process, x: Tensor, labels: Tensor | None, generator: torch.Generator, options: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], str]:
    d = own.latent_shape(x.shape[1:])[0]
    if d <= EXACT_UP_TO:
        options = {"divergence": "exact"} | options
    samples = options.get("samples", SAMPLES)
    by_row = own.decoder.discrete and d <= EXACT_UP_TO and options.get("dequantization") in (None, "variational")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if not by_row:
            found = log_likelihood(own, x, labels=labels, generator=generator, **options)
            return (found.log_prob.double(), found.stderr.double()), found.kind
        every = []
        for noise in _noise_of_rows(x, samples, d, generator.initial_seed()):
            one = options | {"samples": 1}
            found = log_likelihood(own, x, labels=labels, generator=Drawn([noise]), **one)  # type: ignore[arg-type]
            every.append(found.log_prob.double())
    values = torch.stack(every)
    error = values.std(0) / math.sqrt(samples) if samples > 1 else torch.full_like(values[0], math.nan)
    return (values.mean(0), error), found.kind


def _noise_of_rows(x: Tensor, samples: int, d: int, seed: int) -> Tensor:
    """Standard normal numbers, (samples, n, d), of which those of a row depend on the row and the seed only."""
    noise, generator = torch.empty(len(x), samples, d), torch.Generator()
    for row, own in zip((x + 0.0).numpy(), noise, strict=True):
        digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=seed.to_bytes(16, "little")).digest()
        own.normal_(generator=generator.manual_seed(int.from_bytes(digest, "little") >> 1))
    return noise.movedim(0, 1)


@torch.no_grad()
def _bound(
    own: Process, x: Tensor, labels: Tensor | None, times: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    from ndm.method.bounds import bound

    every = []
    for i in range(times):
        u = (i + torch.rand(len(x), generator=generator, dtype=torch.float64)) / times
        every.append(bound(own, x, labels=labels, times=u, generator=generator, check=i == 0).total.double())
    found = torch.stack(every)
    pairs = found[: times // 2 * 2].unflatten(0, (-1, 2))  # neighbouring times: their difference is mostly noise
    error = (pairs[:, 0] - pairs[:, 1]).square().sum(0).sqrt() / times
    return -found.mean(0), error


@torch.no_grad()
def sample_given(
    model: NDM,
    rows: Values,
    given: Sequence[str | int],
    wanted: Sequence[str | int] | None = None,
    *,
    n: int = 1,
    steps: int = STEPS,
    seed: int = 0,
    present: bool = False,
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
        steps: sampling steps.
        seed: the seed of the random numbers.
        present: whether no sampled cell is missing.
        options: of :func:`ndm.sample`.

    Returns:
        (m n, C), the samples of a row together: given cells as they are, NaN in columns that are left out.

    Raises:
        ValueError: a column is unknown, or the model was not trained for this conditional.
    """
    encoding = table_of(model)
    data = as_tensor(rows, "rows").double()
    b = sorted(column_numbers(encoding, given))
    a = [i for i in range(len(encoding.table)) if i not in b] if wanted is None else column_numbers(encoding, wanted)
    result = torch.full((len(data) * n, len(encoding.table)), math.nan, dtype=torch.float64)
    result[:, b] = data[:, b].repeat_interleave(n, 0)
    seen = data.clone()
    seen[:, a] = math.nan
    for places, w, g in _groups(encoding, seen, [], b, "value"):
        del w
        own = conditional(model, a, g, present=present)
        labels = _given(model, encoding, seen[places], g)
        labels = None if labels is None else labels.repeat_interleave(n, 0)
        rows_of = (places[:, None] * n + torch.arange(n)).flatten()
        for i in range(0, len(rows_of), BLOCK):
            block = slice(i, min(i + BLOCK, len(rows_of)))
            generator = torch.Generator().manual_seed(seed_of(seed, i, int(places[0])))
            x = sample(
                own, block.stop - block.start, (len(a),), steps=steps, generator=generator, progress=False,
                labels=None if labels is None else labels[block], **options,
            )  # fmt: skip
            result[rows_of[block][:, None], torch.tensor(sorted(a))] = x.double()
    return result


def impute(model: NDM, rows: Values, *, n: int = 1, steps: int = STEPS, seed: int = 0, **options: Any) -> Tensor:
    """Fill the missing cells of each row n times, given its observed cells.

    Args:
        model: a model trained with ``conditionals="any"``.
        rows: (m, C), NaN for missing cells.
        n: the number of copies of each row.
        steps: sampling steps.
        seed: the seed of the random numbers.
        options: of :func:`ndm.sample`.

    Returns:
        (m n, C) without missing cells, the copies of a row together.

    Raises:
        ValueError: the model was not trained with conditionals.
    """
    encoding = table_of(model)
    data = as_tensor(rows, "rows").double()
    result = data.repeat_interleave(n, 0)
    for number, (places, observed) in enumerate(_observed(data)):
        holes = [i for i in range(len(encoding.table)) if i not in observed]
        if not holes:
            continue
        filled = sample_given(
            model, data[places], observed, holes, n=n, steps=steps, seed=seed_of(seed, number), present=True, **options
        )
        rows_of = (places[:, None] * n + torch.arange(n)).flatten()
        result[rows_of] = filled
    return result


def _observed(data: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
    patterns, where = torch.unique(data.isnan(), dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        yield (where == number).nonzero()[:, 0], (~pattern).nonzero()[:, 0].tolist()


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
    for places, _, g in _groups(encoding, seen, [], sorted(b), "value"):
        own = conditional(model, [place], g, present=True)
        labels = _given(model, encoding, seen[places], g)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(draws):
            # The same z for all rows, so that the probabilities of a row do not depend on the other rows.
            z = torch.randn(1, own.standardize.latent_shape[0], generator=generator)  # type: ignore[union-attr]
            z = z.to(precision_of(model) or torch.float32).expand(len(places), -1)
            level = own.schedule(torch.ones(len(places), dtype=z.dtype))
            p = own.denoiser.probabilities(z, level, labels)  # type: ignore[operator]
            result[places] += p[:, :levels].double() / draws
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
    a Random World, 2005).
    """
    order = np.sort(reference[np.isfinite(reference)])
    below = np.searchsorted(order, scores, side="right")
    return (1 + below) / (len(order) + 1)
