"""Tables: what is read, how it is split, and what identifies a table."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.data.table import Table, TableFile
from tests.data.tables import csv, frame, says

# ---- what is read


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_splits_are_rows_of_the_frozen_permutation_in_the_file_s_order(tmp_path: Path, ending: str) -> None:
    table = frame(100)
    path = tmp_path / f"x.{ending}"
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    data = Table(str(path), seed=3)
    order = np.random.RandomState(3).permutation(100)
    for name, rows in {"validation": order[:10], "test": order[10:20], "train": order[20:]}.items():
        expected = table.to_numpy(np.float64)[sorted(rows)].astype(np.float32)
        torch.testing.assert_close(data.split(name), torch.from_numpy(expected), rtol=0, atol=0)
        assert data.labels(name) is None
    assert data.shape == (3,)
    assert data.columns == ("a", "b", "c")
    assert data.levels is None
    assert data.train.dtype == torch.float32


def test_the_permutation_does_not_change(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "a\n" + "\n".join(map(str, range(10))))
    data = Table(path, validation=2, test=1)
    assert (data.validation.flatten().tolist(), data.test.flatten().tolist()) == ([2, 8], [4])


def test_named_columns_come_in_the_order_named(tmp_path: Path) -> None:
    table = frame()
    table.to_csv(tmp_path / "x.csv", index=False)
    data = Table(str(tmp_path / "x.csv"), columns=["c", "a"])
    assert data.columns == ("c", "a")
    assert set(map(tuple, torch.cat([data.train, data.validation, data.test]).tolist())) == set(
        map(tuple, table[["c", "a"]].to_numpy(np.float32).tolist())
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_no_number_and_what_is_an_index_is_left_out_and_said(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = frame().assign(city=["Oslo", "NA"] * 50, day=pandas.Timestamp("2020-01-01"))
    table = table[["city", "b", "day", "a"]].sort_values("a")  # whose index is not a range, and will be written
    path = tmp_path / f"x.{ending}"
    table.to_csv(path) if ending == "csv" else table.to_parquet(path)
    with caplog.at_level(logging.WARNING, "ndm.data"):
        data = Table(str(path))
        assert data.columns == ("b", "a")
        assert data.train.shape == (80, 2)
    assert "left out columns: " in caplog.text
    assert "city (" in caplog.text
    assert "day (" in caplog.text


def test_files_tell_their_splits(tmp_path: Path) -> None:
    for name, seed in {"train-1.csv": 0, "train-2.parquet": 1, "test.csv": 2}.items():
        table, path = frame(30, seed), tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        table[["b", "a", "c"]].to_csv(path, index=False) if name.endswith("csv") else table.to_parquet(path)
    for path in ("set", "set/*"):
        data = Table(str(tmp_path / path), validation=5)
        assert data.columns == ("b", "a", "c")
        assert [len(data.split(s)) for s in ("train", "validation", "test")] == [55, 5, 30]
        expected = frame(30, 2)[["b", "a", "c"]].to_numpy(np.float32)
        torch.testing.assert_close(data.test, torch.from_numpy(expected))
        both = torch.cat([data.train, data.validation]).sum(0, dtype=torch.float64)
        rows = np.concatenate([frame(30, s)[["b", "a", "c"]].to_numpy() for s in (0, 1)])
        np.testing.assert_allclose(both, rows.sum(0), rtol=1e-6)
    says(str(tmp_path / "set"), "already has a test split", test=3)


def test_levels_are_the_values_of_the_numbers(tmp_path: Path) -> None:
    k = np.random.default_rng(0).integers(0, 5, (50, 3))
    k[:, 2] = 4  # a constant column has a probability, though not a density
    pandas.DataFrame(k, columns=list("abc")).to_csv(tmp_path / "x.csv", index=False)
    data = Table(str(tmp_path / "x.csv"), levels=5)
    assert data.levels == 5
    ndm.DiscretizedDecoder(levels=5).check(data.train)
    rows = np.sort(np.random.RandomState(0).permutation(50)[10:])
    torch.testing.assert_close(data.train, ndm.data.from_levels(torch.from_numpy(k[rows]), 5), rtol=0, atol=0)


def test_pieces_are_the_table_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndm.data.tablefile._AT_ONCE", 7)
    table = frame(40)
    table.to_csv(tmp_path / "x.csv", index=False)
    table.to_parquet(tmp_path / "x.parquet")
    for file in (TableFile(tmp_path / "x.csv"), TableFile(tmp_path / "x.parquet")):
        assert file.check(["b"]) == 40
        pieces = list(file.pieces(["c", "b"], rows=9, skip=11))
        assert [len(p) for p in pieces] == [9, 9, 9, 2]
        np.testing.assert_allclose(np.concatenate(pieces), table[["c", "b"]].to_numpy()[11:], rtol=1e-15)


def test_quoted_lines_byte_order_marks_and_spaces_are_read(tmp_path: Path) -> None:
    rows = "".join(f'{i},"a\nb",{i}.5 \n' for i in range(20))
    path = tmp_path / "x.csv"
    path.write_text("\ufeffa,note,b\n\n" + rows, encoding="utf-8")
    data = Table(str(path))
    assert data.columns == ("a", "b")
    assert {tuple(r) for s in ("train", "validation", "test") for r in data.split(s).tolist()} == {
        (i, i + 0.5) for i in range(20)
    }


@pytest.mark.slow
def test_a_million_rows_are_read_in_seconds(tmp_path: Path) -> None:
    pandas.DataFrame(np.random.default_rng(0).normal(size=(1_000_000, 8))).to_csv(tmp_path / "x.csv", index=False)
    start = time.perf_counter()
    assert len(Table(str(tmp_path / "x.csv")).train) == 800_000
    assert time.perf_counter() - start < 30


# ---- what identifies a table


def test_a_fingerprint_is_of_the_rows_and_names(tmp_path: Path) -> None:
    table = frame(60)
    table.to_csv(tmp_path / "x.csv", index=False)
    first = Table(str(tmp_path / "x.csv")).fingerprint()
    (tmp_path / "moved").mkdir()
    table.to_csv(tmp_path / "moved" / "y.csv", index=False)
    table.to_parquet(tmp_path / "z.parquet")
    assert Table(str(tmp_path / "moved" / "y.csv")).fingerprint() == first
    assert Table(str(tmp_path / "z.parquet")).fingerprint() == first
    for grown in (frame(61), table.rename(columns={"a": "d"}), table.assign(a=table.a + 1), table.iloc[::-1]):
        grown.to_csv(tmp_path / "grown.csv", index=False)
        assert Table(str(tmp_path / "grown.csv")).fingerprint() != first
    for different in ({"seed": 1}, {"validation": 7}, {"columns": ["b", "a", "c"]}):
        assert Table(str(tmp_path / "x.csv"), **different).fingerprint() != first


def test_a_summary_of_a_table(tmp_path: Path) -> None:
    table = frame(60).assign(note="x")
    table.loc[59] = table.loc[3]
    for name, rows in {"train": table[:40], "test": table[40:]}.items():
        (tmp_path / "set").mkdir(exist_ok=True)
        rows.to_csv(tmp_path / "set" / f"{name}.csv", index=False)
    (tmp_path / "set" / "notes.txt").write_text("x")
    lines = Table(str(tmp_path / "set"), validation=2).summary()
    assert lines[0] == f"data: the table {tmp_path / 'set'}, 60 rows of 3 columns, continuous"
    assert f"files: 2 CSV or Parquet in {tmp_path / 'set'}" in lines
    assert "left out: 1 .txt (CSV and Parquet files are read)" in lines
    assert "columns: 2 real (a, b), 1 of whole numbers (c)" in lines
    assert "left out columns: note (text)" in lines
    assert "splits: train 38, validation 2, test 20" in lines
    assert any(line.startswith("warning: 1 of the 20 test examples are exact copies of train") for line in lines)
