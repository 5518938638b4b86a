"""Parts of a split: random ones by a seed, and evenly spaced ones."""

from __future__ import annotations

import pytest
import torch

from ndm.data import Some, evenly_spaced, part_of


def test_a_part_is_some_places_in_their_order_by_the_seed() -> None:
    part = part_of(1000, 100, seed=3)
    assert part.dtype == torch.long
    assert (part.diff() > 0).all()
    assert part[0] >= 0
    assert part[-1] < 1000
    assert torch.equal(part, part_of(1000, 100, seed=3))
    assert not torch.equal(part, part_of(1000, 100, seed=4))
    for size in (7, 8, None):
        assert torch.equal(part_of(7, size, seed=0), torch.arange(7))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        part_of(7, 0, seed=0)


def test_every_place_is_as_likely() -> None:
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[part_of(20, 5, seed)] += 1
    # Binomial with n = 2000, p = 1/4: standard deviation 19.4.
    assert (counts - 500).abs().max() < 4 * 19.4


def test_evenly_spaced_places_reach_from_the_first_to_the_last() -> None:
    assert evenly_spaced(40, 4).tolist() == [0, 13, 26, 39]
    assert evenly_spaced(3, 9).tolist() == [0, 1, 2]
    assert evenly_spaced(0, 4).tolist() == []


def test_some_examples_are_had_as_those_of_the_split() -> None:
    x = torch.arange(20.0)[:, None]
    some = Some(x, torch.tensor([2, 3, 5, 7, 11]))
    assert len(some) == 5
    assert some[:].flatten().tolist() == [2, 3, 5, 7, 11]
    assert some[1:3].flatten().tolist() == [3, 5]
    assert some[torch.tensor([4, 0])].flatten().tolist() == [11, 2]
