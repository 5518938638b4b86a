"""The trial of faults: commands that are run in forked processes, and the table of what was tried and what held."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

import ndm.cli
from tests.faults import hostile
from tests.faults.hostile import CONFIG, contents
from tests.faults.strangers import MEMORY, SECONDS

#: What was tried, and how often it held.
TALLY: dict[str, list[bool]] = collections.defaultdict(list)


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, negative for a signal, and what it wrote."""

    code: int
    text: str

    def said_in_one_line(self) -> bool:
        """Whether it ended well, or with one sentence about what went wrong, and without a traceback."""
        if "Traceback" in self.text:
            return False
        errors = [line for line in self.text.splitlines() if line.startswith("ndm: error:")]
        return (self.code == 0 and not errors) or (self.code in (1, 2) and len(errors) == 1)


class Running:
    """A command in a process that was forked from this one, so that nothing has to be imported again.

    Args:
        arguments: of ``ndm``.
        folder: the working folder.
        log: the file that its output goes to.
        before: is called in the new process first, to set its limits.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, log: Path, before: Callable[[], Any] | None = None
    ) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        log.touch()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it is to stop the command, not what is here
        self.pid = os.fork()
        if self.pid == 0:
            self._child(arguments, folder, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _child(self, arguments: Sequence[str], folder: Path, before: Callable[[], Any] | None) -> None:
        code = 70
        try:
            out = os.open(self.log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored if the tests were started by nohup
            sys.dont_write_bytecode = True  # under a limit on files Python leaves parts of .pyc files
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.chdir(folder)
            # tqdm's own lock is shared with the processes forked before, of which one may have been killed with it.
            tqdm.set_lock(threading.RLock())
            if before is not None:
                before()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = ndm.cli.main(list(arguments))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def stop_after(self, seconds: float, number: int = signal.SIGKILL) -> None:
        """Send a signal after some time, unless it has ended."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> Ended:
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """start(*arguments, before=None): run ``ndm`` with arguments, in the test's folder."""
    started: list[Running] = []

    def run(*arguments: str, before: Callable[[], Any] | None = None) -> Running:
        logs = tmp_path.parent / f"{tmp_path.name}-logs"
        logs.mkdir(exist_ok=True)
        started.append(Running(arguments, tmp_path, logs / f"{len(started)}.txt", before))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def tally() -> Callable[[str, bool], None]:
    """tally(what, held): count a trial for the table at the end."""
    return lambda what, held: TALLY[what].append(bool(held))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = hostile.Commands(tmp_path_factory.mktemp("scratch"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, commands: Any) -> Path:
    """A run, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "toy.yaml").write_text(CONFIG)
    result = commands(folder, "train", "toy.yaml", "--out", "run")
    assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture
def counted(request: pytest.FixtureRequest, tally: Callable[[str, bool], None]) -> Iterator[list[bool]]:
    """Counts each test as a trial, which holds where the test says at its end that it did."""
    held: list[bool] = []
    yield held
    what = request.node.originalname.removeprefix("test_").replace("_", " ")
    tally(f"hostile files: {what}", bool(held))


@pytest.fixture
def refused(commands: Any, folder: Path, counted: list[bool]) -> Callable[..., None]:
    """Sees that a command is refused as it should be."""

    def check(words: list[str], sentence: str, memory: int = MEMORY) -> None:
        before = contents(folder)
        result = commands(folder, *words)
        print(f"{result.seconds:.1f} s, {result.memory / 1e6:.0f} MB: {result.err.strip()[:400]}")
        assert result.code == 2, result.err[-3000:]
        assert "Traceback" not in result.err
        assert len(result.err.splitlines()) == 1, result.err
        assert len(result.err) < 1000
        assert re.search(sentence, result.err), result.err
        assert result.memory < memory
        assert result.seconds < SECONDS
        assert contents(folder) == before
        counted.append(True)

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not TALLY:
        return
    terminalreporter.section("faults")
    for what, held in TALLY.items():
        terminalreporter.write_line(f"{what:<72} tried {len(held):>3}   held {sum(held):>3}")
