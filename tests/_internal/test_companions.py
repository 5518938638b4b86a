"""Processes that share the work of the first one: the same result, and the errors of any of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch

from ndm._internal.companions import companions
from ndm._internal.distributed import all_reduce, process_group, rank, world_size


def follow(ready: Callable[[], None], what: str) -> None:
    if what == "early":
        raise ValueError("there is no such file")
    ready()
    with process_group("cpu"):
        if what == "late":
            raise ValueError("the last rows are damaged")
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        all_reduce(torch.ones(1))


def shared(what: str) -> tuple[float, int, int]:
    with companions(2, follow, what), process_group("cpu"):
        return all_reduce(torch.ones(1)).item(), rank(), world_size()


def test_one_process_has_no_companions() -> None:
    with companions(1, follow, ""), process_group("cpu"):
        assert world_size() == 1


@pytest.mark.slow
def test_companions_share_the_work_and_tell_their_errors() -> None:
    threads, before = torch.get_num_threads(), dict(os.environ)
    assert shared("well") == (2.0, 0, 2)
    for what, error, text in (
        ("early", ValueError, "no such file"),
        ("late", ValueError, "the last rows are damaged"),
        ("killed", ChildProcessError, "killed by signal 9"),
    ):
        with pytest.raises(error, match=text):
            shared(what)
    assert torch.get_num_threads() == threads
    assert dict(os.environ) == before
