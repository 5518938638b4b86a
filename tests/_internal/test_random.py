"""A share of the random numbers of a batch is what the whole batch has in its place."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm._internal.random import Share, low_discrepancy, normal_like, seed_of
from ndm.networks import ResidualMLP


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_shares_make_up_the_whole(of: int) -> None:
    like = torch.empty(12, 5)
    noise, times = normal_like(like, generator()), low_discrepancy(12, like, generator())
    for i in range(of):
        rows = slice(i, 12, of)
        assert torch.equal(normal_like(like[rows], Share(generator(), rows, 12)), noise[rows])
        assert torch.equal(low_discrepancy(12 // of, like, Share(generator(), rows, 12)), times[rows])
    assert torch.equal((torch.sort(times).values * 12).floor(), torch.arange(12.0))  # spread over the whole batch


def test_a_bound_is_the_same_however_the_batch_is_cut() -> None:
    torch.manual_seed(0)
    net = ResidualMLP(3, hidden=16, heads=2, zero_init=False)
    transform = ndm.Neural(ResidualMLP(3, hidden=8, zero_init=False))
    model = ndm.NDM(
        ndm.LinearSchedule(-6, 4), transform, ndm.Denoiser(net), ndm.DiscretizedDecoder(4), reverse_variance="predicted"
    )
    x = model.decoder.encode(torch.randint(4, (10, 3)))
    for steps in (None, 7):
        whole = model.bound(x, steps, generator=generator())
        for rows in (slice(0, 10, 2), slice(1, 10, 2), slice(3, 10, 4), slice(9, 10)):
            part = model.bound(x[rows], steps, generator=Share(generator(), rows, 10))
            for name in ("diffusion", "prior", "reconstruction"):
                torch.testing.assert_close(getattr(part, name), getattr(whole, name)[rows], rtol=1e-5, atol=1e-5)


def test_seeds_of_neighbours_differ() -> None:
    seeds = {seed_of(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(2)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
