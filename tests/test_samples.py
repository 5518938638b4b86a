"""Samples as files, and the classes they are drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.networks import ResidualMLP
from ndm.samples import classes_in_turn, require_place, save_samples


def model(classes: int) -> ndm.NDM:
    return ndm.NDM(
        ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=4, depth=1, classes=classes))
    )


def test_every_class_in_turn() -> None:
    chosen = classes_in_turn(model(3), 7)
    assert chosen is not None
    assert chosen.tolist() == [0, 1, 2, 0, 1, 2, 0]
    one = classes_in_turn(model(3), 2, 1)
    assert one is not None
    assert one.tolist() == [1, 1]
    trained = classes_in_turn(model(4), 5, counts=[3, 0, 9])
    assert trained is not None
    assert trained.tolist() == [0, 2, 0, 2, 0]
    assert classes_in_turn(model(0), 5) is None


def test_classes_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"--label must be 0 \.\.\. 2, .* not 3"):
        classes_in_turn(model(3), 2, 3)
    with pytest.raises(ValueError, match=r"no training example; there are 0, 2"):
        classes_in_turn(model(3), 2, 1, [4, 0, 4])
    with pytest.raises(ValueError, match="trained without"):
        classes_in_turn(model(0), 2, 0)


def test_labels_are_beside_the_samples(tmp_path: Path) -> None:
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    for name in ("a.csv", "a.parquet", "a.npz"):
        save_samples(x, tmp_path / name, columns=("b", "label"), labels=labels)
    for table in (pandas.read_csv(tmp_path / "a.csv"), pandas.read_parquet(tmp_path / "a.parquet")):
        assert list(table) == ["b", "label", "label_"]
        assert table["label_"].tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(table[["b", "label"]].to_numpy(np.float32), x.numpy())
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["labels"].tolist() == [0, 1, 0, 1]
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "a.parquet", "a.npz"}


def test_what_cannot_be_saved_is_kept_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = torch.randn(4, 2)
    with pytest.raises(
        OSError, match=r"gone/x.csv could not be written \(No such file.*\); the samples are in"
    ) as error:
        save_samples(x, tmp_path / "gone" / "x.csv", labels=torch.arange(4))
    kept = np.load(str(error.value).rpartition(" ")[2].rstrip("."))
    np.testing.assert_array_equal(kept["x"], x.numpy())


def test_a_stop_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.csv"
    out.write_text("the old ones")

    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savetxt", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_samples(torch.randn(4, 2), out)
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]
    assert out.read_text() == "the old ones"


def test_a_place_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mine")
    require_place(tmp_path / "x.csv", overwrite=True)
    for name, error in (("x.csv", FileExistsError), ("x.txt", ValueError), ("no/x.csv", FileNotFoundError)):
        with pytest.raises(error):
            require_place(tmp_path / name)
