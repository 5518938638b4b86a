"""benchmarks/gpu.py: every part runs on the CPU, and what is missing is one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpu(_path: None) -> ModuleType:
    import gpu as module

    return module


def test_dry_run_has_every_part_and_writes_nothing(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "save", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--dry-run", "--budget", "3600"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if "failed" in row or "left_out" in row] == []
    of: dict[str, list[dict[str, Any]]] = {part: [r for r in rows if r["part"] == part] for part in gpu.ENDS}
    assert [row["arithmetic"] for row in of["peak"]] == ["float32", "tf32", "bf16"]
    assert {row["config"] for row in of["step"]} == {"table", "mnist", "cifar10"}
    assert {(row["precision"], row["channels_last"]) for row in of["step"]} == {("float32", False), ("bf16", True)}
    for row in of["step"]:
        assert row["examples_per_second"] == pytest.approx(1e3 * row["batch"] / row["ms"])
        assert row["share_of_peak"] > 0
    assert len({row["gflop"] for row in of["step"] if row["config"] == "mnist"}) == 1
    mnist, identity, table = of["training"]
    assert mnist["seconds"] == identity["seconds"]
    assert mnist["steps"] == identity["steps"] == table["steps"] == 4
    assert identity["mnist_minus_this"] == pytest.approx(mnist["bound"] - identity["bound"])
    assert all(row[name] > 0 for row in of["training"] for name in ("stderr", "bound"))
    for part in ("density", "sampling"):
        assert {(part, row["config"]) for row in of[part]} == {key for key in gpu.OTHERS if key[0] == part}
        assert all(0 < row["examples_per_second"] < math.inf for row in of[part])


def test_a_part_that_fails_is_a_row_and_the_others_follow(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    for part in ("step", "training", "density", "sampling"):
        monkeypatch.setattr(gpu.Parts, part, fail)
    gpu.main(["--dry-run"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["part"] for row in rows if "tflops" in row} == {"peak"}
    failed = {row["part"] for row in rows if row.get("failed") == "RuntimeError: out of memory"}
    assert failed == set(gpu.ENDS) - {"peak"}


def test_a_part_that_has_no_time_is_left_out(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--dry-run", "--budget", "0"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["part"] for row in rows} == set(gpu.ENDS)
    assert all(row["left_out"] == "no time" for row in rows)
    parts = gpu.Parts(True, 0.0, None)
    assert parts.step("mnist", compiled=True, channels_last=True, precision="bf16") == {"left_out": "no time"}


def test_configurations_take_the_data_and_options(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones that are not tiny, which a dry run does not see."""
    monkeypatch.setattr(gpu, "fit", lambda model, data, out, training, trainer, **_: pytest.fail(f"{trainer}"))
    parts = gpu.Parts(False, 0.0, gpu.Patterns(28, 1, 8))
    for config, batch in {"table": 512, "mnist": 128, "cifar10": 128}.items():
        built = parts.built(config)
        assert built.training.batch_size == batch
        assert built.data.shape == gpu.STEPS[config][0]
    for config in gpu.TRAINED:
        with pytest.raises(pytest.fail.Exception, match=r"max_steps=None, max_time=9\.5, patience=None"):
            parts.training(config, 9.5)


def test_what_is_missing_is_one_sentence(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, sentence in {
        (): "PyTorch finds no NVIDIA GPU: run it on a computer with one, or give --dry-run.",
        ("--dry-run", "--mnist", str(tmp_path)): f"There is no mnist-*.parquet in {tmp_path}.",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            gpu.main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr() == ("", f"gpu.py: {sentence}\n")
