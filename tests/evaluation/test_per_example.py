"""The values of single examples, which lie beside the figures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import ndm
from ndm.data import Gaussian
from ndm.evaluation import (
    Evaluation,
    evaluate,
    read_per_example,
    read_places,
)
from tests.evaluation.models import some


def test_the_values_of_examples_lie_beside_the_figures(exact: ndm.NDM, gaussian: Gaussian, tmp_path: Path) -> None:
    result = evaluate(exact, gaussian, steps=(2, None), variances=("posterior",), max_examples=20, tolerance=0.1)
    result.save(tmp_path / "evaluation.json")
    assert sorted(os.listdir(tmp_path)) == ["evaluation.json", "evaluation.npz"]
    found = read_per_example(tmp_path / "evaluation.npz")
    assert list(found) == ["bound, T = 2, posterior", "bound, continuous time", "log-likelihood"]
    for row, values, kept in zip(result.rows, result.per_example, found.values(), strict=True):
        assert torch.equal(values, kept)
        assert kept.mean().item() == row["value"]
        assert len(kept) == row["examples"] == 20


def test_a_figure_without_examples_has_no_values(tmp_path: Path) -> None:
    some().save(tmp_path / "e.json")
    assert list(read_per_example(tmp_path / "e.npz")) == ["bound, T = 10, posterior", "log-likelihood"]
    Evaluation().save(tmp_path / "e.json")  # nothing of another evaluation is left
    assert read_per_example(tmp_path / "e.npz") == {}


def test_both_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some().save(tmp_path / "e.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file, **values) -> None:
        file.write(b"some of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="full"):
        some(1.0).save(tmp_path / "e.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match=r"must end in \.json"):
        some().save(tmp_path / "e.npz")


def test_a_damaged_file_of_values_is_said_to_be_one(tmp_path: Path) -> None:
    path = some().save(tmp_path / "e.json").with_suffix(".npz")
    whole = path.read_bytes()
    for text in (b"", b"nonsense", whole[:-40], whole[:100]):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"damaged .*; evaluate the run again"):
            read_per_example(path)
    for wrong in (np.array([None]), np.array(["a"]), np.ones((2, 2)), np.arange(3)):
        np.savez_compressed(path, x=wrong)  # the first of these is a pickle
        with pytest.raises(ValueError, match="damaged"):
            read_per_example(path)
    for places in (np.arange(2), np.arange(3.0)):
        np.savez_compressed(path, **{"x": np.ones(3), "places: x": places})
        assert read_per_example(path)["x"].tolist() == [1, 1, 1]
        with pytest.raises(ValueError, match="damaged"):
            read_places(path)
    with pytest.raises(FileNotFoundError):
        read_per_example(tmp_path / "none.npz")
