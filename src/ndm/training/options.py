"""Options of a training: the sections ``training`` and ``trainer`` of a configuration."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

#: A value chosen from the data and the machine: see :mod:`ndm.training.automatic`.
Auto = Literal["auto"]

__all__ = ["TrainerOptions", "TrainingOptions", "is_later_process", "may_be_later_process", "places"]

#: Environment variables with the rank of a process, set by Lightning, torchrun and SLURM.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the objective and the optimizer, and of the model that is saved.

    Args:
        steps: number of steps T of the bound used as training objective; null for continuous time.
        learning_rate: learning rate of AdamW after the warm-up.
        transform_rate: learning rate of the transformation F and of learned noise, as a multiple of ``learning_rate``.
        endpoint_rate: learning rate of the learned end points of the schedule, as a multiple of ``learning_rate``. With
            a high value gamma_0 is unstable.
        weight_decay: weight decay of AdamW, applied to matrices only.
        warmup: number of steps over which the learning rate increases linearly from zero.
        rate: learning rate schedule after the warm-up: ``cosine`` decays to zero at the end, ``constant`` does not
            decay.
        beta2: decay rate of the second moments of AdamW; VDM (arXiv 2107.00630) uses 0.99.
        ema: decay rate per step of the exponential moving average of the weights, which is validated and saved.
        batch_size: batch size, the total over all devices; ``auto``: see :mod:`ndm.training.automatic`.
        labels: pass the class labels to the denoiser, whose network must be built with ``classes``.
        label_dropout: fraction of labels that are replaced by "no class"; required for classifier-free guidance.
        curvature: weight of a penalty on the acceleration of the paths of the reverse ODE (see ndm.curvature), added to
            the bound in nats; 0 for none. It makes a step several times slower.
        standardize: scale continuous data to zero mean and unit variance for the networks; the inputs and outputs of
            the model keep the units of the data.
        base: denoiser of a table to which the output of the network is added: ``mixture``, that of a mixture fitted to
            the training split (:class:`ndm.MixtureBase`, :class:`ndm.TableMixtureBase`); ``none``; or ``auto``, a
            mixture of up to four components for fewer than 1,000 training examples without conditionals. Used by
            ``ndm train`` only, like ``standardize``.
        keep: weights saved as RUN/model: those with the ``best`` validation bound, or the ``last`` ones.
        conditionals: for a table with columns of any kind, ``any`` trains one network for the density of every set of
            columns given every other set, ``none`` for one density only.

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
    """Options of the training loop: its length, devices, validation and logging.

    Args:
        max_steps: maximum number of optimizer steps; ``auto``: depends on the number of examples, see
            :mod:`ndm.training.automatic`; null for no limit.
        max_time: maximum training time in seconds, including earlier sessions of a resumed run; null for no limit.
        patience: number of validations without improvement of the bound after which training stops; null to disable.
        accelerator: type of device: ``auto``, ``cpu``, ``gpu`` or ``mps``.
        devices: number of devices per node; torchrun overrides it.
        num_nodes: number of nodes; torchrun overrides it.
        strategy: ``ddp``: each device holds the whole model; ``fsdp``: the denoiser's network, its gradients and the
            optimizer state are sharded (not with ``channels_last`` or ``64-true``).
        precision: floating-point precision of the networks: ``32-true``, ``bf16-mixed`` (everything outside the
            networks stays in float32) or ``64-true``.
        compile: compile the networks with torch.compile.
        channels_last: use the channels-last memory format for images, which is faster for convolutions on GPUs.
        accumulate: number of parts into which a batch is split to save memory; the result is the same up to rounding.
        gradient_clip_val: maximum norm of the gradient of the bound in bits per dimension; null for no clipping. It is
            meant for outliers. With a value below the typical norm (``train/gradient_norm`` in metrics.csv), such as 1,
            a decrease of the gradient does not reach Adam, and training with a high learning rate may diverge.
        log_every_n_steps: number of steps between two rows of metrics.csv.
        val_check_interval: number of steps between two validations, each of which also writes a checkpoint; ``auto``: a
            fiftieth of ``max_steps``. A slow training is additionally validated after the first minute and then every
            two minutes.
        val_examples: number of random examples for validation, the same each time; null for all; ``auto``: see
            :mod:`ndm.training.automatic`.
        pictures_every: number of validations between two sets of pictures of samples and of the learned transformation,
            starting with the first validation; 0 for none.

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
            raise ValueError("The training has no limit: set trainer.max_steps or trainer.max_time.")


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
    return may_be_later_process() and on_each * computers > 1


def may_be_later_process() -> bool:
    """Whether a rank variable has a number above 0: see :func:`is_later_process`.

    Raises:
        ValueError: a rank variable is not a number.
    """
    numbers = {name: os.environ.get(name) or "0" for name in _RANKS}
    wrong = next((f"{name}={number}" for name, number in numbers.items() if not number.isdecimal()), None)
    if wrong:
        raise ValueError(f"The environment variable {wrong} must be an integer: correct or unset it.")
    return any(int(number) > 0 for number in numbers.values())


def _require(condition: bool, name: str, value: object, range_: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {range_}, got {value}.")


def _require_count(name: str, value: int | str, otherwise: str = "") -> None:
    _require(value == "auto" or (isinstance(value, int) and value >= 1), name, value, f"at least 1, or auto{otherwise}")
