"""What is measured for a page, against closed forms (method, section 7), the bound itself and other arithmetic."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

import ndm
from ndm._internal.random import seed_of
from ndm.evaluation import bound_per_example
from ndm.method.schedules import per_example
from ndm.method.variances import LearnedVariance, PosteriorVariance, PredictedVariance
from ndm.networks import ResidualMLP
from ndm.report.measures import WALK, noise_profile, steps_of_interest, time_of, variance_ratio, walk

R, LOW, HIGH = 1.7, -8.0, 6.0


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R) and F = x."""

    def forward(self, z: Tensor, level) -> Tensor:
        return per_example(level.alpha * R / (level.alpha**2 * R + level.sigma**2), z) * z


def exact_density(gamma: float) -> float:
    """1/2 e^-gamma E|x - x_hat|^2 of the exact denoiser, in one dimension."""
    sigma2 = 1 / (1 + math.exp(-gamma))
    return 0.5 * math.exp(-gamma) * R * sigma2 / ((1 - sigma2) * R + sigma2)


def small(schedule: ndm.Schedule, seed: int = 0, **options) -> ndm.NDM:
    """A model of random weights, in double precision."""
    torch.manual_seed(seed)
    net = ResidualMLP(3, hidden=16, depth=1, heads=options.pop("heads", 1), zero_init=False)
    transform = ndm.Separable(ResidualMLP(3, hidden=8, depth=1, heads=2, level=False, zero_init=False), terms=2)
    return ndm.NDM(schedule, transform, ndm.Denoiser(net), **options).double().eval()


SCHEDULES = [
    ndm.LinearSchedule(-9.0, 4.0),
    ndm.CosineSchedule(gamma_min=-9.0, gamma_max=9.0),
    ndm.DDPMSchedule(),
    ndm.OTSchedule(-8.0, 8.0),
    ndm.LearnedSchedule(-9.0, 4.0, learn_endpoints=True),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_time_of_a_noise_level_has_that_noise_level(schedule: ndm.Schedule) -> None:
    low, high = schedule.end_points()
    gamma = torch.linspace(low + 1e-3, high - 1e-3, 50, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            schedule.gamma(time_of(schedule, gamma))[0], gamma, rtol=0, atol=1e-4
        )  # DDPM's rounds


def test_the_density_is_the_closed_form_of_gaussian_data() -> None:
    x = R**0.5 * torch.randn(6000, 1, dtype=torch.float64)
    profile = noise_profile(ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact()), x, points=8)
    mean, error = profile.density.mean(0), profile.density.std(0) / len(x) ** 0.5
    edges = profile.edges.tolist()
    exact = [quad(exact_density, a, b)[0] / (b - a) for a, b in pairwise(edges)]
    assert ((mean - torch.tensor(exact)).abs() < 4 * error).all()
    assert (error < 0.03 * mean).all()
    total, total_error = profile.diffusion.mean(), profile.diffusion.std() / len(x) ** 0.5
    assert abs(total - 4.263310268688) < 4 * total_error < 0.2
    assert profile.edges[0] == LOW
    assert profile.edges[-1] == HIGH


@pytest.mark.parametrize("volatility", [1.0, 1.5])
def test_the_integral_is_the_bound_of_the_same_examples(volatility: float) -> None:
    model = small(ndm.CosineSchedule(gamma_min=-5.0, gamma_max=5.0), volatility=volatility)
    data = torch.randn(60, 3, dtype=torch.float64)
    profile = noise_profile(model, data, points=24, seed=1)
    terms = bound_per_example(model, data, None, seed=2, times=200)
    for name in ("diffusion", "total"):
        gap = getattr(profile, name) - terms[name]  # example by example: what is left is the noise of both
        assert abs(gap.mean()) < 4 * gap.std() / len(data) ** 0.5
        assert gap.std() < terms[name].mean()
    torch.testing.assert_close(profile.prior, terms["prior"])
    torch.testing.assert_close(profile.reconstruction, terms["reconstruction"])


def test_the_density_does_not_depend_on_the_way_between_the_end_points() -> None:
    other = ndm.LearnedSchedule(-5.0, 5.0)
    with torch.no_grad():
        other.logits.normal_(generator=torch.Generator().manual_seed(1))
    data = torch.randn(20, 3, dtype=torch.float64)
    first, second = (noise_profile(small(s), data, points=6) for s in (ndm.LinearSchedule(-5.0, 5.0), other))
    torch.testing.assert_close(first.density, second.density, rtol=1e-8, atol=1e-8)


