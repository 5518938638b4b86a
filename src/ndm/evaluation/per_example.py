"""Bound and log-likelihood of each example, computed in blocks and shared among processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ndm._internal.distributed import all_gather, all_reduce, from_some, shard
from ndm._internal.random import seed_of
from ndm.data.base import Examples
from ndm.inference.likelihood import calibrate_solver, log_likelihood
from ndm.model import NDM

__all__ = ["BLOCK", "TIMES", "block_by_block", "bound_per_example", "device_of", "likelihood_per_example", "solved"]

#: Times per example if the number of steps is larger, or infinite; otherwise every step is evaluated.
TIMES = 100

#: Minimum number of examples for which the likelihood's solver is calibrated, which costs about as much as so many.
CALIBRATED = 400

#: Block size, also for sharing the work among processes.
BLOCK = 250


@torch.no_grad()
def bound_per_example(
    model: NDM,
    data: Examples,
    steps: int | None,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    batch_size: int = BLOCK,
    times: int = TIMES,
) -> dict[str, Tensor]:
    """Compute the terms of the bound for each example, averaged over all T steps if T <= ``times``, else over ``times``
    stratified times.

    The work is shared among the processes of :mod:`ndm._internal.distributed`. The result of an example depends only on
    the seed and its index, not on the number of processes.

    Args:
        model: the model.
        data: (N, \\*shape), a tensor or an object that returns tensors when indexed.
        steps: T, or None for continuous time.
        labels: class labels, (N,).
        seed: seed of times and noise.
        batch_size: batch size; the noise depends on it.
        times: number of times, if not every step is evaluated.

    Returns:
        ``total``, ``diffusion``, ``prior`` and ``reconstruction``, each (N,), in nats, in float64.
    """
    names = ("total", "diffusion", "prior", "reconstruction")
    repeats = steps if steps is not None and steps <= times else times
    device = device_of(model)

    def measure(block: int, x: Tensor, y: Tensor | None) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed_of(seed, block))
        sums = torch.zeros(len(x), len(names), dtype=torch.float64, device=device)
        for r in range(repeats):
            u = torch.rand(len(x), generator=generator, dtype=torch.float64, device=device)
            terms = model.bound(x, steps, labels=y, times=(r + u) / repeats, generator=generator, check=r == 0)
            sums += torch.stack([getattr(terms, name).double() for name in names], dim=1)
        return (sums / repeats).cpu()

    found = block_by_block(measure, data, labels, batch_size, device, columns=len(names))
    return dict(zip(names, found.unbind(1), strict=True))


def likelihood_per_example(
    model: NDM,
    data: Examples,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    batch_size: int = BLOCK,
    hopeless: Tensor | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], str, int]:
    """Compute ``log_prob`` and ``solver_error``, (N,) in nats, their description, and the number of drift evaluations:
    see :func:`ndm.log_likelihood`.

    An example that cannot be solved is NaN, without effect on others. The work is shared as in
    :func:`bound_per_example`.

    Args:
        model: the model.
        data: (N, \\*shape).
        labels: class labels, (N,).
        seed: seed of the probes and of z_0.
        batch_size: batch size.
        hopeless: examples to skip, such as those without a finite bound, bool (N,).
        options: options of :func:`ndm.log_likelihood`.
    """
    device, evaluations, kinds = device_of(model), torch.zeros(1), [""]
    if len(data) >= CALIBRATED and "calibration" not in options:
        known = {name: options[name] for name in ("divergence", "tolerance") if name in options}
        options["calibration"] = calibrate_solver(model, data[:1].to(device), labels=labels is not None, **known)
    skipped = torch.zeros(len(data), dtype=torch.bool) if hopeless is None else hopeless

    def measure(block: int, x: Tensor, y: Tensor | None) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed_of(seed, block))
        rows = slice(block * batch_size, block * batch_size + len(x))
        found, kind, nfe = solved(model, x, y, skipped[rows], generator, options)
        evaluations.add_(nfe)
        kinds[0] = kind or kinds[0]
        return found[:, [0, 2]]

    found = block_by_block(measure, data, labels, batch_size, device, columns=2)
    values = {"log_prob": found[:, 0], "solver_error": found[:, 1]}
    return values, from_some(kinds[0]), int(all_reduce(evaluations).item())


def solved(
    model: NDM,
    x: Tensor,
    labels: Tensor | None,
    hopeless: Tensor,
    generator: torch.Generator,
    options: Mapping[str, Any],
) -> tuple[Tensor, str, int]:
    """Return log-likelihood, standard error and solver error, float64 (n, 3), the description, and the evaluations.

    Rows are NaN if they are ``hopeless``, (n,), or have no finite path. A hopeless row is replaced by another one, so
    that the random numbers of the other rows do not change.
    """
    if hopeless.all():
        return torch.full((len(x), 3), math.nan, dtype=torch.float64), "", 0
    if hopeless.any():
        first = int((~hopeless).nonzero()[0])
        places = torch.where(hopeless, first, torch.arange(len(x))).to(x.device)
        x, labels = x[places], None if labels is None else labels[places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # unsolved rows are counted
        result = log_likelihood(model, x, labels=labels, generator=generator, **options)
    found = torch.stack([result.log_prob, result.stderr, result.solver_error], dim=1).double().cpu()
    found[hopeless | ~found[:, 0].isfinite()] = math.nan
    return found, result.kind, result.nfe


def device_of(model: NDM) -> torch.device:
    """Return the device of the model's parameters."""
    return next(iter(model.parameters()), torch.empty(0)).device


def block_by_block(
    measure: Callable[[int, Tensor, Tensor | None], Tensor],
    data: Examples,
    labels: Tensor | None,
    batch_size: int,
    device: torch.device,
    columns: int,
) -> Tensor:
    """Apply ``measure`` to each block of examples, shared among the processes: (N, columns), float64."""
    n = len(data)
    values, places = [torch.zeros(0, columns, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
    for block in shard(-(-n // batch_size)):
        rows = slice(block * batch_size, min((block + 1) * batch_size, n))
        y = None if labels is None else labels[rows].to(device)
        values.append(measure(block, data[rows].to(device), y))
        places.append(torch.arange(n)[rows])
    return all_gather(torch.cat(values), torch.cat(places), n)
