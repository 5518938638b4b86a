"""Options of a training: the sections ``training`` and ``trainer`` of a configuration."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

#: A value chosen from the data and the machine: see :mod:`ndm.training.automatic`.
Auto = Literal["auto"]

__all__ = ["TrainerOptions", "TrainingOptions", "is_later_process", "places"]

#: Environment variables with the rank of a process, set by Lightning, torchrun and SLURM.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class TrainingOptions:
    """How the model is trained: everything that the result depends on, but for the length.

    Args:
        steps: T of the bound that is trained on; null for continuous time.
        learning_rate: of AdamW, after the warm-up.
        transform_rate: of the transformation F, in multiples of ``learning_rate``.
        endpoint_rate: of the learned end points of the schedule, likewise. They do not need the rate of a network, and
            at a high one gamma_0 wanders.
        weight_decay: of AdamW, for matrices only.
        warmup: steps over which the learning rate rises to its value.
        rate: what becomes of the learning rate then: ``cosine`` falls to zero at the end, ``constant`` stays.
        beta2: of AdamW, the decay of its second moments; VDM (arXiv 2107.00630) uses 0.99.
        ema: decay per step of the running average of the weights, which is what is validated and saved.
        batch_size: examples per step, on all devices together; ``auto``: see :mod:`ndm.training.automatic`.
        labels: give the class labels to the denoiser, whose network must be built with ``classes``.
        label_dropout: the share of labels that are replaced by "no class", which classifier-free guidance needs.
        curvature: the weight of a penalty on the acceleration of the reverse ODE's paths, see ndm.curvature,
            beside the bound in nats; a step takes several times as long. 0 for none.
        standardize: bring continuous data to zero mean and unit variance; the model still speaks in the data's units.
        base: what the network of a table's denoiser is added to: the exact denoiser of a ``mixture`` of Gaussians that
            is fitted to the training split (:class:`ndm.MixtureBase`), or ``none``; ``auto``: a mixture where there are
            fewer than 1,000 training examples. For the command line, as ``standardize`` is.
        keep: which weights become RUN/model: the ``best`` by the validation bound, or the ``last`` ones.
        conditionals: for a table with columns of any kind, ``any`` to train one network for the density of every set of
            columns given every other, ``none`` for one density only.

    Raises:
        ValueError: a number is out of its range.
    """

    steps: int | None = None
    learning_rate: float = 1e-3
    transform_rate: float = 1.0
    endpoint_rate: float = 1.0
    weight_decay: float = 0.0
    warmup: int = 100
    rate: Literal["cosine", "constant"] = "cosine"
    beta2: float = 0.999
    ema: float = 0.999
    batch_size: int | Auto = 128
    labels: bool = False
    label_dropout: float = 0.0
    curvature: float = 0.0
    standardize: bool = True
    base: Literal["auto", "mixture", "none"] = "auto"
    keep: Literal["best", "last"] = "best"
    conditionals: Literal["none", "any"] = "none"

    def __post_init__(self) -> None:
        _require(self.steps is None or self.steps >= 1, "training.steps", self.steps, "at least 1, or null")
        _require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "positive")
        _require(self.transform_rate > 0, "training.transform_rate", self.transform_rate, "positive")
        _require(self.endpoint_rate > 0, "training.endpoint_rate", self.endpoint_rate, "positive")
        _require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "0 or more")
        _require(self.warmup >= 0, "training.warmup", self.warmup, "0 or more")
        _require(self.rate in ("cosine", "constant"), "training.rate", self.rate, "cosine or constant")
        _require(0 <= self.beta2 < 1, "training.beta2", self.beta2, "at least 0 and below 1")
        _require(0 <= self.ema < 1, "training.ema", self.ema, "at least 0 and below 1")
        _require_count("training.batch_size", self.batch_size)
        _require(0 <= self.label_dropout < 1, "training.label_dropout", self.label_dropout, "at least 0 and below 1")
        _require(0 <= self.curvature < math.inf, "training.curvature", self.curvature, "0 or more")
        _require(self.base in ("auto", "mixture", "none"), "training.base", self.base, "auto, mixture or none")
        _require(self.keep in ("best", "last"), "training.keep", self.keep, "best or last")


@dataclass(frozen=True)
class TrainerOptions:
    """How long to train, on what, and how often to look: what is passed on to lightning.Trainer.

    Args:
        max_steps: optimiser steps after which training ends; ``auto``: by the number of examples, see
            :mod:`ndm.training.automatic`; null for no such limit.
        max_time: seconds after which training ends, earlier sessions of a resumed run included; null for no limit.
        patience: validations without a lower bound after which training ends; null to go on to the limit.
        accelerator: ``auto``, ``cpu``, ``gpu``, ``mps``.
        devices: how many of them on each computer; under torchrun its own number counts.
        num_nodes: how many computers; under torchrun its own number counts.
        strategy: ``ddp``: every device has the whole model; ``fsdp``: the denoiser's network, its gradients and the
            optimiser's state are divided among the devices (not with ``channels_last`` or ``64-true``).
        precision: of the networks' arithmetic: ``32-true``, ``bf16-mixed`` (everything around the networks stays in
            float32) or ``64-true``.
        compile: compile the networks by torch.compile.
        channels_last: lay the images out with the channels innermost, which convolutions on GPUs prefer.
        accumulate: pieces that a batch is cut into, to need less memory; the step is the same but for rounding.
        gradient_clip_val: largest norm of the gradient, of the bound in bits per dimension; null for no clipping. It is
            for outliers: below the usual norm (``train/gradient_norm`` in metrics.csv), as 1 often is, the gradient's
            fall never reaches Adam, and at a high learning rate the training may break.
        log_every_n_steps: steps between two lines of the training curve.
        val_check_interval: steps between two validations, at each of which a checkpoint is written; ``auto``: a
            fiftieth of ``max_steps``. A training that is slow is validated after the first minute and then every two
            minutes as well.
        val_examples: validate on a random part of this many examples, the same every time; null for all; ``auto``:
            see :mod:`ndm.training.automatic`.
        pictures_every: validations between two sets of pictures, of samples and of the learned transformation, the
            first of which comes with the first validation; 0 for none.

    Raises:
        ValueError: a number is out of its range, or there is no limit at all.
    """

    max_steps: int | Auto | None = "auto"
    max_time: float | None = None
    patience: int | None = 10
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    compile: bool = False
    channels_last: bool = False
    accumulate: int = 1
    gradient_clip_val: float | None = 20.0
    log_every_n_steps: int = 50
    val_check_interval: int | Auto = "auto"
    val_examples: int | Auto | None = "auto"
    pictures_every: int = 0

    def __post_init__(self) -> None:
        steps, time, clip = self.max_steps, self.max_time, self.gradient_clip_val
        if steps is not None:
            _require_count("trainer.max_steps", steps, ", or null")
        _require(time is None or time > 0, "trainer.max_time", time, "a positive number of seconds, or null")
        _require(clip is None or clip > 0, "trainer.gradient_clip_val", clip, "positive, or null")
        for name in ("devices", "num_nodes", "accumulate", "log_every_n_steps"):
            _require(getattr(self, name) >= 1, f"trainer.{name}", getattr(self, name), "at least 1")
        _require_count("trainer.val_check_interval", self.val_check_interval)
        if self.val_examples is not None:
            _require_count("trainer.val_examples", self.val_examples, ", or null")
        _require(self.patience is None or self.patience >= 1, "trainer.patience", self.patience, "at least 1, or null")
        _require(self.pictures_every >= 0, "trainer.pictures_every", self.pictures_every, "0 or more")
        _require(self.strategy in ("ddp", "fsdp"), "trainer.strategy", self.strategy, "ddp or fsdp")
        if steps is None and time is None:
            raise ValueError("Training needs an end: set trainer.max_steps or trainer.max_time.")


def places(devices: int, num_nodes: int) -> tuple[int, int]:
    """Number of devices per node, and number of nodes; torchrun's values if it started this process."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    return devices, num_nodes


def is_later_process(devices: int, num_nodes: int) -> bool:
    """Whether this is not the first process of a training, which writes the run folder.

    The rank variable alone is not sufficient: clusters also number the trainings of a sweep.

    Raises:
        ValueError: a rank variable is not a number.
    """
    on_each, computers = places(devices, num_nodes)
    numbers = {name: os.environ.get(name) or "0" for name in _RANKS}
    wrong = next((f"{name}={number}" for name, number in numbers.items() if not number.isdecimal()), None)
    if wrong:
        raise ValueError(f"The environment has {wrong}, which should be a whole number: correct or unset it.")
    return on_each * computers > 1 and any(int(number) > 0 for number in numbers.values())


def _require(condition: bool, name: str, value: object, range_: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {range_}, got {value}.")


def _require_count(name: str, value: int | str, otherwise: str = "") -> None:
    _require(value == "auto" or (isinstance(value, int) and value >= 1), name, value, f"at least 1, or auto{otherwise}")
