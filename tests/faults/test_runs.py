"""A training that is killed, stopped, out of room or out of memory, or not alone, goes on to the same model."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndm.cli
from ndm.training.run import Run

pytestmark = pytest.mark.slow

OPTIONS = [
    "--trainer.max_steps=40",
    "--trainer.val_check_interval=4",
    "--trainer.patience=null",
    "--trainer.accelerator=cpu",
    "--trainer.val_examples=null",
    "--training.base=none",
    "--model.denoiser.net.hidden=16",
]


def table(folder: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.8], [0.0, 0.5]]
    np.savetxt(folder / "table.csv", x, delimiter=",", header="a,b", comments="", fmt="%.6f")
    return folder / "table.csv"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return ["train", "table", "--data.path", str(table(tmp_path)), "--out", str(tmp_path / "run"), *OPTIONS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """What a training that nothing disturbs ends with, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = ["train", "table", "--data.path", str(table(folder)), "--out", str(folder / "run"), *OPTIONS]
    assert ndm.cli.main([*arguments[:-1], "--out", str(folder / "warm")]) == 0
    began = time.monotonic()
    assert ndm.cli.main(arguments) == 0
    return result(folder / "run"), time.monotonic() - began


def result(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (run / "model").iterdir() if p.name != "README.md"}


def goes_on(start: Callable[..., Any], command: list[str], run: Path) -> dict[str, bytes]:
    """The result of what is to be done after a training was stopped: to resume it, or to begin again."""
    if not run.exists() or Run(run).is_unborn:
        ended = start(*command).wait()
    elif (run / "checkpoints" / "last.ckpt").exists():
        ended = start("train", "--resume", "--out", str(run)).wait()
    else:
        shutil.rmtree(run)
        ended = start(*command).wait()
    assert ended.code == 0, ended.text
    return result(run)


def leftovers(run: Path) -> list[str]:
    return [p.name for p in run.rglob(".*") if p.name != ".lock"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["kill", "term", "ctrl-c"])
