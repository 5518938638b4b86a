"""CSV file with the metrics of a run, written line by line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ndm.storage.atomic import atomic_write, naming
from ndm.training.module import METRICS

__all__ = ["MetricsFile"]

COLUMNS = ("step", *METRICS)


class MetricsFile(Logger):
    """Write every logged step as a row: the step, then :data:`ndm.training.module.METRICS`, empty if not logged.

    Unlike Lightning's logger, it appends to an existing file, so that a resumed run has one curve.

    Args:
        path: the file.
        first: the step from which the run is resumed; later rows are removed.
    """

    def __init__(self, path: Path, first: int = 0) -> None:
        super().__init__()
        self.path = path
        self._first: int | None = first

    def _prepare(self, first: int) -> None:
        """Write the header, and rewrite the retained rows of earlier sessions."""
        kept = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if _step(row) <= first]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        with atomic_write(self.path) as file:
            file.write(text.getvalue().encode())

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: f"{metrics[name]:.7g}" for name in METRICS if name in metrics}
        if not row:
            return
        if self._first is not None:
            self._prepare(self._first)
            self._first = None
        with naming(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow({"step": int(step or 0), **row})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyperparameters are in the run's configuration."""


def _step(row: Mapping[str, Any]) -> float:
    """Return the step of a row; infinity for an incomplete row."""
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        return math.inf
