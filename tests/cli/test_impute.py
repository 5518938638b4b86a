"""Missing cells filled by the command."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ndm.cli import main
from tests.cli.commands import Capture, error

FEW = ["--steps", "3"]


def cells(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def impute(folder: Path, data: Path, out: Path, *options: str) -> int:
    return main(["impute", str(folder / "run"), str(data), "--out", str(out), *FEW, *options])


def test_missing_cells_are_filled_and_all_others_are_as_in_the_file(
    mixed: Path, tmp_path: Path, capsys: Capture
) -> None:
    data, out = tmp_path / "x.csv", tmp_path / "y.csv"
    data.write_text(
        "id,kind,price,note,rooms,name,built\n"
        '007,,10.50,NA," 1",a,2020-01-03\n'
        '008,hut,NA,"x, y",2,b,2020-01-01\n'
        "009,house,3e1,,3,c,2020-01-05\n"
        "010,,,,,,\n"
    )
    assert impute(mixed, data, out) == 0
    told = capsys.readouterr()
    assert "filled 6 missing cells of 3 rows: price 2, rooms 1, kind 2, built 1" in told.out
    assert str(out) in told.err
    before, after = cells(data), cells(out)
    assert len(after) == 5
    assert after[0] == before[0]
    holes = [(1, 1), (2, 2), (4, 1), (4, 2), (4, 4), (4, 6)]
    for i, row in enumerate(before):
        for j, cell in enumerate(row):
            if (i, j) in holes:
                assert after[i][j] != ""
            else:
                assert after[i][j] == cell
    assert after[4][4] in set("1234")
    assert after[4][6].startswith("2020-01-0")
    assert after[1][1] in {"flat", "house", "hut", "(other)"}


def test_copies_of_a_row_are_consecutive(mixed: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(mixed / "x.csv").head(10).assign(row="z")
    frame.to_parquet(tmp_path / "x.parquet", index=False)
    assert impute(mixed, tmp_path / "x.parquet", tmp_path / "y.parquet", "-n", "3") == 0
    filled = pandas.read_parquet(tmp_path / "y.parquet")
    assert list(filled) == ["row_", *frame]
    assert filled["row_"].tolist() == [i for i in range(10) for _ in range(3)]
    again = frame.loc[filled["row_"]].reset_index(drop=True)
    for name in frame:
        seen = again[name].notna()
        assert (filled[name][seen] == again[name][seen]).all()
        assert filled[name].notna().all()
    assert filled["price"][:3].nunique() == 3
    assert filled.dtypes.iloc[1:].tolist() == frame.dtypes.tolist()


def test_formats_can_be_exchanged(mixed: Path, tmp_path: Path) -> None:
    assert impute(mixed, mixed / "x.csv", tmp_path / "y.csv") == 0
    assert impute(mixed, mixed / "x.csv", tmp_path / "y.parquet") == 0
    a, b = pandas.read_csv(tmp_path / "y.csv"), pandas.read_parquet(tmp_path / "y.parquet")
    assert list(a) == list(b)
    assert str(b["built"][0]) == a["built"][0]
    b["built"] = b["built"].astype(str)
    pandas.testing.assert_frame_equal(a, b)
    assert impute(mixed, tmp_path / "y.parquet", tmp_path / "z.csv") == 0
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "z.csv"), a)


def test_types_of_a_parquet_file_that_a_filled_cell_does_not_fit(mixed: Path, tmp_path: Path) -> None:
    frame = pandas.DataFrame({"price": pandas.array([10, None], "Int64"), "rooms": [1.0, None]})
    frame = frame.assign(kind=pandas.Categorical(["hut", None]), built=pandas.to_datetime(["2020-01-02", None]).date)
    frame.to_parquet(tmp_path / "x.parquet", index=False)
    assert impute(mixed, tmp_path / "x.parquet", tmp_path / "y.parquet") == 0
    filled = pandas.read_parquet(tmp_path / "y.parquet")
    assert filled.iloc[0].astype(str).tolist() == ["10.0", "1.0", "hut", "2020-01-02"]
    assert filled.notna().all().all()


def test_text_views_are_filled(mixed: Path, tmp_path: Path) -> None:
    kinds = pa.array(["flat", None, "house"], pa.string_view())
    table = pa.table({"kind": kinds, "price": [10.5, 30.0, None]})
    table = table.append_column("rooms", pa.array([1, 2, 3])).append_column("built", pa.array(["2020-01-03"] * 3))
    pq.write_table(table, tmp_path / "x.parquet")
    assert impute(mixed, tmp_path / "x.parquet", tmp_path / "y.parquet") == 0
    filled = pq.read_table(tmp_path / "y.parquet")
    first, second, third = filled["kind"].to_pylist()
    assert (first, third) == ("flat", "house")
    assert second in {"flat", "house", "hut", "(other)"}
    assert filled["price"].null_count == 0


def test_an_index_and_texts_over_several_lines_are_kept(mixed: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "x.csv", tmp_path / "y.csv"
    data.write_bytes(
        b'\xef\xbb\xbf,price,rooms,kind,built,note\r\n5,1,2,hut,,"a\nb"\r\n6,NULL,2,hut,2020-01-02,"say ""c"""\r\n'
    )
    assert impute(mixed, data, out) == 0
    after = cells(out)
    assert [row[0] for row in after] == ["", "5", "6"]
    assert [row[5] for row in after] == ["note", "a\nb", 'say "c"']
    assert all(row[1] and row[4] for row in after)


