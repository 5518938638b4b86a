"""Which T steps are best: against closed forms, quadrature, and all grids tried one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

import ndm
from ndm.method.calibration import calibrate, error_moments
from ndm.method.coordinates import DATA
from ndm.method.grids import cheapest_path, even_grid, grid_from, pair_moments
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP

R = 1.7
LOW, HIGH = -8.0, 6.0


class ExactGaussian(nn.Module):
    """E[x | z] for x ~ N(0, R)."""

    def forward(self, z: Tensor, level: NoiseLevel) -> Tensor:
        return per_example(level.alpha * R / (level.alpha**2 * R + level.sigma**2), z) * z


class ExactMixture(nn.Module):
    """E[x | z] for x at -a or a, each with probability 1/2."""

    def __init__(self, a: float = 1.0) -> None:
        super().__init__()
        self.a = a

    def forward(self, z: Tensor, level: NoiseLevel) -> Tensor:
        return self.a * torch.tanh(self.a * per_example(level.alpha / level.sigma**2, z) * z)


def points(n: int) -> Tensor:
    return torch.randint(2, (n, 1), generator=torch.Generator().manual_seed(0)).double() * 2 - 1


def two_points() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(-5.0, 3.0), ndm.Identity(), ExactMixture())


def network() -> ndm.NDM:
    """A model that is far from trained, with a path that moves."""
    torch.manual_seed(0)
    transform = ndm.Separable(ResidualMLP(3, hidden=8, depth=1, heads=2, level=False, zero_init=False), terms=2)
    denoiser = ndm.Denoiser(ResidualMLP(3, hidden=16, depth=1, zero_init=False))
    return ndm.NDM(ndm.LinearSchedule(-6.0, 5.0), transform, denoiser)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# ---- the path


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_cheapest_of_all(steps: int, seed: int) -> None:
    m = 7
    costs = torch.rand(m + 1, m + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 3
    costs[torch.tril(torch.ones_like(costs, dtype=torch.bool))] = math.inf
    path = cheapest_path(costs, steps)

    def cost(through: tuple[int, ...]) -> float:
        return sum(costs[a, b].item() for a, b in itertools.pairwise((0, *through, m)))

    best = min(itertools.combinations(range(1, m), steps - 1), key=cost)
    assert tuple(path) == (0, *best, m)


# ---- the costs


def test_the_costs_of_gaussian_steps_are_their_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the best variance a step costs the difference of log(1 + R e^-gamma) / 2 at its ends (method, section 3)."""
    x, eps = (
        torch.tensor(v, dtype=torch.float64)[:, None]
        for v in zip(*itertools.product([R**0.5, -(R**0.5)], [1.0, -1.0]), strict=True)
    )
    monkeypatch.setattr(ndm.method.grids, "normal_like", lambda x, generator: eps.to(x))
    m = 6
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), ExactGaussian())
    for covariance in ("isotropic", "diagonal"):
        found = torch.log1p(pair_moments(model, x, m, covariance).squares())[:, 0] / 2
        gamma = [LOW + (HIGH - LOW) * i / m for i in range(m + 1)]
        wanted = [
            (math.log1p(R * math.exp(-gamma[i])) - math.log1p(R * math.exp(-gamma[j]))) / 2
            for j in range(1, m + 1)
            for i in range(j)
        ]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_pairs_that_are_neighbours_have_the_errors_of_the_even_grid() -> None:
    model, x, m = network(), torch.randn(4000, 3), 5
    pairs = pair_moments(model, x, m, "diagonal", generator=seeded()).squares()
    neighbours = [j * (j - 1) // 2 + j - 1 for j in range(1, m + 1)]
    steps = error_moments(model, x, m, generator=seeded())[DATA].squares()
    torch.testing.assert_close(pairs[neighbours], steps)
    isotropic = pair_moments(model, x, m, generator=seeded()).squares()
    torch.testing.assert_close(isotropic[:, 0], pairs.mean(1))


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_of_two_points_the_grid_is_the_best_of_all_by_quadrature(steps: int) -> None:
    """e^2 = (e^-gamma_s - e^-gamma_t) E|x - x_hat|^2, with the error of the mean by Gauss and Hermite."""
    m = 8
    gamma = -5.0 + 8.0 * np.arange(m + 1) / m
    nodes, weights = hermegauss(200)
    weights = weights / weights.sum()

    def error(g: float) -> float:
        alpha, sigma = math.sqrt(1 / (1 + math.exp(g))), math.sqrt(1 / (1 + math.exp(-g)))
        return float(weights @ (1 - np.tanh(alpha / sigma**2 * (alpha + sigma * nodes))) ** 2)

    def cost(through: tuple[int, ...]) -> float:
        pairs = itertools.pairwise((0, *through, m))
        return sum(math.log1p((math.exp(-gamma[a]) - math.exp(-gamma[b])) * error(gamma[b])) / 2 for a, b in pairs)

    grids = sorted(itertools.combinations(range(1, m), steps - 1), key=cost)
    assert cost(grids[1]) > cost(grids[0]) + 1e-3, "a test that the noise could decide"
    found = ndm.optimal_grid(two_points(), points(100_000), steps, candidates=m, generator=seeded())
    assert found.dtype == torch.float64
    assert (found * m).tolist() == [0, *grids[0], m]


# ---- its use


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_the_bound_with_the_best_grid_is_lower(covariance: str) -> None:
    x = torch.randint(2, (2000, 2), generator=seeded())  # two levels, at -1/2 and 1/2
    decoder = ndm.DiscretizedDecoder(levels=2)
    model = ndm.NDM(ndm.LinearSchedule(-5.0, 3.0), ndm.Identity(), ExactMixture(0.5), decoder)
    values = {}
    for grid in ("time", "optimal"):
        model.calibrate(x, 4, covariance, spacing=grid, generator=seeded())
        values[grid] = model.bound(x.repeat(5, 1), 4, generator=seeded()).total.mean().item()
    assert values["optimal"] < values["time"] - 0.02
    assert values["optimal"] > 2 * math.log(2)  # the entropy


def test_the_bound_and_the_samples_are_at_the_times_of_the_grid() -> None:
    model, seen = two_points(), []
    grid = torch.tensor([0.0, 0.05, 0.4, 1.0], dtype=torch.float64)
    x = points(50)
    model.calibrate(x, 3, spacing=grid)
    assert torch.equal(model.grid(3), grid)
    assert model.grid(4) is None
    estimate = model.denoiser.estimate

    def spy(z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> ndm.Estimate:
        seen.append(level.gamma[0].item())
        return estimate(z, level, labels)

    model.denoiser.estimate = spy  # type: ignore[method-assign]
    gamma = [-5 + 8 * t for t in grid.tolist()]
    for u, wanted in ((0.0, gamma[1]), (0.5, gamma[2]), (0.99, gamma[3])):
        model.bound(x, 3, times=torch.full((50,), u, dtype=torch.float64))
        assert seen.pop() == pytest.approx(wanted)
    path = ndm.sample(model, 5, (1,), steps=3, trajectory=True, dtype=torch.float64)
    assert seen == pytest.approx(gamma[:0:-1])
    assert path.shape == (5, 5, 1)
    seen.clear()
    # DDIM has another volatility than the model: neither its variance nor its steps are the calibrated ones.
    ndm.sample(model, 5, (1,), method="ddim", steps=3)
    assert seen == pytest.approx([-5 + 8 * t for t in (1, 2 / 3, 1 / 3)])


def test_a_trajectory_is_told_at_the_times_of_the_grid() -> None:
    model = two_points()
    model.calibrate(points(50), 2, spacing=torch.tensor([0.0, 0.25, 1.0]))
    path = ndm.sample(model, 4, (1,), steps=2, trajectory=True, generator=seeded(), dtype=torch.float64)
    z = torch.randn(4, 1, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(path[0], z / model.schedule(torch.ones(4, dtype=torch.float64)).alpha[:, None])
    seen = []
    kernel = model.kernel

    def spy(z: Tensor, *rest: object, **options: object) -> object:
        seen.append(z)
        return kernel(z, *rest, **options)

    model.kernel = spy  # type: ignore[method-assign]
    path = ndm.sample(model, 4, (1,), steps=2, trajectory=True, generator=seeded(), dtype=torch.float64)
    alpha = model.schedule(torch.full((4,), 0.25, dtype=torch.float64)).alpha[:, None]
    torch.testing.assert_close(path[1], seen[1] / alpha)


def test_a_new_calibration_does_not_look_at_the_old_grid() -> None:
    x, fresh, used = points(300), two_points(), two_points()
    used.calibrate(x, 4, spacing="optimal")
    for model in (fresh, used):
        model.calibrate(x, 4, "diagonal", generator=seeded())
    assert used.grid(4) is None
    assert torch.equal(fresh.calibrations["4"].log_ratio, used.calibrations["4"].log_ratio)


def test_the_best_grid_of_batches_is_that_of_all_of_their_data() -> None:
    model, x, m, generator = network(), torch.randn(60, 3), 12, seeded()
    each = [pair_moments(model, part, m, generator=generator) for part in x.split(30)]
    found = ndm.optimal_grid(model, list(x.split(30)), 4, candidates=m, generator=seeded())
    assert torch.equal(found, grid_from(each[0] + each[1], 3, m, 4, "isotropic"))
    pairs = [(part, torch.zeros(30)) for part in x.split(30)]  # labels, which this network does not take
    with pytest.raises(ValueError, match="got labels"):
        ndm.optimal_grid(model, pairs, 4, candidates=m)


def test_the_model_is_left_as_it_was() -> None:
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ndm.optimal_grid(model, torch.randn(20, 3), 3, candidates=5)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_candidates_are_as_many_as_it_takes() -> None:
    assert len(ndm.optimal_grid(two_points(), points(10), 1)) == 2
    assert len(ndm.optimal_grid(two_points(), points(4), 25)) == 26
    grid = ndm.optimal_grid(two_points(), points(10), 5, candidates=5)
    assert torch.equal(grid, even_grid(5, grid))  # there is no other


# ---- what is refused


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("evn", "choose one of time, gamma, optimal"),
        (torch.tensor([0.0, 1.0]), "A grid of 3 steps has 4 times, rising from 0 to 1; got 2 numbers from 0 to 1."),
        (torch.tensor([0.0, 0.5, 0.5, 1.0]), "rising"),
        (torch.tensor([0.1, 0.5, 0.6, 1.0]), "from 0.1 to 1"),
        (torch.tensor([]), "got none"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid: str | Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(two_points(), points(10), 3, spacing=grid)


def test_what_cannot_be_asked_for_is_refused() -> None:
    model, x = two_points(), points(10)
    with pytest.raises(ValueError, match="reads the data more than once"):
        calibrate(model, iter([x]), 3, spacing="optimal")
    with pytest.raises(ValueError, match="at least as many candidates, got 3"):
        ndm.optimal_grid(model, x, 5, candidates=3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ndm.optimal_grid(model, x, 0)
    with pytest.raises(ValueError, match="isotropic, diagonal, frequency, full"):
        ndm.optimal_grid(model, x, 3, "diag")
    with pytest.raises(ValueError, match="at least one batch of data"):
        ndm.optimal_grid(model, [], 3)
