r"""A model on a data set: the bound at several numbers of steps and reverse variances, the ODE likelihood, with errors.

Bits per dimension for K-level data, nats for continuous data (a differential entropy's unit). Every standard error is
over the examples of the split, so it holds the split's size as well as the noise of the estimate.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ndm.bounds import calibrate
from ndm.data import Data
from ndm.likelihood import log_likelihood
from ndm.model import NDM
from ndm.variances import PosteriorVariance

__all__ = ["Evaluation", "bound_per_example", "evaluate", "likelihood_per_example", "mean_and_error"]

#: Times per example where the number of steps is larger than this, or infinite; otherwise every step is evaluated.
TIMES = 100

#: Network evaluations that a calibration may spend: with many steps, a part of the training data has to do.
CALIBRATION_BUDGET = 50_000


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        rows: one per figure: ``quantity`` (``bound`` or ``log-likelihood``), ``steps`` (None for continuous time),
            ``variance`` (the reverse variance, None where it plays no part), ``value``, ``stderr``, ``unit``,
            ``reconstruction`` and ``prior`` (those parts of a bound, same unit), ``examples``, and ``kind`` in words.
        about: the data's class and split, the number of parameters, the seed.
        per_example: the same figures for each example, (N,), in the order of the rows.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    per_example: list[Tensor] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """``about`` and ``rows``, in JSON's types."""
        return {"about": self.about, "rows": self.rows}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path

    def find(self, quantity: str, steps: int | None = None, variance: str | None = None) -> int | None:
        """The number of the row with this quantity, number of steps and reverse variance; None if there is none."""
        for i, row in enumerate(self.rows):
            if (row["quantity"], row["steps"], row["variance"]) == (quantity, steps, variance):
                return i
        return None

    def table(self) -> str:
        """The figures as a table of plain text."""
        lines = [f"{'quantity':<15} {'steps':>10}  {'reverse variance':<17} {'value':>8}   {'stderr':>6}  unit"]
        for row in self.rows:
            steps = "-" if row["quantity"] != "bound" else (row["steps"] or "continuous")
            variance = row["variance"] or "-"
            lines.append(
                f"{row['quantity']:<15} {steps!s:>10}  {variance:<17} {row['value']:>8.4f} ± {row['stderr']:>6.4f}  "
                f"{row['unit']}"
            )
        return "\n".join(lines)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values, (N,), and its standard error; NaN for a single one."""
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


@torch.no_grad()
def bound_per_example(
    model: NDM,
    data: Tensor,
    steps: int | None,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """The bound's terms for each example, averaged over its steps: all T of them up to 100, else 100 stratified times.

    Args:
        model: the model.
        data: (N, \\*shape).
        steps: T, or None for continuous time.
        labels: class labels, (N,).
        generator: for times and noise.
        batch_size: how many examples at a time.

    Returns:
        ``total``, ``diffusion``, ``prior`` and ``reconstruction``, each (N,), in nats.
    """
    repeats = steps if steps is not None and steps <= TIMES else TIMES
    parts: dict[str, list[Tensor]] = {"total": [], "diffusion": [], "prior": [], "reconstruction": []}
    for start in range(0, len(data), batch_size):
        x = data[start : start + batch_size]
        y = None if labels is None else labels[start : start + batch_size]
        sums = {name: torch.zeros(len(x), dtype=torch.float64) for name in parts}
        for r in range(repeats):
            times = (r + torch.rand(len(x), generator=generator, dtype=torch.float64)) / repeats
            terms = model.bound(x, steps, labels=y, times=times.to(x.device), generator=generator)
            for name, total in sums.items():
                total += getattr(terms, name).double().cpu()
        for name, total in sums.items():
            parts[name].append(total / repeats)
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


def likelihood_per_example(
    model: NDM, data: Tensor, *, labels: Tensor | None = None, batch_size: int = 500, **options: Any
) -> tuple[Tensor, str, int]:
    """log_prob (N,) in nats, its kind in words, and the evaluations of the drift; see :func:`ndm.log_likelihood`."""
    found, nfe, kind = [], 0, ""
    for start in range(0, len(data), batch_size):
        y = None if labels is None else labels[start : start + batch_size]
        result = log_likelihood(model, data[start : start + batch_size], labels=y, **options)
        found.append(result.log_prob.cpu())
        nfe, kind = nfe + result.nfe, result.kind
    return torch.cat(found), kind, nfe


@contextmanager
def _variance(model: NDM, name: str, train: Tensor, steps: int | None, generator: torch.Generator) -> Iterator[None]:
    """The model with the reverse variance ``name`` for the time being."""
    own, calibrations = model.reverse_variance, dict(model.calibrations.items())
    try:
        model.uncalibrate()
        if name == "posterior":
            model.reverse_variance = PosteriorVariance()
        elif name != own_variance(model):
            assert steps is not None
            part = train[: max(1, min(len(train), CALIBRATION_BUDGET // steps))]
            model.calibrations[str(steps)] = calibrate(model, part.split(500), steps, name, generator=generator)
        yield
    finally:
        model.reverse_variance = own
        model.uncalibrate()
        model.calibrations.update(calibrations)


def own_variance(model: NDM) -> str:
    """The name of the model's own reverse variance: posterior, learned, predicted, or a class name."""
    name = type(model.reverse_variance).__name__
    return name.removesuffix("Variance").lower() if name.endswith("Variance") else name


