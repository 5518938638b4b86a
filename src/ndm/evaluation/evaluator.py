r"""Evaluation of a model: bounds for several numbers of steps and reverse variances, and the ODE likelihood.

Values are in bits per dimension for K-level decoders, else in nats of a density. Standard errors are over the examples
of the split, so they include both the finite size of the split and the noise of the estimate. Subsets of a split are
random, depending on the seed: :func:`ndm.data.part_of`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ndm._internal.distributed import is_first, rank, shard, world_size
from ndm.data import Data
from ndm.data.choosing import Some, part_of
from ndm.evaluation.calibration import Calibrated, calibrated, own_variance, with_variance
from ndm.evaluation.comparing import fit_mixture, has_mixture
from ndm.evaluation.options import VARIANCES, EvaluationOptions
from ndm.evaluation.per_example import bound_per_example, device_of, likelihood_per_example
from ndm.evaluation.results import (
    MIXTURE,
    Evaluation,
    mean_and_error,
    rounded,
)
from ndm.inference.likelihood import TOLERANCE
from ndm.inference.sampling import sample_batches
from ndm.model import NDM

__all__ = ["evaluate"]


def evaluate(
    model: NDM,
    data: Data,
    options: EvaluationOptions | None = None,
    *,
    progress: bool | None = None,
    **changes: Any,
) -> Evaluation:
    """Evaluate a model on one split of a data set.

    Processes started by torchrun share the work, and all return the same result.

    Args:
        model: the model; not modified.
        data: the data set; the training split is only required for calibrations.
        options: evaluation options.
        progress: show a progress bar; by default on a terminal.
        changes: fields of ``options`` to replace, such as ``split="validation"`` or ``steps=(10, None)``; other names
            are options of :func:`ndm.log_likelihood`, such as ``tolerance``.

    Raises:
        ValueError: the data do not fit the model, or the spacing or reverse variance is unknown.
    """
    o = (options or EvaluationOptions()).changed(**changes)
    if unknown := [name for name in o.variances if name not in (*VARIANCES, own_variance(model))]:
        raise ValueError(f"There is no reverse variance {unknown[0]!r}; choose one of {', '.join(VARIANCES)}.")
    part = _Part.of(data, o.split, o.max_examples, o.seed, _conditional(model))
    about = {"data": type(data).__name__, "split": o.split, "split_examples": len(data.examples(o.split))}
    parameters = sum(p.numel() for p in model.parameters())
    result = Evaluation(about=about | {"seed": o.seed, "parameters": parameters})
    names = list(dict.fromkeys(own_variance(model) if c == "own" else c for c in o.variances))
    likelihood, mixture = o.likelihood and model.has_ode, o.mixture and not _conditional(model)
    mixture = mixture and has_mixture(model, data)
    show = is_first() and (sys.stderr.isatty() if progress is None else progress)
    count = sum(len(names) if t is not None else 1 for t in o.steps) + likelihood + (o.quality is not None) + mixture
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=count, desc="evaluating", disable=not show, leave=False) as bar:
            _add_bounds(result, model, data, part, names, o, bar)
            if likelihood:
                chosen = part.some(o.likelihood_examples, o.seed)
                _add_likelihood(result, model, data, chosen, o)
                bar.update()
            if mixture:
                by_ode = likelihood and not _is_bounded(model)
                _add_mixture(result, model, data, chosen if by_ode else part, o.seed)
                bar.update()
            if o.quality is not None:
                _add_quality(result, model, data, o.quality, o)
                bar.update()
    finally:
        model.train(was_training)
    return result


@dataclass(frozen=True)
class _Part:
    """Some examples of a split: their sorted indices, (n,), the examples, and their labels, (n,), if used."""

    places: Tensor
    examples: Some
    labels: Tensor | None

    @staticmethod
    def of(data: Data, split: str, size: int | None, seed: int, labelled: bool) -> _Part:
        every = data.examples(split)
        places = part_of(len(every), size, seed)
        labels = data.labels(split) if labelled else None
        return _Part(places, Some(every, places), None if labels is None else labels[places])

    def some(self, size: int | None, seed: int) -> _Part:
        """Return a random subset."""
        chosen = part_of(len(self.places), size, seed)
        places = self.places[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        return _Part(places, Some(self.examples.examples, places), labels)


def _unit(model: NDM, data: Data) -> tuple[float, str]:
    """Return one nat in the unit of the results, and that unit. It depends on the decoder: only a K-level decoder gives
    probabilities, whatever the data are.
    """
    if model.decoder.levels is None:
        return 1.0, "nats"
    return 1 / (math.prod(data.shape) * math.log(2)), "bits/dim"


def _conditional(model: NDM) -> bool:
    """Whether the denoiser's network takes class labels."""
    return model.num_classes > 0


# ---- the metrics


