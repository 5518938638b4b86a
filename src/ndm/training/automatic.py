"""Numbers of a training that are chosen from the data: the options that are ``auto``.

The rules, for N training examples:

* ``training.batch_size``: 512 vectors, or 128 images on a GPU and 32 on a CPU; never more than N.
* ``trainer.max_steps``: 300 passes over vectors, between 1,000 and 20,000 steps; 100 passes over images, between 2,000
  and 10,000 steps on a CPU and 100,000 on a GPU. With ``trainer.max_time`` alone the time decides.
* ``trainer.val_check_interval``: a fiftieth of ``max_steps``.
* ``trainer.val_examples``: 10,000 at most; of images on a CPU 256.

300 passes are about where the validation bound of the tables in benchmarks/tables.py has its minimum, at 2,700 rows
and at 35,000 (docs/results.md); early stopping (``trainer.patience``) ends a shorter one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ndm.data.base import Data
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["on_cpu", "resolve"]

PASSES = {"vectors": 300, "images": 100}

FEWEST_STEPS = {"vectors": 1_000, "images": 2_000}

MOST_STEPS = {"vectors": 20_000, "images": 100_000}

MOST_STEPS_OF_IMAGES_ON_CPU = 10_000

BATCH = {"vectors": 512, "images": 128}

BATCH_OF_IMAGES_ON_CPU = 32

VALIDATED = 10_000

VALIDATED_IMAGES_ON_CPU = 256

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

    if isinstance(training.batch_size, int):
        batch = training.batch_size
    else:
        batch = BATCH_OF_IMAGES_ON_CPU if slow else BATCH[kind]
        batch = chosen["training.batch_size"] = batch if count is None else min(batch, count)
    steps = trainer.max_steps
    if steps == "auto" and trainer.max_time is not None:
        steps = None
    elif steps == "auto":
        most = MOST_STEPS_OF_IMAGES_ON_CPU if slow else MOST_STEPS[kind]
        wanted = most if count is None else math.ceil(PASSES[kind] * count / min(batch, count))
        steps = chosen["trainer.max_steps"] = min(max(wanted, FEWEST_STEPS[kind]), most)
    interval = trainer.val_check_interval
    if interval == "auto":
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
