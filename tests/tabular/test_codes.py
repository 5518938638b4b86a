"""Codes that look like numbers, such as 1.50, stay texts for a model that was trained on texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from ndm.data.mixed import read_cells, rows_of_numbers
from ndm.data.tablefile import TableFile
from ndm.method.columns import Column
from ndm.method.encoding import TableEncoding
from ndm.scoring import MixedRows
from ndm.tabular.files import read_rows
from ndm.tabular.input import cells_of_input

CODE = Column("code", "categorical", ("1.50", "2.50", "abc"), (5, 4, 3, 0), other=True, rest=None, storage="text")
ENCODING = TableEncoding.of([CODE, Column("y", counts=(12,))])
CODES, PLACES = ["1.50", "2.50", "1.50", "2.0"], [0, 1, 0, 3]  # 3 is "other"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    path.write_text("code,y\n" + "".join(f"{code},0.5\n" for code in CODES))
    return path


def test_a_file_for_a_condition_is_read_like_one_to_be_scored(file: Path) -> None:
    assert read_rows(file, ENCODING).rows[:, 0].tolist() == PLACES
    (block,) = MixedRows(str(file), ENCODING).blocks(9, 0)
    assert block[:, 0].tolist() == PLACES


def test_a_parquet_file_of_texts(tmp_path: Path) -> None:
    pandas.DataFrame({"code": CODES, "y": 0.5}).to_parquet(tmp_path / "new.parquet")
    assert read_rows(tmp_path / "new.parquet", ENCODING).rows[:, 0].tolist() == PLACES


@pytest.mark.parametrize("form", ["frame", "array"])
def test_a_table_in_memory(form: str) -> None:
    frame = pandas.DataFrame({"x0": CODES, "x1": 0.5})
    data = frame if form == "frame" else np.array([[code, 0.5] for code in CODES], object)
    cells = cells_of_input(data, texts={"x0"})
    columns = [Column.of(CODE.plain() | {"name": "x0"})]
    assert rows_of_numbers(columns, cells, "x")[:, 0].tolist() == PLACES


def test_without_the_model_such_a_column_is_of_numbers(file: Path) -> None:
    cells = read_cells([TableFile(file)])["code"]
    assert not isinstance(cells, str)
    assert cells.values.tolist() == [1.5, 2.5, 1.5, 2.0]
