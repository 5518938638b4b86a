from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ndm._internal.random import seed_of
from ndm.data import Data
from ndm.data.base import Examples
from ndm.training.batches import Batch, InOrder, Stream

CPU = SimpleNamespace(root_device=torch.device("cpu"))


def trainer(step: int = 0, max_steps: int = 12, rank: int = 0, world: int = 1) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=max_steps, global_rank=rank, world_size=world, strategy=CPU)


class Numbers(Data):
    """The numbers 0 ... n - 1, each with ten times itself as its label."""

    shape, levels = (), None

    def __init__(self, n: int = 10) -> None:
        self.x = torch.arange(n)

    def _split(self, name: str) -> tuple[Examples, Tensor | None]:
        return self.x, 10 * self.x


class Lazy:
    """Examples that are not a tensor."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.x[rows]


class OnDisk(Numbers):
    """Numbers that the training cannot have all at once, and whose sign is drawn anew in every pass."""

    def _split(self, name: str) -> tuple[Examples, Tensor | None]:
        return Lazy(self.x + 1), 10 * self.x

    def augment(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, -x, x)


class Streamed(Numbers):
    def training_batches(self, batch_size: int, seed: int, first_step: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        for step in itertools.count(first_step):
            yield torch.arange(batch_size) + 100 * step + seed, None


def numbers(stream: Stream) -> list[list[int]]:
    return [batch.x.tolist() for batch in stream]


DATA = Numbers()


def test_every_pass_holds_every_example_once_and_in_another_order() -> None:
    batches = numbers(Stream(DATA, 5, 0, trainer(max_steps=4)))
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_examples_that_do_not_fill_a_batch_wait_for_another_pass() -> None:
    batches = numbers(Stream(DATA, 4, 0, trainer(max_steps=40)))
    assert all(len(batch) == 4 for batch in batches)
    assert {i for batch in batches for i in batch} == set(range(10))


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    assert sorted(numbers(Stream(DATA, 64, 0, trainer(max_steps=1)))[0]) == list(range(10))


@pytest.mark.parametrize("step", [1, 2, 5, 11])
def test_a_stream_goes_on_where_the_trainer_stands(step: int) -> None:
    whole = numbers(Stream(DATA, 4, 3, trainer()))
    assert numbers(Stream(DATA, 4, 3, trainer(step))) == whole[step:]


def test_the_order_depends_on_the_seed() -> None:
    assert numbers(Stream(DATA, 5, 0, trainer())) != numbers(Stream(DATA, 5, 1, trainer()))


def test_devices_share_a_batch() -> None:
    whole = numbers(Stream(DATA, 4, 0, trainer()))
    shares = [numbers(Stream(DATA, 4, 0, trainer(rank=rank, world=2))) for rank in (0, 1)]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert sorted(one + other) == sorted(batch)


def test_labels_stay_with_their_examples() -> None:
    for batch in Stream(DATA, 4, 0, trainer(), labels=True):
        assert torch.equal(batch.labels, 10 * batch.x)
    assert all(batch.labels is None for batch in Stream(DATA, 4, 0, trainer()))


@pytest.mark.parametrize("data", [DATA, OnDisk(), Streamed()], ids=["in memory", "on disk", "streamed"])
@pytest.mark.parametrize(("world", "pieces"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_a_batch_is_the_same_however_it_is_cut(data: Data, world: int, pieces: int) -> None:
    whole = list(Stream(data, 8, 1, trainer(step=2)))
    shares = [list(Stream(data, 8, 1, trainer(2, rank=r, world=world), pieces=pieces)) for r in range(world)]
    assert len(whole) == 10
    for i, batch in enumerate(whole):
        assert (batch.rows, batch.total) == (slice(0, 8, 1), 8)
        together = torch.full((8,), -999)
        for share in shares:
            for piece in share[i * pieces : (i + 1) * pieces]:
                assert piece.total == 8
                together[piece.rows] = piece.x
        assert torch.equal(together, batch.x)


def test_examples_on_disk_and_streamed_ones_go_on_where_the_trainer_stands() -> None:
    for data in (OnDisk(), Streamed()):
        whole = numbers(Stream(data, 4, 3, trainer()))
        assert numbers(Stream(data, 4, 3, trainer(5))) == whole[5:]
        assert len(whole) == 12


def test_augmentation_differs_between_the_examples_and_the_passes() -> None:
    batches = numbers(Stream(OnDisk(), 10, 0, trainer(max_steps=20)))
    signs = {tuple(n for n in sorted(batch, key=abs) if n > 0) for batch in batches}
    assert len(signs) > 15
    assert sum(n > 0 for batch in batches for n in batch) == pytest.approx(100, abs=30)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of 4"):
        Stream(DATA, 6, 0, trainer(world=2), pieces=2)


def test_an_error_in_the_thread_that_fetches_is_raised() -> None:
    class Broken(OnDisk):
        def augment(self, x: Tensor, u: Tensor) -> Tensor:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(iter(Stream(Broken(), 4, 0, trainer())))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_example_once(world: int) -> None:
    pieces: list[Batch] = []
    for rank in range(world):
        pieces += list(InOrder(DATA.x, 10 * DATA.x, 4, trainer(rank=rank, world=world)))
    seen = [0] * 10
    for batch in pieces:
        places = range(batch.start, batch.start + batch.total)[batch.rows]
        assert len(batch.x) == max(len(places), 1)  # one is lent where there is none
        for place, x, label in zip(places, batch.x.tolist(), batch.labels.tolist(), strict=False):
            assert (x, label) == (place, 10 * place)
            seen[place] += 1
    assert seen == [1] * 10


def test_a_stream_without_end_has_no_length() -> None:
    assert len(Stream(DATA, 4, 0, trainer())) == 12
    with pytest.raises(TypeError, match="infinite"):
        len(Stream(DATA, 4, 0, trainer(max_steps=-1)))


def test_seeds_of_neighbouring_steps_differ() -> None:
    seeds = {seed_of(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(2)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