def test_data_in_their_own_units_and_classes() -> None:
    net = ResidualMLP(2, hidden=8, classes=3, zero_init=False)
    standardize = ndm.Standardize([5.0, -3.0], [2.0, 0.5])
    model = ndm.NDM(ndm.LinearSchedule(-5.0, 5.0), ndm.Identity(), ndm.Denoiser(net), standardize=standardize)
    data, labels = torch.randn(150, 2) * torch.tensor([2.0, 0.5]) + torch.tensor([5.0, -3.0]), torch.arange(150) % 3
    profile = noise_profile(model, data, labels, points=4)  # more than a block of examples
    same = noise_profile(model, data, labels, points=4)
    assert torch.equal(profile.density, same.density)
    assert not torch.equal(profile.density, noise_profile(model, data, labels.flip(0), points=4).density)
    assert not torch.equal(profile.density, noise_profile(model, data, labels, points=4, seed=1).density)
    torch.testing.assert_close(profile.reconstruction, model.bound(data, labels=labels).reconstruction.double())


# ---- the reverse variance


def test_the_posterior_has_the_ratio_one() -> None:
    levels, ratios = variance_ratio(small(ndm.LinearSchedule(-5.0, 5.0)), torch.randn(4, 3).double(), 6)
    assert ratios == [1.0] * 6
    assert levels == pytest.approx([-5 + 10 * i / 6 for i in range(1, 7)])


def test_a_learned_ratio_is_its_formula() -> None:
    variance = LearnedVariance()
    with torch.no_grad():
        variance.shift.normal_()
    model = small(ndm.LinearSchedule(-5.0, 5.0), reverse_variance=variance)
    levels, ratios = variance_ratio(model, torch.randn(4, 3).double(), 5)
    kappa = model.reverse_variance.kappa(torch.tensor(levels, dtype=torch.float64))
    assert ratios == pytest.approx((1 + math.expm1(2.0) * kappa).tolist())


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_a_calibrated_ratio_is_the_determinant(covariance: str) -> None:
    model = small(ndm.LinearSchedule(-5.0, 5.0))
    x = torch.randn(50, 3, dtype=torch.float64)
    model.calibrate(x, steps=4, covariance=covariance, generator=torch.Generator().manual_seed(0))
    ratios = variance_ratio(model, x[:2], 4)[1]
    noise = torch.randn(200_000, 3, dtype=torch.float64)
    step = model.grid_step(torch.full((len(noise),), 2), 4, noise)
    coloured = model.covariance(step, model.denoiser.estimate(noise, step.t)).apply_sqrt(noise)
    volume = torch.linalg.slogdet(torch.cov(coloured.T)).logabsdet / 3
    assert ratios[1] == pytest.approx(math.exp(volume), rel=0.01)
    assert min(ratios) > 1


def test_a_predicted_ratio_is_averaged_over_examples() -> None:
    model = small(ndm.LinearSchedule(-5.0, 5.0), heads=2, reverse_variance="predicted")
    x = torch.randn(30, 3, dtype=torch.float64)
    ratios = variance_ratio(model, x, 3)[1]
    assert ratios != variance_ratio(model, x + 3, 3)[1]
    assert all(0 < r < 100 for r in ratios)
    assert ratios == variance_ratio(model, x, 3)[1]


def test_the_steps_of_interest() -> None:
    model = small(ndm.LinearSchedule(-5.0, 5.0))
    assert steps_of_interest(model) == [10, 100]
    model.calibrate(torch.randn(20, 3).double(), steps=7)
    assert steps_of_interest(model, 5) == [7, 10, 100]
    model.reverse_variance = PredictedVariance()
    assert steps_of_interest(model, 5) == [5, 7]
    model.reverse_variance = copy.deepcopy(model.calibrations["7"])
    assert steps_of_interest(model) == [7]
    model.reverse_variance = PosteriorVariance()


# ---- samples on their way


def test_a_walk_is_that_of_the_sampler() -> None:
    standardize = ndm.Standardize([5.0, 0.0, 1.0], [2.0, 1.0, 0.1])
    model = small(ndm.LinearSchedule(-7.0, 5.0), standardize=standardize)
    found = walk(model, 200, (3,), steps=6, seed=4)
    generator = torch.Generator().manual_seed(seed_of(4, WALK))
    torch.testing.assert_close(found.data, ndm.sample(model, 200, (3,), steps=6, generator=generator))
    assert found.times.tolist() == pytest.approx([1 - i / 6 for i in range(7)])
    assert found.z.shape == found.states.shape == (7, 200, 3)
    assert abs(found.z[0].std() - 1) < 0.1
    level = model.schedule(torch.zeros(1, dtype=torch.float64))
    ends = model.from_model(found.z[-1] / level.alpha)
    torch.testing.assert_close(ends, found.data, check_dtype=False, rtol=1e-5, atol=1e-6)