def evaluate(
    model: NDM,
    data: Data,
    split: str = "test",
    steps: Sequence[int | None] = (10, 50, 1000, None),
    covariances: Sequence[str] = ("posterior", "own", "isotropic"),
    likelihood: bool = True,
    max_examples: int | None = None,
    likelihood_examples: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **likelihood_options: Any,
) -> Evaluation:
    """Measure a model on one split of a data set.

    Args:
        model: the model; left as it was.
        data: the data set; calibrations use its training split.
        split: ``train``, ``validation`` or ``test``.
        steps: the numbers of steps T; None for continuous time, in which the reverse variance plays no part.
        covariances: ``posterior``, ``own`` (what the model was trained with), ``isotropic``, ``diagonal``, ``full``.
        likelihood: measure the ODE's log-likelihood as well, where the model has an ODE.
        max_examples: take the first so many of the split only.
        likelihood_examples: likewise, for the log-likelihood alone, which costs most.
        seed: of every random number.
        progress: show a progress bar on a terminal.
        likelihood_options: for :func:`ndm.log_likelihood`.

    Raises:
        ValueError: the data do not fit the model.
    """
    x = data.split(split)[:max_examples]
    y = data.labels(split)
    labels = None if y is None or not _conditional(model) else y[:max_examples]
    names = list(dict.fromkeys(own_variance(model) if c == "own" else c for c in covariances))
    jobs = [(t, name) for t in steps for name in (names if t is not None else [None])]
    scale, unit = (1 / (x[0].numel() * math.log(2)), "bits/dim") if data.levels else (1.0, "nats")
    about = {"data": type(data).__name__, "split": split, "seed": seed}
    result = Evaluation(about=about | {"parameters": sum(p.numel() for p in model.parameters())})
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(jobs) + likelihood, desc="evaluating", disable=None if progress else True, leave=False)
    for t, name in jobs:
        generator = torch.Generator().manual_seed(seed)
        with _variance(model, name or own_variance(model), data.train, t, generator):
            terms = bound_per_example(model, x, t, labels=labels, generator=generator)
        kind = f"upper bound on -log p(x), {'continuous time' if t is None else f'{t} steps'}"
        extra = {n: terms[n].mean().item() * scale for n in ("reconstruction", "prior")}
        _add(result, "bound", t, name, terms["total"] * scale, unit, kind, extra)
        bar.update()
    if likelihood and not (model.denoiser.direct and not getattr(model.denoiser, "ode", False)):
        generator = torch.Generator().manual_seed(seed)
        some = slice(likelihood_examples)
        log_p, kind, nfe = likelihood_per_example(
            model, x[some], labels=None if labels is None else labels[some], generator=generator, **likelihood_options
        )
        # In bits per dimension the customary sign is that of a code length, as for the bound.
        values = -log_p * scale if data.levels else log_p
        _add(result, "log-likelihood", None, None, values, unit, kind, {"nfe": nfe})
        bar.update()
    bar.close()
    model.train(was_training)
    return result


def _conditional(model: NDM) -> bool:
    """Whether the denoiser's network takes class labels."""
    return bool(getattr(getattr(model.denoiser, "net", None), "classes", 0))


def _add(
    result: Evaluation,
    quantity: str,
    steps: int | None,
    variance: str | None,
    values: Tensor,
    unit: str,
    kind: str,
    extra: dict[str, Any],
) -> None:
    value, stderr = mean_and_error(values)
    row = {"quantity": quantity, "steps": steps, "variance": variance, "value": value, "stderr": stderr, "unit": unit}
    result.rows.append(row | {"examples": len(values), "kind": kind} | extra)
    result.per_example.append(values)
