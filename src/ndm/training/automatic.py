"""Values of the training options that are ``auto``, chosen from the data.

The rules, for N training examples:

* ``training.batch_size``: 512 vectors, or 128 images on a GPU and 32 on a CPU; never more than N.
* ``trainer.max_steps``: 300 passes over vectors, between 1,000 and 20,000 steps; 100 passes over images, between 2,000
  and 10,000 steps on a CPU and 100,000 on a GPU. If only ``trainer.max_time`` is set, the time is the limit.
* ``trainer.val_check_interval``: a fiftieth of ``max_steps``.
* ``trainer.val_examples``: 10,000 at most; of images on a CPU 256.
* ``training.base``: a mixture below 1,000 vectors of up to 64 numbers, or rows of as many columns, if the validation
  split chooses at most four components; else none.

For the tables in benchmarks/tables.py, the validation bound reaches its minimum after about 300 passes, with 2,700 rows
and with 35,000 (benchmarks/results/tables.jsonl); early stopping (``trainer.patience``) ends a training that reaches it
earlier.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from ndm.data.base import Data
from ndm.evaluation.baselines import GaussianMixture, gaussian_mixture, has_mixtures
from ndm.evaluation.table_mixtures import TableMixture, table_mixture
from ndm.method.denoisers import Denoiser, DirectDenoiser
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.standardization import Standardize
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["add_base", "on_cpu", "resolve", "width"]

PASSES = {"vectors": 300, "images": 100}

FEWEST_STEPS = {"vectors": 1_000, "images": 2_000}

MOST_STEPS = {"vectors": 20_000, "images": 100_000}

MOST_STEPS_OF_IMAGES_ON_CPU = 10_000

BATCH = {"vectors": 512, "images": 128}

BATCH_OF_IMAGES_ON_CPU = 32

VALIDATED = 10_000

VALIDATED_IMAGES_ON_CPU = 256

#: A denoiser gets a Gaussian mixture base below this number of examples, and up to this number of features.
FEW, COLUMNS = 1000, 64

#: It gets none if the best mixture has more components. On stock and on 240 rows of housing a start from two or three
#: components raises log p by 0.5 nats; one from eight or more, on 720 rows, gains nothing (benchmarks/start.py).
MOST_COMPONENTS = 4

#: Number of validations in a training of automatic length.
VALIDATIONS = 50

#: Steps between two validations if only the time is limited; Pace adds more by the clock.
INTERVAL = 250


def on_cpu(accelerator: str) -> bool:
    """Whether a training with this ``trainer.accelerator`` runs on a CPU on this machine."""
    if accelerator != "auto":
        return accelerator == "cpu"
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def resolve(
    training: TrainingOptions, trainer: TrainerOptions, data: Data
) -> tuple[TrainingOptions, TrainerOptions, str]:
    """Replace ``auto`` in the options by numbers.

    Args:
        training: training options.
        trainer: trainer options.
        data: the data set.

    Returns:
        Both options, and a message with the chosen values and the reasons; empty if nothing was chosen.
    """
    kind, cpu = "vectors" if len(data.shape) == 1 else "images", on_cpu(trainer.accelerator)
    slow = kind == "images" and cpu
    streamed = data.training_batches(1, 0, 0) is not None
    count = None if streamed else len(data.examples("train"))
    chosen: dict[str, int] = {}

    usual = BATCH_OF_IMAGES_ON_CPU if slow else BATCH[kind]
    if isinstance(training.batch_size, int):
        batch = training.batch_size
    else:
        batch = chosen["training.batch_size"] = usual if count is None else min(usual, count)
    steps = None if trainer.max_steps == "auto" else trainer.max_steps
    if trainer.max_steps == "auto" and trainer.max_time is None:
        most = MOST_STEPS_OF_IMAGES_ON_CPU if slow else MOST_STEPS[kind]
        wanted = most if count is None else math.ceil(PASSES[kind] * count / min(batch, count))
        steps = chosen["trainer.max_steps"] = min(max(wanted, FEWEST_STEPS[kind]), most)
    if isinstance(trainer.val_check_interval, int):
        interval = trainer.val_check_interval
    else:
        interval = INTERVAL if steps is None else max(1, steps // VALIDATIONS)
        chosen["trainer.val_check_interval"] = interval
    validated = trainer.val_examples
    if validated == "auto":
        most = VALIDATED_IMAGES_ON_CPU if slow else VALIDATED
        validated = None
        if len(data.examples("validation")) > most:
            validated = chosen["trainer.val_examples"] = most
    training = replace(training, batch_size=batch)
    trainer = replace(trainer, max_steps=steps, val_check_interval=interval, val_examples=validated)
    of = "streamed examples" if count is None else f"{count:,} training examples"
    said = ", ".join(f"{name} {value:,}" for name, value in chosen.items())
    return training, trainer, f"chosen for {of} on a {'CPU' if cpu else 'GPU'}: {said}" if said else ""


def width(data: Data) -> int:
    """Return the width of a perceptron for the data: 128 for up to 32 features, then 4 per feature, at most 512."""
    features = math.prod(data.latent_shape)
    return 128 if features <= 32 else min(512, 64 * math.ceil(features / 16))


def add_base(
    training: TrainingOptions,
    denoiser: nn.Module,
    data: Data,
    standardize: Standardize | TableEncoding | None,
    seed: int,
) -> tuple[TrainingOptions, str]:
    """Set the base of a denoiser according to ``training.base``.

    Args:
        training: training options.
        denoiser: the denoiser, modified in place.
        data: the data set; the mixture is fitted to its training split and selected on its validation split.
        standardize: the model's standardization.
        seed: seed of the fits.

    Returns:
        The options with ``auto`` replaced, and a message about the base; empty if there is none.

    Raises:
        ValueError: a mixture is requested, but the data or the denoiser do not support it.
        ImportError: scikit-learn is not installed.
    """
    suits, wanted = _suits(denoiser, data), training.base
    if wanted == "auto":
        few = suits and data.shape[0] <= COLUMNS and data.training_batches(1, 0, 0) is None
        wanted = "mixture" if few and len(data.examples("train")) < FEW and has_mixtures() else "none"
    if wanted == "none":
        return replace(training, base="none"), ""
    if not suits:
        raise ValueError(
            "training.base=mixture is for tables and continuous vectors, a Denoiser, DirectDenoiser or MixedDenoiser, "
            "and no conditionals or given columns; set training.base=none."
        )
    assert isinstance(denoiser, (Denoiser, DirectDenoiser, MixedDenoiser))
    if denoiser.base is not None:
        return replace(training, base="mixture"), ""
    mixture = _fitted(denoiser, data, standardize, seed)
    said = f"a {mixture.description} fitted to the {mixture.rows:,} training examples (training.base)"
    if training.base == "auto" and mixture.components > MOST_COMPONENTS:
        return replace(training, base="none"), f"the denoiser does not start from {said}"
    denoiser.start_from(mixture.base())  # type: ignore[arg-type]  # _fitted chooses the mixture by the denoiser
    return replace(training, base="mixture"), f"the denoiser starts from {said}"


def _fitted(
    denoiser: nn.Module, data: Data, standardize: Standardize | TableEncoding | None, seed: int
) -> GaussianMixture | TableMixture:
    """The mixture of the training split, in the coordinates of the diffusion."""
    rows, others = data.split("train"), data.split("validation")
    if isinstance(denoiser, MixedDenoiser):
        assert data.encoding is not None
        return table_mixture(data.encoding, rows, others, seed)
    if standardize is not None:
        rows, others = standardize(rows), standardize(others)
    return gaussian_mixture(rows, others, seed)


def _suits(denoiser: nn.Module, data: Data) -> bool:
    """Whether a denoiser can start from a mixture of the data."""
    if isinstance(denoiser, MixedDenoiser):
        return data.encoding is not None and denoiser.conditionals == "none" and not denoiser.given
    continuous = data.levels is None and not (data.encoding is not None and data.encoding.discrete)
    return isinstance(denoiser, (Denoiser, DirectDenoiser)) and len(data.shape) == 1 and continuous
