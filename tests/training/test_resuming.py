"""A resumed run is the same run, and nothing in a checkpoint is executed."""

from __future__ import annotations

import os
import pickle
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ndm
from ndm.data import Pinwheel
from ndm.networks import ResidualMLP
from ndm.training import NDMModule, fit
from ndm.training.reading import read_checkpoint
from tests.training.runs import SPEEDS, checkpoint, column, contents, rows, same


class Crash(Exception):  # noqa: N818
    """Stands for a power failure."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    hook = NDMModule.on_train_batch_end

    def failing(self: NDMModule, *args: Any) -> None:
        hook(self, *args)
        if self.global_step == step:
            raise error

    monkeypatch.setattr(NDMModule, "on_train_batch_end", failing)


@pytest.mark.parametrize("options", [{}, {"batch_size": 70}, {"steps": 10, "rate": "constant"}])
def test_a_resumed_run_is_the_same_run(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, **options)
    with monkeypatch.context() as patch:
        crash_at(patch, 13, Crash())
        with pytest.raises(Crash):
            train(broken, **options)
    assert checkpoint(broken)["global_step"] == 10
    assert not (broken / "model").exists()
    train(broken, resume=True, **options)

    one, other = checkpoint(whole), checkpoint(broken)
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert same(one[key], other[key]), key
    assert contents(whole / "model") == contents(broken / "model")
    curves = [[{k: v for k, v in row.items() if k not in SPEEDS} for row in rows(r)] for r in (whole, broken)]
    assert curves[0] == curves[1]
    assert "resumed at step 10" in (broken / "log.txt").read_text()


def test_a_finished_run_can_be_made_longer(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "whole", 20, rate="constant")
    train(tmp_path / "longer", 10, rate="constant")
    train(tmp_path / "longer", 20, rate="constant", resume=True)
    assert contents(tmp_path / "whole" / "model") == contents(tmp_path / "longer" / "model")
    assert column(tmp_path / "whole", "val/total") == column(tmp_path / "longer", "val/total")
    assert checkpoint(tmp_path / "longer")["global_step"] == 20


@pytest.mark.parametrize(
    ("option", "still"),
    [
        ({"learning_rate": 1e-15}, ("schedule", "transform", "denoiser")),
        ({"transform_rate": 1e-13}, ("transform",)),
        ({"endpoint_rate": 1e-13}, ("end_shifts",)),
    ],
)
def test_a_resumed_run_takes_the_rates_that_it_is_given(
    train: Any, tmp_path: Path, option: dict[str, float], still: tuple[str, ...]
) -> None:
    train(tmp_path / "run", 10, rate="constant")
    before = checkpoint(tmp_path / "run")["current_model_state"]
    train(tmp_path / "run", 15, rate="constant", resume=True, **option)
    after = checkpoint(tmp_path / "run")["current_model_state"]
    change = {name: (after[name] - before[name]).abs().max().item() for name in after}
    held = [name for name in change if set(name.split(".")) & set(still)]
    assert held
    assert max(change[name] for name in held) < 1e-9
    if len(still) < 3:
        assert sum(by > 1e-4 for by in change.values()) > 5
    rate = option.get("learning_rate", 1e-2)
    assert column(tmp_path / "run", "train/learning_rate")[-1] == pytest.approx(rate, rel=1e-6)
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]
    assert {name: recorded[name] for name in option} == option


def test_a_resumed_run_takes_the_decay_and_the_betas_that_it_is_given(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", 10, rate="constant")
    before = checkpoint(tmp_path / "run")
    name = "model.denoiser.net.input.weight"
    train(tmp_path / "run", 11, rate="constant", resume=True, weight_decay=50.0, beta2=0.5)
    after = checkpoint(tmp_path / "run")
    # AdamW (arXiv 1711.05101, algorithm 2): a step multiplies by 1 - rate * decay, and adds about the rate at most.
    old, new = (c["current_model_state"][name] for c in (before, after))
    assert torch.allclose(new, (1 - 1e-2 * 50) * old, atol=5e-2)
    assert {group["betas"] for group in after["optimizer_states"][0]["param_groups"]} == {(0.9, 0.5)}
    decays = {group["weight_decay"] for group in after["optimizer_states"][0]["param_groups"]}
    assert decays == {0.0, 50.0}


@pytest.mark.parametrize("option", [{"standardize": False}, {"base": "mixture"}])
def test_what_the_model_is_made_of_cannot_be_changed_by_resuming(
    train: Any, tmp_path: Path, option: dict[str, Any]
) -> None:
    train(tmp_path / "run", 5, base="none")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=f"trained with another training.{next(iter(option))}"):
        train(tmp_path / "run", 10, resume=True, **{"base": "none", **option})
    assert contents(tmp_path / "run") == before


def test_a_flipped_bit_in_a_checkpoint_is_found_or_changes_nothing(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", 5)
    whole, path = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes(), tmp_path / "flipped.ckpt"
    refused, before = 0, checkpoint(tmp_path / "run")
    for place in random.Random(0).sample(range(8 * len(whole)), 100):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert same(read_checkpoint(path), before)
        except ValueError as error:
            assert "is damaged, or not a checkpoint" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


def test_resuming_a_finished_run_changes_nothing(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = contents(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    after = contents(tmp_path / "run")
    assert {k for k in before if before[k] != after[k]} == {"log.txt"}


def test_another_run_is_not_resumed(train: Any, data: Pinwheel, tmp_path: Path) -> None:
    train(tmp_path / "run", 5)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="trained with another seed"):
        train(tmp_path / "run", 10, seed=1, resume=True)
    other = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)))
    with pytest.raises(ValueError, match="trained with another model"):
        fit(other, data, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_there_must_be_something_to_resume(train: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run at"):
        train(tmp_path / "run", resume=True)
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        train(tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == {}


class Bomb:
    """A pickle that makes a folder when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", 5)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save({**checkpoint(tmp_path / "run"), "bomb": Bomb(tmp_path / "exploded")}, last)
    with pytest.raises(ValueError, match="was not loaded"):
        train(tmp_path / "run", 10, resume=True)
    last.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2))
    with pytest.raises(ValueError, match="was not loaded"):
        train(tmp_path / "run", 10, resume=True)
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_checkpoint_is_said_to_be_one(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", 5)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        train(tmp_path / "run", 10, resume=True)


def test_an_interrupt_keeps_the_checkpoint_and_the_handler(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    crash_at(monkeypatch, 7, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] == 5
    assert signal.getsignal(signal.SIGINT) is handler
