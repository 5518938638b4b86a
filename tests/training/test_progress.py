"""The bar and the lines of a training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ndm.training import TrainerOptions, TrainingOptions, fit, progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.0)


def run(build: Any, data: Any, out: Path, resume: bool = False, **limits: Any) -> None:
    options = {"accelerator": "cpu", "val_check_interval": 5, "log_every_n_steps": 2, **limits}
    fit(build, data, out, TrainingOptions(batch_size=24), TrainerOptions(**options), progress=True, resume=resume)


def test_the_bar_counts_steps_and_has_the_unit(
    model: Any, data: Any, tmp_path: Path, shown: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model(), data, tmp_path / "run", max_steps=10)
    text = capsys.readouterr().err
    assert "step 10 of 10 100%" in text
    assert re.search(r"train \d+\.\d{3}, validation \d+\.\d{3} nats", text)
    # The lines of the log are above it.
    log = [line.split("  ", 1)[1] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert all(f"run: {line}" in text for line in log)


def test_a_resumed_bar_begins_where_the_run_does(
    model: Any, data: Any, tmp_path: Path, shown: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model(), data, tmp_path / "run", max_steps=10)
    capsys.readouterr()
    run(model(), data, tmp_path / "run", resume=True, max_steps=20)
    shares = [int(share) for share in re.findall(r"of 20 +(\d+)%", capsys.readouterr().err)]
    assert shares[0] == 50
    assert shares[-1] == 100


def test_the_bar_of_a_limited_time_is_of_the_time(
    model: Any, data: Any, tmp_path: Path, shown: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model(), data, tmp_path / "run", max_steps=None, max_time=1.0)
    shares = [int(share) for share in re.findall(r"step [\d,]+ +(\d+)%", capsys.readouterr().err)]
    assert shares == sorted(shares)
    assert 0 < shares[len(shares) // 2] < 100
    assert shares[-1] == 100


def test_without_a_bar_the_lines_are_there(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run")
    assert "run: started at step 0" in capsys.readouterr().err
