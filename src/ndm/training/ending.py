"""End of a training: summary, samples, and next commands."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from ndm._internal.inputs import precision_of
from ndm._internal.random import seed_of
from ndm.data.base import Data
from ndm.data.choosing import part_of
from ndm.evaluation.comparing import fit_mixture, has_mixture
from ndm.evaluation.per_example import bound_per_example
from ndm.inference.likelihood import log_likelihood
from ndm.inference.options import SamplerOptions
from ndm.inference.sampling import default_sampler, sample
from ndm.method.conditionals import GIVEN, state_labels, stated
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.model import NDM
from ndm.samples import classes_in_turn, formula_warning, save_samples
from ndm.training.callbacks import best_value
from ndm.training.module import NDMModule, Validation, with_error
from ndm.training.options import TrainerOptions, TrainingOptions
from ndm.training.reading import read_checkpoint
from ndm.training.run import Run

__all__ = ["finish", "verdict"]

logger = logging.getLogger("ndm.training")

#: Number of samples written at the end: images in a picture, rows of a table.
IMAGES, ROWS = 36, 1000

#: Minimum difference, in standard errors, that is reported.
CLEAR = 2.0

#: Maximum number of validation rows and of columns for the comparison with a Gaussian mixture.
COMPARED, COLUMNS = 200, 64

#: Tolerance of their log-densities, in nats.
TOLERANCE = 0.3


def finish(
    model: NDM,
    data: Data,
    run: Run,
    module: NDMModule,
    training: TrainingOptions,
    trainer: TrainerOptions,
    seed: int,
    as_command: bool,
) -> None:
    """Log a summary of the training, write samples to the run folder, and list the next commands.

    Args:
        model: the model with the final weights.
        data: the data set.
        run: the run folder.
        module: provides the validations.
        training: training options.
        trainer: trainer options.
        seed: seed of the samples.
        as_command: whether it was started by ``ndm train``, so that commands are listed.
    """
    earlier = _earlier_best(run, module.validations) if training.keep == "best" else None
    said = verdict(module.validations, module.unit, training.keep, trainer, run if as_command else None, earlier)
    small = len(data.shape) == 1 and data.shape[0] <= COLUMNS
    # With a latent the log-likelihood is only a bound.
    if as_command and small and has_mixture(model, data) and model.latent is None:
        said.append(_against_a_mixture(model, data, seed))
    for line in filter(None, said):
        logger.info("%s", line)
    samples = _write_samples(model, data, run, seed)
    logger.info("finished: the model is in %s, samples of it are in %s", run.model, samples)
    if as_command:
        path, kind = shlex.quote(str(run.path)), samples.suffix
        logger.info("next: ndm evaluate %s", path)
        known = "--given KNOWN.csv -n 10" if data.given else "-n 64"
        logger.info("      ndm sample %s %s --out samples%s", path, known, kind)
        logger.info("      ndm report %s --out report.html", path)


def _earlier_best(run: Run, validations: Sequence[Validation]) -> tuple[int, float] | None:
    """Return the step and validation bound of the best checkpoint, if it is from an earlier session."""
    if not run.best.is_file():
        return None
    checkpoint = read_checkpoint(run.best)
    step, value = int(checkpoint["global_step"]), best_value(checkpoint)
    return None if value is None or any(v.step == step for v in validations) else (step, value)


def verdict(
    validations: Sequence[Validation],
    unit: str,
    keep: str,
    trainer: TrainerOptions,
    run: Run | None,
    earlier: tuple[int, float] | None = None,
) -> list[str]:
    """Return a text summary of a training.

    Args:
        validations: validations of this session.
        unit: unit of their bounds.
        keep: which weights are kept, ``best`` or ``last``.
        trainer: trainer options.
        run: the run folder, for the command that resumes it; None if there is no command.
        earlier: step and bound of the best model, if it is from an earlier session and is kept.
    """
    if not validations:
        return []
    if earlier is not None:
        (step, value), lowest = earlier, min(float(validation.totals.mean()) for validation in validations)
        at = f"at step {step:,} of an earlier session"
        return [
            f"validation: {value:.4g} {unit} {at}, the best; a bound, lower is better",
            f"no step of this session is better: its best has {lowest:.4g} {unit}",
        ]
    best = min(validations, key=lambda validation: float(validation.totals.mean()))
    last = validations[-1]
    kept = best if keep == "best" else last
    mean = f"{with_error(kept.totals.mean().item(), kept.error, 3)} {unit}"
    said = [f"validation: {mean} at step {kept.step:,}, the {keep}; a bound, lower is better"]
    gain, gain_error = best.below(last)
    if gain > CLEAR * gain_error:
        digits = _decimals(gain)
        worse = f"the last step, {last.step:,}, is worse by {with_error(gain, gain_error, digits)} {unit}"
        if keep == "best":
            said.append(f"{worse}: it is not kept")
        else:
            said.append(f"WARNING: {worse} than step {best.step:,}, and is kept; training.keep=best keeps that one")
    said += _still_improving(validations, unit, trainer, run) if best is last else []
    return said


def _still_improving(
    validations: Sequence[Validation], unit: str, trainer: TrainerOptions, run: Run | None
) -> list[str]:
    """Whether the bound improved in the last fifth of the validations."""
    some = max(1, len(validations) // 5)
    if len(validations) <= some or not isinstance(trainer.max_steps, int):
        return []
    last, before = validations[-1], validations[-1 - some]
    gain, error = last.below(before)
    if not gain > max(CLEAR * error, 0.0):
        return []
    by = f"{gain / some:.{_decimals(gain / some)}f} {unit} a validation"
    how = "train with a larger max_steps" if run is None else f"resume with {run.resume} --trainer.max_steps"
    return [f"still improving, by {by}: {how}" + ("" if run is None else f" {2 * trainer.max_steps}")]


def _decimals(value: float) -> int:
    """Number of decimals with which a positive value has two significant digits, and at least 3."""
    return max(3, 1 - math.floor(math.log10(value)))


def _against_a_mixture(model: NDM, data: Data, seed: int) -> str:
    """Return a message if a mixture fits the validation rows better than the model."""
    others = data.split("validation")
    mixture = fit_mixture(model, data, seed)
    some = others[part_of(len(others), COMPARED, seed)]
    if model.decoder.discrete:  # the bound is nearer to log p than the ODE's, which is a bound too
        found = -bound_per_example(model, some, None, seed=seed)["total"]
    else:
        found = log_likelihood(model, some, tolerance=TOLERANCE, generator=torch.Generator().manual_seed(seed)).log_prob
    gap = mixture.log_prob(some) - found.double()
    gap = gap[torch.isfinite(gap)]
    if len(gap) < 2:
        return ""
    mean, error = gap.mean().item(), gap.std().item() / math.sqrt(len(gap))
    if mean < CLEAR * error:
        return ""
    return (
        f"WARNING: a {mixture.description} describes the validation split better, by "
        f"{mean:.2f} +- {error:.2f} nats ({len(gap)} rows): for these data it may be the better model"
    )


def _write_samples(model: NDM, data: Data, run: Run, seed: int) -> Path:
    """Write samples of the model: a picture of images or points, or a CSV file of table rows."""
    rows = len(data.shape) == 1
    count = ROWS if rows else IMAGES
    labels = classes_in_turn(model, count)
    generator = torch.Generator().manual_seed(seed_of(seed, count))
    sampler = default_sampler(model)
    if data.given:
        x = _given_some(model, data, count, sampler, generator)
    else:
        x = sample(model, count, data.shape, sampler, labels=labels, generator=generator, progress=False)
    path = run.path / ("samples.png" if data.columns is None else "samples.csv")
    save_samples(x, path, model.decoder.levels, data.levels, data.columns, labels, data.encoding)
    if warning := formula_warning(path, data.columns):
        logger.warning("warning: %s", warning)
    return path


def _given_some(
    model: NDM, data: Data, count: int, sampler: SamplerOptions, generator: torch.Generator
) -> torch.Tensor:
    """Samples given the columns of validation rows, one for each, at most ``count``: (n, C)."""
    encoding, denoiser, rows = data.encoding, model.denoiser, data.split("validation")[:count]
    assert encoding is not None
    assert isinstance(denoiser, MixedDenoiser)
    states = denoiser.default_states(len(rows))
    assert states is not None
    labels = state_labels(encoding, rows, states).to(precision_of(model) or torch.float32)
    x = sample(stated(model), len(rows), data.shape, sampler, labels=labels, generator=generator, progress=False)
    return torch.where(states == GIVEN, rows, x.double())
