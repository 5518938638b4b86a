"""Final step of a scoring: means over all rows, and the output file."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ndm.evaluation.results import NAMED, strict
from ndm.scoring.partial import MEASURED, PartialScores
from ndm.storage.atomic import atomic_path

__all__ = ["summary", "write"]

#: Rows written at a time; the size of a Parquet row group.
WRITTEN = 65_536


class _Mean:
    """Running mean and standard error over blocks; non-finite values are counted and excluded."""

    def __init__(self) -> None:
        self.count = self.rows = 0
        self.mean = self.squares = 0.0
        self.missing: list[int] = []  # rows of the first ones

    def add(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        there = values[finite]
        self.missing += (self.rows + np.flatnonzero(~finite)).tolist()[: NAMED - len(self.missing)]
        self.rows += len(values)
        if len(there) == 0:
            return
        count, mean = len(there), float(there.mean())
        total, shift = self.count + count, mean - self.mean  # Chan et al., 1979
        self.squares += float(((there - mean) ** 2).sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def stderr(self) -> float | None:
        """None for fewer than two numbers."""
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else None


def summary(partial: PartialScores, kind: str | None, tolerance: float, checked: float | None) -> dict[str, Any]:
    """Compute the means over all rows: see :attr:`ndm.scoring.Scores.about`.

    Args:
        partial: the scores.
        kind: description of the log-likelihood; None if there is none.
        tolerance: tolerance of its solver.
        checked: mean change with a finer solution.
    """
    means, missed = {name: _Mean() for name in MEASURED}, 0
    for block in partial.read():
        for name, values in zip(MEASURED, block.T, strict=True):
            means[name].add(values)
        missed += int((np.nan_to_num(block[:, MEASURED.index("solver_error")], posinf=0.0) > tolerance).sum())

    def part(name: str) -> dict[str, Any]:
        found, own = means[name], means[name + "_stderr"]
        about = {
            "mean": found.mean if found.count else None, "stderr": found.stderr,
            "row_stderr": own.mean if own.count else None, "not_finite": found.rows - found.count,
        }  # fmt: skip
        return about | ({"not_finite_rows": found.missing} if found.missing else {})

    about: dict[str, Any] = {"rows": partial.rows, "nelbo": part("nelbo")}
    if kind is not None:
        about["log_prob"] = part("log_prob")
        solver = means["solver_error"].mean if means["solver_error"].count else None
        more = {"kind": kind, "unsolved": about["log_prob"]["not_finite"], "missed_tolerance": missed}
        about["log_prob"] |= more | {"checked_error": checked, "solver_error": solver}
    return strict(about)


def write(out: Path, partial: PartialScores, about: dict[str, Any], bits: float | None) -> None:
    """Write all blocks to the output file, atomically, and remove the folder."""
    columns = _columns(partial, about, bits)
    with atomic_path(out, replace=False, then=partial.remove) as new:
        if out.suffix.lower() == ".csv":
            _write_csv(new, columns)
        else:
            _write_parquet(new, columns, {"ndm": json.dumps(strict(about), allow_nan=False)})


def _write_csv(path: Path, blocks: Iterator[dict[str, np.ndarray]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for i, block in enumerate(blocks):
            if i == 0:
                writer.writerow(block)
            writer.writerows(zip(*(_texts(values) for values in block.values()), strict=True))


def _columns(partial: PartialScores, about: dict[str, Any], bits: float | None) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the columns of the file, block by block."""
    names = MEASURED if "log_prob" in about else MEASURED[:2]
    row = 0
    for block in _joined(partial.read()):
        found: dict[str, np.ndarray] = {"row": np.arange(row, row + len(block))}
        found |= {name: block[:, i] for i, name in enumerate(names)}
        if bits is not None:
            found["bits_per_dim"] = bits * (-found["log_prob"] if "log_prob" in found else found["nelbo"])
        if "log_prob" in about:
            found["kind"] = np.full(len(block), about["log_prob"]["kind"], dtype=object)
        yield found
        row += len(block)


def _joined(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Merge blocks to larger ones for efficient writing."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= WRITTEN:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _texts(values: np.ndarray) -> list[str]:
    return [f"{v:.9g}" for v in values] if values.dtype.kind == "f" else [str(v) for v in values]


def _write_parquet(path: Path, blocks: Iterator[dict[str, np.ndarray]], metadata: dict[str, str]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with contextlib.ExitStack() as stack:
        writer = None
        for block in blocks:
            table = pa.table(block).replace_schema_metadata(metadata)
            if writer is None:
                writer = stack.enter_context(ParquetWriter(path, table.schema))
            writer.write_table(table)