def test_a_file_without_missing_cells_is_copied(mixed: Path, tmp_path: Path, capsys: Capture) -> None:
    data, out = tmp_path / "x.csv", tmp_path / "y.csv"
    data.write_text("price,rooms,kind,built,more\n10.50,2,hut,2020-01-02,\n")
    assert impute(mixed, data, out) == 0
    assert out.read_text() == data.read_text()
    assert "no missing cells in the columns of the model" in capsys.readouterr().out


def test_the_seed_decides_and_files_are_kept(mixed: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert impute(mixed, mixed / "x.csv", tmp_path / f"{name}.csv", "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.csv").read_text() for name in "abc")
    assert a == b != c
    capsys.readouterr()
    command = ["impute", str(mixed / "run"), str(mixed / "x.csv"), "--out", str(tmp_path / "a.csv"), *FEW]
    assert "give --overwrite" in error(capsys, *command)
    assert (tmp_path / "a.csv").read_text() == a
    assert main([*command, "--overwrite", "--seed", "2"]) == 0
    assert (tmp_path / "a.csv").read_text() == c


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("price,rooms,kind,built\n", "has no rows"),
        ("price,rooms,kind\n1,2,hut\n", "has no column 'built', which the model needs"),
        ("price,rooms,kind,built\nmuch,2,hut,2020-01-01\n", "'price' holds text such as 'much'"),
        ("price,rooms,kind,built\n1,2,hut,never\n", "'built' holds text such as 'never'"),
        ("price,rooms,kind,built\ninf,2,hut,2020-01-01\n", "infinite values"),
        ("price,price,rooms,kind,built\n1,1,2,hut,2020-01-01\n", "two columns named 'price'"),
        ("price;rooms;kind;built\n1;2;hut;2020-01-01\n", "not separated by commas"),
        ("price,rooms,kind,built\n1,2,hut\n", "cells under 4 column names"),
    ],
)
def test_what_cannot_be_filled_is_refused(mixed: Path, tmp_path: Path, capsys: Capture, text: str, said: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    out = tmp_path / "y.csv"
    assert said in error(capsys, "impute", str(mixed / "run"), str(tmp_path / "x.csv"), "--out", str(out), *FEW)
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_a_model_that_cannot_impute_is_refused(
    mixed: Path, run: Path, table: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "x.csv").write_text('a,"b, in m",c\n1,,2\n')
    command = [str(tmp_path / "x.csv"), "--out", str(tmp_path / "y.csv"), *FEW]
    assert "--training.conditionals any" in error(capsys, "impute", str(table / "run"), *command)
    assert "is not of a table with columns of several kinds" in error(capsys, "impute", str(run), *command)
    assert "There is no run at" in error(capsys, "impute", str(tmp_path / "none"), *command)
    command[2] = str(tmp_path / "y.npz")
    assert "must end in .csv or .parquet" in error(capsys, "impute", str(mixed / "run"), *command)
    command[2] = str(tmp_path / "none" / "y.csv")
    assert "There is no folder" in error(capsys, "impute", str(mixed / "run"), *command)
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]
