"""Predictions of a column by the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.cli import main
from ndm.tabular import class_probabilities
from ndm.tabular.files import read_rows
from tests.cli.commands import Capture, error

FEW = ["-n", "8", "--steps", "3"]


@pytest.fixture
def some(mixed: Path, tmp_path: Path) -> Path:
    """The first rows of the table."""
    pandas.read_csv(mixed / "x.csv").head(20).to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


def predict(mixed: Path, data: Path, out: Path, column: str, *options: str) -> int:
    return main(["predict", str(mixed / "run"), str(data), "--column", column, "--out", str(out), *FEW, *options])


def test_a_column_of_numbers(mixed: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    assert predict(mixed, some, tmp_path / "y.csv", "price", "--quantiles", "0.25", "0.5", "0.9") == 0
    found = pandas.read_csv(tmp_path / "y.csv")
    assert list(found) == ["row", "mean", "q0.25", "q0.5", "q0.9"]
    assert found["row"].tolist() == list(range(20))
    assert (found["q0.25"] <= found["q0.5"]).all()
    assert (found["q0.5"] <= found["q0.9"]).all()
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == "price given rooms, kind, built: 17 rows in which it is observed"
    assert [line.split()[0] for line in lines[1:]] == ["log", "CRPS", "coverage", "PIT"]
    assert lines[1].endswith("; with the probability that the cell is not missing")
    counts = lines[4].removeprefix("PIT histogram").partition(",")[0].split()
    assert len(counts) == 10
    assert sum(map(int, counts)) == 17
    assert "at most 78% is expected with 8 samples" in lines[3]
    assert "the predictions are in" in told.err


def test_a_category(mixed: Path, some: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict(mixed, some, tmp_path / "y.parquet", "kind") == 0
    found = pandas.read_parquet(tmp_path / "y.parquet")
    p = found.filter(like="p(")
    assert {"p(flat)", "p(house)", "p(hut)"} <= set(p)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p.idxmax(axis=1) == "p(" + found["prediction"] + ")").all()
    model = ndm.NDM.from_pretrained(mixed / "run" / "model")
    rows = read_rows(some, model.standardize).rows  # type: ignore[arg-type]
    np.testing.assert_allclose(p, class_probabilities(model, torch.from_numpy(rows), "kind"), atol=1e-6)
    monkeypatch.setattr("ndm.tabular.queries.BLOCK", 7)  # other random numbers, which hardly matter
    np.testing.assert_allclose(p, class_probabilities(model, torch.from_numpy(rows), "kind"), atol=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("18 rows in which it is observed")
    assert [line.split()[0] for line in lines[1:]] == ["log", "accuracy", "calibration"]


def test_the_column_need_not_be_in_the_file(mixed: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    frame = pandas.read_csv(some)
    for name, unknown in (("built", frame.drop(columns="built")), ("rooms", frame.assign(rooms=None))):
        unknown.to_csv(tmp_path / "new.csv", index=False)
        assert predict(mixed, tmp_path / "new.csv", tmp_path / f"{name}.csv", name) == 0
        assert capsys.readouterr().out == ""
    built = pandas.read_csv(tmp_path / "built.csv", parse_dates=["mean", "q0.5"])
    assert list(built) == ["row", "mean", "q0.05", "q0.5", "q0.95"]
    assert (built["mean"].dt.year == 2020).all()
    rooms = pandas.read_csv(tmp_path / "rooms.csv")
    assert rooms["mean"].between(1, 4).all()


def test_what_cannot_be_predicted_is_refused(
    mixed: Path, table: Path, run: Path, some: Path, tmp_path: Path, capsys: Capture
) -> None:
    def refused(column: str, *options: str, model: Path = mixed / "run", data: Path = some) -> str:
        return error(
            capsys, "predict", str(model), str(data), "--column", column, "--out", str(tmp_path / "y.csv"), *options
        )

    assert "no column 'pric'; did you mean 'price'?" in refused("pric")
    assert "no column 'name'" in refused("name")
    assert "must be a number between 0 and 1, got '1.5'" in refused("price", "--quantiles", "1.5")
    assert "have no quantiles: leave --quantiles out" in refused("kind", "--quantiles", "0.5")
    assert "must be a whole number of at least 2" in refused("price", "-n", "1")
    assert "is not of a table" in refused("price", model=run)
    assert "--column" in error(capsys, "predict", str(mixed / "run"), str(some), "--out", str(tmp_path / "y.csv"))
    pandas.read_csv(some).drop(columns="rooms").to_csv(tmp_path / "z.csv", index=False)
    assert "has no column 'rooms', which the model needs" in refused("price", data=tmp_path / "z.csv")
    pandas.read_csv(some).assign(price="much").to_csv(tmp_path / "z.csv", index=False)
    assert "'price' holds text such as 'much'" in refused("price", data=tmp_path / "z.csv")
    (tmp_path / "z.csv").write_text('a,"b, in m",c\n1,2,3\n')
    assert "--training.conditionals any" in refused("a", model=table / "run", data=tmp_path / "z.csv")
    assert not (tmp_path / "y.csv").exists()
