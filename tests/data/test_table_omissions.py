"""Columns and rows of a table that are left out: indices, texts, and missing cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from ndm.data.table import Table
from tests.data.tables import csv, frame, says


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
    with pytest.raises(ValueError, match="missing must be error, drop or atom, not 'fill'"):
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
