from __future__ import annotations

import csv
import json
import math
import os
import pickle
import platform
import random
import re
import signal
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor

import ndm
from ndm.data import Digits, Pinwheel
from ndm.method.bounds import BoundTerms
from ndm.networks import ResidualMLP
from ndm.storage.lock import FolderLock
from ndm.training import NDMModule, NonFiniteLoss, Run, TrainerOptions, TrainingOptions, fit
from ndm.training.batches import InOrder
from ndm.training.run import read_checkpoint


def digits_model() -> ndm.NDM:
    torch.manual_seed(0)
    denoiser = ndm.Denoiser(ResidualMLP(64, hidden=16, depth=1))
    return ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), denoiser, ndm.DiscretizedDecoder(17))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(out: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(out) if row[name]]


def checkpoint(out: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Equality to the last bit, of trees of tensors."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- what a run leaves behind


def test_a_run_writes_its_folder(train: Any, data: Pinwheel, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    model = train(out)
    assert {p.name for p in out.iterdir()} >= {
        "config.yaml", "data.json", "environment.json", "log.txt", "metrics.csv", "checkpoints", "model",
    }  # fmt: skip
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert json.loads((out / "data.json").read_text()) == {
        "shape": [2], "levels": None, "splits": {"train": 70, "validation": 40, "test": 10},
        "fingerprint": data.fingerprint(),
    }  # fmt: skip
    FolderLock(out)  # which the training has let go
    log = (out / "log.txt").read_text()
    assert "started at step 0" in log
    assert len(re.findall(r"step +\d+   validation", log)) == 4
    assert "nats" in log

    loaded = ndm.NDM.from_pretrained(out / "model")
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert not model.training


def test_the_curve_has_every_term_and_adds_up(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run")
    training = [row for row in rows(tmp_path / "run") if row["train/total"]]
    validation = [row for row in rows(tmp_path / "run") if row["val/total"]]
    assert [int(row["step"]) for row in training] == list(range(2, 21, 2))
    assert [int(row["step"]) for row in validation] == [5, 10, 15, 20]
    for kind, found in (("train", training), ("val", validation)):
        for row in found:
            parts = sum(float(row[f"{kind}/{term}"]) for term in ("diffusion", "prior", "reconstruction"))
            assert float(row[f"{kind}/total"]) == pytest.approx(parts, rel=1e-4)
    for row in training:
        assert float(row["train/ms_per_step"]) > 0
        assert float(row["train/gradient_norm"]) > 0
    assert all(float(row["val/total_stderr"]) > 0 for row in validation)


def test_training_learns(tmp_path: Path) -> None:
    trainer = TrainerOptions(max_steps=60, accelerator="cpu", val_check_interval=5)
    training = TrainingOptions(learning_rate=5e-3, warmup=5)
    fit(digits_model(), Digits(), tmp_path / "run", training, trainer, progress=False)
    first, *_, last = column(tmp_path / "run", "val/total")
    assert last < first - 0.1  # the noise of both is the same


def test_a_last_validation_comes_whatever_the_interval(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=7)
    assert [int(row["step"]) for row in rows(tmp_path / "run") if row["val/total"]] == [5, 7]
    assert checkpoint(tmp_path / "run")["global_step"] == 7


def test_validation_always_uses_the_same_noise(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", learning_rate=1e-12)
    validation, training = column(tmp_path / "run", "val/total"), column(tmp_path / "run", "train/total")
    assert max(validation) - min(validation) < 1e-5
    assert max(training) - min(training) > 1e-2


def test_k_level_data_are_in_bits_per_dimension(tmp_path: Path) -> None:
    data, model = Digits(), digits_model()
    with torch.no_grad():
        start = model.bound(data.validation.repeat(20, 1, 1, 1)).bits_per_dim.mean().item()
    trainer = TrainerOptions(max_steps=1, accelerator="cpu")
    fit(model, data, tmp_path / "run", TrainingOptions(learning_rate=1e-9), trainer, progress=False)
    assert column(tmp_path / "run", "val/total")[0] == pytest.approx(start, rel=0.02)
    assert "bits/dim" in (tmp_path / "run" / "log.txt").read_text()


def test_a_conditional_model_is_trained_with_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ResidualMLP(64, hidden=8, depth=1, classes=10, zero_init=False)
    before = net.embed_class.weight.clone()
    model = ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(17))
    trainer = TrainerOptions(max_steps=2, accelerator="cpu")
    fit(model, Digits(), tmp_path / "run", TrainingOptions(labels=True), trainer, progress=False)
    assert (net.embed_class.weight != before)[:10].any(1).all()  # every class was seen


def test_learned_end_points_are_in_the_curve(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=10)
    low, high = column(tmp_path / "run", "train/gamma_0"), column(tmp_path / "run", "train/gamma_1")
    assert len(low) == len(high) == 5
    state = checkpoint(tmp_path / "run")["current_model_state"]  # after step 10, not averaged
    first, last = state["model.schedule.end_shifts"].tolist()
    assert low[-1] == pytest.approx(-6 + 5 * math.tanh(first), abs=1e-5)
    assert high[-1] == pytest.approx(4 + 3 * math.tanh(last), abs=1e-5)
    assert len(set(low)) == len(set(high)) == 5


def test_fixed_end_points_are_not(tmp_path: Path) -> None:
    trainer = TrainerOptions(max_steps=1, log_every_n_steps=1, accelerator="cpu")
    fit(digits_model(), Digits(), tmp_path / "run", trainer=trainer, progress=False)
    assert len(column(tmp_path / "run", "train/total")) == 1
    assert column(tmp_path / "run", "train/gamma_0") == column(tmp_path / "run", "train/gamma_1") == []


# ---- where it was trained


@pytest.mark.parametrize(("steps", "spacing"), [(None, "gamma"), (4, "time")])
def test_a_model_of_t_steps_is_sampled_at_their_times(
    steps: int | None, spacing: str, train: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for model in (train(out, 5, steps=steps), train(out, 6, steps=steps, resume=True)):
        assert model.schedule.spacing == spacing
    assert ndm.NDM.from_pretrained(out / "model").schedule.spacing == spacing


def environment(out: Path) -> dict[str, Any]:
    return json.loads((out / "environment.json").read_text())


def test_a_run_says_where_it_was_trained(tmp_path: Path) -> None:
    trainer = TrainerOptions(max_steps=1, accelerator="cpu")
    before = datetime.now(timezone.utc)
    fit(digits_model(), Digits(), tmp_path / "run", trainer=trainer, command="ndm train x.yaml", progress=False)
    found = environment(tmp_path / "run")
    started = datetime.fromisoformat(found.pop("started"))
    assert started.utcoffset() == timedelta(0)
    assert timedelta(seconds=-1) <= started - before <= timedelta(seconds=60)
    assert found.pop("platform").startswith(platform.system())
    assert found.pop("device")
    assert found == {
        "ndm": ndm.__version__, "python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__,
        "devices": 1, "threads": torch.get_num_threads(), "precision": "32-true", "command": "ndm train x.yaml",
    }  # fmt: skip
    text = (tmp_path / "run" / "environment.json").read_text()
    assert str(tmp_path) not in text
    assert len(platform.node()) < 5 or platform.node() not in text


def test_a_resumed_run_says_when(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, 5)
    first = environment(out)
    assert "command" not in first
    assert "resumed" not in first
    train(out, 10, resume=True)
    train(out, 15, resume=True)
    found = environment(out)
    times = found.pop("resumed")
    assert found == first
    assert [first["started"], *times] == sorted([first["started"], *times])
    assert len(times) == 2

    (out / "environment.json").write_text("{")
    train(out, 20, resume=True)
    found = environment(out)
    assert "started" not in found  # nobody knows it
    assert len(found["resumed"]) == 1
    assert found["torch"] == torch.__version__


# ---- the average of the weights


SPEEDS = ("train/ms_per_step", "train/examples_per_second", "train/memory_gib")


def test_the_average_is_what_is_validated_and_saved(
    train: Any, data: Pinwheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory: list[dict[str, Tensor]] = []
    hook = NDMModule.on_train_batch_end

    def recording(self: NDMModule, *args: Any) -> None:
        hook(self, *args)
        trajectory.append({k: v.clone() for k, v in self.model.named_parameters()})

    monkeypatch.setattr(NDMModule, "on_train_batch_end", recording)
    out = tmp_path / "run"
    model = train(out, ema=0.9, max_steps=15, keep="last")

    average = trajectory[0]
    for n, weights in enumerate(trajectory[1:], start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = {k: decay * average[k] + (1 - decay) * weights[k] for k in average}
    saved = dict(ndm.NDM.from_pretrained(out / "model").named_parameters())
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
    assert any((saved[k] - trajectory[-1][k]).abs().max() > 1e-4 for k in saved)  # and not the last weights

    # The validation of the saved model is the last one of the curve; that of the last weights is not.
    assert _validation(model, data) == pytest.approx(column(out, "val/total")[-1], abs=1e-5)
    model.load_state_dict({**model.state_dict(), **trajectory[-1]})
    assert abs(_validation(model, data) - column(out, "val/total")[-1]) > 1e-4


def _validation(model: ndm.NDM, data: Pinwheel) -> float:
    module = NDMModule(model).eval()
    with torch.no_grad():
        trainer: Any = SimpleNamespace(global_rank=0, world_size=1)
        for i, batch in enumerate(InOrder(data.validation, None, 1024, trainer, repeats=64)):
            module.validation_step(batch, i)
    return torch.cat([values[:, :3].sum(1) for values, _ in module._validated]).mean().item()


def test_the_best_weights_are_kept_when_asked_for(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, keep="best", learning_rate=0.3)  # at this rate the bound falls and rises
    curve = column(out, "val/total")
    best = checkpoint(out, "best")
    assert curve.index(min(curve)) < len(curve) - 1, curve
    assert best["global_step"] == 5 * (1 + curve.index(min(curve)))
    weights = {f"model.{k}": v for k, v in ndm.NDM.from_pretrained(out / "model").state_dict().items()}
    assert same(weights, dict(best["state_dict"]))


# ---- going on


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


# ---- what goes wrong


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


# ---- time


def test_training_ends_with_the_time(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=None, max_time=0.5, rate="cosine", val_check_interval=1000)
    step = checkpoint(tmp_path / "run")["global_step"]
    assert step > 1
    assert [int(row["step"]) for row in rows(tmp_path / "run") if row["val/total"]] == [step]
    assert column(tmp_path / "run", "train/learning_rate")[-1] < 5e-3  # falls with the clock


def test_the_configuration_is_kept(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", 3, seed=5)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["seed"] == 5
    assert config["trainer"]["max_steps"] == 3
    assert config["training"]["batch_size"] == 24
    assert config["model"]["transform"]["class_path"] == "ndm.Separable"
