"""When a training is validated, saved and stopped."""

from __future__ import annotations

import csv
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import ndm
from ndm.training import NDMModule, Run, TrainerOptions, pace
from ndm.training.pace import outlook, span


def validated(out: Path) -> list[int]:
    """The steps of the curve at which there was a validation."""
    with (out / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["val/total"]]


def checkpoint(out: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same_training(one: Path, other: Path, name: str = "last") -> None:
    """The weights, their average and the optimiser's state of two runs are equal to the last bit."""
    first, second = checkpoint(one, name), checkpoint(other, name)
    assert first["global_step"] == second["global_step"]
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, second[key][k]) for k, value in first[key].items()), key
    states = [c["optimizer_states"][0]["state"] for c in (first, second)]
    for k, moments in states[0].items():
        assert all(torch.equal(value, states[1][k][m]) for m, value in moments.items()), k


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the training die after a step, as by a power failure."""
    hook = NDMModule.on_train_batch_end

    def failing(self: NDMModule, *args: Any) -> None:
        hook(self, *args)
        if self.global_step == step:
            raise RuntimeError("power")

    monkeypatch.setattr(NDMModule, "on_train_batch_end", failing)


# ---- patience


def worse_from(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the validation bound rise after a step."""
    log = NDMModule.log

    def rising(self: NDMModule, name: str, value: Any, *args: Any, **options: Any) -> None:
        worse = name == "val/total" and self.global_step > step
        log(self, name, value + self.global_step if worse else value, *args, **options)

    monkeypatch.setattr(NDMModule, "log", rising)


