"""Conditional scores of the rows of a table by the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.cli import main
from ndm.tabular import explain, log_prob, percentiles
from ndm.tabular.files import read_rows
from tests.cli.commands import Capture, error

FAST = ["--no-likelihood", "--times", "4"]
ROUGH = ["--max-rows", "6", "--samples", "2", "--tolerance", "0.5"]


@pytest.fixture
def some(mixed: Path, tmp_path: Path) -> Path:
    """The first rows of the table."""
    pandas.read_csv(mixed / "x.csv").head(10).to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


def read(mixed: Path, data: Path) -> tuple[ndm.NDM, torch.Tensor]:
    model = ndm.NDM.from_pretrained(mixed / "run" / "model")
    return model, torch.from_numpy(read_rows(data, model.standardize).rows)  # type: ignore[arg-type]


def score(mixed: Path, data: Path, out: Path, *options: str) -> pandas.DataFrame:
    assert main(["score", str(mixed / "run"), str(data), "--out", str(out), *options]) == 0
    return pandas.read_csv(out)


@pytest.mark.slow
def test_the_probability_of_some_columns_given_others(mixed: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    found = score(mixed, some, tmp_path / "s.csv", "--wanted", "price", "--given", "rooms", "kind", *ROUGH)
    assert list(found) == ["row", "log_prob", "log_prob_stderr", "kind"]
    model, rows = read(mixed, some)
    expected = log_prob(model, rows[:6], ["price"], ["rooms", "kind"], samples=2, tolerance=0.5)
    np.testing.assert_allclose(found["log_prob"], expected.values, rtol=1e-6)
    np.testing.assert_allclose(found["log_prob_stderr"], expected.stderr, rtol=1e-6)
    name = "log p(price | rooms, kind)"
    assert found["kind"].unique().tolist() == [f"{name}: {expected.kind}; a missing cell is a value of its column"]
    told = capsys.readouterr()
    assert told.out.startswith(f"{name} {found['log_prob'].mean():.5f} ± ")
    assert "a missing cell is a value of its column" in told.out


def test_cells_that_are_left_out_and_explanations(mixed: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    found = score(mixed, some, tmp_path / "s.csv", "--missing", "left-out", "--explain", *FAST)
    said = capsys.readouterr().out
    model, rows = read(mixed, some)
    how = {"missing": "left out", "method": "bound", "times": 4}
    expected = log_prob(model, rows, **how)  # type: ignore[arg-type]
    np.testing.assert_allclose(found["log_prob"], expected.values, rtol=1e-6)
    each = explain(model, rows, **how)[0].numpy()  # type: ignore[arg-type]
    names = [f"explain:{name}" for name in ("price", "rooms", "kind", "built")]
    np.testing.assert_allclose(found[names], np.where(rows.isnan(), np.nan, each), rtol=1e-6)
    assert found["explain:price"].isna().sum() == 2
    empty = score(mixed, some, tmp_path / "t.csv", "--missing", "left-out", "--wanted", "price", *FAST)
    assert empty["log_prob"].tolist().count(0) == 2
    assert "2 rows have no observed cell in the wanted columns: their score is 0" in capsys.readouterr().out
    assert found["kind"][0].endswith("missing cells are left out")
    assert "explain: how likely each cell is, log p(column | the others)" in said


def test_percentiles_among_the_validation_rows(mixed: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    found = score(mixed, some, tmp_path / "s.csv", "--percentile", "--wanted", "rooms", *FAST)
    model, rows = read(mixed, some)
    data = ndm.data.Table(str(mixed / "x.csv"), kinds="auto")
    reference = log_prob(model, data.split("validation"), ["rooms"], [], method="bound", times=4).values
    own = log_prob(model, rows, ["rooms"], [], method="bound", times=4).values  # unlike the file's not rounded
    np.testing.assert_allclose(found["percentile"], percentiles(own.numpy(), reference.numpy()))
    assert "among the scores of 9 validation rows" in capsys.readouterr().out
    run, data_of = shutil.copytree(mixed / "run", tmp_path / "run"), tmp_path / "other.csv"
    pandas.read_csv(mixed / "x.csv").iloc[1:].to_csv(data_of, index=False)
    command = ["score", str(run), str(some), "--out", str(tmp_path / "t.csv"), *FAST]
    said = error(capsys, *command, "--percentile", "--data.path", str(data_of))
    assert "The data differ from the training data" in said
    assert said.endswith("or leave --percentile out.")
    assert "is for --percentile" in error(capsys, *command, "--data.path", str(data_of))
    said = error(capsys, *command, "--percentile", "--data.path", str(tmp_path / "none.csv"))
    assert "none.csv" in said
    assert not (tmp_path / "t.csv").exists()


def test_percentiles_count_rows_that_could_not_be_scored() -> None:
    reference = np.array([np.nan, -3.0, -2.0, -1.0])
    found = percentiles(np.array([np.nan, -np.inf, -2.5, 0.0]), reference)
    np.testing.assert_allclose(found, [2 / 5, 2 / 5, 3 / 5, 1.0])


def test_a_model_without_conditionals_explains_by_its_bound(table: Path, tmp_path: Path, capsys: Capture) -> None:
    found = score(table, table / "x.csv", tmp_path / "s.csv", "--explain", "--max-rows", "5", *FAST)
    assert {"explain:a", "explain:b, in m", "explain:c"} <= set(found)
    assert "minus the column's share of the bound" in capsys.readouterr().out
    (tmp_path / "x.csv").write_text('a,"b, in m",c\n1,,2\n')
    command = ["score", str(table / "run"), str(tmp_path / "x.csv"), "--out", str(tmp_path / "t.csv"), *FAST]
    assert "--training.conditionals any" in error(capsys, *command, "--missing", "left-out")
    assert "leave missing cells out with --missing left-out" in error(capsys, *command, "--explain")
    assert "--training.conditionals any" in error(capsys, *command, "--given", "b, in m")


def test_several_processes_are_refused(
    mixed: Path, some: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndm._internal.distributed.world_size", lambda: 2)
    run, out = str(mixed / "run"), str(tmp_path / "s.csv")
    for command in (
        ["score", run, str(some), "--explain"],
        ["impute", run, str(some)],
        ["predict", run, str(some), "--column", "price"],
        ["sample", run, "--given", str(some)],
    ):
        assert "runs in one process: start it without torchrun" in error(capsys, *command, "--out", out)


def test_what_cannot_be_scored_is_refused(mixed: Path, run: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    def refused(*options: str, model: Path = mixed / "run", data: Path = some, out: str = "s.csv") -> str:
        return error(capsys, "score", str(model), str(data), "--out", str(tmp_path / out), *options)

    assert "--given: the model has no column 'room'; did you mean 'rooms'?" in refused("--given", "room")
    assert "'rooms' is in --given and in --wanted" in refused("--given", "rooms", "--wanted", "rooms")
    assert "--wanted has 'rooms' twice" in refused("--wanted", "rooms", "rooms")
    assert "nothing to score" in refused("--given", "price", "rooms", "kind", "built")
    assert "invalid choice: 'none'" in refused("--missing", "none")
    assert "--split is for images" in refused("--explain", "--split", "test")
    assert "is not of a table" in refused("--explain", model=run)
    assert "must end in .parquet or .csv" in refused("--explain", out="s.txt")
    assert "There is no folder" in refused("--explain", out="none/s.csv")
    assert "exists; nothing was written" in refused("--explain", out="x.csv")
    pandas.read_csv(some).drop(columns="kind").to_csv(tmp_path / "z.csv", index=False)
    assert "has no column 'kind', which the model needs" in refused("--given", "kind", data=tmp_path / "z.csv")
    assert score(mixed, tmp_path / "z.csv", tmp_path / "t.csv", "--wanted", "rooms", *FAST).shape == (10, 4)
    assert not (tmp_path / "s.csv").exists()


def test_a_model_of_some_columns_given_others(mixed: Path, some: Path, tmp_path: Path, capsys: Capture) -> None:
    small = ["--model.denoiser.net.hidden", "8", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    small += ["--data.given", "[rooms, kind, built]", "--trainer.accelerator", "cpu"]
    run = str(tmp_path / "run")
    assert main(["train", "table", "--data.path", str(mixed / "x.csv"), *small, "--out", run]) == 0
    assert main(["score", run, str(some), "--explain", *FAST, "--out", str(tmp_path / "s.csv")]) == 0
    assert "log p(price | rooms, kind, built)" in capsys.readouterr().out
    found = pandas.read_csv(tmp_path / "s.csv")
    assert found["explain:price"].notna().all()
    assert found["explain:kind"].isna().all()
    assert "as --data.given" in error(
        capsys, "score", run, str(some), "--given", "kind", "--out", str(tmp_path / "t.csv")
    )
