"""Runs from strangers: each is refused by one sentence, soon, without much memory, and nothing is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import hostile
from tests.faults.hostile import EVIL, aliases, change_json, changed, deep
from tests.faults.strangers import EVALUATE, REPORT, RESUME, SAMPLE, SCORE, endless, pipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("counted")]


def spoil(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


def in_json(name: str, **values: Any) -> Callable[[Path], Any]:
    return lambda run: change_json(run / name, **values)


def in_config(**parts: Any) -> Callable[[Path], Any]:
    return lambda run: (run / "config.yaml").write_text(changed((run / "config.yaml").read_text(), **parts))


def in_model(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Change the model's configuration, and take the checksums away."""

    def spoiled(run: Path) -> None:
        path = run / "model" / "config.json"
        config = json.loads(path.read_text())
        change(config["model"]["init_args"])
        path.write_text(json.dumps(config))
        (run / "model" / "SHA256SUMS").unlink(missing_ok=True)

    return spoiled


def in_checkpoint(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoiled(run: Path) -> None:
        path = run / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return spoiled


def net_of(parts: dict[str, Any]) -> dict[str, Any]:
    net: dict[str, Any] = parts["denoiser"]["init_args"]["net"]
    return net


RUNS: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "aliases in config.yaml": (spoil("config.yaml", aliases()), EVALUATE, "more than 50,000 values"),
    "depth in config.yaml": (spoil("config.yaml", "data: " + deep()), EVALUATE, "deeper than 60"),
    "aliases, report": (spoil("config.yaml", aliases()), REPORT, "more than 50,000 values"),
    "recursion, report": (spoil("config.yaml", "data: &a [*a]"), REPORT, "refers to itself"),
    "aliases, resume": (spoil("config.yaml", aliases()), RESUME, "more than 50,000 values"),
    "a foreign data set": (in_config(data={"class_path": "evilmod.X"}), EVALUATE, "evilmod.X, .* --allow evilmod"),
    "a foreign data set, resume": (in_config(data={"class_path": "evilmod.X"}), RESUME, "--allow evilmod"),
    "a foreign part": (
        in_model(lambda parts: parts.update(transform={"class_path": "evilmod.X"})), SAMPLE, "not a part of ndm"
    ),
    "depth in config.json": (spoil("model/config.json", deep()), SAMPLE, "deeper than 60"),
    "parts within parts": (
        spoil("model/config.json", '{"ndm_format": 1, "model": ' + '{"a":' * 900 + "1" + "}" * 901), SAMPLE,
        "deeper than 60",
    ),
    "a wide network": (in_model(lambda p: net_of(p)["init_args"].update(hidden=10**9)), SAMPLE, "of a smaller model"),
    "a deep network": (in_model(lambda p: net_of(p)["init_args"].update(depth=10**9)), SAMPLE, "of a smaller model"),
    "classes": (in_model(lambda p: net_of(p)["init_args"].update(classes=10**11)), SAMPLE, "of a smaller model"),
    "a word for a number": (in_model(lambda p: net_of(p)["init_args"].update(hidden="x")), SAMPLE, "does not fit"),
    "a depth below zero": (in_model(lambda p: net_of(p)["init_args"].update(hidden=-4)), SAMPLE, "negative dimension"),
    "a pipe for config.json": (lambda run: pipe(run / "model/config.json"), SAMPLE, "is a named pipe"),
    "shape": (in_json("data.json", shape=[10**12]), SAMPLE, "needs about 260,000 GB of memory"),
    "shape of many": (in_json("data.json", shape=[3, 10**6, 10**6]), REPORT, "of memory"),
    "shape of another": (in_json("data.json", shape=[3]), SAMPLE, "was not trained on the data"),
    "shape below zero": (in_json("data.json", shape=[-1]), SAMPLE, "shape of an example cannot be"),
    "shape of words": (in_json("data.json", shape=["x"]), SCORE, "shape of an example cannot be"),
    "shape of nothing": (in_json("data.json", shape=[]), SAMPLE, "shape of an example cannot be"),
    "a number for a shape": (in_json("data.json", shape=2), SAMPLE, "shape of an example cannot be"),
    "levels": (in_json("data.json", levels="many"), SCORE, "number of levels cannot be"),
    "columns": (in_json("data.json", columns=[1, 2]), SAMPLE, "its columns are not"),
    "splits": (in_json("data.json", splits=[1]), EVALUATE, "splits are not numbers"),
    "a list for data.json": (spoil("data.json", "[]"), EVALUATE, "no JSON object"),
    "depth in data.json": (spoil("data.json", deep()), SAMPLE, "deeper than 60"),
    "many values in data.json": (spoil("data.json", "[" + "[]," * 2_000_000 + "[]]"), SAMPLE, "more than 1,000,000"),
    "a pipe for data.json": (lambda run: pipe(run / "data.json"), SAMPLE, "a named pipe"),
    "zeros for data.json": (lambda run: endless(run / "data.json"), SAMPLE, "a device"),
    "a large data.json": (lambda run: hostile.sparse(run / "data.json"), SAMPLE, "larger than 33,554,432 bytes"),
    "depth in evaluation.json": (spoil("evaluation.json", deep()), REPORT, "deeper than 60"),
    "environment.json": (spoil("environment.json", deep('{"a":')), REPORT, "deeper than 60"),
    "a cell of metrics.csv": (spoil("metrics.csv", "step,x\n1," + "1" * 200_000 + "\n"), REPORT, "field larger"),
    "a large metrics.csv": (lambda run: hostile.sparse(run / "metrics.csv"), REPORT, "larger than"),
    "no checkpoint": (spoil("checkpoints/last.ckpt", "x" * 1000), RESUME, "not a checkpoint"),
    "a packed checkpoint": (lambda run: hostile.packed(run / "checkpoints/last.ckpt"), RESUME, "not a checkpoint"),
    "a checkpoint of words": (in_checkpoint(lambda c: c.update(global_step="x")), RESUME, "not a checkpoint"),
    "a checkpoint without weights": (in_checkpoint(lambda c: c.pop("state_dict")), RESUME, "not a checkpoint"),
    "a checkpoint without loops": (in_checkpoint(lambda c: c.pop("loops")), RESUME, "does not contain loops"),
    "a checkpoint without an optimizer": (
        in_checkpoint(lambda c: c.pop("optimizer_states")), RESUME, "does not contain optimizer_states"
    ),
    "another model's checkpoint": (
        in_checkpoint(lambda c: c["state_dict"].update({"model.x": torch.zeros(2)})), RESUME, "another model"
    ),
    "a checkpoint with a wrong weight": (
        in_checkpoint(lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.zeros(2, 3, 4)})), RESUME,
        "another model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_refused(trained: Path, folder: Path, name: str, refused: Callable[..., None]) -> None:
    spoiled, words, sentence = RUNS[name]
    run = hostile.copy_of(trained, folder)
    (folder / "evilmod.py").write_text(EVIL)
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n")
    spoiled(run)
    refused(words, sentence)


