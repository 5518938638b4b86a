"""Numbers of a training that are chosen from the data: the options that are ``auto``.

The rules, for N training examples:

* ``training.batch_size``: 512 vectors, or 128 images on a GPU and 32 on a CPU; never more than N.
* ``trainer.max_steps``: 300 passes over vectors, between 1,000 and 20,000 steps; 100 passes over images, between 2,000
  and 10,000 steps on a CPU and 100,000 on a GPU. With ``trainer.max_time`` alone the time decides.
* ``trainer.val_check_interval``: a fiftieth of ``max_steps``.
* ``trainer.val_examples``: 10,000 at most; of images on a CPU 256.
* ``training.base``: a mixture below 1,000 vectors of up to 64 numbers, else none.

300 passes are about where the validation bound of the tables in benchmarks/tables.py has its minimum, at 2,700 rows
and at 35,000 (benchmarks/results/tables.jsonl); early stopping (``trainer.patience``) ends a shorter one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from ndm.data.base import Data
from ndm.evaluation.baselines import gaussian_mixture, has_mixtures
from ndm.method.denoisers import Denoiser, DirectDenoiser
from ndm.method.mixture import MixtureBase
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

#: Examples below which a denoiser starts from a Gaussian mixture, and most features of such an example.
FEW, COLUMNS = 1000, 64

#: Validations of a training of the automatic length.
VALIDATIONS = 50

#: Steps between two validations where only the time is limited; the time asks for more of them, see Pace.
INTERVAL = 250


def on_cpu(accelerator: str) -> bool:
    """Whether a training with this ``trainer.accelerator`` runs on a CPU on this machine."""
    if accelerator != "auto":
        return accelerator == "cpu"
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def resolve(
    training: TrainingOptions, trainer: TrainerOptions, data: Data
) -> tuple[TrainingOptions, TrainerOptions, str]:
    """The options with numbers in place of ``auto``.

    Args:
        training: how to train.
        trainer: how long, and on what.
        data: the data set.

    Returns:
        Both options, and a sentence that says what was chosen and why; empty if nothing was.
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
    """The width of a perceptron for the data: 128 for up to 32 features, then four a feature, at most 512."""
    features = math.prod(data.shape)
    return 128 if features <= 32 else min(512, 64 * math.ceil(features / 16))


def add_base(
    training: TrainingOptions, denoiser: nn.Module, data: Data, standardize: Standardize | None, seed: int
) -> tuple[TrainingOptions, str]:
    """Give a denoiser its base where ``training.base`` asks for one.

    Args:
        training: how to train.
        denoiser: gets the base.
        data: whose training split the mixture is fitted to, and whose validation split it is chosen by.
        standardize: as in the model.
        seed: of the fits.

    Returns:
        The options with a word in place of ``auto``, and a sentence about the base; empty if there is none.

    Raises:
        ValueError: a mixture is asked for, and the data or the denoiser cannot have one.
        ImportError: scikit-learn, which fits it, is not installed.
    """
    suits = isinstance(denoiser, (Denoiser, DirectDenoiser)) and len(data.shape) == 1 and data.levels is None
    wanted = training.base
    if wanted == "auto":
        few = suits and data.shape[0] <= COLUMNS and data.training_batches(1, 0, 0) is None
        wanted = "mixture" if few and len(data.examples("train")) < FEW and has_mixtures() else "none"
    training = replace(training, base=wanted)
    if wanted == "none":
        return training, ""
    if not suits:
        raise ValueError(
            "training.base=mixture is for continuous vectors and a Denoiser or DirectDenoiser; set training.base=none."
        )
    assert isinstance(denoiser, (Denoiser, DirectDenoiser))
    if denoiser.base is not None:
        return training, ""
    rows, others = (
        data.split(name) if standardize is None else standardize(data.split(name)) for name in ("train", "validation")
    )
    mixture = gaussian_mixture(rows, others, seed)
    denoiser.base = MixtureBase(data.shape[0], mixture.components)
    denoiser.base.set(mixture.weights, mixture.means, mixture.covariances)
    return training, (
        f"the denoiser starts from a Gaussian mixture of {mixture.components} component(s) fitted to the {len(rows):,} "
        "training examples (training.base)"
    )
