"""Tables: what is read, how it is split, and the sentences about files that are not as they should be."""

from __future__ import annotations

import datetime
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
from ndm.data.columns import as_names, counts_rows, far_values
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


# ---- what is left out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_index_that_pandas_has_written_is_left_out_where_it_counts(tmp_path: Path, ending: str) -> None:
    def columns(table: pandas.DataFrame) -> tuple[tuple[str, ...], list[str]]:
        path = tmp_path / f"x.{ending}"
        table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
        data = Table(str(path))
        return data.columns, data.summary()

    plain = frame(30)
    twice = plain.assign(**{"Unnamed: 0": range(30), "Unnamed: 0.1": range(1, 31)})
    found, lines = columns(twice)
    assert found == ("a", "b", "c")
    assert (
        "left out columns: Unnamed: 0 (an index, which counts the rows), Unnamed: 0.1 (an index, which counts the rows)"
        in lines
    )
    assert columns(twice.sample(frac=1, random_state=0))[0] == ("a", "b", "c")  # in another order it is one still
    found, lines = columns(plain.assign(**{"Unnamed: 3": plain.a}))
    assert found == ("a", "b", "c", "Unnamed: 3")
    assert any(line.startswith("warning: the column 'Unnamed: 3' is named like an index") for line in lines)
    found, lines = columns(plain.assign(id=range(7, 37)))
    assert found == ("a", "b", "c", "id")
    assert any(line.startswith("warning: the column 'id' only counts the rows") for line in lines)
    found, lines = columns(plain)
    assert not any("warning" in line or "left out" in line for line in lines)


def test_what_is_named_is_taken(tmp_path: Path) -> None:
    frame(30).assign(**{"Unnamed: 0": range(30)}).to_csv(tmp_path / "x.csv", index=False)
    data = Table(str(tmp_path / "x.csv"), columns=["a", "Unnamed: 0"])
    assert data.columns == ("a", "Unnamed: 0")
    assert not any("warning" in line for line in data.summary())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_with_missing_cells_can_be_dropped(tmp_path: Path, ending: str) -> None:
    table = frame(100)
    table.loc[[4, 7, 50], "a"] = np.nan
    table.loc[[7, 60], "c"] = np.nan
    path = tmp_path / f"x.{ending}"
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    sentence = says(str(path), "'a' holds no value (4 more such cells)", "--data.missing drop", "4 rows", "a 3, c 2")
    assert ("line 6" if ending == "csv" else "row 5") in sentence
    data = Table(str(path), missing="drop")
    kept = table.dropna().to_numpy(np.float32)
    order = np.random.RandomState(0).permutation(96)
    np.testing.assert_array_equal(data.test.numpy(), kept[np.sort(order[9:18])])
    assert "left out 4 of 100 rows with missing cells: a 3, c 2" in data.summary()
    assert len(Table(str(path), missing="drop", columns=["a", "b"]).train) == 97 - 2 * 9
    assert Table(str(path), columns=["b"]).shape == (1,)


def test_other_wrong_cells_are_refused_all_the_same(tmp_path: Path) -> None:
    lines = [f"{i},{i / 3}" for i in range(40)]
    lines[3], lines[5], lines[8] = "3,", "5,?", "8,inf"
    path = csv(tmp_path / "x.csv", "a,b\n" + "\n".join(lines))
    says(path, "line 7,", "the text '?'", "1 more such cell)", missing="drop")
    lines[5] = "5,5"
    path = csv(tmp_path / "x.csv", "a,b\n" + "\n".join(lines))
    says(path, "line 10,", "an infinite value", missing="drop")
    lines[8] = "8,-1e39"
    path = csv(tmp_path / "x.csv", "a,b\n" + "\n".join(lines))
    says(path, "line 10, the column 'b' holds -1e+39, which is larger than float32 holds (3.4e+38)", missing="drop")
    lines = [f"{i},{i / 3}," for i in range(40)]
    path = csv(tmp_path / "x.csv", "a,b,c\n" + "\n".join(lines))
    assert Table(path).columns == ("a", "b")  # c is empty
    says(path, "Every row of", "missing cell", "c 40", columns=["a", "c"], missing="drop")
    many = "\n".join(f"{i},{i / 3 if i % 2 else ''}" for i in range(40))
    lines = Table(csv(tmp_path / "x.csv", "a,b\n" + many), missing="drop").summary()
    assert "warning: left out 20 of 40 rows with missing cells: b 20" in lines
    with pytest.raises(ValueError, match="missing must be error or drop, not 'fill'"):
        Table(path, missing="fill")


def test_a_column_of_text_with_many_numbers_is_left_out(tmp_path: Path) -> None:
    """As the numbers of tickets, a third of which have letters."""
    rows = "\n".join(f"{i},{i * 17 if i % 3 else f'A/{i}'}" for i in range(60))
    data = Table(csv(tmp_path / "x.csv", "a,ticket\n" + rows))
    assert data.columns == ("a",)
    assert "left out columns: ticket (text such as 'A/0')" in data.summary()


