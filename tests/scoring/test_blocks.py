"""Blocks that are scored by several processes: the same file, also after an interruption with another number."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ndm
from ndm.networks import UNet
from ndm.scoring import ExampleRows, score
from ndm.scoring.blocks import Blocks
from tests._internal.test_distributed import in_processes
from tests.scoring.models import draw, small


class Stopping(ExampleRows):
    """Rows that end in an interruption at the sixth block."""

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        for i, block in enumerate(super().blocks(size, skip), skip // size):
            if i == 5 and size == 16:
                raise KeyboardInterrupt
            yield block


def labelled() -> tuple[ndm.NDM, Tensor, Tensor]:
    """A model of images of three classes, images and their labels."""
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1,), classes=3, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-4, 5), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(16))
    x = (2 * torch.randint(0, 16, (20, 1, 8, 8)) + 1) / 16 - 1.0
    return model, x, torch.arange(20) % 3


OPTIONS: dict[str, Any] = {"times": 2, "batch_size": 16, "tolerance": 1.0, "progress": False}
OF_IMAGES = OPTIONS | {"batch_size": 8, "tolerance": 50.0, "samples": 1, "probes": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_file_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    x = draw(150)
    for ending, first, then in (("csv", 2, 1), ("parquet", 1, 2)):
        alone, out = tmp_path / f"alone.{ending}", tmp_path / f"x.{ending}"
        score(small(), x, alone, **OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            score(small(), Stopping(x), out, **OPTIONS, workers=first)
        assert out.with_name(out.name + ".partial").is_dir()
        scores = score(small(), x, out, **OPTIONS, workers=then)
        assert first == 2 or scores.about["scored"] == 150 - 5 * 16
        assert out.read_bytes() == alone.read_bytes()
    model, images, labels = labelled()
    for workers in (1, 2):
        score(model, images, tmp_path / f"{workers}.csv", **OF_IMAGES, labels=labels, workers=workers)
    assert (tmp_path / "2.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


def scored_by_all(out: str) -> Tensor:
    model, images, labels = labelled()
    scores = score(model, images, out, **OF_IMAGES, labels=labels, max_rows=17)
    return torch.tensor([scores.about["rows"], scores.about["scored"], scores.about["nelbo"]["mean"]])


@pytest.mark.slow
def test_the_file_is_the_same_under_a_launcher(tmp_path: Path) -> None:
    expected = scored_by_all(str(tmp_path / "alone.csv"))
    for found in in_processes(partial(scored_by_all, str(tmp_path / "x.csv")), 2, tmp_path):
        assert torch.equal(found, expected)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_the_last_block_is_read_completely_and_no_more() -> None:
    x, labels = draw(100), torch.arange(100)
    blocks = Blocks(ExampleRows(x), labels, count=40, size=16)
    assert blocks.last == 48
    found = list(blocks.read(1))
    assert [(i, len(rows)) for i, rows, _ in found] == [(1, 16), (2, 16)]
    assert torch.equal(found[1][1], x[32:48])
    assert found[1][2] is not None
    assert found[1][2].tolist() == list(range(32, 48))
    assert len(pickle.dumps(found[0])) < 2000  # without the other rows
    assert list(blocks.read(3)) == []
    assert Blocks(ExampleRows(x), None, count=99, size=16).last == 100


class Killing(torch.nn.Module):
    """A network that kills a worker process at its third block."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, z: Tensor, u: Tensor, labels: Tensor | None = None) -> Tensor:
        if multiprocessing.parent_process() is not None:
            self.passes += 1
            if self.passes > 2 * OPTIONS["times"]:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.net(z, u)


@pytest.mark.slow
def test_the_blocks_before_a_worker_was_killed_are_kept(tmp_path: Path) -> None:
    model, x, out = small(), draw(150), tmp_path / "x.csv"
    model.denoiser.net = Killing(model.denoiser.net)
    options = OPTIONS | {"likelihood": False}
    score(model, x, tmp_path / "alone.csv", **options)
    with pytest.raises(ChildProcessError, match="killed by signal 9"):
        score(model, x, out, **options, workers=2)
    assert not out.exists()
    assert 0 < score(model, x, out, **options).about["scored"] < 150
    assert out.read_bytes() == (tmp_path / "alone.csv").read_bytes()
