"""The metrics of a run as one flat CSV file that grows line by line."""

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
    """Writes every logged step as a row: the step, then :data:`ndm.training.module.METRICS`, empty where not logged.

    Unlike Lightning's own, it adds to the file that is there, so that a resumed run has one curve.

    Args:
        path: the file.
        first: the step that the run goes on from: rows beyond it, of the session that was lost, are taken out.
    """

    def __init__(self, path: Path, first: int = 0) -> None:
        super().__init__()
        self.path = path
        self._first: int | None = first

    def _prepare(self, first: int) -> None:
        """Write the header, and again those rows of an earlier session that are kept."""
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
        """Nothing: they are in the run's configuration."""


def _step(row: Mapping[str, Any]) -> float:
    """The step of a row; infinite of one that was not written to its end."""
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        return math.inf
