"""log p(wanted | given) of the rows of a table.

Rows are numbers, (n, C), one per column of ``model.standardize``: a value, the index of a category, or NaN for a
missing cell (:func:`ndm.data.mixed.rows_of_numbers`). Rows are grouped by the cells that are missing, and every group
is a conditional of its own (:func:`ndm.method.conditionals.conditional`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, precision_of
from ndm._internal.random import Drawn
from ndm.inference.likelihood import is_exact, log_likelihood, portions
from ndm.method.bounds import bound
from ndm.method.conditionals import GIVEN, LEFT_OUT, WANTED, column_numbers, conditional
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.process import Process
from ndm.model import NDM

__all__ = ["LogProb", "given_values", "groups", "log_prob", "roles", "table_of"]

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
    a, b = roles(model, encoding, wanted, given)
    if method == "bound" and isinstance(model.denoiser, MixedDenoiser):
        return _bounds_by_states(model, data, a, b, missing, times, seed)
    values, errors, kind = torch.zeros(len(data), dtype=torch.float64), torch.zeros(len(data), dtype=torch.float64), ""
    for places, w, g in groups(encoding, data, a, b, missing):
        if not w:
            continue
        own = conditional(model, w, g)
        x, labels = data[places][:, w], given_values(model, encoding, data[places], g)
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


def _bounds_by_states(
    model: NDM, data: Tensor, a: list[int], b: list[int], missing: str, times: int, seed: int
) -> LogProb:
    """Minus the bound of each row, whose columns have states of their own: all rows in a batch."""
    encoding = table_of(model)
    states = torch.full(data.shape, LEFT_OUT)
    for places, w, g in groups(encoding, data, a, b, missing):
        if w:
            conditional(model, w, g)  # which checks that the model knows it
        states[places[:, None], torch.tensor(w, dtype=torch.long)] = WANTED
        states[places[:, None], torch.tensor(g, dtype=torch.long)] = GIVEN
    fill = torch.tensor([column.typical for column in encoding.table], dtype=torch.float64)
    rows = torch.where(states == LEFT_OUT, fill, data)  # a left-out cell has no effect, not even on the noise
    joint = bool((states == WANTED).all())
    found = []
    for i in range(0, len(rows), BLOCK):
        block, generator = slice(i, i + BLOCK), torch.Generator().manual_seed(seed)
        found.append(_bound(model, rows[block], None, times, generator, None if joint else states[block]))
    values, errors = (torch.cat(part) for part in zip(*found, strict=True)) if found else (torch.zeros(0),) * 2
    kind = "minus the bound of the SDE" + (", of the observed cells" if missing == "left out" else "")
    return LogProb(values, errors, kind)


def roles(
    model: Process, encoding: TableEncoding, wanted: Sequence[str | int] | None, given: Sequence[str | int] | None
) -> tuple[list[int], list[int]]:
    """The numbers of the wanted and of the given columns, with the defaults of :func:`log_prob`.

    Raises:
        ValueError: a column is unknown, or named twice.
    """
    denoiser = model.denoiser
    if given is None:
        given = list((isinstance(denoiser, MixedDenoiser) and denoiser.given) or []) if wanted is None else []
    b = column_numbers(encoding, given)
    a = [i for i in range(len(encoding.table)) if i not in b] if wanted is None else column_numbers(encoding, wanted)
    return sorted(a), sorted(b)


def groups(
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
                'cells out with --missing left-out (missing="left out").'
            )
    patterns, where = torch.unique(absent, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        places = (where == number).nonzero()[:, 0]
        yield places, [i for i in a if not pattern[i]], [i for i in b if not pattern[i]]


def given_values(model: Process, encoding: TableEncoding, rows: Tensor, given: Sequence[int]) -> Tensor | None:
    """The codes and values of the given columns, (n, g)."""
    if not given:
        return None
    return encoding.restricted(given)(rows[:, given]).to(precision_of(model) or torch.float32)


def _likelihood(
    own: Process, x: Tensor, labels: Tensor | None, generator: torch.Generator, options: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], str]:
    d = own.latent_shape(x.shape[1:])[0]
    samples = options.get("samples", SAMPLES)
    exact = is_exact(options.get("divergence", "auto"), torch.Size((d,)))
    by_row = (
        own.latent is None and own.decoder.discrete and exact and options.get("dequantization") in (None, "variational")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if not by_row:
            found = log_likelihood(own, x, labels=labels, generator=generator, **options)
            return (found.log_prob.double(), found.stderr.double()), found.kind
        noise = _noise_of_rows(x, (samples, d), generator.initial_seed())[0].movedim(0, 1)
        pieces = [part.flatten(0, 1) for part in noise.split(portions(samples, len(x) * d))]
        found = log_likelihood(own, x, labels=labels, generator=Drawn(pieces), **options)  # type: ignore[arg-type]
    return (found.log_prob.double(), found.stderr.double()), found.kind


def _noise_of_rows(x: Tensor, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal numbers, (n, \\*shape), and uniform ones, (n, shape[0]), which depend on the row and the seed."""
    noise, u, generator = torch.empty(len(x), *shape), torch.empty(len(x), shape[0]), torch.Generator()
    key = seed.to_bytes(16, "little")
    for row, own, times in zip((x + 0.0).cpu().numpy(), noise, u, strict=True):
        digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        own.normal_(generator=generator)
        times.uniform_(generator=generator)
    return noise, u


@torch.no_grad()
def _bound(
    own: Process,
    x: Tensor,
    labels: Tensor | None,
    times: int,
    generator: torch.Generator,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minus the bound and its standard error, (n,); the random numbers of a row depend on it and the seed only."""
    d = own.latent_shape(x.shape[1:])[0]
    size = 0 if own.latent is None else own.latent.size
    noise, u = _noise_of_rows(x, (times, 2 * d + size), generator.initial_seed())
    every = []
    for i in range(times):
        # What the bound requests in turn: the noise of the latent, of z_t and of z_0.
        parts = [part for part in noise[:, i].split([size, d, d], 1) if part.shape[1]]
        terms = bound(
            own, x, labels=labels, times=(i + u[:, i].double()) / times, generator=Drawn(parts),
            check=i == 0, states=states,
        )  # fmt: skip
        every.append(terms.total.double())
    found = torch.stack(every)
    pairs = found[: times // 2 * 2].unflatten(0, (-1, 2))  # neighbouring times: their difference is mostly noise
    error = (pairs[:, 0] - pairs[:, 1]).square().sum(0).sqrt() / times
    return -found.mean(0), error
