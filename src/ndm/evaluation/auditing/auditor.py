"""The audit of a model on one split of a data set."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from tqdm import tqdm

from ndm._internal.distributed import is_first
from ndm.data import Data
from ndm.evaluation.auditing.bounds import CALIBRATED, Part, bounds
from ndm.evaluation.auditing.ends import end_rows, ends_left_out, known_levels, lowest_allowed, possible_ends
from ndm.evaluation.auditing.findings import advice, quote
from ndm.evaluation.auditing.flow import POINTS, integral, likelihoods
from ndm.evaluation.auditing.levels import profile
from ndm.evaluation.auditing.options import AuditOptions
from ndm.evaluation.auditing.results import Audit, LevelRow, value_of
from ndm.evaluation.auditing.traps import require_labels, warnings_about
from ndm.evaluation.calibration import own_variance
from ndm.evaluation.cost import cost
from ndm.evaluation.per_example import TIMES, device_of
from ndm.inference.likelihood import is_exact
from ndm.method.process import frozen
from ndm.model import NDM

__all__ = ["audit"]

#: The default numbers of steps.
STEPS = (10, 50, 1000)

#: The intervals of the diffusion term by noise level.
INTERVALS = 10

#: Edges closer than this are the same.
NEAR = 1e-6

#: The default numbers of examples, the smallest numbers for a large network, and those of noise levels.
EXAMPLES, FEWEST_EXAMPLES, FEWEST_TIMES, ODE_EXAMPLES = 1000, 8, 10, 16

#: Floating-point operations of the bounds, and of the likelihoods, by default: some minutes. A limit of time would give
#: other numbers on another computer.
BUDGET = {"cpu": 5e12, "cuda": 2e15}

#: Evaluations of the drift of a likelihood, about.
NFE = 80

#: The largest number of network evaluations of a calibration.
CALIBRATION = 50_000


def audit(
    model: NDM, data: Data, options: AuditOptions | None = None, *, progress: bool | None = None, **changes: Any
) -> Audit:
    """What the likelihood of a model is made of, what to quote, and what would lower it.

    Processes started by torchrun share the work, and all return the same result.

    Args:
        model: the model; not modified.
        data: the data set; the training split is only required for calibrations.
        options: options of the audit.
        progress: show a progress bar; by default on a terminal.
        changes: fields of ``options`` to replace, such as ``split="validation"`` or ``examples=100``.

    Raises:
        TypeError: there is no option of that name.
        ValueError: an option is out of range, or the data do not fit the model.

    Example:
        >>> import torch, ndm
        >>> from ndm.data import Gaussian
        >>> from ndm.networks import ResidualMLP
        >>> model = ndm.NDM(ndm.LinearSchedule(-6.0, 6.0), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=8)))
        >>> found = audit(model, Gaussian(), steps=(10,), examples=50, times=4, ode=2, grid=False)
        >>> [(row.steps, row.variance) for row in found.bounds]
        [(10, 'posterior'), (10, 'calibrated'), (None, None)]
    """
    o = replace(options or AuditOptions(), **changes)
    require_labels(model, data, o.split)
    was_training = model.training
    work = _Work.of(model, data, o)
    show = is_first() and (sys.stderr.isatty() if progress is None else progress)
    with frozen(model), tqdm(total=5, desc="auditing", disable=not show, leave=False) as bar:
        found = Audit(work.about(), work.unit)
        found.warnings += warnings_about(model, data, work.part, was_training)
        bar.update()
        for add in (_add_bounds, _add_levels, _add_ode, _add_integral):
            add(found, work)
            bar.update()
    found.quote, found.advice = quote(found), advice(found)
    return found


@dataclass(frozen=True)
class _Work:
    """The model, the data, and the options with all defaults filled in."""

    model: NDM
    data: Data
    o: AuditOptions
    part: Part
    steps: tuple[int, ...]
    times: int
    ode: int

    @staticmethod
    def of(model: NDM, data: Data, o: AuditOptions) -> _Work:
        last = getattr(model.schedule, "last_index", None)
        steps = tuple(o.steps) if o.steps is not None else _default_steps(last)
        steps = tuple(sorted(set(steps)))
        labelled = model.num_classes > 0
        n, times, ode = o.examples, o.times, o.ode
        if n is None or times is None or ode is None:
            affordable = _affordable(model, data, labelled)
            n = n or int(min(EXAMPLES, max(FEWEST_EXAMPLES, affordable / _evaluations(steps, TIMES))))
            fits = affordable / n / _evaluations(steps, TIMES)  # the part of the default times that fits
            times = times or int(max(FEWEST_TIMES, min(TIMES, TIMES * fits)))
            ode = _affordable_ode(model, data, o, affordable) if ode is None else ode
        part = Part.of(data, o.split, n, o.seed, labelled)
        return _Work(model, data, o, part, steps, times, ode)

    @property
    def scale(self) -> float:
        """One nat in the unit of the results."""
        return 1.0 if self.model.decoder.levels is None else 1 / (math.prod(self.data.shape) * math.log(2))

    @property
    def unit(self) -> str:
        return "nats" if self.model.decoder.levels is None else "bits/dim"

    def about(self) -> dict[str, Any]:
        low, high = self.model.schedule.end_points()
        return {
            "data": type(self.data).__name__,
            "split": self.o.split,
            "split_examples": self.part.whole,
            "examples": len(self.part.examples),
            "times": self.times,
            "dimensions": math.prod(self.data.shape),
            "decoder": type(self.model.decoder).__name__,
            "own_variance": own_variance(self.model),
            "schedule": type(self.model.schedule).__name__,
            "gamma_0": low,
            "gamma_1": high,
            "latent": 0 if self.model.latent is None else self.model.latent.size,
            "steps_of_schedule": getattr(self.model.schedule, "last_index", None),
            "seed": self.o.seed,
        }

    def common(self) -> dict[str, Any]:
        return {"times": self.times, "seed": self.o.seed, "batch_size": self.o.batch_size}


def _affordable(model: NDM, data: Data, labelled: bool) -> float:
    """The number of evaluations of the network within the budget."""
    device = device_of(model)
    one = torch.zeros(1, dtype=torch.long, device=device) if labelled else None
    return BUDGET["cpu" if device.type == "cpu" else "cuda"] / max(cost(model, data.shape, one), 1)


def _evaluations(steps: tuple[int, ...], times: int) -> int:
    """Evaluations of the network per example: two variances of each number of steps, the calibrations, continuous time,
    and the noise levels.
    """
    return sum(2 * min(t, times) + 100 for t in steps) + 2 * times


def _affordable_ode(model: NDM, data: Data, o: AuditOptions, affordable: float) -> int:
    """The default number of examples for the likelihood, which may be 0."""
    if o.tolerance is not None:
        return ODE_EXAMPLES
    exact = is_exact(o.divergence, torch.Size(model.latent_shape(data.shape)))
    each = NFE * (math.prod(data.shape) if exact else o.probes) * (3 * o.samples if model.decoder.discrete else 1)
    return int(min(ODE_EXAMPLES, affordable / each))


def _add_bounds(found: Audit, work: _Work) -> None:
    n = len(work.part.examples)
    found.bounds, found.about["calibrated_variance"] = bounds(
        work.model, work.data, work.part, work.steps, calibration=min(CALIBRATION, 100 * n), scale=work.scale,
        **work.common(),
    )  # fmt: skip
    if not any(row.variance == CALIBRATED for row in found.bounds):
        found.left_out["calibrated variance"] = "there is no training split"


def _add_levels(found: Audit, work: _Work) -> None:
    """The diffusion term by noise level, and the bound by end of the schedule, from one profile."""
    model, part, scale = work.model, work.part, work.scale
    if not known_levels(model):
        found.left_out["part by noise level"] = ends_left_out(model)
        return
    low, high = model.schedule.end_points()
    even = [low + (high - low) * i / INTERVALS for i in range(INTERVALS)] + [high]
    ends = [low]
    if reason := ends_left_out(model):
        found.left_out["schedule's end"] = reason
    else:
        lowest, reason = lowest_allowed(model, work.o.lowest_gamma)
        ends = possible_ends(model, lowest)
        if reason:
            found.left_out["lower ends of the schedule"] = reason
    edges = sorted({*even, *(g for g in ends if all(abs(g - e) > NEAR for e in even))})
    p = profile(model, part.examples, edges, labels=part.labels, **work.common())
    whole = value_of(p.diffusion(low) * scale).value
    for a, b in pairwise(even):
        value = value_of(p.diffusion(a, b) * scale)
        found.levels.append(LevelRow(a, b, value, value.value / whole if whole else math.nan))
    if "schedule's end" not in found.left_out:
        found.ends = end_rows(model, part, p, ends, scale, **work.common())


def _add_ode(found: Audit, work: _Work) -> None:
    model, o = work.model, work.o
    if not model.has_ode:
        lacking = "a noise of x" if getattr(model.denoiser, "ode", False) else "no head for F"
        found.left_out["ODE"] = f"the denoiser is direct and has {lacking}, so the model has no ODE"
    elif not known_levels(model):
        found.left_out["ODE"] = ends_left_out(model)
    elif not work.ode:
        reason = "the network is large: give the number of examples" if o.ode is None else "it is for 0 examples"
        found.left_out["ODE"] = reason
    else:
        found.ode = likelihoods(model, work.part.some(work.ode, o.seed), o, work.scale)


def _add_integral(found: Audit, work: _Work) -> None:
    model, o = work.model, work.o
    whole = not work.data.given and model.latent is None
    plain = whole and not model.decoder.discrete and len(work.data.shape) == 1 and work.data.shape[0] in POINTS
    if plain and model.has_ode and known_levels(model) and o.grid:
        found.integral = integral(model, work.data, o)


def _default_steps(last: int | None) -> tuple[int, ...]:
    """The numbers of steps, with the N - 1 of a schedule of N levels in the place of a number close to it."""
    if not last:
        return STEPS
    return (*(steps for steps in STEPS if abs(steps - last) > last / 100), last)
