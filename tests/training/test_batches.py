from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ndm.training.batches import InOrder, Stream, seed_of


def trainer(step: int = 0, max_steps: int = 12, rank: int = 0, world: int = 1) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=max_steps, global_rank=rank, world_size=world)


def numbers(stream: Stream) -> list[list[int]]:
    return [batch[0].tolist() for batch in stream]


X = torch.arange(10)


def test_every_pass_holds_every_example_once_and_in_another_order() -> None:
    batches = numbers(Stream(X, None, 5, 0, trainer(max_steps=4)))
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_examples_that_do_not_fill_a_batch_wait_for_another_pass() -> None:
    batches = numbers(Stream(X, None, 4, 0, trainer(max_steps=40)))
    assert all(len(batch) == 4 for batch in batches)
    assert {i for batch in batches for i in batch} == set(range(10))


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    assert sorted(numbers(Stream(X, None, 64, 0, trainer(max_steps=1)))[0]) == list(range(10))


@pytest.mark.parametrize("step", [1, 2, 5, 11])
def test_a_stream_goes_on_where_the_trainer_stands(step: int) -> None:
    whole = numbers(Stream(X, None, 4, 3, trainer()))
    assert numbers(Stream(X, None, 4, 3, trainer(step))) == whole[step:]


def test_the_order_depends_on_the_seed() -> None:
    assert numbers(Stream(X, None, 5, 0, trainer())) != numbers(Stream(X, None, 5, 1, trainer()))


def test_devices_share_a_batch() -> None:
    whole = numbers(Stream(X, None, 4, 0, trainer()))
    shares = [numbers(Stream(X, None, 4, 0, trainer(rank=rank, world=2))) for rank in (0, 1)]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert sorted(one + other) == sorted(batch)


def test_labels_stay_with_their_examples() -> None:
    for x, y in Stream(X, X * 10, 4, 0, trainer()):
        assert torch.equal(y, 10 * x)
    pieces: list[list[Tensor]] = list(InOrder(X, X * 10, 4))
    assert torch.equal(torch.cat([x for x, _ in pieces]), X)
    assert torch.equal(torch.cat([y for _, y in pieces]), 10 * X)


def test_a_stream_without_end_has_no_length() -> None:
    assert len(Stream(X, None, 4, 0, trainer())) == 12
    with pytest.raises(TypeError, match="no end"):
        len(Stream(X, None, 4, 0, trainer(max_steps=-1)))


def test_seeds_of_neighbouring_steps_differ() -> None:
    seeds = {seed_of(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(2)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