def test_training_stops_when_the_validation_no_longer_falls(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse_from(monkeypatch, 10)
    train(tmp_path / "run", max_steps=200, patience=3, keep="best")
    best = checkpoint(tmp_path / "run", "best")["global_step"]
    assert best <= 10
    assert validated(tmp_path / "run") == list(range(5, best + 16, 5))
    assert checkpoint(tmp_path / "run")["global_step"] == best + 15


def test_patience_begins_after_the_warm_up(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=200, patience=2, warmup=23, learning_rate=1e-12)
    # Nothing is learned; the validations after steps 25 and 30 are the first that count.
    assert checkpoint(tmp_path / "run")["global_step"] == 30


def test_without_patience_it_goes_on(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse_from(monkeypatch, 5)
    train(tmp_path / "run", max_steps=40, patience=None)
    assert validated(tmp_path / "run")[-1] == 40


def test_a_killed_run_stops_where_it_would_have(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse_from(monkeypatch, 5)
    train(tmp_path / "whole", max_steps=200, patience=4)
    with monkeypatch.context() as patch:
        crash_at(patch, 18)
        with pytest.raises(RuntimeError, match="power"):
            train(tmp_path / "broken", max_steps=200, patience=4)
    train(tmp_path / "broken", max_steps=200, patience=4, resume=True)
    assert validated(tmp_path / "broken") == validated(tmp_path / "whole")
    for name in ("best", "last"):
        assert_same_training(tmp_path / "whole", tmp_path / "broken", name)


def test_a_stopped_run_that_is_resumed_gets_its_patience_back(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse_from(monkeypatch, 5)
    train(tmp_path / "run", max_steps=200, patience=2)
    stopped = validated(tmp_path / "run")[-1]
    train(tmp_path / "run", max_steps=200, patience=2, resume=True)
    assert validated(tmp_path / "run")[-1] == stopped + 10


# ---- the clock


def test_a_slow_training_is_validated_by_the_clock(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST", 0.0)  # at once
    monkeypatch.setattr(pace, "BETWEEN", 1e9)  # and never again
    train(tmp_path / "run", max_steps=20, val_check_interval=8)
    assert validated(tmp_path / "run") == [1, 8, 16, 20]


@pytest.mark.parametrize(
    ("max_time", "cost", "passed", "seconds"),
    [
        (None, None, 0.0, 60.0),  # the first one
        (None, 1.0, 100.0, 120.0),
        (None, 30.0, 100.0, 600.0),  # a twentieth of the time
        (None, 1.0, 50_000.0, 1000.0),  # a fiftieth of what has passed
        (600.0, 0.1, 100.0, 30.0),
        (1.0, None, 0.0, 2.0),
    ],
)
def test_validations_by_the_clock_keep_to_a_share_of_the_time(
    max_time: float | None, cost: float | None, passed: float, seconds: float
) -> None:
    clock = pace.Pace(100, max_time)
    clock._cost, clock._last = cost, clock._began + passed
    assert clock._limit() == pytest.approx(seconds)


def test_a_run_validated_by_the_clock_is_resumed_as_the_same_run(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", max_steps=20, val_check_interval=8, keep="last")
    with monkeypatch.context() as patch:
        patch.setattr(pace.Pace, "_limit", lambda self: 0.0)  # after every step
        crash_at(patch, 11)
        with pytest.raises(RuntimeError, match="power"):
            train(tmp_path / "broken", max_steps=20, val_check_interval=8, keep="last")
    assert checkpoint(tmp_path / "broken")["global_step"] == 10
    train(tmp_path / "broken", max_steps=20, val_check_interval=8, keep="last", resume=True)
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
    assert validated(tmp_path / "broken")[-2:] == [16, 20]


def test_a_checkpoint_between_validations_is_a_place_to_go_on_from(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", max_steps=20, val_check_interval=8, keep="last")
    with monkeypatch.context() as patch:
        patch.setattr(pace, "SAVED", 0.0)  # after every step
        crash_at(patch, 7)
        with pytest.raises(RuntimeError, match="power"):
            train(tmp_path / "broken", max_steps=20, val_check_interval=8, keep="last")
    assert 6 <= checkpoint(tmp_path / "broken")["global_step"] <= 7
    train(tmp_path / "broken", max_steps=20, val_check_interval=8, keep="last", resume=True)
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
    assert validated(tmp_path / "broken") == validated(tmp_path / "whole") == [8, 16, 20]


# ---- on request


def test_a_signal_that_is_ignored_does_not_stop_a_training(
    train: Any, tmp_path: Path, interruptible: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hook = NDMModule.training_step

    def ignored(self: NDMModule, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return hook(self, *args)

    monkeypatch.setattr(NDMModule, "training_step", ignored)
    train(tmp_path / "run", max_steps=6, val_check_interval=3)
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_leaves_a_checkpoint_and_a_model(
    train: Any, tmp_path: Path, interruptible: None, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    train(tmp_path / "whole", max_steps=20, val_check_interval=8, keep="last")
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    hook = NDMModule.training_step

    def interrupted(self: NDMModule, *args: Any) -> Any:
        if self.global_step == 4:
            os.kill(os.getpid(), number)  # in the middle of step 5
        return hook(self, *args)

    run = Run(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(NDMModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(run.path, max_steps=20, val_check_interval=8, keep="last")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert checkpoint(run.path)["global_step"] == 5
    assert ndm.NDM.from_pretrained(run.model).bound(torch.zeros(3, 2)).total.shape == (3,)
    assert f"resume with: ndm train --resume --out {run.path}" in run.log.read_text()

    train(run.path, max_steps=20, val_check_interval=8, keep="last", resume=True)
    assert_same_training(tmp_path / "whole", run.path)


def test_a_training_in_a_thread_takes_no_signals(train: Any, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert checkpoint(tmp_path / "run")["global_step"] == 20


# ---- words


@pytest.mark.parametrize(
    ("step", "done", "max_steps", "max_time", "said"),
    [
        (
            5.76, 0, 50_000, None,
            "50,000 steps take about 80 hours here; --trainer.max_time 600 stops after ten minutes",
        ),
        (0.01, 0, 10_000, None, "10,000 steps take about 100 seconds here"),
        (0.01, 0, 1000, None, ""),
        (0.01, 8_000, 10_000, None, "2,000 steps take about 20 seconds here"),
        (
            1.0, 0, 5000, 600.0,
            "5,000 steps would take about 83 minutes here; trainer.max_time stops after 10 minutes, about 600 steps",
        ),
        (0.5, 0, None, 600.0, "a step takes 500 ms here: about 1,200 steps in 10 minutes"),
    ],
)  # fmt: skip
def test_the_length_is_foretold(
    step: float, done: int, max_steps: int | None, max_time: float | None, said: str
) -> None:
    assert outlook(step, done, max_steps, max_time) == said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.2, "1 seconds"), (100, "100 seconds"), (300, "5 minutes"), (288_000, "80 hours"), (864_000, "10 days")],
)
def test_a_span_is_said_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_options_are_checked() -> None:
    for options in ({"patience": 0}, {"max_steps": "soon"}, {"val_check_interval": 0}, {"val_examples": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TrainerOptions(**options)  # type: ignore[arg-type]
