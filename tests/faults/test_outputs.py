"""What ``sample``, ``evaluate``, ``report``, ``push`` and ``score`` write is whole, or as it was, whatever happens."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import ndm
import ndm.cli
from ndm.networks import ResidualMLP

pytestmark = pytest.mark.slow

ROWS = 30_000
FORMATS = ("csv", "npz", "parquet")
KILLED = {"csv": 20, "npz": 10, "parquet": 10}

DATA = "data: {class_path: Pinwheel, init_args: {train: 64, validation: 32, test: 16}}\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a small model of a table of two columns and three classes, which was not trained."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    torch.manual_seed(0)
    net = ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False)
    ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net)).save_pretrained(folder / "model")
    facts = {"shape": [2], "levels": None, "columns": ["a", "b"], "splits": None, "fingerprint": None}
    (folder / "data.json").write_text(json.dumps(facts | {"classes": [5, 5, 5]}))
    return folder


@pytest.fixture(scope="module")
def plain(run: Path) -> Path:
    """The same without classes, of data that there are."""
    folder = run.parent / "plain"
    torch.manual_seed(0)
    net = ResidualMLP(2, hidden=8, depth=1, zero_init=False)
    ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net)).save_pretrained(folder / "model")
    facts = {"shape": [2], "levels": None, "splits": {"train": 64, "validation": 32, "test": 16}, "fingerprint": None}
    (folder / "data.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(DATA)
    return folder


def sample(run: Path, out: str | Path, *more: str, n: int = ROWS) -> list[str]:
    options = ["--steps", "1", "--batch-size", "500", "--device", "cpu"]
    return ["sample", str(run), "-n", str(n), *options, *more, "--out", str(out)]


@pytest.fixture(scope="module")
def whole(run: Path) -> Mapping[str, tuple[bytes, float]]:
    """What each file is when nothing disturbs its making, and the seconds that takes."""
    found = {}
    for kind in FORMATS:
        for name in ("warm", "whole"):
            began = time.monotonic()
            assert ndm.cli.main(sample(run, run.parent / f"{name}.{kind}")) == 0
        found[kind] = (run.parent / f"whole.{kind}").read_bytes(), time.monotonic() - began
    return found


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["kill", "term", "ctrl-c"])
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("kind", FORMATS)
def test_samples_stopped_at_a_random_moment(
    start: Any, tally: Any, run: Path, tmp_path: Path, whole: Any, kind: str, earlier: bool, number: int
) -> None:
    expected, seconds = whole[kind]
    out, moments = tmp_path / f"x.{kind}", random.Random(f"{kind} {earlier} {int(number)}")
    good = b"the earlier file" if earlier else None
    command = sample(run, out, *(["--overwrite"] if earlier else []))
    for _ in range(KILLED[kind] if number == signal.SIGKILL else 6):
        out.unlink(missing_ok=True)
        if good is not None:
            out.write_bytes(good)
        process = start(*command)
        process.stop_after(moments.uniform(0, 1.1 * seconds), number)
        ended = process.wait()
        there = out.read_bytes() if out.exists() else None
        held = ended.code in ((0, -number) if number == signal.SIGKILL else (0, 130, -number))
        held = held and there in (good, expected) and (there == expected or ended.code != 0)
        if number != signal.SIGKILL:
            held = held and names(tmp_path) == ([out.name] if out.exists() else [])
        if ended.code == 130:
            sentence = (
                f"ndm: stopped; {ROWS} samples are in {out}.\n"
                if there == expected
                else "ndm: stopped; no samples were written; run the same command again.\n"
            )
            held = held and ended.text.endswith(sentence) and "Traceback" not in ended.text
        tally(f"samples in .{kind}, {'over a file, ' if earlier else ''}{signal.Signals(number).name}", held)
        assert held, (ended, there and len(there))
    out.unlink(missing_ok=True)
    assert start(*command).wait().code == 0
    assert names(tmp_path) == [out.name]  # also what those who were killed have left
    assert out.read_bytes() == expected


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """disk(size): an empty disk of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def made(size: int) -> Path:
        subprocess.run(["umount", str(place)], capture_output=True)
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("a small disk cannot be made here")
        return place

    yield made
    subprocess.run(["umount", str(place)], capture_output=True)


def temporary(folder: Path) -> None:
    """Let a folder be that of temporary files."""
    import tempfile

    folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(folder)


