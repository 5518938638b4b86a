"""Losses that are not finite, and what is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

import ndm
from ndm.data import Pinwheel
from ndm.method.bounds import BoundTerms
from ndm.networks import ResidualMLP
from ndm.training import NDMModule, NonFiniteLoss, Run, fit
from tests.training.runs import checkpoint, contents


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, training: bool, change: Any) -> None:
    """Let the bound be ``change`` of what it is, from a step on."""
    bound = ndm.NDM.bound
    current: list[int] = [0]
    for name in ("training_step", "validation_step"):
        method = getattr(NDMModule, name)

        def wrapped(self: LightningModule, *args: Any, method: Any = method) -> Any:
            current[0] = self.global_step
            return method(self, *args)

        monkeypatch.setattr(NDMModule, name, wrapped)

    def spoilt(self: ndm.NDM, *args: Any, **options: Any) -> BoundTerms:
        terms = bound(self, *args, **options)
        return change(self, terms) if current[0] >= step and self.training is training else terms

    monkeypatch.setattr(ndm.NDM, "bound", spoilt)


def with_diffusion(value: float) -> Any:
    def change(model: ndm.NDM, terms: BoundTerms) -> BoundTerms:
        return BoundTerms(terms.diffusion * value, terms.prior, terms.reconstruction, terms.dimensions, terms.auxiliary)

    return change


def with_bad_gradient(model: ndm.NDM, terms: BoundTerms) -> BoundTerms:
    zero = next(model.parameters()).flatten()[0] * 0
    bad = terms.prior + zero.abs().sqrt()  # finite, with an infinite derivative
    return BoundTerms(terms.diffusion, bad, terms.reconstruction, terms.dimensions, terms.auxiliary)


@pytest.mark.parametrize(
    ("training", "change", "sentence", "kept"),
    [
        (True, with_diffusion(float("nan")), r"the bound is not finite \(diffusion\) at training step 7", 5),
        (True, with_diffusion(float("inf")), r"the bound is not finite \(diffusion\) at training step 7", 5),
        (True, with_bad_gradient, r"the gradient is not finite at training step 7", 5),
        (False, with_diffusion(float("nan")), r"\(diffusion\) at the validation after step 10", 5),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool, change: Any, sentence: str, kept: int
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, 7, training, change)
        with pytest.raises(NonFiniteLoss, match=sentence) as caught:
            train(tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message
    assert "training.learning_rate (currently 0.01)" in message
    assert str(Run(tmp_path / "run").last) in message
    last = checkpoint(tmp_path / "run")
    assert last["global_step"] == kept
    for state in (last["state_dict"], last["current_model_state"]):
        assert all(torch.isfinite(v).all() for v in state.values())
    train(tmp_path / "run", resume=True)  # and from there it goes on


def test_an_early_failure_says_that_there_is_no_checkpoint(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2, True, with_diffusion(float("nan")))
    with pytest.raises(NonFiniteLoss, match="no checkpoint had been written yet"):
        train(tmp_path / "run")


def test_nothing_is_overwritten(train: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another --out"):
        train(tmp_path / "run")
    assert contents(tmp_path / "run") == {"notes.txt": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="nothing was written"):
        train(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_written_to(train: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    train(tmp_path / "run", 1)
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_with_nan_are_refused_before_anything_is_written(
    train: Any, data: Pinwheel, tmp_path: Path, split: str
) -> None:
    train(tmp_path / "good", 1)
    data.split(split)[3, 1] = float("nan")
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)))
    with pytest.raises(ValueError, match=f"In the {split} split: The data contain NaN"):
        fit(model, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_of_another_shape_are_refused_before_anything_is_written(data: Pinwheel, tmp_path: Path) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(3)))
    with pytest.raises(ValueError, match="takes 3 features"):
        fit(model, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_must_be_there(train: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="network has no classes"):
        train(tmp_path / "run", labels=True)
