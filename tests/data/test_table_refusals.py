"""Tables that are refused, by a sentence that names the line and column."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from ndm.data.table import Table, TableFile
from tests.data.tables import csv, frame, says


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