@pytest.mark.parametrize("room", [False, True], ids=["no-room", "room-elsewhere"])
@pytest.mark.parametrize("kind", FORMATS)
def test_samples_on_a_disk_that_is_full(
    start: Any, tally: Any, run: Path, tmp_path: Path, whole: Any, disk: Any, kind: str, room: bool
) -> None:
    expected, _ = whole[kind]
    sizes = random.Random(f"{kind} {room}")
    for _ in range(5):
        place = disk(max(1 << 14, int(len(expected) * sizes.uniform(0, 0.9))))
        out, spare = place / f"x.{kind}", (tmp_path if room else place) / "spare"
        out.write_bytes(b"the earlier file")
        ended = start(*sample(run, out, "--overwrite"), before=lambda folder=spare: temporary(folder)).wait()
        held = ended.code == 2 and ended.text.count("\n") == 1 and "No space left on device" in ended.text
        held = held and out.read_bytes() == b"the earlier file" and names(place) in ([out.name], ["spare", out.name])
        moved = re.search(r"the samples are in (\S+)\.\n", ended.text)
        if room:
            held = held and moved is not None and Path(moved[1]).read_bytes() == expected
        else:
            held = held and "the incomplete file was deleted" in ended.text and not any(spare.iterdir())
        tally(f"samples in .{kind} on a full disk, {'room' if room else 'no room'} elsewhere", held)
        assert held, ended.text


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_under_a_limit_on_files(
    start: Any, tally: Any, run: Path, tmp_path: Path, whole: Any, kind: str
) -> None:
    expected, _ = whole[kind]
    sizes, out, spare = random.Random(kind), tmp_path / f"x.{kind}", tmp_path.parent / "spare"
    for _ in range(8):
        limit = int(sizes.uniform(100, 1.1 * len(expected)))

        def limited(n: int = limit) -> None:
            temporary(spare)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))

        ended = start(*sample(run, out, "--overwrite"), before=limited).wait()
        held = ended.text.count("\n") == 1 and not any(spare.iterdir())
        if limit >= len(expected):
            held = held and ended.code == 0 and out.read_bytes() == expected
        else:
            held = held and ended.code == 2 and "(File too large)" in ended.text and names(tmp_path) == []
        tally(f"samples in .{kind} under a limit on the size of files", held)
        assert held, ended.text
        out.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_two_processes_of_one_name(start: Any, tally: Any, run: Path, tmp_path: Path, whole: Any, kind: str) -> None:
    expected, seconds = whole[kind]
    out, delays = tmp_path / f"x.{kind}", random.Random(kind)
    for _ in range(6):
        one = start(*sample(run, out))
        signal.sigtimedwait([], delays.uniform(0, 0.5 * seconds))
        ended = [process.wait() for process in (one, start(*sample(run, out)))]
        held = all(e.said_in_one_line() and e.text.count("\n") == 1 for e in ended)
        refusals = ("Another process is writing", "exists", "was created by another program")
        held = held and all(any(words in e.text for words in refusals) for e in ended if e.code)
        won = [e.code for e in ended].count(0)
        held = held and won <= 1 and names(tmp_path) == ([out.name] if won else [])
        held = held and (not won or out.read_bytes() == expected)
        tally(f"two processes writing one .{kind}", held)
        assert held, [e.text for e in ended]
        out.unlink(missing_ok=True)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_of_two_that_dies(tally: Any, run: Path, tmp_path: Path, lost: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ndm", *sample(run, tmp_path / "x.csv", n=10**8)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        end = time.monotonic() + 200
        while not any(p.stat().st_size for p in tmp_path.iterdir()) and time.monotonic() < end:
            time.sleep(0.05)
        processes[lost].kill()
        _, said = processes[1 - lost].communicate(timeout=100)
        held = processes[1 - lost].returncode == 2 and said.count("\n") == 1
        held = held and "because another process failed" in said
        held = held and not (tmp_path / "x.csv").exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert ndm.cli.main(sample(run, tmp_path / "x.csv", n=10)) == 0
    held = held and names(tmp_path) == ["x.csv"]
    tally("a process of two that draw samples is killed", held)
    assert held, said


# ---- the other commands

WRITTEN = {"evaluate": "results are", "audit": "audit is", "report": "report is", "score": "scores are"}


def output_of(command: str, run: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """A command, and the file that it writes."""
    if command == "evaluate":
        return ["evaluate", str(run), "--steps", "2", "--no-likelihood", "--no-mixture", "--times", "2", "--device",
                "cpu"], run / "evaluation.json"  # fmt: skip
    if command == "audit":
        out = tmp_path / "out" / "audit.json"
        return ["audit", str(run), "--out", str(out), "--steps", "2", "--times", "2", "--examples", "8", "--ode", "0",
                "--no-grid", "--device", "cpu"], out  # fmt: skip
    if command == "report":
        out = tmp_path / "out" / "report.html"
        return ["report", str(run), "--out", str(out), "--examples", "8", "--device", "cpu"], out
    if command == "score":
        table, out = tmp_path / "table.csv", tmp_path / "out" / "scores.csv"
        numbers = np.random.default_rng(0).normal(size=(600, 2))
        pandas.DataFrame(numbers, columns=["a", "b"]).to_csv(table, index=False)
        return ["score", str(run), str(table), "--out", str(out), "--no-likelihood", "--times", "2", "--batch-size",
                "8"], out  # fmt: skip
    return ["push", str(run), "somebody/model"], run / "none"


@pytest.mark.parametrize("command", ["evaluate", "audit", "report", "push", "score"])
def test_other_outputs_under_a_limit_on_files(
    start: Any, tally: Any, plain: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(plain, tmp_path / "run")
    (tmp_path / "out").mkdir()
    arguments, out = output_of(command, tmp_path / "run", tmp_path)
    spare = tmp_path.parent / "spare"
    for limit in (0, 300, 1000):
        read, write = os.pipe()

        def limited(n: int = limit, write: int = write) -> None:
            temporary(spare)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
            for stream in (1, 2):  # its own output goes to a file otherwise
                os.dup2(write, stream)

        ended = start(*arguments, before=limited).wait()
        os.close(write)
        with os.fdopen(read) as said:
            text = said.read()
        errors = [line for line in text.splitlines() if line.startswith("ndm: ")]
        held = ended.code == 2 and len(errors) == 1 and "Traceback" not in text and "None" not in text
        held = held and re.search(r"File too large: \S+", text) is not None and not out.exists()
        held = held and (command != "evaluate" or text.startswith("quantity"))
        held = held and not any(p.name.startswith(".") for p in tmp_path.rglob("*"))
        held = held and all(p.name.startswith("torchinductor") for p in spare.iterdir())  # PyTorch's own folder
        tally(f"{command} under a limit on the size of files", held)
        assert held, text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "ctrl-c"])
@pytest.mark.parametrize("command", ["evaluate", "audit", "report", "score"])
def test_what_is_said_of_a_command_that_is_stopped_is_true(
    start: Any, tally: Any, plain: Path, tmp_path: Path, command: str, number: int
) -> None:
    shutil.copytree(plain, tmp_path / "run")
    (tmp_path / "out").mkdir()
    arguments, out = output_of(command, tmp_path / "run", tmp_path)
    assert ndm.cli.main(arguments) == 0  # so that all is imported
    out.unlink()
    began = time.monotonic()
    assert start(*arguments).wait().code == 0
    expected, seconds = out.read_bytes(), time.monotonic() - began
    moments = random.Random(f"{command} {int(number)}")
    for _ in range(8):
        out.unlink(missing_ok=True)
        out.with_suffix(".npz").unlink(missing_ok=True)
        process = start(*arguments)
        process.stop_after(moments.uniform(0, 1.05 * seconds), number)
        ended = process.wait()
        held = "Traceback" not in ended.text and ended.code in (0, 130, -number)
        if ended.code == 130:
            last = ended.text.splitlines()[-1]
            written = f"ndm: stopped; the {WRITTEN[command]} in"
            held = held and last.startswith(written if out.exists() else f"ndm: stopped; {ndm.cli.STOPPED[command]}")
        if command == "evaluate":  # both files or none
            held = held and out.exists() == out.with_suffix(".npz").exists()
        if not out.exists():
            held = held and start(*arguments).wait().code == 0
        held = held and out.read_bytes() == expected
        held = held and not any(p.name.startswith(".") for p in tmp_path.rglob("*"))
        tally(f"{command}, {signal.Signals(number).name}", held)
        assert held, ended.text


# ---- memory


def peak(arguments: list[str]) -> float:
    """The megabytes that a command needs at most."""
    script = (
        "import resource, sys; from ndm.cli import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("kind", FORMATS)
def test_memory_does_not_grow_with_the_number_of_samples(tally: Any, run: Path, tmp_path: Path, kind: str) -> None:
    peaks = []
    for n in (10**4, 10**5, 10**6):
        arguments = ["sample", str(run), "-n", str(n), "--steps", "1", "--batch-size", "10000", "--device", "cpu"]
        peaks.append(peak([*arguments, "--out", str(tmp_path / f"{n}.{kind}")]))
    print(f"{kind}: {', '.join(f'{p:.0f} MB' for p in peaks)} at 10^4, 10^5 and 10^6 rows")
    tally(f"memory of samples in .{kind}", max(peaks) - min(peaks) < 20)
    assert max(peaks) - min(peaks) < 20, peaks
