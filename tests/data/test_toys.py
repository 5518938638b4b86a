"""Toy distributions: samples against densities, densities against quadrature and against scikit-learn's curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons, make_swiss_roll

from ndm.data import SPLITS, Checkerboard, EightGaussians, Gaussian, Pinwheel, SwissRoll, Toy, TwoMoons

SMALL = {"train": 40, "validation": 30, "test": 20}
TOYS = [
    Gaussian(variance=0.5, **SMALL),
    EightGaussians(**SMALL),
    EightGaussians(radius=1.0, noise=0.4, **SMALL),
    TwoMoons(**SMALL),
    SwissRoll(noise=0.2, **SMALL),
    Pinwheel(**SMALL),
    Pinwheel(blades=3, radius=1.0, along=0.3, across=0.3, rate=-2.0, **SMALL),
    Checkerboard(square=0.75, **SMALL),
]
every_toy = pytest.mark.parametrize("toy", TOYS, ids=lambda toy: type(toy).__name__)


def grid(half_side: float = 6.0, step: float = 0.05) -> tuple[torch.Tensor, float]:
    """The middles of the cells that tile a square, (N, 2), and the area of a cell."""
    axis = torch.arange(-half_side + step / 2, half_side, step, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), step**2


@every_toy
def test_splits_are_as_promised(toy: Toy) -> None:
    assert toy.levels is None
    for name in SPLITS:
        x = toy.split(name)
        assert x.shape == (SMALL[name], *toy.shape)
        assert x.dtype == torch.float32
        assert toy.labels(name) is None
    assert torch.equal(toy.train, toy.split("train"))
    assert torch.equal(toy.validation, toy.split("validation"))
    assert torch.equal(toy.test, toy.split("test"))


@every_toy
def test_splits_share_no_example(toy: Toy) -> None:
    everything = torch.cat([toy.train, toy.validation, toy.test])
    assert len(everything.unique(dim=0)) == len(everything) == 90


@every_toy
def test_density_integrates_to_one(toy: Toy) -> None:
    x, area = grid()
    # The middle of a cell tells exactly whether it lies in a square of the board: 0.75 is a multiple of the step.
    assert toy.log_prob(x).exp().sum().item() * area == pytest.approx(1.0, abs=1e-6)


@every_toy
def test_entropy_is_that_of_the_density(toy: Toy) -> None:
    x, area = grid(step=0.03)
    log_p = toy.log_prob(x)
    quadrature = -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum().item() * area
    assert toy.entropy == pytest.approx(quadrature, abs=1e-5)


@every_toy
def test_samples_follow_the_density(toy: Toy) -> None:
    n = 20_000
    samples = toy.sample(n, torch.Generator().manual_seed(7)).double()
    surprise = -toy.log_prob(samples)
    # A distribution's surprise may not vary at all: the board's is its entropy everywhere.
    assert surprise.mean().item() == pytest.approx(toy.entropy, abs=4 * surprise.std().item() / n**0.5 + 1e-9)

    x, area = grid()
    p = toy.log_prob(x).exp() * area
    for statistic in (lambda v: v, lambda v: v.square(), lambda v: (v > 0.3).double(), lambda v: v.prod(1, True)):
        truth = p @ statistic(x)
        found = statistic(samples)
        error = (found.mean(0) - truth).abs()
        assert (error < 4.5 * found.std(0) / n**0.5 + 1e-4).all()


@every_toy
def test_log_prob_keeps_the_dtype_and_shape(toy: Toy) -> None:
    log_p = toy.log_prob(toy.test)
    assert log_p.shape == (len(toy.test),)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double(), toy.log_prob(toy.test.double()), rtol=1e-4, atol=1e-4)


@every_toy
def test_samples_fall_into_cells_as_often_as_the_density_says(toy: Toy) -> None:
    """The share of samples in a coarse cell is the density's integral over it."""
    n = 20_000
    samples = toy.sample(n, torch.Generator().manual_seed(11)).double()
    x, area = grid()
    p = toy.log_prob(x).exp() * area

    def cell(v: torch.Tensor) -> torch.Tensor:
        coarse = torch.floor((v + 6) / 1.5).long().clamp(0, 7)
        return 8 * coarse[:, 0] + coarse[:, 1]

    expected = n * torch.zeros(64, dtype=torch.float64).index_add(0, cell(x), p)
    observed = torch.bincount(cell(samples), minlength=64).double()
    counted = expected > 10
    chi2 = ((observed - expected).square() / expected)[counted].sum().item()
    freedom = int(counted.sum())
    assert freedom >= 4
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


