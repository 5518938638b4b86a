"""What several processes find is put together; alone, a process does everything."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

import ndm
from ndm._internal.distributed import (
    all_gather,
    all_reduce,
    from_first,
    from_some,
    gather_in_order,
    is_first,
    process_group,
    rank,
    shard,
    strided_share,
    world_size,
)
from ndm.data import Digits
from ndm.evaluation import Evaluation, evaluate
from ndm.networks import ResidualMLP


def _work(process: int, job: Callable[..., Any], world: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=process, world_size=world)
    torch.save(job(), f"{path}/{process}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def in_processes(job: Callable[..., Any], world: int, path: Any) -> list[Any]:
    """What a job returns in each of several processes."""
    multiprocessing.spawn(_work, (job, world, free_port(), str(path)), nprocs=world)
    return [torch.load(f"{path}/{i}.pt", weights_only=True) for i in range(world)]


def test_alone() -> None:
    assert (rank(), world_size(), is_first(), list(shard(4))) == (0, 1, True, [0, 1, 2, 3])
    values = torch.tensor([3.0, 1.0])
    assert torch.equal(all_gather(values, torch.tensor([1, 0]), 2), torch.tensor([1.0, 3.0]))
    assert torch.equal(all_reduce(values), values)
    assert (from_first("a"), from_some("")) == ("a", "")
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert world_size() == 1
    assert list(range(10))[strided_share(10, 1, 3)] == [1, 4, 7]


@pytest.mark.parametrize("device", ["cudda", "cuda:97"])
def test_a_device_that_is_not_there(device: str) -> None:
    with (
        pytest.raises(ValueError, match=r"is not available .*choose another device, such as cpu"),
        process_group(device),
    ):
        pass


def _put_together() -> tuple[Tensor, Tensor, list[int], int, int, str]:
    jobs = list(shard(7))
    values = torch.tensor([[float(j), 10.0 * j] for j in jobs])
    return (
        all_gather(values, torch.tensor(jobs), 7),
        all_reduce(torch.tensor([1.0])),
        jobs,
        rank(),
        from_first(rank() + 5),
        from_some("x" * rank()),
    )


@pytest.mark.slow
def test_three_processes_put_their_findings_together(tmp_path: Any) -> None:
    found = in_processes(_put_together, 3, tmp_path)
    for i, (whole, total, jobs, number, of_first, of_some) in enumerate(found):
        assert (number, of_first, of_some) == (i, 5, "x")
        assert jobs == list(range(i, 7, 3))
        assert torch.equal(whole, torch.stack([torch.arange(7.0), 10 * torch.arange(7.0)], 1))
        assert total.item() == 3


@pytest.mark.parametrize("total", [1, 4, 5, 13, 24])
@pytest.mark.slow
def test_blocks_come_in_turn_from_three_processes(tmp_path: Any, total: int) -> None:
    for found in in_processes(partial(_in_turn, total), 3, tmp_path):
        whole, blocks = found
        assert torch.equal(whole, torch.arange(1.0, total + 1)[:, None])
        assert blocks == -(-total // 12)  # three blocks of four at a time


def _in_turn(total: int) -> tuple[Tensor, int]:
    values = torch.arange(1.0, total + 1)[:, None]
    mine_of_them = (values[4 * b : 4 * b + 4] for b in shard(-(-total // 4)))
    blocks = list(gather_in_order(mine_of_them, 4, total, torch.empty(0, 1)))
    return torch.cat(blocks), len(blocks)


def _left_alone(process: int, port: int, path: str) -> None:
    os.environ |= {"RANK": str(process), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    began = time.monotonic()
    try:
        with process_group("cpu"):
            all_reduce(torch.ones(3))
            if process == 1:
                os._exit(0)  # as after `kill -9`
            all_reduce(torch.ones(3))
    except ConnectionError as error:
        torch.save([str(error), time.monotonic() - began], path)


@pytest.mark.slow
def test_a_process_whose_other_one_has_died_ends_with_a_sentence(tmp_path: Any) -> None:
    port = free_port()
    multiprocessing.spawn(_left_alone, (port, f"{tmp_path}/said.pt"), nprocs=2)
    said, seconds = torch.load(f"{tmp_path}/said.pt", weights_only=True)
    assert said.startswith("Process 0 of 2 stops because another process failed or did not respond in time")
    assert seconds < 120


def test_other_errors_among_several_processes_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="of another matter"), process_group("cpu"):
        raise RuntimeError("of another matter")


class Many(Digits):
    """1,001 digits to be evaluated."""

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        x, labels = super()._split("train")
        n = 1001 if name == "test" else 300
        return x[:n], labels[:n]


def _evaluated() -> dict[str, Any]:
    torch.manual_seed(0)
    net = ResidualMLP(64, hidden=16, depth=1, classes=10, zero_init=False)
    transform = ndm.Separable(ResidualMLP(64, hidden=8, depth=1, heads=2, level=False, zero_init=False), terms=2)
    model = ndm.NDM(ndm.LinearSchedule(-6, 5), transform, ndm.Denoiser(net), ndm.DiscretizedDecoder(17))
    found: Evaluation = evaluate(
        model, Many(), steps=(2, None), variances=("posterior", "isotropic", "diagonal"), times=3, progress=False,
        spacing="optimal",
        divergence="hutchinson", probes=1, samples=1, tolerance=10.0,
    )  # fmt: skip
    return {"rows": [dict(row) for row in found.rows], "per_example": found.per_example}


@pytest.mark.slow
def test_an_evaluation_of_1001_examples_is_the_same_on_one_two_and_three_processes(tmp_path: Any) -> None:
    alone = _evaluated()
    assert {row["examples"] for row in alone["rows"]} == {1001}
    for world in (2, 3):
        for found in in_processes(_evaluated, world, tmp_path):
            for one, other, a, b in zip(
                alone["rows"], found["rows"], alone["per_example"], found["per_example"], strict=True
            ):
                assert other == one
                assert torch.equal(a, b)
