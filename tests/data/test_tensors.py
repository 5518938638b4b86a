"""Tensors as a data set: what comes out is what was put in, and what does not fit is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ndm
from ndm.data import Data, Tensors, from_levels
from ndm.evaluation import evaluate
from ndm.networks import ResidualMLP
from ndm.training import TrainerOptions, TrainingOptions, fit

TRAIN, OTHER = torch.arange(12.0).reshape(4, 3), torch.ones(2, 3)


def test_numbers_are_the_examples() -> None:
    data = Tensors(TRAIN.double(), OTHER, TRAIN[:1])
    assert isinstance(data, Data)
    assert (data.shape, data.levels) == ((3,), None)
    assert data.train.dtype == torch.float32
    assert torch.equal(data.train, TRAIN)
    assert torch.equal(data.validation, OTHER)
    assert torch.equal(data.test, TRAIN[:1])
    assert torch.equal(data.examples("train")[torch.tensor([2, 0])], TRAIN[[2, 0]])
    assert data.labels("train") is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_are_levels(dtype: torch.dtype) -> None:
    k = torch.tensor([[0, 1], [255, 7], [3, 3]]).to(dtype)
    data = Tensors(test=k, levels=256)
    examples = data.examples("test")
    expected = (2 * k.double() + 1) / 256 - 1
    assert len(examples) == 3
    assert torch.equal(data.test, expected.float())
    assert torch.equal(examples[torch.tensor([1, 1])], expected[[1, 1]].float())
    assert torch.equal(examples[1:], expected[1:].float())


def test_integers_stay_as_small_as_they_are() -> None:
    k = torch.zeros(10, 4, dtype=torch.uint8)
    assert Tensors(k, levels=256).examples("train").numbers.data_ptr() == k.data_ptr()


def test_values_may_lie_on_the_levels_already() -> None:
    k = torch.tensor([[0, 4], [2, 3]])
    assert torch.equal(Tensors(from_levels(k, 5), levels=5).train, Tensors(k, levels=5).train)


def test_labels_belong_to_their_split() -> None:
    data = Tensors(TRAIN, OTHER, labels={"train": torch.tensor([0, 2, 1, 0], dtype=torch.int16)})
    labels = data.labels("train")
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, 1, 0]
    assert data.labels("validation") is None


def test_a_gradient_is_left_behind() -> None:
    assert not Tensors(TRAIN.clone().requires_grad_()).train.requires_grad


def test_a_split_that_was_not_given_is_asked_for() -> None:
    data = Tensors(TRAIN)
    for name in ("validation", "test"):
        with pytest.raises(ValueError, match=rf"without a {name} split: pass {name}=, of shape \(N, 3\)"):
            data.examples(name)
        with pytest.raises(ValueError, match=f"without a {name} split"):
            data.labels(name)
    with pytest.raises(ValueError, match="no split 'dev'"):
        data.split("dev")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "at least one of train=, validation= and test=.* a configuration"),
        ({"train": [[1.0]]}, "train must be a tensor, not list"),
        ({"train": torch.ones(3)}, r"shape \(N, \*shape\), got \(3,\)"),
        ({"train": torch.ones(0, 3)}, r"train split has no examples: .*\(0, 3\)"),
        (
            {"train": TRAIN, "test": torch.ones(2, 4)},
            r"the same shape, got \(3,\) in the train split, \(4,\) in the test",
        ),
        ({"train": TRAIN, "test": OTHER / 0}, "test split has NaN or infinite"),
        ({"test": TRAIN.long()}, r"test split has dtype torch.int64: give levels=K"),
        ({"test": TRAIN > 2}, r"test split has dtype torch.bool: give levels=K"),
        ({"test": TRAIN + 0j, "levels": 12}, r"test split has dtype torch.complex64"),
        (
            {"test": TRAIN.long(), "levels": 11},
            r"In the test split: Level numbers must lie in 0 \.\.\. 10, not 0 \.\.\. 11",
        ),
        ({"test": -TRAIN.long(), "levels": 12}, r"not -11 \.\.\. 0"),
        ({"train": TRAIN, "levels": 1}, "levels must be at least 2, got 1"),
        (
            {"train": TRAIN, "labels": {"test": torch.zeros(2).long()}},
            "labels has an entry for 'test', but the splits are train",
        ),
        ({"train": TRAIN, "labels": {"train": torch.zeros(3).long()}}, "a tensor of 4 non-negative integers"),
        ({"train": TRAIN, "labels": {"train": torch.zeros(4)}}, "a tensor of 4 non-negative integers"),
        ({"train": TRAIN, "labels": {"train": torch.tensor([0, -1, 0, 0])}}, "a tensor of 4 non-negative integers"),
        ({"train": TRAIN, "labels": {"train": [0, 1, 2, 3]}}, "a tensor of 4 non-negative integers"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Tensors(**arguments)


def test_two_levels_may_be_truths() -> None:
    assert torch.equal(Tensors(TRAIN > 2, levels=2).train, torch.where(TRAIN > 2, 0.5, -0.5))


def test_a_model_is_trained_and_evaluated_on_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    k = torch.randint(5, (60, 4))
    labels = {"train": k[:40, 0], "validation": k[40:, 0]}
    data = Tensors(k[:40], k[40:], levels=5, labels=labels)
    net = ResidualMLP(4, hidden=8, depth=1, classes=5)
    model = ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(5))
    trainer = TrainerOptions(max_steps=4, val_check_interval=2, accelerator="cpu")
    fit(model, data, tmp_path / "run", TrainingOptions(batch_size=16, labels=True), trainer, progress=False)
    assert ndm.training.Run(tmp_path / "run").read_data() == ((4,), 5)

    new = Tensors(test=k[40:], levels=5, labels={"test": k[40:, 0]})  # enough for an evaluation that calibrates nothing
    result = evaluate(model, new, steps=(2, None), variances=("posterior",), times=2, likelihood=False)
    assert [row["unit"] for row in result.rows] == ["bits/dim"] * 2
    assert result.about["data"] == "Tensors"
    with pytest.raises(ValueError, match="without a train split"):
        evaluate(model, new, steps=(2,), variances=("isotropic",), likelihood=False)
