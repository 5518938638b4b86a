"""When a training is validated, saved and stopped: by the clock where steps are slow, by patience, and on request."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from ndm.training.run import Run

__all__ = ["Interruption", "Outlook", "Pace", "Patience", "Saving", "span"]

logger = logging.getLogger("ndm.training")

#: Seconds until the first validation, between two of them, and between two checkpoints, at most.
FIRST, BETWEEN, SAVED = 60.0, 120.0, 120.0

#: Of a training that is limited by ``max_time``: validations, at least; but not more often than every two seconds.
PARTS, QUICK = 20, 2.0

#: Of a long training: validations by the clock in the time so far.
OF_A_LONG_ONE = 50

#: Steps that are timed before the length of a training is foretold; the first one is left out.
TIMED = 10

#: Seconds below which the length of a training is not worth a sentence.
SHORT = 20.0


class Pace(Callback):
    """Validations by the clock, beside those after every ``val_check_interval`` steps.

    The first one comes after a minute at the latest, then one every two minutes, or more often where ``max_time`` is
    short: a slow training shows early what it does, and has a checkpoint. Of a long training they become rarer, a
    fiftieth of the time so far apart, and they never take more than a twentieth of the time. They change what is seen
    of a training, and not its course, but for the count of ``trainer.patience``.

    Args:
        interval: steps between two validations, what Lightning was told.
        max_time: seconds that the training may take, or None.
    """

    def __init__(self, interval: int, max_time: float | None) -> None:
        self.interval = interval
        self.between = BETWEEN if max_time is None else min(BETWEEN, max(QUICK, max_time / PARTS))
        self._began = self._last = self._validating = 0.0
        self._cost: float | None = None  # seconds that the last validation took

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if agreed(trainer, time.monotonic() - self._last >= self._limit()):
            trainer.val_check_batch = 1  # Lightning asks for it right after this hook

    def _limit(self) -> float:
        """Seconds between the last validation and the next."""
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
    """The first process's decision, which all processes have to follow."""
    return trainer.strategy.broadcast(decision) if trainer.world_size > 1 else decision


class Patience(EarlyStopping):
    """Early stopping: ends the training after so many validations without a lower bound than the best.

    A training that was stopped and is resumed begins to count again. While the learning rate rises nothing is counted.

    Args:
        validations: how many.
        warmup: steps over which the learning rate rises.
    """

    def __init__(self, validations: int, warmup: int = 0) -> None:
        super().__init__(monitor="val/total", patience=validations, check_finite=False, check_on_train_epoch_end=False)
        self._asked = validations
        self._warmup = warmup

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step <= self._warmup:
            self.wait_count = -1  # to which this validation adds one, or makes it zero
        super().on_validation_end(trainer, pl_module)

    @property
    def over(self) -> bool:
        """Whether it has ended the training."""
        return self.wait_count >= self.patience

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.patience = self._asked  # what this session was told, which may be more
        self.stopped_epoch = 0
        if self.over:
            self.wait_count = 0

    @property
    def state_key(self) -> str:
        return "Patience"


class Saving(Callback):
    """A checkpoint at least every two minutes, so that a crash loses no more than that.

    Args:
        run: where it goes.
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
    """Ctrl-C and SIGTERM end a training after the step at hand, with a checkpoint; a second one ends it at once.

    Args:
        run: where the checkpoint goes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.signal: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, since Lightning sets handlers of its own before.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        logger.info("stopping after this step with a checkpoint; once more stops at once, without")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if agreed(trainer, self.signal is not None):
            trainer.save_checkpoint(self.run.last)
            raise KeyboardInterrupt


class Outlook(Callback):
    """Says after the first few steps how long the training will take.

    Args:
        max_steps: optimiser steps in all, or None.
        max_time: seconds in all, or None.
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
            self._times += [self._times[-1]] * TIMED  # said once
            if said := outlook(step, trainer.global_step, self.max_steps, self.max_time):
                logger.info("%s", said)


def outlook(step: float, done: int, max_steps: int | None, max_time: float | None) -> str:
    """What to say about the length of a training; empty if it is short.

    Args:
        step: seconds that a step takes.
        done: steps that are done.
        max_steps: steps in all, or None.
        max_time: seconds in all, or None.
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
    """A length of time in words, as in "12 seconds", "5 minutes", "80 hours"."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size and not (name == "days" and seconds < 5 * size):
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"
