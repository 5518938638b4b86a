"""Random numbers of the samplers: trajectories, labels, units, levels, and samples shared by processes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import ndm
from ndm.inference.sampling import METHODS, sample, sample_batches
from ndm.networks import ResidualMLP
from tests.inference.gaussians import (
    EVERY_WAY,
    MEAN,
    QUICK_WAYS,
    Exact,
    R,
    assert_moments,
    data_moments,
    gaussian,
    seeded,
    small,
)


@pytest.mark.parametrize(("method", "steps", "solver"), EVERY_WAY)
def test_every_random_number_comes_from_the_generator(method, steps, solver):
    model = small()

    def draw(seed: int) -> Tensor:
        return sample(
            model, 3, (2,), method=method, steps=steps, solver=solver, rtol=1e-2, atol=1e-2, generator=seeded(seed)
        )

    state = torch.get_rng_state()
    first = draw(0)
    assert first.shape == (3, 2)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)  # the global generator moves on; nothing changes
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)


# ---- trajectories, labels, units, levels


@pytest.mark.parametrize(("method", "steps", "solver"), EVERY_WAY)
def test_a_trajectory_runs_from_noise_to_the_sample(method, steps, solver):
    standardize = ndm.Standardize([10.0, -5.0], [2.0, 0.5])
    model = small(standardize=standardize)
    common = {"solver": solver, "rtol": 1e-3, "atol": 1e-3}
    path = sample(model, 3, (2,), method=method, steps=steps, trajectory=True, generator=seeded(0), **common)
    assert path.shape == ((steps or 100) + 2, 3, 2)
    end = sample(model, 3, (2,), method=method, steps=steps, generator=seeded(0), **common)
    torch.testing.assert_close(path[-1], end, rtol=1e-3, atol=1e-3)
    # A Gaussian decoder's most likely data are z_0 / alpha_0; and the states are z / alpha in the data's units.
    torch.testing.assert_close(path[-2], path[-1])
    z_1 = torch.randn(3, 2, generator=seeded(0))
    alpha_1 = math.sqrt(1 / (1 + math.exp(4)))
    torch.testing.assert_close(path[0], z_1 / alpha_1 * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, -5.0]))
    assert all(not torch.equal(a, b) for a, b in pairwise(path[:-1]))


@pytest.mark.parametrize(("method", "steps"), [("ancestral", 50), ("ddim", 50), ("ode", None), ("sde", 100)])
def test_labels_reach_the_denoiser(method, steps):
    labels = torch.tensor([0, 10, 20]).repeat_interleave(400)
    x = sample(gaussian(), 1200, (1,), method=method, steps=steps, labels=labels, dtype=torch.float64)
    means = x.reshape(3, 400).mean(1)
    torch.testing.assert_close(means, MEAN + torch.tensor([0.0, 10.0, 20.0]).double(), rtol=0, atol=0.35)


def test_samples_are_in_the_datas_own_units():
    """A model of standardised N(0, 1) data with units: what is drawn has the data's mean and deviation."""
    mean, scale = [100.0, -3.0], [20.0, 0.1]
    x = sample(
        gaussian(standardize=ndm.Standardize(mean, scale)), 20_000, (2,), method="ode", steps=40, dtype=torch.float64
    )
    for k in range(2):
        assert_moments((x[:, k] - mean[k]) / scale[k], data_moments("identity"), bias=0.02)


@pytest.mark.parametrize(("method", "steps", "solver"), EVERY_WAY)
def test_k_level_samples_lie_on_the_levels(method, steps, solver):
    model = small(decoder=ndm.DiscretizedDecoder(levels=5))
    x = sample(model, 200, (2,), method=method, steps=steps, solver=solver, rtol=1e-2, atol=1e-2)
    k = ((x + 1) / 2 * 5 - 0.5).round()
    torch.testing.assert_close(x, 2 * (k + 0.5) / 5 - 1)
    assert len(k.unique()) > 1
    model.bound(x)  # its own check agrees


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_steps_will_do(method, steps):
    x = sample(small(), 2, (2,), method=method, steps=steps)
    assert x.shape == (2, 2)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    "schedule", [ndm.CosineSchedule(), ndm.DDPMSchedule(), ndm.OTSchedule(), ndm.LearnedSchedule()]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_schedule_can_be_sampled_with(schedule, method):
    """Clipped schedules have empty steps, and infinite slopes just outside them: nothing may become NaN."""
    model = ndm.NDM(schedule, ndm.Identity(), Exact())
    x = sample(model, 4000, (2,), method=method, steps=100, dtype=torch.float64)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.15)
    assert x.var().item() == pytest.approx(R, rel=0.3)


# ---- many samples


@pytest.mark.parametrize(("method", "steps", "solver"), QUICK_WAYS)
def test_samples_do_not_depend_on_how_many_processes_share_them(method, steps, solver):
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False)))
    labels = torch.arange(20) % 3
    options = {"method": method, "steps": steps, "solver": solver, "rtol": 1e-2, "atol": 1e-2, "labels": labels}

    def draw(rank: int, world_size: int, **others) -> dict[int, Tensor]:
        blocks = sample_batches(
            model, 20, (2,), seed=5, batch_size=3, rank=rank, world_size=world_size, **options, **others
        )
        rows = {}
        for where, x in blocks:
            assert len(x) == where.stop - where.start <= 3
            torch.rand(3)  # the global generator is of no consequence
            rows |= dict(zip(range(where.start, where.stop), x, strict=True))
        return rows

    alone = draw(0, 1)
    assert list(alone) == list(range(20))
    shares = [draw(rank, 3) for rank in range(3)]
    assert sum(len(share) for share in shares) == 20
    assert max(len(share) for share in shares) <= 9  # three blocks of the seven
    together = shares[0] | shares[1] | shares[2]
    assert all(torch.equal(together[i], alone[i]) for i in range(20))
    assert len({tuple(x.tolist()) for x in alone.values()}) == 20  # no block repeats another


def test_the_seed_decides_the_samples_and_labels_follow_their_examples():
    model = gaussian()
    labels = torch.arange(7) * 100.0

    def draw(**others) -> Tensor:
        options = {"seed": 1, "labels": labels, "steps": 20, "method": "ode"} | others
        return torch.cat([x for _, x in sample_batches(model, 7, (2,), batch_size=3, **options)])

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=2))
    assert torch.equal(draw(), draw(labels=labels.__getitem__))  # asked for block by block
    torch.testing.assert_close(draw().mean(1), MEAN + labels, rtol=0, atol=8)


def test_blocks_are_made_when_they_are_asked_for():
    calls = []
    model = small()
    model.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    model.denoiser.net.register_forward_pre_hook(lambda *_: calls.append(1))
    blocks = sample_batches(model, 10**9, (2,), batch_size=2, steps=3)
    assert not calls
    assert next(blocks)[1].shape == (2, 2)
    assert len(calls) == 3
    assert next(blocks)[0] == slice(2, 4)


@pytest.mark.parametrize(
    "arguments",
    [{"n": 0}, {"batch_size": 0}, {"seed": -1}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}],
)
def test_a_share_that_cannot_be_is_refused_at_once(arguments):
    with pytest.raises(ValueError, match="must be"):
        sample_batches(**{"model": small(), "n": 2, "shape": (2,), **arguments})
