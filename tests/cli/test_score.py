"""Scores of the rows of a table by the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import torch

import ndm
from ndm.cli import main
from tests.cli.commands import Capture, error


def test_score_writes_a_line_for_each_row(table: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "scores.csv"
    command = ["score", str(table / "run"), str(table / "x.csv"), "--out", str(out), "--times", "2"]
    assert main([*command, "--tolerance", "1e-3", "--max-rows", "9", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "bound on -log p" in told.out
    assert "density of the reverse ODE" in told.out
    assert str(out) in told.err
    scores = pandas.read_csv(out)
    assert scores["row"].tolist() == list(range(9))
    model = ndm.NDM.from_pretrained(table / "run" / "model")
    x = torch.from_numpy(pandas.read_csv(table / "x.csv")[["a", "b, in m", "c"]].to_numpy(np.float32))[:9]
    expected = ndm.log_likelihood(model, x, tolerance=1e-6).log_prob
    np.testing.assert_allclose(scores["log_prob"], expected, atol=0.02)
    assert "exists" in error(capsys, *command)


def test_score_refuses_what_does_not_fit(table: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "scores.csv")]
    pandas.DataFrame({"a": [1.0], "c": [2.0], "d": [2.0]}).to_csv(tmp_path / "y.csv", index=False)
    assert "no column 'b, in m'" in error(capsys, "score", str(table / "run"), str(tmp_path / "y.csv"), *out)
    assert "has 3 numeric columns" in error(capsys, "score", str(run), str(tmp_path / "y.csv"), *out)
    assert "no file" in error(capsys, "score", str(run), str(tmp_path / "z.csv"), *out)
    assert "There is no run at" in error(capsys, "score", str(tmp_path / "none"), str(table / "x.csv"), *out)
    assert "--split is for images" in error(
        capsys, "score", str(table / "run"), str(table / "x.csv"), *out, "--split", "test"
    )
    assert not (tmp_path / "scores.csv").exists()
