"""What a training leaves behind: its folder, its curve, and where it was trained."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ndm
from ndm.data import Digits, Pinwheel
from ndm.networks import ResidualMLP
from ndm.storage.lock import FolderLock
from ndm.training import TrainerOptions, TrainingOptions, fit
from tests.training.runs import checkpoint, column, digits_model, rows, same

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
