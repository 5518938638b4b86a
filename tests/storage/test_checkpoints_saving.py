"""What is refused on saving a model, and saves that are interrupted or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import ndm
import ndm.storage.checkpoints
from ndm.storage.checkpoints import CARD, CHECKSUMS, CONFIG, WEIGHTS
from tests.storage.models import net, plain_model

# ---- what is refused on saving


def test_a_model_that_cannot_be_written_writes_nothing(tmp_path: Path) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Scale(lambda gamma: gamma), ndm.Denoiser(net()))
    with pytest.raises(TypeError, match=r"Scale\(a=\.\.\.\) is a function"):
        model.save_pretrained(tmp_path / "deep" / "model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"Denoiser\(net=\.\.\.\) is a Linear"):
        ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(nn.Linear(2, 2))).save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("also dear")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="nothing was written"):
            plain_model().save_pretrained(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "also dear"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "thesis"]
    (tmp_path / "empty").mkdir()
    ndm.NDM.from_pretrained(plain_model().save_pretrained(tmp_path / "empty"))


def test_an_earlier_model_is_replaced_whole(saved: Path) -> None:
    (saved / "note.txt").write_text("of the old model")
    new = plain_model()
    new.save_pretrained(saved)
    assert torch.equal(ndm.NDM.from_pretrained(saved).denoiser.net.output.weight, new.denoiser.net.output.weight)
    assert sorted(p.name for p in saved.iterdir()) == [CARD, CHECKSUMS, CONFIG, WEIGHTS]
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


# ---- crashes


def fail(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("crash", ["save_file", "write_text", "first rename", "second rename"])
def test_an_interrupted_save_leaves_the_old_model(saved: Path, crash: str, monkeypatch) -> None:
    old = ndm.NDM.from_pretrained(saved).state_dict()
    original, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == {"first rename": 1, "second rename": 2}[crash]:
            fail()
        return original(self, target)

    with monkeypatch.context() as patch:
        if crash == "save_file":
            patch.setattr(ndm.storage.checkpoints, "save_file", fail)
        elif crash == "write_text":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            plain_model().save_pretrained(saved)
    loaded = ndm.NDM.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in old.items())
    assert [p.name for p in saved.parent.iterdir()] == ["model"]  # and no litter


def test_a_kill_between_the_renames_loses_nothing(saved: Path, monkeypatch) -> None:
    """As above, but nothing after the failing line is run: the machine lost its power."""
    old = ndm.NDM.from_pretrained(saved).state_dict()
    original, killed = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if killed or target == saved:  # everything from the second rename on
            killed.append(target)
            fail()
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(ndm.storage.atomic.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            plain_model().save_pretrained(saved)
    assert not saved.exists()
    loaded = ndm.NDM.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in old.items())

    new = plain_model()  # and one can go on from there
    new.save_pretrained(saved)
    weight = new.denoiser.net.output.weight
    assert torch.equal(ndm.NDM.from_pretrained(saved).denoiser.net.output.weight, weight)
    assert not saved.with_name(".model-old").exists()


def test_a_process_killed_while_it_writes_loses_nothing(saved: Path) -> None:
    """SIGKILL, which no program can catch, when half of the new tensors are on the disk."""
    signal_file = saved.parent / "half-way"
    program = f"""
        import pathlib, time
        import ndm, ndm.storage.checkpoints

        whole = ndm.storage.checkpoints.save_file

        def half(tensors, path):
            whole(tensors, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            pathlib.Path({str(signal_file)!r}).touch()
            time.sleep(600)

        ndm.storage.checkpoints.save_file = half
        model = ndm.NDM.from_pretrained({str(saved)!r})
        model.denoiser.net.output.weight.data += 1
        model.save_pretrained({str(saved)!r})
    """
    old = {k: v.clone() for k, v in ndm.NDM.from_pretrained(saved).state_dict().items()}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)]) as process:
        try:
            deadline = time.monotonic() + 120
            while not signal_file.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert signal_file.exists(), "the program did not get to its writing"
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    loaded = ndm.NDM.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in old.items())
    new = plain_model()  # and one can go on from there
    new.save_pretrained(saved)
    weight = new.denoiser.net.output.weight
    assert torch.equal(ndm.NDM.from_pretrained(saved).denoiser.net.output.weight, weight)
