"""What is done beside the steps: the average of the weights, checkpoints, the journal."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, TQDMProgressBar, WeightAveraging
from torch import Tensor

from ndm.training.module import NDMModule
from ndm.training.run import Run

__all__ = ["EMA", "Journal", "callbacks", "timer_for"]

logger = logging.getLogger("ndm.training")


class EMA(WeightAveraging):
    """Exponential moving average of the weights, which is what is validated and saved.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short training's average forgets
    its beginning.
    Buffers are copied, not averaged: they are constants and counts.

    Args:
        decay: per step.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], n: Tensor | int) -> None:
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(n)) / (10 + int(n))))

        super().__init__(use_buffers=False, multi_avg_fn=average)


class Journal(Callback):
    """A line in the log after every validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, NDMModule)
        metrics = trainer.callback_metrics
        bound = f"{metrics['val/total']:.4f} +- {metrics['val/total_stderr']:.4f} {pl_module.unit}"
        speed = metrics.get("train/ms_per_step")
        pace = "" if speed is None else f"   {speed:.1f} ms/step"
        logger.info("step %7d   validation %s%s", trainer.global_step, bound, pace)


class _Bar(TQDMProgressBar):
    """Lightning's progress bar, without the version number of the logger."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}


def callbacks(run: Run, decay: float, timer: Timer | None, progress: bool) -> list[Callback]:
    """Every callback of a training.

    Args:
        run: where checkpoints go.
        decay: of the average of the weights.
        timer: ends the training, where there is a limit on the time.
        progress: show a bar.
    """
    common: dict[str, Any] = {
        "dirpath": run.checkpoints,
        "save_on_train_epoch_end": False,  # after validations instead
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename=run.best.stem, monitor="val/total", mode="min", **common)
    # After best, so that last.ckpt knows of the best one even if both were written at this step.
    last = ModelCheckpoint(filename=run.last.stem, monitor=None, **common)
    chosen: list[Callback] = [EMA(decay), Journal(), best, last]
    return chosen + ([timer] if timer else []) + ([_Bar()] if progress else [])


def timer_for(seconds: float | None) -> Timer | None:
    """A callback that ends the training after so many seconds."""
    return None if seconds is None else Timer(timedelta(seconds=seconds), interval="step", verbose=False)