def _add_bounds(
    result: Evaluation,
    model: NDM,
    data: Data,
    part: _Part,
    names: Sequence[str],
    o: EvaluationOptions,
    bar: tqdm,
) -> None:
    scale, unit = _unit(model, data)
    budget = {"times": o.times, "batch_size": o.batch_size, "seed": o.seed}
    fitted = [name for name in names if name not in ("posterior", own_variance(model))]
    for t in o.steps:
        variances: dict[str, Calibrated] = {}
        if t is not None and fitted:
            some = _Part.of(data, "train", max(1, o.calibration // t), o.seed, _conditional(model))
            variances = calibrated(model, some.examples, some.labels, t, fitted, o.seed, o.spacing)
        for name in names if t is not None else [None]:
            kind, chosen = variances.get(name or "", (name, None))
            if name != kind and kind in names:  # the one that was chosen is there by name
                bar.update()
                continue
            with with_variance(model, kind or own_variance(model), t, chosen):
                terms = bound_per_example(model, part.examples, t, labels=part.labels, **budget)
            what = f"upper bound on -log p(x), {'continuous time' if t is None else f'{t} steps'}"
            what += f", {o.spacing} spacing" if chosen is not None and chosen.grid is not None else ""
            total = terms["total"] * scale
            extra = {n: terms[n][total.isfinite()].mean().item() * scale for n in ("reconstruction", "prior")}
            result.add(total, part.places, quantity="bound", steps=t, variance=kind, unit=unit, kind=what, **extra)
            bar.update()


def _add_likelihood(result: Evaluation, model: NDM, data: Data, part: _Part, o: EvaluationOptions) -> None:
    scale, unit = _unit(model, data)
    found, kind, nfe = likelihood_per_example(
        model,
        part.examples,
        labels=part.labels,
        seed=o.seed,
        batch_size=o.batch_size,
        hopeless=_hopeless(result, part.places),
        **o.likelihood_options,
    )
    # Bits per dimension conventionally have the sign of a code length, as for the bound.
    values = found["log_prob"] if unit == "nats" else -found["log_prob"] * scale
    errors = found["solver_error"][values.isfinite()]
    tolerance = o.likelihood_options.get("tolerance") or TOLERANCE * math.prod(data.shape)
    missed = int((errors > tolerance).sum())
    extra = {"nfe": nfe, "solver_error": errors.mean().item() * scale} | (
        {"missed_tolerance": missed} if missed else {}
    )
    result.add(
        values, part.places, quantity="log-likelihood", steps=None, variance=None, unit=unit,
        kind=kind or "no example could be solved", **extra,
    )  # fmt: skip


def _hopeless(result: Evaluation, places: Tensor) -> Tensor:
    """Whether the bound of each example is not finite, as for extreme outliers: bool (n,)."""
    found = torch.zeros(len(places), dtype=torch.bool)
    for row, values, where in zip(result.rows, result.per_example, result.places, strict=True):
        if row["quantity"] == "bound":
            found |= torch.isin(places, where[~values.isfinite()])
    return found


def _is_bounded(model: NDM) -> bool:
    """Whether the log-likelihood under the ODE is a lower bound."""
    return model.decoder.discrete or model.latent is not None


def _add_mixture(result: Evaluation, model: NDM, data: Data, part: _Part, seed: int) -> None:
    """Add the log-density of a mixture, compared with the model's log-likelihood, or else with its bound.

    For tables with probabilities and for a model with a latent the log-likelihood is a bound as well, and for the
    former lower than the bound of a trained model.
    """
    mixture = fit_mixture(model, data, seed)
    values = mixture.log_prob(part.examples[:])
    own, own_name = result.find("log-likelihood"), "log-likelihood under the ODE"
    if own is None or _is_bounded(model):
        own, own_name = result.find("bound"), "bound"
    if own is not None:  # so that both values use the same examples
        of_model = result.per_example[own] * (-1 if own_name == "bound" else 1)
        values[~of_model.isfinite()] = math.nan
    result.add(
        values, part.places, quantity=MIXTURE, steps=None, variance=None, unit="nats",
        kind=f"log-density of a {mixture.description}, chosen by the validation split",
    )  # fmt: skip
    if own is None:
        return
    difference = (values - of_model)[(values - of_model).isfinite()]
    mean, error = mean_and_error(difference) if len(difference) else (math.nan, math.nan)
    sentence = ""
    if mean > 2 * error:
        sentence = (
            f"A {mixture.description} describes this {result.about['split']} split better than the model by "
            f"{rounded(mean, error)} nats per example ({own_name}): use the mixture, train longer, or use more data."
        )
    result.about["comparison"] = {
        "components": mixture.components, "with": own_name, "difference": mean, "stderr": error, "sentence": sentence,
    }  # fmt: skip


def _add_quality(result: Evaluation, model: NDM, data: Data, n: int, o: EvaluationOptions) -> None:
    from ndm.evaluation.quality import fid_kid  # requires torchmetrics

    device, real = device_of(model), _Part.of(data, o.split, n, o.seed, _conditional(model))
    blocks = [slice(b * o.batch_size, (b + 1) * o.batch_size) for b in shard(-(-len(real.places) // o.batch_size))]
    labels = real.labels
    if labels is not None:  # the same number of samples and examples per class
        labels = labels[torch.arange(n) % len(labels)]
    draw = sample_batches(
        model, n, data.shape, o.sampler, seed=o.seed, batch_size=o.batch_size, labels=labels,
        rank=rank(), world_size=world_size(), progress=False,
    )  # fmt: skip
    scores = fid_kid(
        (real.examples[rows].to(device) for rows in blocks),
        (x for _, x in draw),
        o.features,
        seed=o.seed,
        device=device,
    )
    kind = f"{n} samples, {len(real.places)} examples, features of {scores.features}"
    common = {"steps": o.sampler.steps, "variance": None, "unit": "", "examples": n, "kind": kind}
    result.rows.append({"quantity": "FID", "value": scores.fid, "stderr": None} | common)
    # KID's subsets overlap: their standard deviation does not give the error of the mean.
    result.rows.append({"quantity": "KID", "value": scores.kid, "stderr": None, "spread": scores.kid_std} | common)
    result.per_example += [torch.empty(0), torch.empty(0)]
    result.places += [torch.empty(0, dtype=torch.long)] * 2
