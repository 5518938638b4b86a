"""Timing of validations, checkpoints and the end of a training: by time, by patience, and on request."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from ndm._internal.signals import heeded
from ndm.training.run import Run

__all__ = ["Interruption", "Outlook", "Pace", "Patience", "Saving", "span"]

logger = logging.getLogger("ndm.training")

#: Maximum seconds until the first validation, between validations, and between checkpoints.
FIRST, BETWEEN, SAVED = 60.0, 120.0, 120.0

#: Minimum number of validations with ``max_time``, and minimum seconds between them.
PARTS, QUICK = 20, 2.0

#: In a long training, number of time-based validations in the elapsed time.
OF_A_LONG_ONE = 50

#: Number of timed steps before the duration is estimated; the first is ignored.
TIMED = 10

#: Minimum duration, in seconds, that is reported.
SHORT = 20.0


class Pace(Callback):
    """Time-based validations, in addition to those after every ``val_check_interval`` steps.

    The first one is after at most one minute, the next ones every two minutes, or more often if ``max_time`` is short,
    so that slow trainings are validated and saved early. In a long training the interval is a fiftieth of the elapsed
    time, and validations never take more than a twentieth of the time. They do not affect the training, except for the
    count of ``trainer.patience``.

    Args:
        interval: steps between two validations, as passed to Lightning.
        max_time: time limit in seconds, or None.
    """

    def __init__(self, interval: int, max_time: float | None) -> None:
        self.interval = interval
        self.between = BETWEEN if max_time is None else min(BETWEEN, max(QUICK, max_time / PARTS))
        self._began = self._last = self._validating = 0.0
        self._cost: float | None = None  # duration of the last validation in seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if agreed(trainer, time.monotonic() - self._last >= self._limit()):
            trainer.val_check_batch = 1  # Lightning reads it right after this hook

    def _limit(self) -> float:
        """Seconds between the last validation and the next one."""
        if self._cost is None:
            return min(FIRST, self.between)
        return max(self.between, PARTS * self._cost, (self._last - self._began) / OF_A_LONG_ONE)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.val_check_batch = self.interval
        self._last = time.monotonic()
        self._cost = self._last - self._validating


def agreed(trainer: Trainer, decision: bool) -> bool:
    """Broadcast the decision of the first process."""
    return trainer.strategy.broadcast(decision) if trainer.world_size > 1 else decision


class Patience(EarlyStopping):
    """Early stopping after a number of validations without improvement of the best bound.

    The count restarts when a stopped training is resumed. Validations during the warm-up are not counted.

    Args:
        validations: number of validations.
        warmup: number of warm-up steps.
    """

    def __init__(self, validations: int, warmup: int = 0) -> None:
        super().__init__(monitor="val/total", patience=validations, check_finite=False, check_on_train_epoch_end=False)
        self._asked = validations
        self._warmup = warmup

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step <= self._warmup:
            self.wait_count = -1  # this validation increments it or resets it to zero
        super().on_validation_end(trainer, pl_module)

    @property
    def over(self) -> bool:
        """Whether the training was stopped by this callback."""
        return self.wait_count >= self.patience

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.patience = self._asked  # the value of this session may be larger
        self.stopped_epoch = 0
        if self.over:
            self.wait_count = 0

    @property
    def state_key(self) -> str:
        return "Patience"


class Saving(Callback):
    """Save a checkpoint at least every two minutes.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()  # ModelCheckpoint saves now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if agreed(trainer, time.monotonic() - self._last >= SAVED):
            trainer.save_checkpoint(self.run.last)
            self._last = time.monotonic()


class Interruption(Callback):
    """On Ctrl-C or SIGTERM, stop after the current step and save a checkpoint; on a second one, stop at once.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.signal: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, after Lightning has set its handlers.
        if threading.current_thread() is threading.main_thread():
            for number in heeded((signal.SIGINT, signal.SIGTERM)):
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        logger.info("stopping after this step with a checkpoint; a second Ctrl-C stops immediately, without one")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if agreed(trainer, self.signal is not None):
            trainer.save_checkpoint(self.run.last)
            raise KeyboardInterrupt


class Outlook(Callback):
    """Log the estimated duration of the training after the first steps.

    Args:
        max_steps: total number of optimiser steps, or None.
        max_time: time limit in seconds, or None.
    """

    def __init__(self, max_steps: int | None, max_time: float | None) -> None:
        self.max_steps = max_steps
        self.max_time = max_time
        self._times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self._times) > TIMED or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._times.append(time.monotonic())
        waited = self._times[-1] - self._times[0]
        if len(self._times) > TIMED or waited > FIRST / 2:
            step = waited / (len(self._times) - 1)
            self._times += [self._times[-1]] * TIMED  # logged once
            if said := outlook(step, trainer.global_step, self.max_steps, self.max_time):
                logger.info("%s", said)


def outlook(step: float, done: int, max_steps: int | None, max_time: float | None) -> str:
    """Return a message with the estimated duration of a training; empty if it is short.

    Args:
        step: seconds per step.
        done: number of completed steps.
        max_steps: total number of steps, or None.
        max_time: time limit in seconds, or None.
    """
    if max_steps is None:
        assert max_time is not None
        return f"a step takes {1000 * step:.3g} ms here: about {max_time / step:,.0f} steps in {span(max_time)}"
    left = (max_steps - done) * step
    if max_time is not None and max_time < left:
        return (
            f"{max_steps:,} steps would take about {span(left)} here; trainer.max_time stops after {span(max_time)}, "
            f"about {max_time / step:,.0f} steps"
        )
    if left < SHORT:
        return ""
    less = "" if left < 900 else "; --trainer.max_time 600 stops after ten minutes"
    return f"{max_steps - done:,} steps take about {span(left)} here{less}"


def span(seconds: float) -> str:
    """Format a duration, such as "12 seconds", "5 minutes", "80 hours"."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size and not (name == "days" and seconds < 5 * size):
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"
