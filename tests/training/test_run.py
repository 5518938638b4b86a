"""The folder of a run: what may be written where, and what tells one data set from another."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ndm.data import Pinwheel, Tensors
from ndm.storage.lock import FolderLock
from ndm.training import Run

DATA = Tensors(torch.randn(8, 2), torch.randn(4, 2), torch.randn(2, 2), labels={"train": torch.arange(8) % 3 + 1})


def begun(folder: Path) -> Run:
    """The folder of a training that was stopped before its first checkpoint."""
    run = Run(folder)
    run.begin("seed: 0\n", DATA)
    for name in ("log.txt", "metrics.csv", "environment.json", "pictures/00000005-samples.png",
                 "tensorboard/events.out.tfevents.17.host.3.0", "checkpoints/.last.0a1b2c3d.ckpt"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("early")
    return run


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# ---- beginning again


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert run.is_unborn
    run.require_new()
    lock = run.begin("seed: 1\n", DATA)
    assert files(run.path) == {".lock", "config.yaml", "config-1.yaml", "data.json"}
    assert run.config.read_text() == "seed: 1\n"
    del lock
    FolderLock(run.path)


OTHERS = ["notes.txt", "pictures/mine.png", "checkpoints/best.ckpt", "model/config.json", ".git/x.1"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_a_trainings_is_not_touched(tmp_path: Path, name: str) -> None:
    run = begun(tmp_path / "run")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text("mine")
    before = files(run.path)
    assert not run.is_unborn
    with pytest.raises(FileExistsError, match="exists; nothing was written"):
        run.require_new()
    run.begin("seed: 0\n", DATA)  # whoever does not ask loses nothing either
    assert files(run.path) == before
    assert (run.path / name).read_text() == "mine"


def test_a_configuration_of_the_users_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another --out"):
        Run(tmp_path).require_new()


def test_the_advice_is_the_commands(tmp_path: Path) -> None:
    run = begun(tmp_path / "my run")
    run.last.write_text("a checkpoint")
    (tmp_path / "my run-2").mkdir()
    with pytest.raises(FileExistsError) as refused:
        run.require_new("ndm train toy")
    said = str(refused.value)
    assert f"`ndm train --resume --out '{run.path}'`" in said
    assert f"`ndm train toy --out '{tmp_path}/my run-3'`" in said
    run.config.write_text("trainer: {max_steps: 20}")
    run.metrics.write_text("step,x\n10,1\n20,2\n")  # its end
    with pytest.raises(FileExistsError, match=r"--resume --out '.*my run' --trainer.max_steps 40`"):
        run.require_new("ndm train toy")
    run.metrics.write_text("step,x\n10,1\n")
    with pytest.raises(FileExistsError, match=r"--resume --out '.*my run'`"):
        run.require_new("ndm train toy")


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run at .*leave --resume out to start one"):
        Run(tmp_path / "none").require_checkpoint()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*begin again, without resume"):
        begun(tmp_path / "run").require_checkpoint()


def test_earlier_configurations_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for text in ("a: 1\n", "a: 2\n", "a: 2\n", "a: \u00e9\n"):
        run.begin(text, DATA, True)
        run.write_config(text)
    kept = {p.name: p.read_text(encoding="utf-8") for p in run.path.glob("config*.yaml")}
    assert kept == {"config-1.yaml": "a: 1\n", "config-2.yaml": "a: 2\n", "config.yaml": "a: \u00e9\n"}


# ---- one training in a folder


def test_another_process_cannot_train_in_the_same_folder(tmp_path: Path) -> None:
    script = f"from pathlib import Path; from ndm.storage.lock import FolderLock; FolderLock(Path({str(tmp_path)!r}))"
    lock = FolderLock(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "FileExistsError: Another process is training in" in done.stderr
    again = FolderLock(tmp_path)  # a process does not stand in its own way
    assert (tmp_path / ".lock").exists()
    del lock, again
    gc.collect()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ---- the data


def test_the_data_are_written_down(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin("seed: 0\n", DATA)
    assert json.loads(run.data.read_text()) == {
        "shape": [2], "levels": None, "splits": {"train": 8, "validation": 4, "test": 2},
        "fingerprint": DATA.fingerprint(), "classes": [0, 3, 3, 2],
    }  # fmt: skip
    assert run.read_classes() == [0, 3, 3, 2]
    Run(tmp_path / "toy").begin("seed: 0\n", Pinwheel(train=9, validation=4, test=2))
    assert Run(tmp_path / "toy").read_classes() is None


def test_other_data_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin("seed: 0\n", Pinwheel(train=9, validation=4, test=2))
    run.require_same_data(Pinwheel(train=9, validation=4, test=2), "or else")
    with pytest.raises(
        ValueError, match=r"15 examples \(9 train.* in training, 16 examples \(10 train.* given.*or else\."
    ):
        run.require_same_data(Pinwheel(train=10, validation=4, test=2), "or else")
    with pytest.raises(ValueError, match=r"15 examples .* in both, but not the same"):
        run.require_same_data(Pinwheel(train=9, validation=4, test=2, seed=1), "or else")
    run.data.write_text('{"shape": [2], "levels": null}')  # of a run that was trained before fingerprints
    run.require_same_data(Pinwheel(train=10, validation=4, test=2), "or else")
    run.data.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        run.require_same_data(Pinwheel(train=10, validation=4, test=2), "or else")
