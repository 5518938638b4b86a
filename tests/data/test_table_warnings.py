"""Columns that a table warns of: few values, dependent columns, and values far from all others."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas
import pytest

from ndm.data.columns import far_values
from ndm.data.table import Table
from tests.data.tables import frame


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
