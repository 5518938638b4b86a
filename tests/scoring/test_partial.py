"""Scoring that is interrupted and resumed, and the partial scores on the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from torch import Tensor

import ndm
from ndm.scoring import ExampleRows, TableRows, score
from ndm.scoring.partial import PartialScores
from tests.scoring.models import FAST, draw, gaussian, small


class Stopping(ExampleRows):
    """Rows that end in an interruption."""

    def blocks(self, size: int, skip: int):
        for i, block in enumerate(super().blocks(size, skip)):
            if i == 3 and size == 16:
                raise KeyboardInterrupt
            yield block


def interrupted(x: Tensor, out: Path, **options) -> Path:
    with pytest.raises(KeyboardInterrupt):
        score(small(), Stopping(x), out, **{**FAST, **options})
    assert not out.exists()
    return out.with_name(out.name + ".partial")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("ending", ["csv", pytest.param("parquet", marks=pytest.mark.slow)])
def test_what_was_interrupted_is_finished_with_the_same_result(tmp_path: Path, ending: str) -> None:
    x, whole, out = draw(100), tmp_path / f"whole.{ending}", tmp_path / f"x.{ending}"
    options = {"likelihood": True, "tolerance": 0.1}
    score(small(), x, whole, **{**FAST, **options})
    interrupted(x, out, **options)
    interrupted(x, out, **options)  # now at the sixth of seven
    scores = score(small(), x, out, **{**FAST, **options})
    assert scores.about["scored"] == 4
    read = pandas.read_csv if ending == "csv" else pandas.read_parquet
    pandas.testing.assert_frame_equal(read(out), read(whole), check_exact=True)


@pytest.mark.parametrize("damage", ["torn", "flipped", "zeros", "swapped"])
def test_a_damaged_partial_is_gone_on_with_from_before_the_damage(tmp_path: Path, damage: str) -> None:
    x, whole, out = draw(100), tmp_path / "whole.csv", tmp_path / "x.csv"
    score(small(), x, whole, **FAST)
    blocks = interrupted(x, out) / "blocks"
    good, size = blocks.read_bytes(), 16 * 40 + 4
    assert len(good) == 3 * size
    bad = {
        "torn": good[:-7],
        "flipped": good[: size + 9] + bytes([good[size + 9] ^ 1]) + good[size + 10 :],
        "zeros": good[:-size] + bytes(size),
        "swapped": good[size : 2 * size] + good[:size] + good[2 * size :],
    }
    blocks.write_bytes(bad[damage])
    scored = {"torn": 68, "flipped": 84, "zeros": 68, "swapped": 100}[damage]
    assert score(small(), x, out, **FAST).about["scored"] == scored
    assert out.read_bytes() == whole.read_bytes()


def test_only_the_same_settings_go_on(tmp_path: Path) -> None:
    x, out = draw(100), tmp_path / "x.csv"
    folder = interrupted(x, out)
    before = (folder / "blocks").read_bytes()
    for changes, word in (({"times": 4}, r"another times \(2 there, 4 here\)"), ({"seed": 1}, "another seed")):
        with pytest.raises(ValueError, match=word):
            score(small(), x, out, **{**FAST, **changes})
    with pytest.raises(ValueError, match="another data"):
        score(small(), x + 1, out, **FAST)
    with pytest.raises(ValueError, match="another model"):
        score(gaussian(), x, out, **FAST)
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        score(small(), x, out, **FAST)
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match="missing"):
        score(small(), x, out, **FAST)
    assert (folder / "blocks").read_bytes() == before
    (folder / "blocks").write_bytes(b"")  # nothing is lost by other settings
    assert score(small(), x, out, **{**FAST, "times": 4}).about["scored"] == 100


def test_data_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 features"):
        score(small(), draw(10, d=4), tmp_path / "x.csv", **FAST)
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(small(), draw(10) / 0, tmp_path / "x.csv", **FAST)
    assert not list(tmp_path.iterdir())


def test_a_stop_while_the_partial_is_removed_spoils_no_later_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, x = tmp_path / "x.csv", draw(10)

    def stopped(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rmdir", stopped)
        with pytest.raises(KeyboardInterrupt):
            score(small(), x, out, likelihood=False, times=2)
    expected = out.read_bytes()
    out.unlink()
    score(small(), x, out, likelihood=False, times=2)
    assert out.read_bytes() == expected
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_two_processes_do_not_write_to_one_partial(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    settings = {"rows": 10, "batch_size": 5}
    with (
        PartialScores(tmp_path / "p", settings),
        pytest.raises(ValueError, match="Another process"),
        PartialScores(tmp_path / "p", settings),
    ):
        pass


SCRIPT = """
import sys, torch, ndm
from ndm.scoring import TableRows, score
torch.set_num_threads(1)
model = ndm.NDM.from_pretrained(sys.argv[1])
score(model, TableRows(sys.argv[2], (3,)), sys.argv[3], times=20, likelihood=False, batch_size=16, progress=False)
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle_is_gone_on_with(tmp_path: Path) -> None:
    table, out = tmp_path / "x.csv", tmp_path / "x.parquet"
    pandas.DataFrame(draw(1000).double().numpy(), columns=list("abc")).to_csv(table, index=False)
    model = ndm.NDM.from_pretrained(small().save_pretrained(tmp_path / "model"))
    blocks, of_a_block = tmp_path / "x.parquet.partial" / "blocks", 16 * 40 + 4
    for some in (3, 20):  # twice, the second time with blocks of the first one before
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "model", table, out])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if blocks.exists() and blocks.stat().st_size > some * of_a_block:
                break
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert some * of_a_block < blocks.stat().st_size < 62 * of_a_block
    assert not out.exists()
    options = {"times": 20, "likelihood": False, "batch_size": 16, "progress": False}
    scores = score(model, TableRows(str(table), (3,)), out, **options)
    assert 0 < scores.about["scored"] < 1000 - 20 * 16
    score(model, TableRows(str(table), (3,)), tmp_path / "whole.parquet", **options)
    found, whole = (pandas.read_parquet(path) for path in (out, tmp_path / "whole.parquet"))
    pandas.testing.assert_frame_equal(found, whole, check_exact=True)
    assert not blocks.parent.exists()
