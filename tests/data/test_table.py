"""Tables: what is read, how it is split, and the sentences about files that are not as they should be."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.data.table import Table, TableFile


def frame(n: int = 100, seed: int = 0) -> pandas.DataFrame:
    rng = np.random.default_rng(seed)
    return pandas.DataFrame({"a": rng.normal(size=n), "b": rng.normal(5, 2, n), "c": rng.integers(0, 10_000, n)})


def csv(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def says(path: str, *words: str, **arguments) -> str:
    """The one sentence that a table is refused with, which has these words in it."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        _ = Table(path, **arguments).train
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


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
        assert Table(str(path)).columns == ("b", "a")
    assert "city" in caplog.text
    assert "day" in caplog.text


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
    says(str(tmp_path / "set"), "a test split of its own", test=3)


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
    monkeypatch.setattr("ndm.data.table._AT_ONCE", 7)
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


# ---- what is refused


@pytest.mark.parametrize(
    ("cell", "held"), [("", "no value"), ("NaN", "no value"), ("inf", "infinite"), ("n.a.", "the text 'n.a.'")]
)
def test_a_wrong_cell_is_told_by_its_line_and_column(tmp_path: Path, cell: str, held: str) -> None:
    lines = [f"{i},{i / 2},{i % 7},x" for i in range(20)]
    lines[2] = '3,4,5,"x\ny"'
    lines[3] = f"1,{cell},2,x"
    lines[8] = lines[10] = f"1,2,{cell},x"
    # The empty line and the quoted line break shift the lines of the file against the rows.
    path = csv(tmp_path / "x.csv", 'a,b,"c",note\n\n' + "\n".join(lines))
    says(path, "line 7,", "'b'", held)
    says(path, "line 7,", "'b'", held, "2 more such cells", columns=["b", "c"])
    says(path, "line 7,", "'b'", held, columns=["b", "a"])
    says(path, "line 12,", "'c'", held, "1 more such cell)", columns=["c", "a"])
    assert Table(path, columns=["a"]).columns == ("a",)


def test_a_wrong_cell_of_a_parquet_file_is_told_by_its_row(tmp_path: Path) -> None:
    table = frame(30)
    table.loc[6, "b"] = np.nan
    table.loc[8, "a"] = np.inf
    table.to_parquet(tmp_path / "x.parquet")
    says(str(tmp_path / "x.parquet"), "row 7,", "'b'", "no value", "1 more such cell)")
    says(str(tmp_path / "x.parquet"), "row 9,", "'a'", "infinite", columns=["a"])


@pytest.mark.parametrize("value", ["1.5", "-1", "4", ""])
def test_a_value_off_the_levels_is_told(tmp_path: Path, value: str) -> None:
    path = csv(tmp_path / "x.csv", "a,b\n" + "0,3\n" * 10 + f"1,{value}\n" + "2,2\n" * 10)
    says(path, "line 12,", "'b'", value or "no value", levels=4)
    pandas.read_csv(path).to_parquet(tmp_path / "x.parquet")
    says(str(tmp_path / "x.parquet"), "row 11,", "'b'", value or "no value", levels=4)


def test_columns_that_do_not_suit_are_named(tmp_path: Path) -> None:
    table = frame().assign(city="Oslo", flat=2.5)
    for path, save in ((tmp_path / "x.csv", table.to_csv), (tmp_path / "x.parquet", table.to_parquet)):
        save(path, index=False)
        says(str(path), "'d'", "a, b, c, city, flat", columns=["a", "d"])
        says(str(path), "'a' twice", columns=["a", "b", "a"])
        says(str(path), "'flat'", "constant", "2.5")
        says(str(path), "no column", columns=[])
        says(str(path), "'city'", columns=["a", "city"])
    with pytest.raises(ValueError, match="did you mean 'city'"):
        _ = Table(str(path), columns=["citi"]).train


def test_single_precision_must_not_spoil_a_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = 1.7e9 + rng.normal(size=200)
    path = tmp_path / "x.csv"
    pandas.DataFrame({"a": rng.normal(size=200), "time": times}).to_csv(path, index=False)
    says(str(path), "'time'", "single precision", "offset")
    pandas.DataFrame({"a": rng.normal(size=200), "big": 1e39 * times}).to_csv(path, index=False)
    says(str(path), "'big'", "single precision")
    pandas.DataFrame({"near": 1e5 + rng.normal(size=200)}).to_csv(path, index=False)
    says(str(path), "'near'", "0.0039")
    pandas.DataFrame({"days": times // 86400 + rng.integers(0, 1000, 200)}).to_csv(path, index=False)
    assert len(Table(str(path)).train) == 160


def test_few_values_are_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame(600).assign(rooms=np.arange(600) % 4).to_csv(tmp_path / "x.csv", index=False)
    with caplog.at_level(logging.WARNING, "ndm.data"):
        _ = Table(str(tmp_path / "x.csv")).train
    assert "'rooms' takes 4 values" in caplog.text
    assert "'c'" not in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("a,b\n", ["no rows"]),
        ("a,b\n1,2\n2,1\n3,1\n", ["3 rows", "too few"]),
        ("a,a\n1,2\n", ["two columns", "'a'"]),
        ("1,2\n3,4\n5,6\n", ["line of numbers"]),
        ("a;b\n1;2\n", ["commas"]),
        ("a,b\n1,2\n1,2,3\n", ["line 3", "3 cells under 2"]),
        ("a,b\nx,y\nx,y\n", ["no column of numbers", "a, b"]),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    says(csv(tmp_path / "x.csv", text), *words)


def test_files_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    says(str(tmp_path / "x.csv"), "no file")
    says(str(tmp_path / "*.csv"), "no file")
    says(str(tmp_path), "neither CSV nor Parquet")
    says(csv(tmp_path / "x.txt", "a,b"), ".csv or .parquet")
    says(csv(tmp_path / "x.parquet", "a,b"), "damaged")
    (tmp_path / "y.csv").write_bytes("a,b\n1,\xe9\n".encode("latin-1"))
    says(str(tmp_path / "y.csv"), "UTF-8")
    frame(50_000).to_parquet(tmp_path / "z.parquet")
    good = (tmp_path / "z.parquet").read_bytes()
    (tmp_path / "z.parquet").write_bytes(bytes(200) + good[200:])
    says(str(tmp_path / "z.parquet"), "damaged")
    (tmp_path / "z.parquet").write_bytes(good[: len(good) // 2])
    says(str(tmp_path / "z.parquet"), "damaged")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"validation": 0}, "validation"), ({"test": -1}, "test"), ({"levels": 1}, "levels"), ({"seed": -1}, "seed")],
)
def test_arguments_out_of_range_are_refused_at_once(arguments: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Table("nowhere.csv", **arguments)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    csv(tmp_path / "x.csv", "a\n1\n")
    script = (
        "import sys; sys.modules['pyarrow'] = None; from ndm.data.table import Table\n"
        f"try: Table({str(tmp_path / 'x.csv')!r}).train\n"
        "except ImportError as error: sys.exit(0 if \"pip install 'ndm[tables]'\" in str(error) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
