"""Callbacks of a training: averaged weights, checkpoints, log, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ndm._internal.random import seed_of
from ndm.data.base import Data
from ndm.data.choosing import evenly_spaced
from ndm.inference.sampling import sample
from ndm.method.transforms import Identity
from ndm.storage.atomic import atomic_write
from ndm.training.module import NDMModule
from ndm.training.options import TrainerOptions
from ndm.training.pace import Interruption, Outlook, Pace, Patience, Saving
from ndm.training.progress import Bar, ValidationLog
from ndm.training.run import Run

__all__ = ["EMA", "AtomicCheckpoints", "Pictures", "callbacks", "timer_for"]


#: Metric that selects the best checkpoint.
MONITORED = "val/total"


class EMA(Callback):
    """Exponential moving average of the weights, used for validation and saving.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the initial weights have little influence in a
    short training. Buffers are not averaged: they are constants and counts. Lightning's callback keeps a second model,
    which does not work for sharded networks; this one keeps a list of tensors, of which each process has its parts.

    In a checkpoint, ``state_dict`` contains the averages, ``current_model_state`` the weights and ``averaging_state``
    the number of updates.

    Args:
        decay: decay per step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averages: list[Tensor] = []  # in the order of the parameters
        self._weights: list[Tensor] = []  # cached: iterating over all modules is slow
        self._updates = 0
        self._first = 1  # the first step of this session

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The checkpoint was loaded before the model was moved to its device.
        self._weights = _own_parts(pl_module)
        self._averages = [a.to(p) for a, p in zip(self._averages, self._weights, strict=False)]
        self._first = trainer.global_step + 1

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._updates:
            return  # gradient accumulation is not complete
        if trainer.global_step == self._first:
            self._weights = _own_parts(pl_module)  # FSDP allocates its shards in the first step
        if self._averages:
            n = self._updates
            torch._foreach_lerp_(self._averages, self._weights, 1 - min(self.decay, (1 + n) / (10 + n)))
        else:
            self._averages = [p.clone() for p in self._weights]
        self._updates += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights and their averages."""
        for average, parameter in zip(self._averages, self._weights, strict=False):  # may be empty
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._swap()
        averaged = trainer.strategy.lightning_module_state_dict()
        averaged = {name: value.to("cpu", copy=True) for name, value in averaged.items()}
        self._swap()
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = averaged
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._updates)}

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._averages = [p.clone() for p in _own_parts(pl_module)]  # Lightning has loaded the averages as weights
        self._updates = int(checkpoint["averaging_state"]["n_averaged"])
        trainer.strategy.load_model_state_dict({"state_dict": checkpoint["current_model_state"]})


def _own_parts(module: LightningModule) -> list[Tensor]:
    """Return the parameters (local shards if sharded), for reading and in-place changes."""
    return [p.to_local() if hasattr(p, "to_local") else p.detach() for p in module.parameters()]


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoint writer that writes to a temporary file in the same folder, calls fsync, and renames it atomically.

    Lightning moves checkpoints from the system's temporary folder. On another disk this is a copy, and a crash can
    replace the last good checkpoint by an incomplete file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(checkpoint, file)


class RunCheckpoint(ModelCheckpoint):
    """The last checkpoint, or the one with the lowest validation bound of all sessions, even if the folder was moved.

    Lightning's callback loses the lowest bound if the path of the folder changes.
    """

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(here, Path(path).name)) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths = {name: moved(state_dict[name]) for name in names}
        best = {moved(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": here})


def best_value(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the lowest validation bound stored in a checkpoint; None if there is none."""
    for name, state in checkpoint["callbacks"].items():
        if name.startswith(ModelCheckpoint.__qualname__) and state.get("monitor") == MONITORED:
            value = state.get("best_model_score")
            return None if value is None else float(value)
    return None


class Pictures(Callback):
    """Write samples and transformed images to RUN/pictures, after the first and then every ``every`` validations.

    They are also logged to TensorBoard. They use the averaged weights and always the same noise, so that all changes
    are due to learning.

    Args:
        run: the run folder.
        data: the data set, which provides the shape and the images to transform.
        every: number of validations between pictures.
        seed: seed of the noise.
    """

    SAMPLES, STEPS, EXAMPLES = 36, 50, 3

    def __init__(self, run: Run, data: Data, every: int, seed: int) -> None:
        self.run = run
        self.data = data
        self.every = every
        self.seed = seed
        self.validations = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, NDMModule)
        self.validations += 1
        if (self.validations - 1) % self.every:
            return
        model, device = pl_module.model, pl_module.device
        classes = model.num_classes
        x = sample(  # a sharded network must be called by all processes
            model,
            self.SAMPLES,
            self.data.shape,
            steps=self.STEPS,
            labels=torch.arange(self.SAMPLES, device=device) % classes if classes else None,
            generator=torch.Generator(device).manual_seed(seed_of(self.seed, self.SAMPLES)),
            progress=False,
        )
        if not trainer.is_global_zero:
            return
        from ndm import plotting  # with matplotlib

        self.run.pictures.mkdir(exist_ok=True)
        self._keep(trainer, "samples", lambda path: plotting.save_grid(x.cpu(), path, model.decoder.levels))
        if len(self.data.shape) == 3 and not isinstance(model.transform, Identity):
            examples = self.data.examples("validation")
            some = model.to_model(examples[evenly_spaced(len(examples), self.EXAMPLES)].to(device))
            self._keep(trainer, "transformation", lambda path: plotting.transformation(model, some, path))

    def _keep(self, trainer: Trainer, name: str, draw: Callable[[Path], None]) -> None:
        path = self.run.pictures / f"{trainer.global_step:08d}-{name}.png"
        draw(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                from matplotlib import image

                logger.experiment.add_image(name, image.imread(path), trainer.global_step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]


def callbacks(
    run: Run,
    decay: float,
    warmup: int,
    limits: TrainerOptions,
    timer: Timer | None,
    progress: bool,
    pictures: Pictures | None = None,
) -> list[Callback]:
    """Create the callbacks of a training.

    Args:
        run: the run folder, for checkpoints.
        decay: decay of the averaged weights.
        warmup: number of warm-up steps.
        limits: trainer options without ``auto``.
        timer: stops the training at the time limit, if any.
        progress: show a progress bar.
        pictures: callback that writes pictures, if given.
    """
    common: dict[str, Any] = {
        "dirpath": run.checkpoints,
        "save_on_train_epoch_end": False,  # after validations instead
        "enable_version_counter": False,
    }
    best = RunCheckpoint(filename=run.best.stem, monitor=MONITORED, mode="min", **common)
    # After best, so that last.ckpt refers to the best one even if both are written at this step.
    last = RunCheckpoint(filename=run.last.stem, monitor=None, **common)
    assert isinstance(limits.val_check_interval, int)
    assert limits.max_steps != "auto"
    chosen: list[Callback] = [EMA(decay), ValidationLog()]
    if pictures is not None:
        chosen.insert(0, pictures)  # before the average of the weights is put back
    chosen += [Pace(limits.val_check_interval * limits.accumulate, limits.max_time)]
    chosen += [Outlook(limits.max_steps, limits.max_time)]
    chosen += [Patience(limits.patience, warmup)] if limits.patience is not None else []
    chosen += [Bar(limits.max_steps, timer, limits.max_time)] if progress else []
    return [*chosen, *([timer] if timer else []), Saving(run), Interruption(run), best, last]


def timer_for(seconds: float | None) -> Timer | None:
    """Create a callback that stops the training after a number of seconds."""
    return None if seconds is None else Timer(timedelta(seconds=seconds), interval="step", verbose=False)