@pytest.mark.parametrize("row", [0, 3, 30])
@pytest.mark.parametrize("length", [200_000, 9_000_000])
def test_long_texts_do_no_harm(tmp_path: Path, row: int, length: int) -> None:
    lines = [f"{i},{i / 2},x" for i in range(40)]
    lines[row] = f'{row},{row / 2},"{"lorem ipsum, " * (length // 13)}"'
    path = csv(tmp_path / "x.csv", "a,b,note\n" + "\n".join(lines))
    data = Table(path)
    assert data.columns == ("a", "b")
    together = torch.cat([data.train, data.validation, data.test])
    assert sorted(map(tuple, together.tolist())) == [(i, i / 2) for i in range(40)]
    lines[35] = "35,oops,x"
    says(csv(tmp_path / "x.csv", "a,b,note\n" + "\n".join(lines)), "line 37,", "'b'", "'oops'")


# ---- what is refused


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n\r\n"])
def test_an_empty_line_of_one_column_is_a_missing_cell(tmp_path: Path, end: str) -> None:
    """Empty lines at the end of a file are none of its rows."""
    full = csv(tmp_path / "full.csv", "a\n" + "\n".join(map(str, range(20))) + end)
    assert sum(len(Table(full).split(s)) for s in ("train", "validation", "test")) == 20
    path = csv(tmp_path / "x.csv", "a\n1\n\n2\n" + "\n".join(map(str, range(20))) + "\n\n7" + end)
    says(path, "line 3,", "the column 'a' holds no value (1 more such cell)")
    assert [len(p) for p in TableFile(path).pieces(["a"], missing="drop")] == [23]
    with pytest.raises(ValueError, match="line 3"):
        TableFile(path).check(["a"])


def test_missing_cells_at_the_end_of_one_column_are_no_empty_lines(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "a\n" + "\n".join(map(str, range(20))) + "\nNA\nNA\n\n")
    says(path, "line 22,", "1 more such cell)")


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
        says(str(path), "columns is empty", columns=[])
        says(str(path), "'city'", columns=["a", "city"])
    with pytest.raises(ValueError, match="did you mean 'city'"):
        _ = Table(str(path), columns=["citi"]).train


