"""Measurements of a model of a table with columns of any kind: shares of the bound, unlikely rows, calibration."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ndm._internal.random import seed_of
from ndm.data.choosing import part_of
from ndm.data.frames import from_numbers
from ndm.inference.sampling import sample
from ndm.method.conditionals import conditional
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.process import Process
from ndm.model import NDM
from ndm.report.measures import WALK, Walk
from ndm.report.subjects import Subject
from ndm.tabular.calibration import pit
from ndm.tabular.queries import class_probabilities, sample_given

__all__ = ["TableFindings", "cells_as_text", "conditional_walk", "coordinate_names", "measure_table"]

#: Noise levels of the bound by column.
TIMES = 32

#: Of the calibration: columns, test rows, conditional samples of each, and sampling steps.
CALIBRATED, ROWS, DRAWS, STEPS = 2, 100, 50, 40

#: Identifiers of the random number streams.
SHARES, PIT = 11, 12


@dataclass(frozen=True, eq=False)
class TableFindings:
    """Measurements of a model of a table.

    Attributes:
        shares: the bound of each column for each test row, (N, C), in nats; None if there are no test rows.
        places: positions of the test rows in the split, (N,).
        pit: by column name, the probability integral transform of test rows given all other columns, each in [0, 1];
            empty if the model has no such conditionals.
    """

    shares: np.ndarray | None
    places: np.ndarray
    pit: dict[str, np.ndarray]


def measure_table(subject: Subject, affordable: float, seed: int) -> TableFindings:
    """Measure a model of a table, after loading its examples (if available).

    Args:
        subject: the run.
        affordable: passes of one row through the networks that the budget allows.
        seed: the seed of the random numbers.
    """
    if subject.examples is None or subject.data is None:
        return TableFindings(None, np.zeros(0, int), {})
    model, rows = _on_cpu(subject.model), subject.examples.cpu()
    places = part_of(len(subject.data.examples("test")), len(rows), seed).numpy()
    few = int(max(8, min(ROWS, affordable / (CALIBRATED * DRAWS * STEPS))))
    return TableFindings(_shares(model, rows, seed), places, _calibration(model, rows[:few], seed))


def _on_cpu(model: NDM) -> NDM:
    parameter = next(model.parameters(), None)
    return model if parameter is None or parameter.device.type == "cpu" else copy.deepcopy(model).cpu()


@torch.no_grad()
def _shares(model: NDM, rows: Tensor, seed: int) -> np.ndarray:
    """The bound of each column, (N, C), averaged over noise levels, one from each of equal intervals of time."""
    found = torch.zeros(rows.shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed_of(seed, SHARES))
    for i in range(TIMES):
        u = (i + torch.rand(len(rows), generator=generator, dtype=torch.float64)) / TIMES
        terms = model.bound(rows, times=u, generator=generator, by_column=True, check=i == 0)
        assert terms.columns is not None
        found += terms.columns.double() / TIMES
    return found.numpy()


# ---- calibration


def _calibration(model: NDM, rows: Tensor, seed: int) -> dict[str, np.ndarray]:
    """The transforms of some columns whose values have an order, given all others."""
    encoding, denoiser = model.standardize, model.denoiser
    if not isinstance(encoding, TableEncoding) or not isinstance(denoiser, MixedDenoiser):
        return {}
    numbers = range(len(encoding.table))
    known = [
        i
        for i in numbers
        if encoding.table[i].kind != "categorical" and denoiser.knows([i], [j for j in numbers if j != i])
    ]
    # columns with many values first
    known.sort(key=lambda i: (encoding.table[i].rest is None, -len(encoding.table[i].levels)))
    generator = np.random.default_rng(seed_of(seed, PIT))
    found = {}
    for i in known[:CALIBRATED]:
        some = rows[~rows[:, i].isnan()]
        if len(some):
            found[encoding.names[i]] = _transform(model, encoding, some, i, seed, generator)
    return found


def _transform(
    model: NDM, encoding: TableEncoding, rows: Tensor, column: int, seed: int, generator: np.random.Generator
) -> np.ndarray:
    """P(Y < y) + U P(Y = y) for each row, with U uniform, by probabilities of the levels or by samples."""
    y = rows[:, column].double().numpy()
    others = [i for i in range(len(encoding.table)) if i != column]
    spec = encoding.table[column]
    if spec.rest is None:
        p = class_probabilities(model, rows, column, seed=seed).numpy()
        at = np.abs(np.array(spec.levels)[None] - y[:, None]).argmin(1)
        own = p[np.arange(len(p)), at]
        return np.asarray(p.cumsum(1)[np.arange(len(p)), at] - generator.random(len(p)) * own)
    drawn = sample_given(model, rows, others, [column], n=DRAWS, steps=STEPS, seed=seed, present=True)
    return pit(drawn[:, column].reshape(len(rows), DRAWS).numpy(), y, seed=seed_of(seed, PIT, column))


# ---- trajectories and cells


def conditional_walk(subject: Subject, n: int, steps: int, seed: int) -> Walk:
    """Trajectories of n samples, in the coordinates of the wanted columns; given columns are those of test rows.

    Raises:
        ValueError: the model is of columns given others, and there are no test rows.
    """
    model, encoding = subject.model, subject.encoding
    assert encoding is not None
    given = (isinstance(model.denoiser, MixedDenoiser) and model.denoiser.given) or []
    wanted = [i for i in range(len(encoding.table)) if i not in given]
    own, labels, rows = conditional(model, wanted, given), None, None
    if given:
        if subject.examples is None:
            raise ValueError(
                f"The model of {subject.name} needs the columns {', '.join(encoding.names[i] for i in given)}, "
                f"and there are no test rows: {subject.lacking}"
            )
        rows = subject.examples[torch.arange(n) % len(subject.examples)].double().cpu()
        labels = encoding.restricted(given)(rows[:, given]).float()
    generator = torch.Generator().manual_seed(seed_of(seed, WALK))
    states = sample(
        _without_encoding(own), n, own.latent_shape((len(wanted),)), steps=steps, labels=labels, generator=generator,
        spacing="time", trajectory=True, progress=False,
    ).cpu()  # fmt: skip
    t = torch.linspace(1, 0, len(states) - 1)
    device = next(iter(own.parameters()), torch.empty(0)).device
    with torch.no_grad():
        alpha = own.schedule(t.to(device)).alpha.cpu()
    drawn = encoding.restricted(wanted).inverse(states[-1])
    data = torch.full((n, len(encoding.table)), torch.nan, dtype=torch.float64) if rows is None else rows.clone()
    data[:, wanted] = drawn
    return Walk(t, alpha.reshape(-1, 1, 1) * states[:-1], states[:-1], data)


def _without_encoding(process: Process) -> Process:
    """The same process whose data are its x, so that states are not rounded to the cells of a table."""
    own = copy.copy(process)
    own._modules = dict(process._modules)
    own._modules["standardize"] = None
    return own


def coordinate_names(encoding: TableEncoding, wanted: Sequence[int]) -> list[str]:
    """The names of the coordinates of some columns: that of the column, and the number of a code's coordinate."""
    names = []
    for i in wanted:
        name, m = encoding.names[i], encoding.slices[i].stop - encoding.slices[i].start
        has_value = encoding.table[i].rest is not None
        names += [name if m == 1 else f"{name}, code {k + 1}" for k in range(m - has_value)]
        names += [name] if has_value else []
    return names


def cells_as_text(encoding: TableEncoding, rows: np.ndarray) -> list[list[str]]:
    """The cells of rows, (N, C), as in the file; "missing" for missing ones."""
    table = from_numbers(encoding.table, rows)
    columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def _cell(value: object) -> str:
    if value is None:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