def test_a_training_stopped_at_a_random_moment(
    start: Any, tally: Any, command: list[str], tmp_path: Path, whole: Any, number: int
) -> None:
    expected, seconds = whole
    moments = random.Random(int(number))
    for _ in range(12 if number == signal.SIGKILL else 6):
        process = start(*command)
        process.stop_after(moments.uniform(0, 1.1 * seconds), number)
        ended = process.wait()
        held = ended.code in ((0, -number) if number == signal.SIGKILL else (0, 130, -number))
        held = held and "Traceback" not in ended.text
        held = held and goes_on(start, command, tmp_path / "run") == expected and not leftovers(tmp_path / "run")
        tally(f"training, stopped by {signal.Signals(number).name} at a random moment", held)
        assert held, ended.text
        shutil.rmtree(tmp_path / "run")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """disk(size): a disk of so many bytes; called again, the same disk with another size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def resized(size: int) -> Path:
        nonlocal mounted
        options = f"size={size}" + (",remount" if mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("a small disk cannot be made here")
        mounted = True
        return place

    yield resized
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_training_on_a_disk_that_is_full(start: Any, tally: Any, command: list[str], disk: Any, whole: Any) -> None:
    expected, _ = whole
    sizes = random.Random(1)
    command[command.index("--out") + 1] = str(run := disk(1 << 24) / "run")
    needed = sum(len(content) for content in expected.values()) * 12
    for _ in range(12):
        disk(max(1 << 14, int(needed * sizes.uniform(0, 1.2))))
        ended = start(*command).wait()
        disk(1 << 24)
        held = ended.said_in_one_line() and (ended.code == 0 or "free some disk space" in ended.text)
        held = held and goes_on(start, command, run) == expected and not leftovers(run)
        tally("training, on a full disk", held)
        assert held, ended.text
        shutil.rmtree(run)


def test_a_training_under_a_limit_on_files(
    start: Any, tally: Any, command: list[str], tmp_path: Path, whole: Any
) -> None:
    expected, _ = whole
    sizes = random.Random(2)
    largest = 4 * max(len(content) for content in expected.values())
    for i in range(12):
        process = start(*command)
        if i % 2:  # the first session had no limit, and was killed
            process.stop_after(whole[1] * sizes.uniform(0.3, 0.9))
            process.wait()
            resumable = (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
            again = ["train", "--resume", "--out", str(tmp_path / "run")] if resumable else command
        else:
            process.wait()
            shutil.rmtree(tmp_path / "run")
            again = command
        limit = int(sizes.uniform(100, largest))
        ended = start(*again, before=lambda n=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))).wait()
        held = ended.said_in_one_line() and goes_on(start, command, tmp_path / "run") == expected
        held = held and not leftovers(tmp_path / "run")
        tally("training, under a limit on the size of files", held)
        assert held, ended.text
        shutil.rmtree(tmp_path / "run")


def test_a_training_under_a_limit_on_memory(
    start: Any, tally: Any, command: list[str], tmp_path: Path, whole: Any
) -> None:
    expected, _ = whole
    sizes = random.Random(3)
    for _ in range(6):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(sizes.uniform(0, 60e6))
        ended = start(*command, before=lambda n=limit: resource.setrlimit(resource.RLIMIT_AS, (n, n))).wait()
        held = ended.said_in_one_line() and goes_on(start, command, tmp_path / "run") == expected
        tally("training, under a limit on memory", held)
        assert held, ended.text
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("resumed", [False, True], ids=["begun", "resumed"])
def test_two_trainings_in_one_folder(
    start: Any, tally: Any, command: list[str], tmp_path: Path, whole: Any, resumed: bool
) -> None:
    expected, seconds = whole
    delays = random.Random(4)
    run = tmp_path / "run"
    for _ in range(6):
        again = command
        if resumed:
            process = start(*command)
            process.stop_after(0.6 * seconds)
            process.wait()
            if (run / "checkpoints" / "last.ckpt").exists():
                again = ["train", "--resume", "--out", str(run)]
        one = start(*again)
        signal.sigtimedwait([], delays.uniform(0, 0.3 * seconds))
        ended = [process.wait() for process in (one, start(*again))]
        held = 0 in {e.code for e in ended} and all(e.said_in_one_line() for e in ended)
        held = held and all("Another process" in e.text or "exists" in e.text for e in ended if e.code)
        held = held and result(run) == expected
        tally(f"two trainings at once, {'resumed' if resumed else 'begun'}", held)
        assert held, "\n".join(e.text for e in ended)
        shutil.rmtree(run)


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/config.json", "checkpoints/last.ckpt"])
def test_a_flipped_bit(start: Any, tally: Any, command: list[str], tmp_path: Path, name: str) -> None:
    assert start(*command).wait().code == 0
    run, places = tmp_path / "run", random.Random(5)
    path = run / name
    whole = path.read_bytes()
    sample = ["sample", str(run), "-n", "4", "--steps", "3", "--out"]
    longer = ["train", "--resume", "--out", str(run), "--trainer.max_steps", "42", "--trainer.max_time"]
    assert start(*sample, "right.csv").wait().code == 0
    for i in range(12):
        place = places.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        if name.startswith("model"):
            ended = start(*sample, f"{i}.csv").wait()
            same = (tmp_path / f"{i}.csv").exists() and (tmp_path / f"{i}.csv").read_bytes() == (
                tmp_path / "right.csv"
            ).read_bytes()
        else:
            ended, same = start(*longer, str(1000 + i)).wait(), False
            # A bit that is part of no number: the archive's padding.
            same = ended.code == 0
        held = ended.said_in_one_line() and (ended.code == 2 or same)
        tally(f"a flipped bit in {name}", held)
        assert held, ended.text
        if ended.code == 0 and name.startswith("checkpoints"):
            shutil.rmtree(run)
            assert start(*command).wait().code == 0
    path.write_bytes(whole)