def test_same_seed_same_data_whatever_the_other_splits() -> None:
    toy = EightGaussians(train=10, test=20)
    again = EightGaussians(train=30, test=20)
    other = EightGaussians(train=10, test=20, seed=1)
    assert torch.equal(toy.test, again.test)
    assert not torch.equal(toy.test, other.test)
    assert not torch.equal(toy.test[:10], toy.train)


def test_moons_lie_where_scikit_learn_puts_them() -> None:
    theirs, moon = make_moons(200, noise=None, shuffle=False)
    s = torch.linspace(0, 1, 100, dtype=torch.float64)
    for ours, points in zip(TwoMoons()._curves(s), (theirs[moon == 0], theirs[moon == 1]), strict=True):
        np.testing.assert_allclose(ours.numpy(), points, atol=1e-12)


def test_swiss_roll_is_scikit_learns_at_a_fifth_of_its_size() -> None:
    theirs, angle = make_swiss_roll(100, noise=0.0, random_state=0)
    s = (torch.from_numpy(angle) / (1.5 * math.pi) - 1) / 2
    np.testing.assert_allclose(SwissRoll()._curves(s)[0].numpy(), theirs[:, [0, 2]] / 5, atol=1e-12)


def test_gaussian_of_any_dimension() -> None:
    toy = Gaussian(features=5, variance=0.3, **SMALL)
    truth = torch.distributions.MultivariateNormal(torch.zeros(5), 0.3 * torch.eye(5))
    assert toy.shape == (5,)
    torch.testing.assert_close(toy.log_prob(toy.train), truth.log_prob(toy.train))
    assert toy.entropy == pytest.approx(truth.entropy().item(), rel=1e-6)


def test_density_of_the_eight_gaussians_is_torchs() -> None:
    toy = EightGaussians(radius=1.5, noise=0.25)
    angle = torch.arange(8) * math.pi / 4
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    components = torch.distributions.Independent(torch.distributions.Normal(means, 0.25), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(8)), components)
    x = 3 * torch.randn(100, 2)
    torch.testing.assert_close(toy.log_prob(x), mixture.log_prob(x), rtol=1e-4, atol=1e-4)


def test_board_has_no_density_off_its_dark_squares() -> None:
    x = torch.tensor([[0.5, 0.5], [-1.5, 0.5], [0.5, 1.5], [2.5, 0.5], [-2.5, -0.5], [-1.5, -1.5]])
    assert (Checkerboard().log_prob(x) > -math.inf).tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TwoMoons(train=0), "train split must be positive, not 0"),
        (lambda: TwoMoons(test=-1), "test split must be positive, not -1"),
        (lambda: TwoMoons(seed=-1), "seed must not be negative"),
        (lambda: TwoMoons(noise=0.0), "noise must be positive"),
        (lambda: EightGaussians(radius=-1.0), "radius must be positive"),
        (lambda: Gaussian(variance=float("nan")), "variance must be positive"),
        (lambda: Pinwheel(blades=0), "blades must be positive"),
        (lambda: Checkerboard(square=0.0), "square must be positive"),
        (lambda: TwoMoons(**SMALL).split("valid"), "no split 'valid': the splits are train, validation, test"),
        (lambda: TwoMoons(**SMALL).labels("valid"), "no split 'valid'"),
    ],
)
def test_refusals_say_why(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