def test_the_settings_of_a_score_may_be_anything(
    trained: Path, folder: Path, commands: Any, counted: list[bool]
) -> None:
    hostile.copy_of(trained, folder)
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "new.csv.partial").mkdir()
    (folder / "new.csv.partial" / "settings.json").write_text(deep())
    (folder / "new.csv.partial" / "blocks").write_bytes(b"x" * 100)
    result = commands(folder, *SCORE)
    assert result.code in (0, 2)
    assert "Traceback" not in result.err
    counted.append(True)


def test_a_report_says_what_it_did_not_import(trained: Path, folder: Path, commands: Any, counted: list[bool]) -> None:
    run = hostile.copy_of(trained, folder)
    (folder / "evilmod.py").write_text(EVIL)
    in_config(data={"class_path": "evilmod.X"})(run)
    result = commands(folder, *REPORT)
    assert result.code == 0, result.err
    assert "--allow evilmod" in (folder / "new.html").read_text()
    assert not (folder / "ran").exists()
    counted.append(True)


def test_an_evaluation_that_unfolds_is_refused(trained: Path, folder: Path, refused: Callable[..., None]) -> None:
    run = hostile.copy_of(trained, folder)
    (run / "evaluation.json").write_text(json.dumps({"rows": [], "about": {}}))
    hostile.tall_npz(run / "evaluation.npz")
    refused(REPORT, "needs about 34 GB of memory")


def test_a_pickle_is_not_run(trained: Path, folder: Path, refused: Callable[..., None]) -> None:
    run = hostile.copy_of(trained, folder)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("ran",)

    torch.save({"global_step": 1, "state_dict": {}, "x": Evil()}, run / "checkpoints" / "last.ckpt")
    refused(RESUME, "not a checkpoint")
    assert not (folder / "ran").exists()
