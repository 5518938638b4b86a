"""Columns of text, numbers and dates as numbers and back."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest

from ndm.data.frames import as_arrow, as_texts, cells_of, from_numbers, to_numbers
from ndm.data.kinds import Cells, find_column
from ndm.method.columns import Column

UTC = datetime.timezone.utc
DAY = datetime.date(2020, 2, 29)
TIME = datetime.datetime(2020, 2, 29, 12, 30, 7)


def cells(values: Any, kind: Any = None) -> Cells:
    found = cells_of(pa.chunked_array([pa.array(values, kind)]))
    assert found is not None
    return found


def column_of(own: Cells) -> Column:
    found = find_column("c", own)
    assert found.column is not None, found.reason
    return found.column


@pytest.mark.parametrize(
    ("values", "kind", "storage", "back"),
    [
        ([1, 2, 4, None], pa.int8(), "int", pa.int64()),
        ([1, 2, 4, None], pa.uint64(), "int", pa.int64()),
        ([1.5, 2.25, None, -4.0], pa.float32(), "float", pa.float64()),
        ([1.5, 2.25, None, -4.0], pa.float64(), "float", pa.float64()),
        ([Decimal("1.5"), Decimal("2.5"), None], pa.decimal128(9, 2), "float", pa.float64()),
        ([True, False, None, True], pa.bool_(), "bool", pa.bool_()),
        (["a", "b", None, "b", "c", "c", "a"], pa.string(), "text", pa.string()),
        (["a", "b", None, "b", "c", "c", "a"], pa.large_string(), "text", pa.string()),
        (["a", "b", None, "b", "c", "c", "a"], pa.string_view(), "text", pa.string()),
        ([DAY, None, datetime.date(1969, 12, 31), datetime.date(1999, 1, 1)], pa.date32(), "date", pa.date32()),
        ([TIME, None, datetime.datetime(1969, 12, 31), TIME + datetime.timedelta(1)], pa.timestamp("ms"), "datetime",
         pa.timestamp("s")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("coded", [False, True])
def test_cells_of_every_type_come_back(values, kind, storage, back, coded):
    array = pa.array(values, kind)
    if coded:
        try:
            array = array.dictionary_encode()
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            pytest.skip("Arrow has no such dictionaries")
    own = cells(array)
    assert own.storage == storage
    column = column_of(own)
    numbers = to_numbers(column, own)
    assert numbers.unseen == 0
    table = from_numbers([column], numbers.values[:, None])
    assert table.schema.field("c").type == back
    expected = [float(v) if isinstance(v, Decimal) else v for v in values]
    assert table.column("c").to_pylist() == expected


def test_a_data_frame_of_pandas_comes_back():
    frame = pandas.DataFrame(
        {
            "real": [0.5, np.nan, 2.25, -1.0],
            "text": pandas.Categorical(["u", "v", None, "v"]),
            "flag": pandas.array([True, None, False, True], "boolean"),
            "whole": pandas.array([1, None, 3, 7], "Int64"),
            "day": pandas.to_datetime(["2020-01-01", None, "2021-01-01", "2022-01-03"]),
        }
    )
    table = as_arrow(frame)
    every = {name: cells(table.column(name)) for name in table.column_names}
    columns = [find_column(name, own).column for name, own in every.items()]
    assert all(columns)
    rows = np.stack([to_numbers(c, own).values for c, own in zip(columns, every.values(), strict=True)], 1)
    back = from_numbers(columns, rows).to_pandas()
    assert back["real"].tolist() == pytest.approx(frame["real"].tolist(), nan_ok=True)
    for name in ("text", "flag", "whole", "day"):
        assert [None if pandas.isna(v) else v for v in back[name]] == [
            None if pandas.isna(v) else v for v in frame[name]
        ]


@pytest.mark.parametrize("data", [3, [1, 2], {"a": [1, "x", 2.5]}, pandas.DataFrame({"a": [1, "x"]})])
def test_what_is_no_table_is_refused(data):
    with pytest.raises(ValueError, match="no table of columns with one type each"):
        as_arrow(data)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.time32("s"), pa.duration("s")]
)
def test_other_types_have_no_cells(kind):
    assert cells_of(pa.chunked_array([pa.nulls(3, kind)])) is None


# ---- text


@pytest.mark.parametrize(
    ("values", "storage", "numbers"),
    [
        (["1", " 2 ", "", "NA", None], "int", [1, 2, np.nan, np.nan, np.nan]),
        (["1", "2.0"], "float", [1, 2]),
        (["1", "2.5"], "float", [1, 2.5]),
        (["1e3", "-7"], "int", [1000, -7]),
        (["0", "10"], "int", [0, 10]),
        (["1", "inf"], "float", [1, np.inf]),
        (["9223372036854775808", "1"], "float", [2.0**63, 1]),
        (["2020-02-29", None], "date", [18321, np.nan]),
        (["2020-02-29 12:30:07", "1970-01-01T00:00:01"], "datetime", [1582979407, 1]),
        (["2020-02-29 12:30:07.75", "1969-12-31 23:59:59.5"], "datetime", [1582979407, -1]),
        (["2020-02-29T14:30:07+02:00", "1970-01-01T00:00:01Z"], "datetime", [1582979407, 1]),
        (["True", "False", "NA"], "bool", [1, 0, np.nan]),
        (["true", "TRUE"], "bool", [1, 1]),
        (["", None], "float", [np.nan, np.nan]),
    ],
)
def test_text_of_one_type_is_read_as_such(values, storage, numbers):
    found = cells(values)
    assert found.storage == storage
    np.testing.assert_array_equal(found.values, numbers)
    np.testing.assert_array_equal(found.absent, np.isnan(np.array(numbers, float)))


@pytest.mark.parametrize(
    "values", [["00501", "10001"], ["-01", "2"], ["1", "x"], ["1", "2020-01-01"], ["True", "1"], ["12:30", "13:30"]]
)
def test_other_text_stays_text(values):
    found = cells([*values, "NaN", None])
    assert found.storage == "text"
    assert found.values.tolist() == [*values, None, None]


def test_text_can_be_kept():
    found = cells_of(pa.chunked_array([["1.50", "", "2"]]), text=True)
    assert found is not None
    assert found.values.tolist() == ["1.50", None, "2"]


def test_times_with_a_zone_are_in_utc():
    local = pa.array([datetime.datetime(2020, 2, 29, 12, 30, 7, tzinfo=UTC)], pa.timestamp("us", "Europe/Berlin"))
    assert cells(local).values.tolist() == [1582979407]


def test_cells_as_texts():
    assert as_texts(Cells(np.array([1234567.0, 0.1, np.nan]), "float")).tolist() == ["1234567", "0.1", None]
    assert as_texts(Cells(np.array([1.0, 0.0]), "bool")).tolist() == ["True", "False"]
    assert as_texts(Cells(np.array([18321.0]), "date")).tolist() == ["2020-02-29"]
    assert as_texts(Cells(np.array([1.0]), "datetime")).tolist() == ["1970-01-01T00:00:01"]


# ---- values that training did not have


def test_unknown_categories_are_other_and_counted():
    column = column_of(cells(["a", "a", "b", "b", "c", "c", None]))
    found = to_numbers(column, cells(["c", "q", None, "a", "q"]))
    np.testing.assert_array_equal(found.values, [2, 3, np.nan, 0, 3])
    assert found.unseen == 2
    assert from_numbers([column], found.values[:, None]).column("c").to_pylist() == [
        "c", "(other)", None, "a", "(other)",
    ]  # fmt: skip


def test_categories_that_are_numbers_elsewhere_are_found():
    column = column_of(cells(["1234567", "x", "x", "1234567", "y", "y"]))
    assert column.storage == "text"
    assert to_numbers(column, cells([1234567, 2])).values.tolist() == [0, 3]
    flags = column_of(cells(["True", "x", "True", "x"]))
    assert to_numbers(flags, cells([True, True])).values.tolist() == [0, 0]


def test_other_of_numbers_is_a_missing_cell():
    found = find_column("c", cells([0, 1, 1]), None, [cells([2])])
    assert found.column is not None
    assert to_numbers(found.column, cells([1, 0, 5])).values.tolist() == [0, 1, 2]
    assert from_numbers([found.column], np.array([[0.0], [2.0]])).column("c").to_pylist() == [1, None]


def test_values_out_of_range_are_counted():
    line = column_of(cells([1, 2, 4] * 9))
    found = to_numbers(line, cells([0, 2, 2.5, 9, None]))
    assert found.unseen == 3
    values = np.rint(np.random.RandomState(0).normal(size=1000) * 400)
    grid = column_of(cells(np.r_[values, values]))
    assert grid.rest == "grid"
    assert to_numbers(grid, cells([0, 0.5, 1e9, None])).unseen == 2


@pytest.mark.parametrize(
    ("trained", "given", "words"),
    [
        ([1.5, 2.5, 7.0], ["x", "y"], "holds text such as 'x', and was a column of numbers or dates"),
        ([1.5, 2.5, 7.0], [DAY], "holds dates, and held numbers in training"),
        ([DAY, datetime.date(2021, 1, 1), datetime.date(2022, 1, 1)], [1.5], "holds numbers, and held dates"),
        ([DAY, datetime.date(2021, 1, 1), datetime.date(2022, 1, 1)], [TIME], "holds dates with times, and held dates"),
        ([True, False], ["x"], "holds the text 'x', and held truth values"),
        ([0, 1, 0], [2], "holds 2.0, and training had only 0.0, 1.0"),
        (["a", "b"], ["c"], "holds 'c', and training had only a, b"),
        ([-1.1, -0.2, 0.3, 1.0], [1e300], "holds 1e[+]300"),
    ],
)
def test_cells_of_another_type_are_refused(trained, given, words):
    with pytest.raises(ValueError, match=words) as caught:
        to_numbers(column_of(cells(trained)), cells(given))
    assert str(caught.value).startswith("The column 'c' holds")
    assert str(caught.value).endswith(".")


def test_dates_and_times_at_midnight_are_the_same():
    times = column_of(cells([TIME, TIME + datetime.timedelta(1), TIME + datetime.timedelta(5)]))
    assert to_numbers(times, cells([DAY])).values.tolist() == [18321 * 86_400]
    days = column_of(cells([DAY, datetime.date(2021, 1, 1), datetime.date(2022, 1, 1)]))
    assert to_numbers(days, cells([datetime.datetime(2020, 2, 29), None])).values[0] == 18321


@pytest.mark.parametrize("trained", [[1.5, 2.5, None], [DAY, datetime.date(2021, 1, 1), None], ["a", "b", "b", None]])
def test_a_column_without_a_value_is_missing(trained):
    column = column_of(cells(trained))
    for nothing in (cells([None, None]), cells([None, None], pa.string()), cells(["", "NA"])):
        assert np.isnan(to_numbers(column, nothing).values).all()


@pytest.mark.parametrize("storage", ["int", "date", "datetime"])
def test_samples_beyond_a_type_are_its_limits(storage):
    column = Column("c", counts=(1,), storage=storage)
    table = from_numbers([column], np.array([[1e300], [-1e300], [math.nan]]))
    high, low, missing = table.column("c").to_pylist()
    assert high > low
    assert missing is None
    assert len(table.to_pandas()) == 3
