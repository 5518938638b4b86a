"""Names of columns that YAML has read as something else."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from ndm.data.columns import as_names, counts_rows
from ndm.data.table import Table
from tests.data.tables import csv, says


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
