"""Worker processes on one computer, each with one thread, that apply one function to many jobs.

The processes are spawned, so they share no state with this one. They end when this process ends, however it ends, and
they leave Ctrl-C and SIGTERM to it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from ndm._internal.distributed import world_size
from ndm._internal.signals import uninterrupted

__all__ = ["Workers", "check_workers", "ending", "one_thread", "packed", "serve_parent", "started", "unpacked"]

#: Signals that a worker leaves to its parent, which ends its workers.
_LEFT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Jobs that are computed or wait for their turn, per worker.
AHEAD = 2

#: Seconds to wait for the exit code of a process whose connection is closed.
_PATIENCE = 10.0


def check_workers(device: torch.device, workers: int) -> None:
    """Raise a ValueError if work on a device, or of a process of a launcher, cannot be divided among workers."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    if workers > 1 and device.type != "cpu":
        raise ValueError(
            f"Several workers are for the CPU, and the device is {device}: use one worker, or the CPU (--device cpu)."
        )
    if workers > 1 and world_size() > 1:
        raise ValueError("Workers cannot be combined with torchrun: leave one of them out.")


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Use one thread for a while, as workers do, if it is wanted."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workers:
    """Processes that apply a function to jobs: a context manager, which starts and ends them.

    Args:
        number: the number of processes.
        function: called with a job; pickled once, for all processes.

    Raises:
        ValueError: the function cannot be pickled.
    """

    def __init__(self, number: int, function: Callable[[Any], Any]) -> None:
        self._number = number
        try:
            self._function = pickle.dumps(function)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ValueError(
                f"The model cannot be sent to worker processes ({error}): use classes and functions of modules, or one "
                "process."
            ) from None

    def __enter__(self) -> Workers:
        self._processes: dict[Connection, Any] = {}
        self._busy: dict[Connection, int] = {}
        try:
            for _ in range(self._number):
                channel, process = started(_serve)
                self._processes[channel] = process
            for channel in self._processes:
                self._send(channel, self._function)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def map(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Yield the function's results in the order of the jobs.

        At most :data:`AHEAD` jobs per worker are in memory. Jobs are read in advance. An exception of a job, of the
        iteration over the jobs, or of a worker that ended early, is raised in its turn, after the results of all jobs
        before.

        Raises:
            ChildProcessError: a worker ended early, for example because the system killed it.
        """
        left, read, turn = iter(jobs), 0, 0
        for channel in self._busy:  # the results of an iteration that was not finished
            self._receive(channel)
        idle, busy = list(self._processes), dict[Connection, int]()
        self._busy = busy
        answers: dict[int, bytes | ChildProcessError] = {}
        broken: Exception | None = None
        complete = False
        while True:
            while idle and not complete and read - turn < AHEAD * self._number:
                try:
                    job = pickle.dumps(next(left))
                except StopIteration:
                    complete = True
                    break
                except Exception as error:  # raised in its turn
                    broken, complete = error, True
                    break
                channel = idle.pop(0)
                self._send(channel, job)
                busy[channel] = read
                read += 1
            if turn in answers:
                answer = answers.pop(turn)
                if isinstance(answer, ChildProcessError):
                    raise answer
                yield unpacked(answer)
                turn += 1
            elif busy:
                ready = wait(list(busy))
                for channel in [channel for channel in busy if channel in ready]:
                    number = busy.pop(channel)
                    try:
                        answers[number] = self._receive(channel)
                        idle.append(channel)
                    except ChildProcessError as error:
                        answers[number], complete = error, True
            elif broken is not None:
                raise broken
            elif complete:
                return

    def _send(self, channel: Connection, data: bytes) -> None:
        """Send data to an idle worker, which reads it at once."""
        try:
            channel.send_bytes(data)
        except OSError:
            raise ending(self._processes[channel]) from None

    def _receive(self, channel: Connection) -> bytes:
        try:
            return channel.recv_bytes()
        except (EOFError, OSError):
            raise ending(self._processes[channel]) from None

    def _end(self) -> None:
        with uninterrupted():
            for channel, process in self._processes.items():
                process.kill()  # it ignores SIGTERM
                channel.close()
            for process in self._processes.values():
                process.join()


def unpacked(data: bytes) -> Any:
    """The result of an answer, (result,), or raise the exception of one, (exception, its traceback)."""
    answer = pickle.loads(data)
    if len(answer) == 1:
        return answer[0]
    error, trace = answer
    raise error from RuntimeError(f"in another process:\n{trace}")


def started(target: Callable[..., None], *arguments: Any) -> tuple[Connection, Any]:
    """Start a process that calls ``target(channel, *arguments)``; return the other end of its channel, and the process.

    Signals are blocked in the process until :func:`serve_parent` ignores them.
    """
    from multiprocessing import resource_tracker

    context = multiprocessing.get_context("spawn")
    if os.name == "posix":
        resource_tracker.ensure_running()  # starting it would unblock the signals
    mine, its = context.Pipe()
    process = context.Process(target=target, args=(its, *arguments), daemon=True)
    with _blocked():
        process.start()
    its.close()
    return mine, process


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Block signals in this thread, and so in the processes that it starts."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent() -> None:
    """Make this process a worker: it ignores Ctrl-C and SIGTERM, ends with its parent, and has one thread."""
    for number in _LEFT:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a killed process would leave behind
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def ending(process: Any) -> ChildProcessError:
    """The error of a worker process that ended early."""
    process.join(_PATIENCE)
    code = process.exitcode
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        reason = ", as systems do when memory runs out" if -code == getattr(signal, "SIGKILL", 9) else ""
        how = f"was killed by signal {-code}{reason}"
    return ChildProcessError(f"A worker process {how}: run the same command again, with fewer workers.")


def _serve(channel: Connection) -> None:
    """The loop of a worker: it receives the function, then jobs, until the channel is closed."""
    serve_parent()
    with contextlib.suppress(EOFError, OSError):  # of the channel
        loaded = _answer(pickle.loads, channel.recv_bytes())
        while True:
            job = channel.recv_bytes()
            channel.send_bytes(packed(_answer(_call, (loaded[0], job)) if len(loaded) == 1 else loaded))


def _call(work: tuple[Callable[[Any], Any], bytes]) -> Any:
    function, job = work
    return function(pickle.loads(job))


def _answer(function: Callable[[Any], Any], job: Any) -> tuple[Any, ...]:
    """The result, (result,), or (exception, its traceback)."""
    try:
        return (function(job),)
    except Exception as error:
        return error, traceback.format_exc()


def packed(answer: tuple[Any, ...]) -> bytes:
    """An answer as bytes; what cannot be pickled becomes a RuntimeError."""
    try:
        data = pickle.dumps(answer)
        if len(answer) > 1:
            pickle.loads(data)  # some exceptions cannot be restored
    except Exception as error:
        cause, trace = answer if len(answer) > 1 else (error, traceback.format_exc())
        data = pickle.dumps((RuntimeError(f"{type(cause).__name__}: {cause}"), trace))
    return data
