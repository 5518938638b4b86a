"""The memory that is needed to write scores."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas
import pytest

import ndm
from ndm.networks import ResidualMLP
from ndm.scoring import TableRows, score


@pytest.mark.slow
def test_memory_is_needed_for_a_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times the rows, the same memory; tracemalloc sees numpy's and Python's, in which all rows would be."""
    monkeypatch.setattr("ndm.data.tablefile._AT_ONCE", 2000)
    monkeypatch.setattr("ndm.scoring.writing.WRITTEN", 2000)
    net = ResidualMLP(8, hidden=2, depth=1, embedding=2)
    model = ndm.NDM(ndm.LinearSchedule(-4, 5), ndm.Identity(), ndm.Denoiser(net))
    options = {"times": 2, "likelihood": False, "batch_size": 2000, "progress": False}
    peaks = []
    for n in (2_000, 4_000, 80_000):  # the first to import what is needed
        table = pandas.DataFrame(np.random.default_rng(0).normal(size=(n, 8)))
        table.to_parquet(tmp_path / f"{n}.parquet", row_group_size=2000)
        rows = TableRows(str(tmp_path / f"{n}.parquet"), (8,))
        tracemalloc.start()
        score(model, rows, tmp_path / f"out-{n}.parquet", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 500_000  # the figures alone would be 2.6 MB, the table 5
