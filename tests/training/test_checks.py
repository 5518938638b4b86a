"""What is refused before a training writes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ndm
from ndm.data import Tensors, from_levels
from ndm.networks import ResidualMLP
from ndm.training import Run, TrainerOptions, TrainingOptions, checks, fit

NUMBERS = torch.arange(60).reshape(30, 2) % 5


def model(decoder: ndm.Decoder | None = None, classes: int = 0) -> ndm.NDM:
    net = ResidualMLP(2, hidden=4, depth=1, classes=classes)
    return ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), ndm.Denoiser(net), decoder)


def data(levels: int | None = 5, labels: Any = None) -> Tensors:
    x = NUMBERS if levels else torch.randn(30, 2)
    return Tensors(x[:20], x[20:], levels=levels, labels=labels)


def refused(tmp_path: Path, *parts: Any, **training: Any) -> str:
    """The sentence that a training is refused with, nothing having been written."""
    with pytest.raises(ValueError, match=r"^(The|In|training)\b") as error:
        fit(*parts, tmp_path / "run", TrainingOptions(**training), TrainerOptions(max_steps=1), progress=False)
    assert not (tmp_path / "run").exists()
    return str(error.value)


def test_levels_and_a_decoder_of_none(tmp_path: Path) -> None:
    said = refused(tmp_path, model(), data())
    assert "K = 5 levels, but the model's GaussianDecoder is for continuous data" in said
    assert "--model.decoder DiscretizedDecoder --model.decoder.levels 5" in said


def test_levels_and_a_decoder_of_others(tmp_path: Path) -> None:
    said = refused(tmp_path, model(ndm.DiscretizedDecoder(4)), data())
    assert "K = 5 levels, but the model's DiscretizedDecoder has 4: give --model.decoder.levels 5" in said


def test_continuous_data_and_a_decoder_of_levels(tmp_path: Path) -> None:
    said = refused(tmp_path, model(ndm.DiscretizedDecoder(5)), data(None))
    assert "give --model.decoder GaussianDecoder, or, of whole numbers 0 ... 4 in a table, --data.levels 5" in said
    x = from_levels(NUMBERS, 5)  # which are of the levels, though nobody has said so
    fit(model(ndm.DiscretizedDecoder(5)), Tensors(x[:20], x[20:]), tmp_path / "run",
        trainer=TrainerOptions(max_steps=1, accelerator="cpu"), progress=False)  # fmt: skip


@pytest.mark.parametrize(
    ("train", "validation", "sentence"),
    [
        ([0, 1, 4], [0], r"In the train split, labels must be 0 \.\.\. 2, got 0 \.\.\. 4: .*classes=5"),
        ([0, 1, 2], [3], r"In the validation split, labels must be 0 \.\.\. 2, got 3 \.\.\. 3"),
        ([1, 2, 3], [1], r"In the train split, labels must be 0 \.\.\. 2, got 1 \.\.\. 3"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, train: list[int], validation: list[int], sentence: str) -> None:
    labels = {"train": torch.tensor(train).repeat(7)[:20], "validation": torch.tensor(validation).repeat(10)}
    with pytest.raises(ValueError, match=sentence):
        fit(model(classes=3), data(None, labels), tmp_path / "run", TrainingOptions(labels=True), progress=False)
    assert not (tmp_path / "run").exists()


def test_labels_that_are_missing(tmp_path: Path) -> None:
    labels = {"train": torch.zeros(20, dtype=torch.long)}
    assert "has no labels" in refused(tmp_path, model(classes=3), data(None, labels), labels=True)
    with_gaps = data(None, labels | {"validation": torch.zeros(10, dtype=torch.long)})
    with_gaps._labels["train"][3] = -1
    assert "some labels are missing (-1): 1 of 20" in refused(tmp_path, model(classes=3), with_gaps, labels=True)


def test_labels_and_classes_go_together(tmp_path: Path) -> None:
    labels = {"train": torch.arange(20) % 4, "validation": torch.arange(10) % 4}
    assert "training.labels is not set" in refused(tmp_path, model(classes=4), data(None, labels))
    assert "--model.denoiser.net.classes 4" in refused(tmp_path, model(), data(None, labels), labels=True)


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0], [0, 3], [0.5, 1.0]])
def test_python_refuses_labels_that_are_no_classes(labels: list[Any]) -> None:
    chosen, x = torch.tensor(labels), torch.randn(2, 2)
    calls: list[Any] = [
        lambda m: m.bound(x, labels=chosen),
        lambda m: ndm.sample(m, 2, (2,), steps=2, labels=chosen),
        lambda m: ndm.log_likelihood(m, x, labels=chosen),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"labels must be (0 \.\.\.|integers from 0 to) 2"):
            call(model(classes=3))
    # What stands for no class is none of them: its samples are those without guidance by the label.
    assert ndm.sample(model(classes=3), 2, (2,), steps=2, labels=[0, 1], guidance=-1.0).isfinite().all()


def test_a_configuration_of_an_earlier_version_is_not_another_one(tmp_path: Path) -> None:
    """A run can be resumed by a version whose parts have more arguments."""
    run = Run(tmp_path)
    text = "model: {{denoiser: {{class_path: ndm.Denoiser, init_args: {{parameterization: eps{more}}}}}}}\n"
    run.config.write_text(text.format(more=""))
    checks._require_same(run, text.format(more=", time: u, path: own, clip: null, clock: null, base: null"))
    with pytest.raises(ValueError, match="trained with another model"):
        checks._require_same(run, text.format(more=", path: ve"))