def test_single_precision_must_not_spoil_a_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = 1.7e9 + rng.normal(size=200)
    path = tmp_path / "x.csv"
    pandas.DataFrame({"a": rng.normal(size=200), "time": times}).to_csv(path, index=False)
    says(str(path), "'time'", "float32", "offset")
    pandas.DataFrame({"a": rng.normal(size=200), "big": 1e39 * times}).to_csv(path, index=False)
    says(str(path), "'big'", "larger than float32 holds", "199 more such cells")
    pandas.DataFrame({"near": 1e5 + rng.normal(size=200)}).to_csv(path, index=False)
    says(str(path), "'near'", "0.0039")
    pandas.DataFrame({"days": times // 86400 + rng.integers(0, 1000, 200)}).to_csv(path, index=False)
    assert len(Table(str(path)).train) == 160


def test_few_values_are_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame(600).assign(rooms=np.arange(600) % 4).to_csv(tmp_path / "x.csv", index=False)
    with caplog.at_level(logging.WARNING, "ndm.data"):
        _ = Table(str(tmp_path / "x.csv")).train
    assert "'rooms' has only 4 distinct values" in caplog.text
    assert "'c'" not in caplog.text


def test_few_values_of_few_rows_are_spoken_of_too(tmp_path: Path) -> None:
    for rows, taken in ((100, 2), (100, 8), (30, 4)):
        frame(rows).assign(rooms=np.arange(rows) % taken).to_csv(tmp_path / "x.csv", index=False)
        said = " ".join(Table(str(tmp_path / "x.csv")).summary())
        assert (f"'rooms' has only {taken} distinct values" in said) is (taken * 10 <= 0.8 * rows), (rows, taken)


def test_columns_that_depend_on_each_other_are_spoken_of(tmp_path: Path) -> None:
    def said(data: pandas.DataFrame) -> str:
        data.to_csv(tmp_path / "x.csv", index=False)
        return " ".join(Table(str(tmp_path / "x.csv")).summary())

    data = frame(200)
    assert "linear function" not in said(data)
    assert "linear function" not in said(data.assign(near=data["a"] + 1e-3 * np.random.default_rng(1).normal(size=200)))
    assert "one of the columns 'a', 'copy' is a linear function of the others" in said(data.assign(copy=data["a"]))
    assert "one of the columns 'a', 'c', 'sum' is" in said(data.assign(sum=3 * data["a"] - 0.001 * data["c"] + 7))
    few = pandas.DataFrame(np.random.default_rng(0).normal(size=(12, 20)), columns=[f"x{i}" for i in range(20)])
    assert "linear function" not in said(few)


def test_a_warning_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the summary, or else by the log."""
    frame(600).assign(rooms=np.arange(600) % 4, doors=np.arange(600) % 3).to_csv(tmp_path / "x.csv", index=False)
    few = "the columns 'rooms' (4 values), 'doors' (3 values) have few distinct values"
    with caplog.at_level(logging.WARNING, "ndm.data"):
        data = Table(str(tmp_path / "x.csv"))
        assert data.shape == (5,)
        assert sum(line.startswith(f"warning: {few}") for line in data.summary()) == 1
        assert data.train.shape == (480, 5)
        assert not caplog.records
        other = Table(str(tmp_path / "x.csv"))
        for name in ("train", "test"):
            other.split(name)
        assert caplog.text.count(few) == 1


def test_values_far_from_all_others_are_spoken_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def warnings(**columns: np.ndarray) -> list[str]:
        pandas.DataFrame(columns).to_csv(tmp_path / "x.csv", index=False)
        return [line for line in Table(str(tmp_path / "x.csv")).summary() if line.startswith("warning: the column")]

    height = rng.normal(170, 10, 300)
    height[[7, 150]] = -9999
    (line,) = warnings(height=height, weight=rng.normal(size=300))
    assert "the column 'height' holds -9999 in 2 of 300 rows, far from all other values" in line
    height[rng.random(300) < 0.2] = -9999  # so many that the quantiles know of them
    (line,) = warnings(height=height)
    assert "the column 'height' holds -9999 in " in line
    assert int(line.split(" in ")[1].split()[0]) > 30

    income = np.exp(3 * rng.normal(size=5000))
    (line,) = warnings(age=rng.normal(size=5000), income=income)
    assert "the column 'income' has a long tail" in line
    assert "take the logarithm of the column" in line
    assert f"is {(income.max() - income.mean()) / income.std():.0f} standard deviations from the mean" in line
    assert warnings(age=rng.normal(size=5000), income=np.log(income)) == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.exponential(size=n),
        lambda rng, n: rng.standard_t(4, size=n),
        lambda rng, n: np.exp(rng.normal(size=n)),
        lambda rng, n: rng.uniform(size=n),
        lambda rng, n: np.where(rng.random(n) < 0.5, -3, 3) + rng.normal(size=n) / 10,
        lambda rng, n: rng.poisson(50, n).astype(float),
        lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.02),
    ],
)
def test_common_distributions_are_not_spoken_of(draw) -> None:
    for n in (30, 300, 10_000):
        for seed in range(5):
            assert list(far_values("x", draw(np.random.default_rng(seed), n))) == []


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
        ("a,b\nx,y\nx,y\n", ["no numeric column", "a, b"]),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    says(csv(tmp_path / "x.csv", text), *words)


def test_files_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    says(str(tmp_path / "x.csv"), "No file")
    says(str(tmp_path / "*.csv"), "No file")
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
        'except ImportError as error: sys.exit(0 if "pip install pandas pyarrow" in str(error) else 1)'
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


# ---- names that YAML has read


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (False, "NO"), (True, "on"), (400, "400"), (8, "0o10"), (8, "010"), (1.5, "1.50"), (1000.0, "1e3"), (None, "~"),
        (None, "null"), (datetime.date(2020, 1, 2), "2020-01-02"), ("NO", "NO"),
    ],
)  # fmt: skip
def test_names_that_yaml_has_read_as_something_else(given: object, name: str) -> None:
    names = ["a", name, "O3", "7"]
    if name == "0o10":
        names[1] = "0o10"
        with pytest.raises(ValueError, match="is none of"):
            as_names([given], names, "x.csv")  # PyYAML's octal numbers are written without an o
        return
    assert as_names(["O3", given], names, "x.csv") == ("O3", name)


def test_names_that_may_be_several_or_none_are_told_how_to_write(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "NO,No,400\n" + "\n".join(f"{i},{i * i},{i}.5" for i in range(30)))
    says(path, "False", "bool", "may be any of NO, No", """--data.columns '["NO"]'""", columns=[False, 400])
    says(path, "401", "int", "is none of NO, No, 400", columns=[401])
    assert Table(path, columns=[400]).columns == ("400",)
    assert Table(path, columns="NO").columns == ("NO",)


def test_whoever_names_numbers_means_names(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "400,401\n" + "\n".join(f"{i},{i * i}" for i in range(30)))
    says(path, "line of numbers")
    assert Table(path, columns=[401]).columns == ("401",)
    assert len(Table(path, columns=["400"]).train) == 24


def test_counters_are_whole_numbers_that_follow_each_other() -> None:
    assert counts_rows(np.arange(3.0, 9))
    assert counts_rows(np.array([2.0, 0, 1]))
    assert not counts_rows(np.array([2.0, 0, 1]), in_order=True)
    for other in ([], [0.5, 1.5], [0, 1, 3], [0, 1, 1], [0, np.nan], [0, np.inf]):
        assert not counts_rows(np.array(other))


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
