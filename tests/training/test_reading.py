"""data.json and checkpoints that are damaged, or not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ndm.storage import memory
from ndm.storage.memory import TooLargeError
from ndm.training.facts import read_facts
from ndm.training.reading import read_checkpoint, require_fitting
from ndm.training.run import Run

FACTS = {"shape": [2], "levels": None, "columns": ["a", "b"], "splits": {"train": 3}, "fingerprint": "x"}


def test_right_facts_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(FACTS))
    assert read_facts(tmp_path / "data.json") == FACTS
    run = Run(tmp_path)
    assert run.read_data() == ((2,), None)
    assert run.read_columns() == ("a", "b")
    assert run.read_classes() is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"shape": [-1]}, r"cannot be \[-1\]"),
        ({"shape": [True]}, "cannot be"),
        ({"shape": [2.5]}, "cannot be"),
        ({"shape": []}, "cannot be"),
        ({"shape": "2"}, "cannot be"),
        ({"shape": None}, "cannot be"),
        ({"shape": [1] * 9}, "cannot be"),
        ({"levels": 1}, "levels cannot be 1"),
        ({"levels": "x"}, "levels cannot be 'x'"),
        ({"columns": ["a"]}, "columns are not"),
        ({"columns": [1, 2]}, "columns are not"),
        ({"splits": [3]}, "splits are not"),
        ({"splits": {"train": "x"}}, "splits are not"),
    ],
)
def test_wrong_facts_are_refused(tmp_path: Path, wrong: dict[str, Any], why: str) -> None:
    (tmp_path / "data.json").write_text(json.dumps(FACTS | wrong))
    with pytest.raises(ValueError, match=rf"data\.json is missing or damaged \(.*{why}"):
        read_facts(tmp_path / "data.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 10_000, "{}"])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match="missing or damaged"):
        read_facts(tmp_path / "data.json")


def test_an_example_is_to_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"shape": [3, 1000, 1000], "levels": 256}))
    monkeypatch.setattr(memory, "free", lambda: 2e9)
    assert read_facts(tmp_path / "data.json")["levels"] == 256
    monkeypatch.setattr(memory, "free", lambda: 5e8)
    with pytest.raises(TooLargeError, match="An example of shape 3x1000x1000"):
        read_facts(tmp_path / "data.json")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.json")
    with pytest.raises(ValueError, match="a named pipe"):
        read_facts(tmp_path / "data.json")


@pytest.mark.parametrize(
    "contents",
    [
        {"state_dict": {}},
        {"global_step": 1},
        {"global_step": "x", "state_dict": {}},
        {"global_step": -1, "state_dict": {}},
        {"global_step": True, "state_dict": {}},
        {"global_step": 1, "state_dict": [1]},
        {"global_step": 1, "state_dict": {"x": 1}},
        [1],
        torch.zeros(2),
    ],
    ids=range(9),
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, contents: Any) -> None:
    torch.save(contents, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint written by ndm"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"global_step": 3, "state_dict": {"x": torch.arange(100.0)}}, file)
    assert read_checkpoint(file)["global_step"] == 3
    whole = file.read_bytes()
    for part in (whole[: len(whole) // 2], whole[100:], b"", b"PK\x03\x04" + bytes(100)):
        file.write_bytes(part)
        with pytest.raises(ValueError, match="not a checkpoint"):
            read_checkpoint(file)


PARTS = {name: [{}] for name in ("epoch", "loops", "callbacks", "optimizer_states", "lr_schedulers")}


def test_a_checkpoint_is_to_fit_the_model(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    right = {"global_step": 1, "state_dict": weights, **PARTS}
    require_fitting(right, model, tmp_path)
    require_fitting(right | {"current_model_state": weights}, model, tmp_path)
    for name in PARTS:
        with pytest.raises(ValueError, match=f"does not contain {name}"):
            require_fitting({k: v for k, v in right.items() if k != name}, model, tmp_path)
    with pytest.raises(ValueError, match="no state of the optimizer"):
        require_fitting(right | {"optimizer_states": []}, model, tmp_path)
    for part in ("state_dict", "current_model_state"):
        for other in (
            {**weights, "model.bias": torch.zeros(4)},
            {"model.bias": torch.zeros(3)},
            {**weights, "x": model.bias},
        ):
            with pytest.raises(ValueError, match="belongs to another model"):
                require_fitting(right | {part: other}, model, tmp_path)
