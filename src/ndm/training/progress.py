"""Progress output: a bar on a terminal, and log lines, which are also written to log.txt."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from tqdm import tqdm

from ndm.storage.texts import printable
from ndm.training.module import NDMModule, Validation, with_error
from ndm.training.pace import span

__all__ = ["Bar", "ValidationLog", "log_to"]

logger = logging.getLogger("ndm.training")

#: Update interval of the bar in seconds.
REFRESH = 0.5


class ValidationLog(Callback):
    """Log a line after every validation."""

    def __init__(self) -> None:
        self._best: Validation | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, NDMModule)
        metrics, this = trainer.callback_metrics, pl_module.validations[-1]
        bound = f"{with_error(this.totals.mean().item(), this.error, 4)} {pl_module.unit}"
        change = ""
        if self._best is not None:
            gain, error = this.below(self._best)
            change = f", {with_error(abs(gain), error, 4)} {'lower' if gain > 0 else 'higher'} than the best before"
        if self._best is None or this.totals.mean() < self._best.totals.mean():
            self._best = this
        speed, flow = metrics.get("train/ms_per_step"), metrics.get("train/examples_per_second")
        pace = "" if speed is None or flow is None else f"   {speed:.1f} ms/step, {flow:.0f} examples/s"
        logger.info("step %7d   validation %s%s%s", trainer.global_step, bound, change, pace)


class Bar(Callback):
    """Progress bar by steps or time, whichever is further, with the remaining time.

    Args:
        max_steps: total number of optimiser steps, or None.
        timer: provides the time of all sessions, if it is limited.
        max_time: time limit in seconds, or None.
    """

    def __init__(self, max_steps: int | None, timer: Timer | None, max_time: float | None) -> None:
        self.max_steps = max_steps
        self.timer = timer
        self.max_time = max_time
        self._bar: tqdm | None = None
        self._began, self._drawn, self._at_first = 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._began = time.monotonic()
        self._at_first = self._done(trainer)
        self._bar = tqdm(
            total=1.0, initial=self._at_first, bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
            dynamic_ncols=True, leave=True, file=sys.stderr, miniters=0,
        )  # fmt: skip
        self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and time.monotonic() - self._drawn >= REFRESH:
            self._draw(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str("validating", refresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(trainer, pl_module)

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._draw(trainer, pl_module)
            self._bar.close()
            self._bar = None

    def _done(self, trainer: Trainer) -> float:
        by_steps = trainer.global_step / self.max_steps if self.max_steps else 0.0
        by_time = self.timer.time_elapsed() / self.max_time if self.timer and self.max_time else 0.0
        return min(1.0, max(by_steps, by_time))

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._bar is not None
        assert isinstance(pl_module, NDMModule)
        done, now = self._done(trainer), time.monotonic()
        steps = f"step {trainer.global_step:,}" + (f" of {self.max_steps:,}" if self.max_steps else "")
        figures = [
            f"{name} {trainer.callback_metrics[key]:.3f}"
            for name, key in (("train", "train/total"), ("validation", "val/total"))
            if key in trainer.callback_metrics
        ]
        said = [f"{', '.join(figures)} {pl_module.unit}"] if figures else []
        if done > self._at_first:
            said.append(f"{span((now - self._began) * (1 - done) / (done - self._at_first))} left")
        self._bar.n = done
        self._bar.set_description_str(steps, refresh=False)
        self._bar.set_postfix_str(", ".join(said), refresh=True)
        self._drawn = now


class _AboveTheBar(logging.Handler):
    """Write lines to stderr, above the bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(printable(self.format(record)), file=sys.stderr)


@contextmanager
def log_to(path: Path, verbose: bool = True) -> Iterator[None]:
    """Write the log to a file and, if ``verbose``, to stderr."""
    to_file = logging.FileHandler(path)
    to_file.handleError = lambda record: None  # type: ignore[method-assign]  # the next checkpoint reports a full disk
    to_file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_stderr = _AboveTheBar()
    to_stderr.setFormatter(logging.Formatter(f"{path.parent.name}: %(message)s"))
    level, handlers = logger.level, (to_file, to_stderr) if verbose else (to_file,)
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
