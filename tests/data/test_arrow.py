"""Parquet files that say too much of themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ndm.data import Table, arrow, tablefile
from ndm.data.arrow import open_parquet, pandas_index, require_moderate
from ndm.data.tablefile import TableFile
from ndm.storage import memory
from ndm.storage.memory import TooLargeError


def wide(path: Path, columns: int) -> Path:
    values = np.random.default_rng(0).normal(size=(columns, 20))
    parquet.write_table(pa.Table.from_arrays([pa.array(v) for v in values], [f"c{i}" for i in range(columns)]), path)
    return path


def test_metadata_are_measured_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wide(tmp_path / "x.parquet", 100)
    size = parquet.read_metadata(path).serialized_size
    monkeypatch.setattr(arrow, "MOST_METADATA", size)
    assert open_parquet(path).metadata.num_columns == 100
    monkeypatch.setattr(arrow, "MOST_METADATA", size - 1)
    with pytest.raises(ValueError, match=f"have {size:,} bytes, more than the limit"):
        require_moderate(path)
    with pytest.raises(ValueError, match="bytes, more than the limit"):
        TableFile(path).choose()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_columns_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = wide(tmp_path / "x.parquet", 8)
    if ending == ".csv":
        path = tmp_path / "x.csv"
        path.write_text(",".join(f"c{i}" for i in range(8)) + "\n" + ",".join("12345678") + "\n")
    monkeypatch.setattr(tablefile, "MOST_COLUMNS", 8)
    assert len(TableFile(path).choose()) == 8
    monkeypatch.setattr(tablefile, "MOST_COLUMNS", 7)
    with pytest.raises(ValueError, match="has 8 columns, more than the limit of 7"):
        TableFile(path).choose()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_rows_are_to_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = wide(tmp_path / "x.parquet", 3)
    if ending == ".csv":
        path = tmp_path / "x.csv"
        rows = np.random.default_rng(0).normal(size=(20, 3))
        path.write_text("a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    monkeypatch.setattr(memory, "free", lambda: 32.0 * 3 * 20)
    assert len(Table(str(path)).train) == 16
    monkeypatch.setattr(memory, "free", lambda: 32.0 * 3 * 20 - 1)
    with pytest.raises(
        TooLargeError, match=r"20 rows of 3 columns, needs about .* use fewer columns with --data.columns"
    ):
        Table(str(path)).train  # noqa: B018
    assert TableFile(path).check(["a", "b", "c"] if ending == ".csv" else ["c0", "c1", "c2"]) == 20  # piece by piece


@pytest.mark.parametrize(
    "index", [b"[" * 10_000, b"{}", b"[]", b'{"index_columns": 3}', b'{"index_columns": [{}]}', b"\xff"]
)
def test_a_wrong_index_is_passed_over(index: bytes) -> None:
    assert pandas_index(pa.schema([], metadata={b"pandas": index})) == frozenset()
    assert pandas_index(pa.schema([], metadata={b"pandas": b'{"index_columns": ["a", {}]}'})) == {"a"}
