"""Worker processes: the order of their results, their errors, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ndm._internal.workers import AHEAD, Workers, check_workers


class UnusualError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def work(job: int) -> tuple[int, int]:
    """The square of a job, later for even ones and a second later for 20, and the number of threads."""
    if job == -1:
        raise ValueError("there is no job -1")
    if job == -2:
        raise UnusualError(1, 2)
    if job == -3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(job / 20 if job == 20 else 0.02 * (job % 2 == 0))
    return job * job, torch.get_num_threads()


def until(error: BaseException, *jobs: int) -> Iterator[int]:
    yield from jobs
    raise error


@pytest.mark.slow
def test_results_and_errors_come_in_the_order_of_the_jobs() -> None:
    read: list[int] = []
    done = 0

    def jobs() -> Iterator[int]:
        for job in range(20):
            read.append(job)
            assert len(read) - done <= 2 * AHEAD + 1
            yield job

    with Workers(2, work) as pool:
        for done, found in enumerate(pool.map(jobs()), 1):
            assert found == ((done - 1) ** 2, 1)
        assert done == 20
        for last, error, text in ((-1, ValueError, "no job -1"), (-2, RuntimeError, "UnusualError: 1 and 2")):
            results = pool.map([4, 5, last, 6])
            assert [next(results)[0], next(results)[0]] == [16, 25]
            with pytest.raises(error, match=text):
                next(results)
        results = pool.map(until(ValueError("damaged rows"), 2, 3))
        assert [next(results)[0], next(results)[0]] == [4, 9]
        with pytest.raises(ValueError, match="damaged rows"):
            next(results)
        results = pool.map([20, -3, 5, 6])  # the first result comes after the other worker was killed
        assert next(results)[0] == 400
        with pytest.raises(ChildProcessError, match="killed by signal 9, as systems do when memory runs out: run"):
            next(results)


SCRIPT = """
import time
from ndm._internal.workers import Workers
if __name__ == "__main__":
    with Workers(2, time.sleep) as pool:
        print(*(process.pid for process in pool._processes.values()), flush=True)
        list(pool.map([0, 0, 1000, 1000]))
"""


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_workers_cannot_do_is_refused_before_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot be sent to worker processes"):
        Workers(2, lambda job: job)
    check_workers(torch.device("cuda"), 1)
    with pytest.raises(ValueError, match="for the CPU, and the device is cuda"):
        check_workers(torch.device("cuda"), 2)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        check_workers(torch.device("cpu"), 0)
    monkeypatch.setattr("ndm._internal.workers.world_size", lambda: 2)
    with pytest.raises(ValueError, match="cannot be combined with torchrun"):
        check_workers(torch.device("cpu"), 2)
