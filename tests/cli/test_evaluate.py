"""Evaluation by the command: what it prints, what it writes, and its exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from ndm.cli import main
from ndm.evaluation import read_places
from tests.cli.commands import Capture


def test_evaluate_writes_what_it_prints(run: Path, capsys: Capture) -> None:
    options = ["--steps", "2", "continuous", "--no-likelihood", "--max-examples", "8"]
    assert main(["evaluate", str(run), *options]) == 0
    table = capsys.readouterr().out
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    assert {row["steps"] for row in evaluation["rows"]} == {2, None}
    for row in evaluation["rows"]:
        assert f"{row['value']:.4f}" in table
        assert row["stderr"] > 0


def test_evaluate_ends_with_the_sentence_to_quote(run: Path, capsys: Capture) -> None:
    arguments = ["evaluate", str(run), "--steps", "2", "continuous", "--times", "2", "--tolerance", "1"]
    arguments += ["--device", "cpu"]
    assert main([*arguments, "--max-examples", "10"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    written = json.loads((run / "evaluation.json").read_text())
    assert last == written["quote"]
    assert re.match(r"test: \S+ ± \S+ nats, bound on -log p in continuous time, 10 random examples of 16; lower", last)
    assert written["about"]["split_examples"] == 16
    assert [row["quantity"] for row in written["rows"]][-1] == "Gaussian mixture"
    parts = []
    for seed in ("0", "0", "1"):
        assert main([*arguments, "--max-examples", "3", "--seed", seed, "--no-mixture", "--no-likelihood"]) == 0
        assert "Gaussian mixture" not in capsys.readouterr().out
        parts.append(read_places(run / "evaluation.npz")["bound, T = 2, posterior"].tolist())
    assert parts[0] == parts[1] != parts[2]


def test_what_was_evaluated_is_shown_even_if_it_cannot_be_saved(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(*arguments: Any, **values: Any) -> None:
        raise OSError(28, "No space left on device", "evaluation.npz")

    monkeypatch.setattr(np, "savez_compressed", full)
    arguments = ["--steps", "2", "--no-likelihood", "--no-mixture", "--device", "cpu"]
    assert main(["evaluate", str(run), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("quantity")
    assert said.out.splitlines()[-1].startswith("test: ")
    assert said.err.startswith("ndm: error: The results could not be saved in ")
    assert "No space left on device" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("value", [1e30, 3.0])
def test_rows_that_are_not_finite_are_told_and_none_that_is_finite_is_an_error(
    table: Path, tmp_path: Path, capsys: Capture, value: float
) -> None:
    frame = pandas.read_csv(table / "x.csv")[:4]
    frame["a"] = [1e30, value, value, 1e30]
    frame.to_csv(tmp_path / "far.csv", index=False)
    options = ["--times", "2", "--out", str(tmp_path / "scores.csv"), "--device", "cpu"]
    assert main(["score", str(table / "run"), str(tmp_path / "far.csv"), *options]) == (2 if value == 1e30 else 0)
    said = capsys.readouterr()
    count, rows = (4, "0, 1, 2, 3") if value == 1e30 else (2, "0, 3")
    assert said.out.count(f"not finite (inf or nan) for {count} of 4 rows, which are excluded: rows {rows}") == 2
    assert ("error: No row has a finite bound" in said.err) == (value == 1e30)
    assert len(pandas.read_csv(tmp_path / "scores.csv")) == 4


def test_evaluate_fails_where_no_example_is_finite(table: Path, tmp_path: Path, capsys: Capture) -> None:
    frame = pandas.read_csv(table / "x.csv")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        frame.assign(a=1e30 if split == "test" else frame["a"]).to_csv(folder / f"{split}.csv", index=False)
    options = ["--steps", "2", "--no-mixture", "--device", "cpu", "--other-data", "--data.path", str(folder)]
    assert main(["evaluate", str(table / "run"), *options]) == 2
    said = capsys.readouterr()
    assert "not finite (inf or nan) for 60 of 60 examples" in said.out
    assert "No example has a finite value of: upper bound on -log p(x), 2 steps" in said.err
