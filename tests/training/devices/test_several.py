"""Several processes, and a batch in pieces: the same training as by one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ndm.cli import main
from tests.training.devices.processes import (
    SHARDED,
    assert_same_run,
    assert_same_run_exactly,
    checkpoint,
    column,
    leaves,
    train,
    train_in_processes,
)

pytestmark = pytest.mark.slow


def test_a_batch_in_two_pieces_is_the_same_step(images: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(alone, train(images, tmp_path / "run", "--trainer.accumulate", "2"))


def test_two_processes_train_the_same_model(images: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(alone, train_in_processes(images, tmp_path / "run", "--trainer.devices", "2"))


def test_two_processes_with_parts_of_the_network_train_the_same_model(
    images: Path, alone: Path, tmp_path: Path
) -> None:
    out = train_in_processes(images, tmp_path / "run", *SHARDED, "--trainer.accumulate", "2")
    assert_same_run(alone, out)
    # Its checkpoint is one that a single process goes on from.
    longer = ("--trainer.max_steps", "60", "--resume")
    train(images, out, *longer)
    whole = tmp_path / "whole"
    shutil.copytree(alone, whole)
    assert_same_run(train(images, whole, *longer), out)


@pytest.mark.slow
def test_parts_of_a_network_go_on_to_the_last_bit_and_in_another_number(
    images: Path, alone: Path, tmp_path: Path
) -> None:
    constant = ("--training.rate", "constant", "--training.keep", "best", "--trainer.pictures_every", "1")
    sharded = (*SHARDED, *constant)
    whole = train_in_processes(images, tmp_path / "whole", *sharded)
    broken = train_in_processes(images, tmp_path / "broken", *sharded, "--trainer.max_steps", "20")
    shutil.copytree(broken, tmp_path / "three")
    train_in_processes(images, broken, *sharded, "--resume")
    assert (broken / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert dict(leaves(checkpoint(broken)["lr_schedulers"])) == dict(leaves(checkpoint(whole)["lr_schedulers"]))
    three = train_in_processes(images, tmp_path / "three", *sharded, "--trainer.devices", "3", "--resume")
    assert_same_run(whole, three)
    mixed = train_in_processes(images, tmp_path / "mixed", *SHARDED, "--trainer.precision", "bf16-mixed")
    assert column(mixed, "val/total")[-1] == pytest.approx(column(alone, "val/total")[-1], rel=0.01)


@pytest.mark.slow
def test_parts_of_a_network_can_be_compiled(images: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(alone, train_in_processes(images, tmp_path / "run", *SHARDED, "--trainer.compile", "true"))


def test_one_process_has_the_whole_network(points: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "20")
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    train(points, whole, *short)
    train(points, divided, *short, "--trainer.strategy", "fsdp")
    assert_same_run_exactly(whole, divided)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--trainer.precision", "64-true"), "use ddp for 64-true"),
        (("--trainer.channels_last", "true"), "choose one of the two"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], sentence: str
) -> None:
    assert main(["train", str(points), "--out", str(tmp_path / "run"), *SHARDED, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
