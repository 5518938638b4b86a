"""Tables of columns of several kinds, from CSV and Parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from ndm.data.base import SPLITS
from ndm.data.mixed import read_cells, rows_of_numbers
from ndm.data.table import Table
from ndm.data.tablefile import TableFile
from tests.data.tables import csv, says

N = 200


def mixed(n: int = N, seed: int = 0) -> pandas.DataFrame:
    rng = np.random.RandomState(seed)
    frame = pandas.DataFrame(
        {
            "size": rng.normal(size=n),
            "rain": np.where(rng.rand(n) < 0.4, 0.0, rng.normal(2, 1, n)),
            "rooms": rng.poisson(3, n),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n),
            "flag": rng.rand(n) < 0.3,
            "name": [f"house {i}" for i in range(n)],
        }
    )
    frame.loc[rng.rand(n) < 0.1, "size"] = np.nan
    return frame


def written(path: Path, frame: pandas.DataFrame) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return str(path)


@pytest.fixture(params=["csv", "parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return written(tmp_path / f"x.{request.param}", mixed())


def test_the_kinds_are_found(path: str) -> None:
    table = Table(path, kinds="auto")
    assert table.columns == ("size", "rain", "rooms", "city", "flag")
    assert table.shape == (5,)
    assert [len(table.split(name)) for name in SPLITS] == [160, 20, 20]
    assert table.train.dtype == torch.float64
    size, rain, rooms, city, flag = table.encoding.table
    assert (size.kind, size.missing, size.levels) == ("real", True, ())
    assert (rain.kind, rain.levels) == ("real", (0.0,))
    assert rooms.on_a_line
    assert set(city.levels) == {"Rome", "Oslo", "Lima"}
    assert (flag.kind, flag.storage) == ("categorical", "bool")
    lines = "\n".join(table.summary())
    assert "real columns: size (" in lines
    assert "left out columns: name (160 different texts in 160 cells, such as names)" in lines


def test_a_row_comes_back_from_x(path: str) -> None:
    table = Table(path, kinds="auto")
    x = table.encoding(table.train)
    assert x.shape == (160, *table.encoding.latent_shape)
    torch.testing.assert_close(table.encoding.inverse(x), table.train, equal_nan=True)


def test_the_files_have_the_same_rows(tmp_path: Path) -> None:
    tables = [Table(written(tmp_path / f"x.{end}", mixed()), kinds="auto") for end in ("csv", "parquet")]
    torch.testing.assert_close(tables[0].train, tables[1].train, equal_nan=True)
    assert tables[0].encoding.table == tables[1].encoding.table
    assert tables[0].fingerprint() == tables[1].fingerprint()


def test_the_fingerprint_depends_on_the_rows_and_the_kinds(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", mixed())
    other = written(tmp_path / "y.csv", mixed(seed=1))
    prints = [
        Table(path, kinds="auto"), Table(path, kinds={"rooms": "categorical"}), Table(path, kinds="auto", seed=1),
        Table(path, ["size", "city"], kinds="auto"), Table(other, kinds="auto"),
    ]  # fmt: skip
    assert len({table.fingerprint() for table in prints}) == 5


def test_splits_are_those_of_the_files(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "valid", "test")):
        frame = mixed(seed=seed)
        frame["late"] = np.nan if name != "valid" else 1.5
        frame.loc[0, "city"] = "Quito"
        written(tmp_path / "set" / f"{name}.csv", frame)
    table = Table(str(tmp_path / "set"), kinds="auto")
    assert [len(table.split(name)) for name in SPLITS] == [N] * 3
    assert "late" not in table.columns
    city = table.encoding.table[3]
    assert city.other  # for Quito, of which there is one
    assert table.split("test")[0, 3] == len(city.levels)


def test_a_split_without_any_value_of_a_column(tmp_path: Path) -> None:
    written(tmp_path / "set" / "train.csv", mixed().assign(size=np.arange(N) ** 1.5))
    written(tmp_path / "set" / "valid.csv", mixed().assign(size=np.nan))
    table = Table(str(tmp_path / "set"), kinds="auto")
    assert table.encoding.table[0].missing
    assert table.split("validation")[:, 0].isnan().all()


def test_text_of_one_split_is_text_in_all(tmp_path: Path) -> None:
    """The file of a split may hold only such codes as look like numbers."""
    written(tmp_path / "set" / "train.csv", pandas.DataFrame({"code": ["1.50", "x", "y"] * 20}))
    written(tmp_path / "set" / "train2.csv", pandas.DataFrame({"code": ["1.50", "2"] * 20}))
    written(tmp_path / "set" / "valid.csv", pandas.DataFrame({"code": ["1.50"] * 5}))
    table = Table(str(tmp_path / "set"), kinds="auto")
    (code,) = table.encoding.table
    assert set(code.levels) == {"1.50", "2", "x", "y"}
    assert table.split("validation").unique().tolist() == [0]
    cells = read_cells([TableFile(tmp_path / "set" / "valid.csv")], texts={"code"})
    assert rows_of_numbers([code], cells, "valid").ravel().tolist() == [0] * 5


def test_types_of_several_files_are_joined(tmp_path: Path) -> None:
    one = written(tmp_path / "a.csv", pandas.DataFrame({"a": [1, 2], "b": ["", ""], "c": ["2020-01-01", "2020-01-02"]}))
    two = written(tmp_path / "b.csv", pandas.DataFrame({"a": [0.5, 3], "b": ["x", "y"], "c": [20, 30]}))
    cells = read_cells([TableFile(one), TableFile(two)])
    assert {name: own.storage for name, own in cells.items()} == {"a": "float", "b": "text", "c": "text"}
    assert cells["b"].values.tolist() == [None, None, "x", "y"]
    assert cells["c"].values.tolist() == ["2020-01-01", "2020-01-02", "20", "30"]


# ---- missing cells


def test_missing_cells_are_a_value_dropped_or_refused(path: str) -> None:
    holes = int(mixed()["size"].isna().sum())
    every = Table(path, kinds="auto", missing="atom")
    assert sum(int(every.split(name)[:, 0].isnan().sum()) for name in SPLITS) == holes
    dropped = Table(path, kinds="auto", missing="drop")
    assert sum(len(dropped.split(name)) for name in SPLITS) == N - holes
    assert not dropped.encoding.table[0].missing
    assert f"left out {holes} of {N} rows with missing cells" in "\n".join(dropped.summary())
    says(path, "has missing cells (size ", "--data.missing atom", kinds="auto", missing="error")
    assert Table(path, ["city", "rooms"], kinds="auto", missing="error").train.shape == (160, 2)


def test_a_table_with_a_hole_in_every_row_cannot_drop_them(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", mixed().assign(size=np.nan))
    says(path, "Every row of", "has a missing cell", kinds="auto", missing="drop")


# ---- arguments


def test_columns_are_in_the_given_order(path: str) -> None:
    table = Table(path, ["city", "size"], kinds="auto")
    assert table.columns == ("city", "size")
    assert [column.kind for column in table.encoding.table] == ["categorical", "real"]


def test_kinds_of_some_columns_are_given(path: str) -> None:
    table = Table(path, kinds={"rooms": "categorical", "rain": "real"})
    assert [column.kind for column in table.encoding.table] == [
        "real", "real", "categorical", "categorical", "categorical",
    ]  # fmt: skip


def test_columns_that_are_given(path: str) -> None:
    assert Table(path, kinds="auto").given == ()
    assert Table(path, kinds="auto", given=["city", "flag"]).given == ("city", "flag")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cit"], "did you mean 'city'"),
        (["name"], "given names 'name'; the columns of"),  # which is left out
        (["city", "city"], "given contains 'city' twice"),
        (["size", "rain", "rooms", "city", "flag"], "given names all columns"),
    ],
)
def test_given_columns_are_checked(path: str, given: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _ = Table(path, kinds="auto", given=given).given


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"columns": ["size", "nme"]}, "did you mean 'name'"),
        ({"columns": ["size", "size"]}, "columns contains 'size' twice"),
        ({"columns": []}, "columns is empty"),
        ({"columns": ["size", ""]}, "a column without a name"),
        ({"kinds": {"ciy": "real"}}, "did you mean 'city'"),
        ({"kinds": {"city": "real"}}, "holds text and cannot be real"),
    ],
)
def test_arguments_are_checked(path: str, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _ = Table(path, **{"kinds": "auto", **arguments}).train


# ---- invalid tables


ROWS = "1,x\n2,y\n3,x\n" * 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,b\n", "has no rows in the train split"),
        ("a,a\n" + ROWS, "two columns named 'a'"),
        ("a,b\n" + ROWS + "1\n", "line 29, has 1 cells under 2"),
        ('""\n1\n2\n4\n7\n', "There is no column with a name"),
        (
            "a\n" + "\n".join(f"n {i}" for i in range(60)),
            "has no column to learn from; left out: a (48 different texts",
        ),
        ("a,b\n1,x\n2,y\n3,x\n", "has 3 rows, too few"),
        ("a,b\n" + ROWS + "1e400,x\n", "infinite values"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    says(csv(tmp_path / "x.csv", text), words, kinds="auto")


def test_columns_of_other_types_are_left_out(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"a": np.arange(30) ** 1.5, "l": [[1, 2]] * 30, "s": [{"q": 1}] * 30, "b": [b"x"] * 30})
    path = written(tmp_path / "x.parquet", frame)
    table = Table(path, kinds="auto")
    assert table.columns == ("a",)
    assert "b (of the type binary)" in "\n".join(table.summary())
    says(path, "is of the type list", "cannot be real", kinds={"l": "real"})
    says(path, "no column to learn from", "l (of the type list", columns=["l", "b"], kinds="auto")


def test_names_may_have_commas(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    frame = pandas.DataFrame(rng.normal(size=(30, 3)), columns=["row", "x,y", ""])
    table = Table(written(tmp_path / "x.csv", frame), kinds="auto")
    assert table.columns == ("row", "x,y")
    assert "left out a column without a name" in table.summary()


def test_a_value_far_from_all_others_causes_a_warning(tmp_path: Path) -> None:
    values = np.random.RandomState(0).normal(size=60)
    path = written(tmp_path / "set" / "train.csv", pandas.DataFrame({"a": [*values, 1e30]}))
    for name in ("valid", "test"):
        written(tmp_path / "set" / f"{name}.csv", pandas.DataFrame({"a": values}))
    lines = "\n".join(Table(str(Path(path).parent), kinds="auto").summary())
    assert "warning: the column 'a' holds 1e+30, far from all other values" in lines
    written(tmp_path / "set" / "train.csv", pandas.DataFrame({"a": values}))
    written(tmp_path / "set" / "valid.csv", pandas.DataFrame({"a": [*values, 1e30]}))
    says(str(tmp_path / "set"), "holds 1e+30, which is more than 1e+06 standard deviations", kinds="auto")


def test_a_split_without_a_column_is_named(tmp_path: Path) -> None:
    written(tmp_path / "set" / "train.csv", mixed())
    written(tmp_path / "set" / "valid.csv", mixed().drop(columns="city"))
    says(str(tmp_path / "set"), "(validation split) has no column 'city'", kinds="auto")
