"""Rows that cannot be scored: they are counted and spoil no other row."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

import ndm
from ndm.data import part_of
from ndm.scoring import score
from ndm.scoring.scorer import Scorer
from tests.scoring.models import draw, gaussian, small


@pytest.mark.usefixtures("unchecked")
def test_a_row_without_a_finite_bound_is_not_solved_and_counted_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real, solved = draw(20), ndm.evaluation.per_example.log_likelihood, []
    x[7, 0] = 1e30

    def spy(model: ndm.NDM, x: Tensor, **options):
        solved.append(x)
        return real(model, x, **options)

    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", spy)
    scores = score(gaussian(), x, tmp_path / "x.parquet", times=2, tolerance=0.1, progress=False)
    assert torch.cat(solved).abs().max() < 100
    for name in ("nelbo", "log_prob"):
        assert scores.about[name]["not_finite"] == 1
        assert scores.about[name]["not_finite_rows"] == [7]
        assert math.isfinite(scores.about[name]["mean"])
    assert scores.text().count("for 1 of 20 rows, which are excluded: row 7") == 2
    scores.require_finite()
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert np.flatnonzero(~np.isfinite(table["log_prob"])).tolist() == [7]


def test_where_no_row_is_finite_it_is_said(tmp_path: Path) -> None:
    x = draw(5)
    x[:, 0] = 1e30
    scores = score(gaussian(), x, tmp_path / "x.parquet", times=2, progress=False)
    assert scores.about["nelbo"]["mean"] is None
    assert scores.about["log_prob"]["mean"] is None
    assert "for 5 of 5 rows" in scores.text()
    with pytest.raises(ValueError, match=r"No row has a finite bound; the file .*x.parquet was written"):
        scores.require_finite()
    kept = pyarrow.parquet.read_schema(tmp_path / "x.parquet").metadata[b"ndm"]
    json.loads(kept, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_one_row_has_no_standard_error(tmp_path: Path) -> None:
    scores = score(gaussian(), draw(1), tmp_path / "x.parquet", times=2, tolerance=0.1, progress=False)
    assert scores.about["nelbo"]["stderr"] is None
    assert "± - nats" in scores.text()
    kept = pyarrow.parquet.read_schema(tmp_path / "x.parquet").metadata[b"ndm"]
    json.loads(kept, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_rows_that_are_solved_again_are_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    seen = []
    monkeypatch.setattr(Scorer, "check", lambda self, x, labels=None: (seen.append(x), ("density", 0.5))[1])
    monkeypatch.setattr("ndm.scoring.scores.CHECKED", 3 * n)
    x = draw(100)
    scores = score(gaussian(), x, tmp_path / "x.csv", times=2, tolerance=1.0, batch_size=16, progress=False)
    torch.testing.assert_close(seen[0], x[part_of(100, n, seed=0)], rtol=0, atol=0)
    assert scores.about["log_prob"]["checked_error"] == 0.5


def test_a_row_that_cannot_be_solved_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(20)
    x[[3, 17]] = 9.0
    real = ndm.evaluation.per_example.log_likelihood

    def fragile(model: ndm.NDM, x: Tensor, **options):
        result = real(model, x, **options)
        return dataclasses.replace(result, log_prob=result.log_prob.where((x != 9).all(1), math.nan))

    score(gaussian(), x, tmp_path / "whole.csv", times=2, precision="64", progress=False)
    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", fragile)
    scores = score(gaussian(), x, tmp_path / "x.csv", times=2, precision="64", progress=False)
    whole, table = pandas.read_csv(tmp_path / "whole.csv"), pandas.read_csv(tmp_path / "x.csv")
    assert np.flatnonzero(table["log_prob"].isna()).tolist() == [3, 17]
    assert np.isfinite(table["nelbo"]).all()
    there = table["log_prob"].notna()
    np.testing.assert_allclose(table["log_prob"][there], whole["log_prob"][there], atol=1e-8)
    assert scores.about["log_prob"]["unsolved"] == 2
    assert "not finite (inf or nan) for 2 of 20 rows, which are excluded: rows 3, 17" in scores.text()
    failing = lambda *a, **o: (_ for _ in ()).throw(RuntimeError("no memory"))  # noqa: E731
    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        score(gaussian(), x, tmp_path / "y.csv", times=2, progress=False)


@pytest.mark.slow
def test_rows_that_miss_the_tolerance_are_counted(tmp_path: Path) -> None:
    scores = score(small(), 30 * draw(3), tmp_path / "x.csv", times=2, tolerance=1e-9, progress=False)
    table = pandas.read_csv(tmp_path / "x.csv")
    assert scores.about["log_prob"]["missed_tolerance"] == (table["solver_error"] > 1e-9).sum() > 0
    assert "not solved to the tolerance: 3 of 3 rows" in scores.text()
