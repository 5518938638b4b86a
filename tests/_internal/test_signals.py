"""Ctrl-C and SIGTERM, and what is said of what they leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ndm._internal.signals import set_stop_message, set_stop_message_of, stop_message, terminable, uninterrupted
from ndm.storage.atomic import atomic_write


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_must_not_be_interrupted_is_stopped_when_it_is_done(interruptible: None, number: int) -> None:
    done = []
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def work() -> None:
        os.kill(os.getpid(), number)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), terminable(), uninterrupted():
        work()
    assert done == [1]
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_a_library_takes_for_another_fault_is_a_stop(interruptible: None, number: int) -> None:
    def stop() -> None:
        with terminable():
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                raise ValueError("of another matter") from None

    with pytest.raises(KeyboardInterrupt):
        stop()
    with pytest.raises(ValueError, match="of another matter"), terminable():
        raise ValueError("of another matter")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_command_of_a_process_is_ended_at_once_by_a_later_signal(interruptible: None, number: int) -> None:
    before = signal.getsignal(number)
    try:
        with terminable():
            assert callable(signal.getsignal(number))
        assert signal.getsignal(number) is before
        with terminable(last=True):
            assert callable(signal.getsignal(number))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_the_handler_of_a_delayed_signal_is_called_at_the_end_of_the_outermost_context() -> None:
    done: list[object] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: done.append(number))
    try:
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
            done.append("work")
        assert done == ["work", signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert done[2:] == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_ignored_stays_ignored(interruptible: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("exists", [False, True])
def test_a_stop_says_whether_a_file_was_written(tmp_path: Path, exists: bool) -> None:
    file = tmp_path / "x.csv"
    if exists:
        file.write_text("new")
    with terminable():
        assert stop_message() == ""
        set_stop_message_of(file, "it is there", "it is not")
        assert stop_message() == "it is not"
        with atomic_write(file) as written:
            written.write(b"new")
        assert stop_message() == "it is there"
        file.unlink()
        assert stop_message() == "it is not"
        file.write_text("new, too")
    assert stop_message() == "it is there"  # for a stop at the end of the command
    with terminable():
        assert stop_message() == ""
        set_stop_message("something else is there")
        assert stop_message() == "something else is there"
