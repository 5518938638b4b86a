"""``ndm distill`` and ``ndm score --fast``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.cli import main

pytestmark = pytest.mark.slow

SMALL = ("--rows", "2000", "--steps", "60")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table, with a distilled score."""
    folder = tmp_path_factory.mktemp("distill")
    random = np.random.default_rng(0)
    table = pandas.DataFrame(random.normal(size=(400, 2)) * [1.0, 3.0], columns=["a", "b"])
    table.to_csv(folder / "rows.csv", index=False)
    table.iloc[:50].to_csv(folder / "some.csv", index=False)
    arguments = ["--data.path", str(folder / "rows.csv"), "--trainer.max_steps", "2", "--training.base", "none"]
    assert main(["train", "table", *arguments, "--out", str(folder / "run")]) == 0
    assert main(["distill", str(folder / "run"), *SMALL]) == 0
    return folder / "run"


def fast(run: Path, out: Path, *options: str, data: str = "some.csv") -> int:
    return main(["score", str(run), str(run.parent / data), "--fast", "--out", str(out), *options])


def test_the_file_has_scores_and_errors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fast(run, tmp_path / "s.csv") == 0
    found = pandas.read_csv(tmp_path / "s.csv")
    assert list(found) == ["row", "log_prob", "error_median", "error_95", "exact"]
    assert found["row"].tolist() == list(range(50))
    assert (found["exact"] == 0).all()
    assert (found["error_median"] <= found["error_95"]).all()
    assert "50 rows in" in capsys.readouterr().out


def test_unlikely_and_distant_rows_are_scored_exactly(run: Path, tmp_path: Path) -> None:
    far = pandas.read_csv(run.parent / "some.csv")
    far.loc[7, "a"] = 40.0
    far.to_csv(run.parent / "far.csv", index=False)
    assert fast(run, tmp_path / "s.parquet", "--exact-below", "0.2", data="far.csv") == 0
    found = pandas.read_parquet(tmp_path / "s.parquet")
    exact = found["exact"] == 1
    assert exact[7]
    assert 4 < exact.sum() < 25
    model = ndm.NDM.from_pretrained(run / "model").eval()
    rows = torch.tensor(far.to_numpy())[exact.to_numpy()]
    expected = ndm.log_likelihood(model, rows, tolerance=1e-2).log_prob
    others = found["log_prob"][exact].to_numpy() - expected.numpy()
    assert (np.abs(others) <= found["error_95"][exact] + 1e-3).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--times", "10"], "--times cannot be used with --fast"),
        (["--no-likelihood"], "--no-likelihood cannot be used with --fast"),
        (["--given", "a"], "--fast cannot be used for conditional scores"),
        (["--exact-below", "2"], "--exact-below"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert fast(run, tmp_path / "s.csv", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def test_a_run_without_a_fast_score_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndm.training.Run.distilled", property(lambda self: self.path / "nothing"))
    assert fast(run, tmp_path / "s.csv") == 2
    assert f"run `ndm distill {run}` first" in capsys.readouterr().err
    assert main(["score", str(run), "x.csv", "--out", str(tmp_path / "s.csv"), "--exact-below", "0.1"]) == 2
    assert "--exact-below is for --fast" in capsys.readouterr().err


def test_a_fast_score_of_another_model_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndm.scoring.checks.fingerprint", lambda model: "another")
    assert fast(run, tmp_path / "s.csv") == 2
    assert "is of another model" in capsys.readouterr().err
