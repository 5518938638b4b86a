"""Noise schedules of frequencies: the same process as that of the transformed data with a schedule per dimension."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.networks
from ndm.method.coordinates import Frequencies
from ndm.method.schedules import per_example
from ndm.method.steps import ContinuousTime
from tests.method.gaussians import network
from tests.method.processes import assert_gradient_is_right, assert_saved_calibrated_and_sampled, times

B, SHAPE = 5, (3, 2, 3)
V = Frequencies()


class Given(ndm.DimensionNoise):
    """The functions of another noise, in the coordinates of the data."""

    def __init__(self, other: ndm.FrequencyNoise) -> None:
        super().__init__(other.shape, other.terms, other.basis, other.limit)
        self.other = [other]

    def functions(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        weights, shares = self.other[0].coefficients[0], self.other[0].shares  # (K, C, bands), (H, W, bands)
        return (weights[:, :, None, None] * shares).sum(-1)[None]


class Turned(nn.Module):
    """A network of images as one of their frequencies."""

    latent, classes = 0, 0

    def __init__(self, net: nn.Module, heads: int) -> None:
        super().__init__()
        self.net, self.heads = net, heads

    def forward(self, u: Tensor, gamma: Tensor) -> Tensor:
        found = self.net(V.back(u), gamma).chunk(self.heads, 1)
        return torch.cat([V.into(part) for part in found], 1)


class Net(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.net = network(18, heads=heads)

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        return self.net(z.flatten(1), gamma).reshape(len(z), -1, *SHAPE[1:])


def noise(scale: float = 1.0) -> ndm.FrequencyNoise:
    part = ndm.FrequencyNoise(SHAPE, bands=3)
    part.coefficients.data.normal_(std=scale, generator=torch.Generator().manual_seed(3))
    return part


def pair(direct: bool = False, volatility: float = 1.0) -> tuple[ndm.NDM, ndm.NDM]:
    """A model of images with a noise of frequencies, and the same one of their frequencies."""
    torch.manual_seed(1)
    net, part = Net(1 + direct), noise()
    made = []
    for net_of_one, noise_of_one in ((net, part), (Turned(net, 1 + direct), Given(part))):
        denoiser = ndm.DirectDenoiser(net_of_one, ode=True) if direct else ndm.Denoiser(net_of_one)
        schedule = ndm.LinearSchedule(-6.0, 5.0)
        made.append(ndm.NDM(schedule, ndm.Identity(), denoiser, volatility=volatility, noise=noise_of_one).double())
    part.double()
    return made[0].requires_grad_(False), made[1].requires_grad_(False)


both = pytest.mark.parametrize("direct", [False, True])


@both
@pytest.mark.parametrize("steps", [None, 1, 7])
def test_the_bound_is_that_of_the_frequencies(direct: bool, steps: int | None) -> None:
    images, frequencies = pair(direct, volatility=0.8)
    x, u = torch.randn(B, *SHAPE).double(), torch.rand(B).double()
    found, expected = (
        m.bound(data, steps, times=u, generator=torch.Generator().manual_seed(0))
        for m, data in ((images, x), (frequencies, V.into(x)))
    )
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(found.auxiliary, expected.auxiliary)


@both
@pytest.mark.parametrize("eta", [None, 0.0, 0.6])
def test_steps_and_drift_are_those_of_the_frequencies(direct: bool, eta: float | None) -> None:
    images, frequencies = pair(direct, volatility=0.8)
    z, x, white = torch.randn(3, B, *SHAPE).double()
    level = images.schedule(times(0.45, B))
    torch.testing.assert_close(
        V.into(images.drift_at(z, level, eta=eta)), frequencies.drift_at(V.into(z), level, eta=eta)
    )
    torch.testing.assert_close(
        images.diffusion_at(z, level, eta=eta), frequencies.diffusion_at(V.into(z), level, eta=eta)
    )
    step = images.step(times(0.3, B), times(0.45, B), torch.ones(B).long(), None, eta)
    found, expected = (
        m.kernel(state, step, override=eta is not None).sample(white)
        for m, state in ((images, z), (frequencies, V.into(z)))
    )
    torch.testing.assert_close(V.into(found), expected)
    (mean, v), (mean_u, v_u) = images.posterior(x, z, step), frequencies.posterior(V.into(x), V.into(z), step)
    torch.testing.assert_close(V.into(mean), mean_u)
    torch.testing.assert_close(v, v_u)
    (mean, std), (mean_u, std_u) = (
        images.marginal(x, times(0.45, B)),
        frequencies.marginal(V.into(x), times(0.45, B)),
    )
    torch.testing.assert_close(V.into(mean), mean_u)
    torch.testing.assert_close(std, std_u)


def test_the_noise_of_z_has_the_covariance_of_the_definition() -> None:
    process, _ = pair()
    x = torch.randn(1, *SHAPE).double().expand(100_000, *SHAPE)
    level = process.schedule(times(0.5, len(x)))
    value = ContinuousTime(level, torch.ones(len(x)).double()).path_value(process.curve(x))
    z = process.perturbed(x, value, torch.randn(len(x), *SHAPE).double(), level)
    std = process.marginal(x[:1], times(0.5, 1))[1].flatten()
    turn = V.back(torch.eye(18).double().reshape(18, *SHAPE)).flatten(1).T  # its columns are the coordinates' vectors
    expected = turn @ torch.diag(std**2) @ turn.T
    torch.testing.assert_close(z.flatten(1).T.cov(), expected, rtol=0.05, atol=0.01)


@pytest.mark.slow
def test_the_log_density_is_that_of_the_frequencies() -> None:
    images, frequencies = pair()
    x = torch.randn(1, *SHAPE).double()
    found, expected = (
        ndm.log_likelihood(m, data, divergence="exact", tolerance=0.01).log_prob
        for m, data in ((images, x), (frequencies, V.into(x)))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


class Exact(nn.Module):
    """E[x | z] for data whose frequencies are independent, of variances r."""

    def __init__(self, part: ndm.FrequencyNoise, r: Tensor) -> None:
        super().__init__()
        self.part, self.r = [part], r

    def forward(self, z: Tensor, level) -> Tensor:
        curve = self.part[0](z, torch.tensor([-8.0, 6.0]).double())
        variance = per_example(level.sigma**2, z) * (2 * curve(level.gamma)[0]).exp()
        alpha = per_example(level.alpha, z)
        return V.back(alpha * self.r / (alpha**2 * self.r + variance) * V.into(z))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"method": "ancestral", "steps": 400}, marks=pytest.mark.slow), {"method": "ddim"},
        pytest.param({"method": "sde"}, marks=pytest.mark.slow), {"method": "sde", "solver": "dpm++2m"},
        pytest.param({"method": "sde", "solver": "srk"}, marks=pytest.mark.slow),
        {"method": "ode"}, pytest.param({"method": "ode", "solver": "heun"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)  # fmt: skip
def test_samples_have_the_variance_of_each_frequency(options) -> None:
    part, r = noise(0.3).double().requires_grad_(False), torch.linspace(0.2, 3.0, 18).double().reshape(SHAPE)
    process = ndm.NDM(ndm.LinearSchedule(-8.0, 6.0), ndm.Identity(), Exact(part, r), noise=part).double()
    drawn = ndm.sample(process, 3000, SHAPE, generator=torch.Generator().manual_seed(0), **{"steps": 60, **options})
    torch.testing.assert_close(V.into(drawn).var(0), r, rtol=0.15, atol=0.01)


def test_functions_are_linear_between_the_bands() -> None:
    part = ndm.FrequencyNoise((1, 4, 8), bands=3, terms=1)
    part.coefficients.data.copy_(torch.tensor([1.0, 2.0, 4.0]))
    found = Given(part).functions(torch.zeros(2, 1, 4, 8))[0, 0, 0]
    assert found.shape == (4, 8)
    assert found[0, 0] == 1
    assert found[3, 7] == 4
    radius = torch.log1p(torch.tensor([2.0, 8**0.5, (36 + 49) ** 0.5]))  # a row counts for two columns
    place = radius[:2] / radius[2] * 2
    expected = torch.where(place < 1, 1 + place, 2 + 2 * (place - 1))
    torch.testing.assert_close(torch.stack([found[1, 0], found[1, 2]]), expected)
    one = ndm.FrequencyNoise((1, 4, 8), bands=1, terms=1)
    assert (one.shares == 1).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    process, _ = pair()
    process.noise.requires_grad_(True)
    x, u = torch.randn(B, *SHAPE).double(), torch.rand(B).double()

    def total() -> Tensor:
        return process.bound(x, times=u, generator=torch.Generator().manual_seed(0)).total.mean()

    assert_gradient_is_right(total, process.noise.coefficients)


@pytest.mark.slow
@both
def test_a_model_is_saved_calibrated_and_sampled(direct: bool, tmp_path) -> None:
    torch.manual_seed(0)
    net = ndm.networks.UNet(3, width=4, multipliers=(1,), blocks=1, heads=1 + direct, groups=2)
    denoiser = ndm.DirectDenoiser(net, ode=True) if direct else ndm.Denoiser(net)
    process = ndm.NDM(ndm.LinearSchedule(-6.0, 5.0), ndm.Identity(), denoiser, noise=noise())
    assert_saved_calibrated_and_sampled(process.requires_grad_(False), torch.randn(100, *SHAPE), tmp_path)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs the shape of an image, as in shape=\(3, 32, 32\), not \[4\]"):
        ndm.FrequencyNoise((4,))
    with pytest.raises(ValueError, match="at least one band, a whole number, got 0"):
        ndm.FrequencyNoise(SHAPE, bands=0)
    process, _ = pair()
    with pytest.raises(ValueError, match=r"FrequencyNoise has shape \(3, 2, 3\), and examples have \(3, 3, 2\)"):
        process.bound(torch.randn(2, 3, 3, 2).double())
