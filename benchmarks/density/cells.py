"""Finished cells: the log-densities of the rows and the facts about the fit, by method, table and seed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

Facts = dict[str, Any]
Rows = dict[str, np.ndarray]


class Cells:
    """The finished cells of a method: per-row log-densities in SET-SEED.npz, facts in SET-SEED.json, written last."""

    def __init__(self, scratch: Path, name: str) -> None:
        self.folder = scratch / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        return (self.folder / f"{key}.json").exists()

    def write(self, key: str, facts: Facts, **rows: np.ndarray) -> None:
        np.savez(self.folder / f"{key}.npz", **rows)
        beside = self.folder / f"{key}.json.new"
        beside.write_text(json.dumps(facts) + "\n")
        os.replace(beside, self.folder / f"{key}.json")

    def read(self, key: str) -> tuple[Facts, Rows]:
        with np.load(self.folder / f"{key}.npz") as rows:
            return json.loads((self.folder / f"{key}.json").read_text()), dict(rows)

    def finished(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.json"))


def over_rows(values: np.ndarray) -> tuple[float, float]:
    """The mean over rows and its standard error, without the rows that have no number."""
    known = values[~np.isnan(values)]
    return float(known.mean()), float(known.std(ddof=1) / math.sqrt(len(known)))
