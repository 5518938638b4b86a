"""Pictures, precision, memory formats and compilation do not change a training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.training.devices.processes import IMAGES, assert_same_run, assert_same_run_exactly, column, train, weights

pytestmark = pytest.mark.slow


def test_pictures_are_drawn_and_change_nothing(images: Path, alone: Path, tmp_path: Path) -> None:
    out = train(images, tmp_path / "run", "--trainer.pictures_every", "2")
    assert_same_run_exactly(alone, out)
    pictures = sorted((out / "pictures").iterdir())
    steps = ("00000020", "00000050")  # the first validation and the third
    assert [p.name for p in pictures] == [
        f"{step}-{kind}.png" for step in steps for kind in ("samples", "transformation")
    ]
    for picture in pictures:
        assert np.asarray(Image.open(picture)).std() > 1
    assert not (alone / "pictures").exists()


def test_pictures_show_what_was_learned_alone(points: Path, tmp_path: Path) -> None:
    """Where nothing is learned the next picture is the same."""
    nothing = ("--trainer.pictures_every", "1", "--trainer.max_steps", "40", "--training.learning_rate", "1e-12")
    first, second = sorted((train(points, tmp_path / "run", *nothing) / "pictures").iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_bfloat16_trains_about_the_same(images: Path, alone: Path, tmp_path: Path) -> None:
    out = train(images, tmp_path / "run", "--trainer.precision", "bf16-mixed")
    assert column(out, "val/total") == pytest.approx(column(alone, "val/total"), rel=0.01)
    assert column(out, "val/total") != column(alone, "val/total")
    assert {w.dtype for w in weights(out).values()} == {torch.float32}


def test_double_precision_goes_on_to_the_last_bit(points: Path, tmp_path: Path) -> None:
    double = ("--trainer.precision", "64-true", "--training.rate", "constant")
    whole = train(points, tmp_path / "whole", *double, "--trainer.max_steps", "40")
    train(points, tmp_path / "run", *double, "--trainer.max_steps", "20")
    out = train(points, tmp_path / "run", *double, "--trainer.max_steps", "40", "--resume")
    assert_same_run_exactly(whole, out)


UNET = yaml.safe_load(IMAGES)["model"] | {
    "transform": {"class_path": "Identity"},
    "denoiser": {
        "class_path": "Denoiser",
        "init_args": {
            "net": {
                "class_path": "UNet",
                "init_args": {"channels": 1, "width": 8, "multipliers": [1, 2], "groups": 4, "dropout": 0.0},
            }
        },
    },
}


def test_channels_last_changes_nothing(images: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(images.read_text())
    config["model"] = UNET
    config["data"]["init_args"]["size"] = 8
    config["training"] |= {"labels": False, "label_dropout": 0.0}
    config["trainer"] |= {"max_steps": 15, "val_check_interval": 5}
    (tmp_path / "unet.yaml").write_text(yaml.safe_dump(config))
    first = train(tmp_path / "unet.yaml", tmp_path / "first")
    last = train(tmp_path / "unet.yaml", tmp_path / "last", "--trainer.channels_last", "true")
    assert_same_run(first, last)


def test_speed_and_memory_are_logged(images: Path, alone: Path) -> None:
    milliseconds, flow, memory = (
        column(alone, f"train/{name}") for name in ("ms_per_step", "examples_per_second", "memory_gib")
    )
    assert len(milliseconds) == len(flow) == len(memory) == 10
    for one, other in zip(milliseconds, flow, strict=True):
        assert 0.1 < one < 10_000
        assert one / 1000 * other == pytest.approx(24, rel=1e-3)
    assert 0.1 < memory[0] <= memory[-1] < 64
    assert all(math.isfinite(value) for value in column(alone, "train/gradient_norm"))


@pytest.mark.slow
def test_compiled_networks_train_the_same_model(points: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "60", "--training.learning_rate", "1e-3")
    options = (*short, "--model.denoiser.init_args.net.init_args.dropout", "0.0")  # its numbers would be others
    one, other = train(points, tmp_path / "one", *options), tmp_path / "other"
    assert_same_run(one, train(points, other, *options, "--trainer.compile", "true"))
