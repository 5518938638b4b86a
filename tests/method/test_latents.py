"""The latent variable and the noise that depends on it, against closed forms and a brute-force likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn
from torch.distributions import Normal

import ndm
import ndm.networks
from ndm.method.latents import LIMIT, given_latent
from ndm.method.schedules import per_example
from ndm.networks import ResidualMLP
from tests.method.gaussians import f64, network
from tests.method.processes import assert_gradient_is_right, assert_saved_calibrated_and_sampled, times

B, D, M = 5, 3, 2
WIDE = -14.0, 20.0  # at the ends z is x, and noise, to four digits
LEVELS = f64([-2 / 3, 0.0, 2 / 3])
#: x given c ~ N(A c, S), so that x ~ N(0, A^2 + S), for each of two dimensions.
A, S = f64([1.3, 0.7]), f64([0.4, 0.9])


def noise_net(d: int = D, m: int = M) -> ResidualMLP:
    return ResidualMLP(m, 8, 1, level=False, outputs=3 * d, zero_init=False)


def model(noise: bool = True, d: int = D, m: int = M, **options) -> ndm.NDM:
    torch.manual_seed(1)
    options = {"schedule": ndm.LinearSchedule(-6.0, 5.0), "transform": ndm.Identity(), **options}
    return ndm.NDM(
        denoiser=ndm.Denoiser(network(d, latent=m)),
        noise=ndm.LatentNoise(noise_net(d, m), (d,)) if noise else None,
        latent=ndm.GaussianLatent(ResidualMLP(d, 8, 1, level=False, outputs=2 * m, zero_init=False), m),
        **options,
    ).double()


class Posterior(nn.Module):
    """The mean and log std of q(c | x) for A and S, before its limit."""

    def forward(self, x: Tensor) -> Tensor:
        log_std = LIMIT * torch.atanh((S / (A**2 + S)).log() / 2 / LIMIT)
        return torch.cat([A * x / (A**2 + S), log_std.expand_as(x)], 1)


class Exact(nn.Module):
    """E[x | z, c] for A and S and the noise of a model."""

    latent = 2

    def __init__(self, noise: ndm.Noise | None, ends: Tensor) -> None:
        super().__init__()
        self.noise, self.ends = [noise], ends

    def forward(self, z: Tensor, level, labels: Tensor | None = None) -> Tensor:
        std, mean, alpha = per_example(level.sigma, z), A * labels, per_example(level.alpha, z)
        if self.noise[0] is not None:
            std = std * self.noise[0](z, self.ends, labels)(level.gamma)[0].exp()
        return mean + alpha * S / (alpha**2 * S + std**2) * (z - alpha * mean)


def gaussian(noise: bool = True, low: float = -8.0, high: float = 9.0) -> ndm.NDM:
    torch.manual_seed(2)
    part = ndm.LatentNoise(noise_net(2), (2,)).double().requires_grad_(False) if noise else None
    schedule, denoiser = ndm.LinearSchedule(low, high), Exact(part, f64([low, high]))
    latent = ndm.GaussianLatent(Posterior(), 2)
    return ndm.NDM(schedule, ndm.Identity(), denoiser, noise=part, latent=latent).double()


def log_density(x: Tensor) -> Tensor:
    return Normal(torch.zeros(2).double(), (A**2 + S).sqrt()).log_prob(x).sum(1)


@pytest.mark.parametrize("noise", [False, True], ids=["noise of the schedule", "noise of the latent"])
def test_the_bound_of_gaussian_data_is_their_entropy(noise: bool) -> None:
    process, n = gaussian(noise), 40_000
    x = torch.randn(n, 2).double() * (A**2 + S).sqrt()
    terms = process.bound(x, generator=torch.Generator().manual_seed(3))
    error = terms.total.std().item() / math.sqrt(n)
    entropy = -log_density(x).mean().item()
    assert terms.total.mean().item() == pytest.approx(entropy, abs=4 * error + 2e-3)
    information = ((A**2 + S) / S).log().sum().item() / 2  # of c on x
    assert terms.latent.mean().item() == pytest.approx(information, abs=0.02)
    assert (terms.prior >= terms.latent).all()


@pytest.mark.parametrize("noise", [False, True], ids=["noise of the schedule", "noise of the latent"])
def test_with_the_exact_posterior_every_sample_of_the_latent_gives_the_log_density(noise: bool) -> None:
    x = f64([[-2.0, 0.3], [0.1, 1.0], [1.3, -2.0]])
    found = ndm.log_likelihood(gaussian(noise, *WIDE), x, samples=3, tolerance=1e-4)
    assert found.kind == "lower bound on the log-density of the reverse ODE, the latent c from q(c | x)"
    torch.testing.assert_close(found.log_prob, log_density(x), rtol=0, atol=2e-3)
    assert found.stderr.max() < 2e-3
    assert found.solved.all()


@pytest.mark.slow
def test_the_log_density_given_the_latent() -> None:
    x, code = f64([[-2.0, 0.3], [0.1, 1.0]]), f64([[0.5, -1.0], [2.0, 0.0]])
    found = ndm.log_likelihood(gaussian(True, *WIDE), x, labels=code, tolerance=1e-4)
    expected = Normal(A * code, S.sqrt()).log_prob(x).sum(1)
    assert found.kind == "density of the reverse ODE"
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"method": "ancestral", "steps": 200}, marks=pytest.mark.slow),
        pytest.param({"method": "sde", "steps": 200}, marks=pytest.mark.slow),
    ],
)
def test_samples_draw_the_latent_from_its_prior(options) -> None:
    found = ndm.sample(gaussian(), 5000, (2,), generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(found.var(0), A**2 + S, rtol=0.08, atol=0)
    assert found.mean(0).abs().max() < 0.08
    code = f64([[1.0, -2.0]]).expand(5000, 2)
    given = ndm.sample(gaussian(), 5000, (2,), labels=code, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(given.mean(0), A * code[0], rtol=0, atol=0.05)
    torch.testing.assert_close(given.var(0), S, rtol=0.08, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_bound_is_above_the_exact_negative_log_likelihood(noise, steps: int) -> None:
    """Three levels, one dimension, random networks: integrate over z on a grid, and over c by a quadrature."""
    transform = ndm.Scale(lambda gamma: 1 + 0.5 * torch.sigmoid(gamma))
    options = {"schedule": ndm.LinearSchedule(-3.0, 2.0), "transform": transform, "decoder": ndm.DiscretizedDecoder(3)}
    process = model(d=1, m=1, **options).requires_grad_(False)
    nodes, weights = (f64(a) for a in hermegauss(20))
    weights = weights / weights.sum()
    given = torch.stack([log_probabilities(process, code, steps) for code in nodes])  # (nodes, levels)
    exact = -torch.logsumexp(given + weights.log()[:, None], 0)
    assert torch.exp(-exact).sum().item() == pytest.approx(1, abs=1e-6)
    eps, of_eps = (f64(a) for a in hermegauss(100))
    of_eps = of_eps / of_eps.sum()
    noise(eps.repeat(steps)[:, None])
    t = (torch.arange(steps).double() + 0.5).repeat_interleave(100) / steps
    for k in range(3):
        mean, log_std = process.latent(LEVELS[k].reshape(1, 1))
        bound = ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).item() / 2
        for node, weight in zip(nodes, weights, strict=True):
            code = (mean + log_std.exp() * node).expand(100 * steps, 1)
            terms = process.bound(LEVELS[k].expand(100 * steps, 1), steps, times=t, labels=code)
            bound += (weight * (terms.total.reshape(steps, 100).mean(0) * of_eps).sum()).item()
        assert exact[k].item() < bound - 1e-3


def log_probabilities(process: ndm.NDM, code: Tensor, steps: int) -> Tensor:
    """log P(level | c) of the generative model in T steps, (3,)."""
    grid = torch.linspace(-9, 9, 801, dtype=torch.float64)
    width, z, c = (grid[1] - grid[0]).item(), grid[:, None], code.expand(801, 1)
    log_p = Normal(0.0, 1.0).log_prob(grid) + math.log(width)
    for i in range(steps, 0, -1):
        kernel = process.kernel(z, process.grid_step(torch.full((len(z),), i), steps, z), c)
        deviation = (kernel.sample(torch.ones_like(z)) - kernel.mean)[:, 0]
        step = Normal(kernel.mean, deviation[:, None]).log_prob(grid) + math.log(width)
        log_p = torch.logsumexp(log_p[:, None] + step, 0)
    level = process.schedule(torch.zeros(1).double())
    logits = -((z / level.alpha - LEVELS) ** 2) / (2 * level.gamma.exp())
    return torch.logsumexp(log_p[:, None] + logits.log_softmax(1), 0)


@pytest.mark.parametrize("steps", [None, 1, 6])
def test_a_noise_that_ignores_the_latent_is_noise_per_dimension(steps: int | None) -> None:
    process, x = model().requires_grad_(False), torch.randn(B, D).double()
    process.noise.net.output.weight.zero_()
    process.noise.net.output.bias.normal_()
    code = torch.randn(B, M).double()
    options = {"labels": code, "times": torch.rand(B).double()}
    found = process.bound(x, steps, generator=torch.Generator().manual_seed(0), **options).total
    other = ndm.DimensionNoise((D,), 3)
    other.coefficients.data = process.noise.net.output.bias.reshape(1, 3, D).clone()
    process.noise = other.double()
    torch.testing.assert_close(
        found, process.bound(x, steps, generator=torch.Generator().manual_seed(0), **options).total
    )


@pytest.mark.parametrize("part", ["latent", "noise", "denoiser"])
@pytest.mark.parametrize("steps", [None, 7])
def test_the_gradient_is_that_of_finite_differences(part: str, steps: int | None) -> None:
    process = model(transform=ndm.Separable(network(D, heads=2, level=False), terms=2, gate="free"))
    x, u = torch.randn(B, D).double(), torch.rand(B).double()

    def total() -> Tensor:
        return process.bound(x, steps, times=u, generator=torch.Generator().manual_seed(0)).total.mean()

    assert_gradient_is_right(total, next(getattr(process, part).parameters()))


def test_the_draw_states_its_divergence_and_its_densities() -> None:
    process = model().requires_grad_(False)
    x = torch.randn(1, D).double().expand(200_000, D)
    draw = process.latent.draw(x, torch.Generator().manual_seed(0))
    mean, log_std = process.latent(x[:1])
    q, p = Normal(mean, log_std.exp()), Normal(torch.zeros(M).double(), torch.ones(M).double())
    torch.testing.assert_close(draw.log_ratio, (p.log_prob(draw.code) - q.log_prob(draw.code)).sum(1))
    torch.testing.assert_close(draw.kl[:1], torch.distributions.kl_divergence(q, p).sum(1))
    assert -draw.log_ratio.mean().item() == pytest.approx(draw.kl[0].item(), abs=0.01)


def test_the_latent_is_drawn_unless_it_is_given() -> None:
    process, x = model(), torch.randn(B, D).double()
    code = torch.zeros(B, M).double()
    assert given_latent(process, x, code)[0] is code
    assert process.bound(x, labels=code).latent is None
    assert process.bound(x).latent.shape == (B,)
    assert ndm.curvature(process, x).shape == (B,)
    mean, std = process.marginal(x, times(0.5, B), code)
    assert mean.shape == std.shape == (B, D)


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_with_a_latent_is_saved_calibrated_and_sampled(direct: bool, tmp_path) -> None:
    process = model()
    if direct:
        process.denoiser = ndm.DirectDenoiser(network(D, heads=2, latent=M).double(), ode=True)
        assert ndm.log_likelihood(process, torch.randn(2, D).double()).log_prob.isfinite().all()
    process.requires_grad_(False)
    assert_saved_calibrated_and_sampled(process, torch.randn(300, D).double(), tmp_path)


def test_what_does_not_fit_is_refused() -> None:
    x, parts = torch.randn(4, D), (ndm.LinearSchedule(), ndm.Identity())
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        ndm.GaussianLatent(network(D), 0)
    latent = ndm.GaussianLatent(network(D, level=False), M)
    with pytest.raises(ValueError, match=r"must return 4 features, \(4, 4\), and returned \(4, 3\)"):
        ndm.NDM(*parts, ndm.Denoiser(network(D, latent=M)), latent=latent).bound(x)
    with pytest.raises(ValueError, match="is given a latent of size 2: give the model"):
        ndm.NDM(*parts, ndm.Denoiser(network(D, latent=M)))
    with pytest.raises(ValueError, match="The latent has size 2, and the denoiser's network is given one of size 0"):
        ndm.NDM(*parts, ndm.Denoiser(network(D)), latent=latent)
    with pytest.raises(ValueError, match="A model with class labels has no latent"):
        ndm.NDM(*parts, ndm.Denoiser(network(D, classes=3)), latent=latent)
    with pytest.raises(ValueError, match="LatentNoise needs a latent"):
        ndm.NDM(*parts, ndm.Denoiser(network(D)), noise=ndm.LatentNoise(noise_net(), (D,)))
    with pytest.raises(ValueError, match="has classes or a latent, not both"):
        network(D, classes=3, latent=M)
    process = model()
    with pytest.raises(ValueError, match=r"labels are 4 values of it, of shape \(4, 2\), not \(4,\)"):
        process.bound(x, labels=torch.zeros(4))
    with pytest.raises(ValueError, match="give it the latent of each example as its labels"):
        process.drift(x.double(), times(0.5, 4))
    with pytest.raises(ValueError, match="Guidance needs a network with classes"):
        process.sample(3, (D,), labels=torch.zeros(3, M), guidance=1.0)
    process.noise = ndm.LatentNoise(noise_net().double(), (2,))
    with pytest.raises(ValueError, match=r"LatentNoise has shape \(2,\), and examples have \(3,\)"):
        process.bound(x)
    with pytest.raises(ValueError, match="takes 3 features, and the latent has 2: build it with features=2"):
        process.noise = ndm.LatentNoise(noise_net(D, 3), (D,))
    with pytest.raises(ValueError, match="The network of GaussianLatent is not given the noise level"):
        process.latent = ndm.GaussianLatent(network(D, outputs=2 * M), M)
    with pytest.raises(ValueError, match="latent must be a Latent, such as"):
        process.latent = network(D)
    with pytest.raises(ValueError, match="noise must be a Noise, such as"):
        process.noise = network(D)
    with pytest.raises(ValueError, match="must be finite"):
        process.bound(x, labels=torch.full((4, M), torch.nan))
    for shape in (2, (-1,), (0,), ()):
        with pytest.raises(ValueError, match="DimensionNoise needs the shape of an example"):
            ndm.DimensionNoise(shape)
    process.noise = ndm.LatentNoise(noise_net(2).double(), (D,))
    with pytest.raises(ValueError, match=r"must return 9 features, \(4, 9\), and returned \(4, 6\)"):
        process.bound(x)


@pytest.mark.parametrize(
    "net",
    [
        lambda: ndm.networks.UNet(1, 4, latent=M, groups=2, zero_init=False),
        lambda: ndm.networks.ConvNet(1, 4, latent=M, zero_init=False),
        lambda: ndm.networks.ImageTransformer(1, 2, 8, 1, 2, latent=M, zero_init=False),
        lambda: ResidualMLP(64, 8, 1, latent=M, zero_init=False),
    ],
    ids=["UNet", "ConvNet", "ImageTransformer", "ResidualMLP"],
)
def test_every_network_takes_a_latent(net) -> None:
    torch.manual_seed(0)
    encoder = ResidualMLP(64, 8, 1, level=False, outputs=2 * M)
    noise = ndm.LatentNoise(ResidualMLP(M, 8, 1, level=False, outputs=3 * 64), (1, 8, 8))
    parts = ndm.LinearSchedule(-6.0, 5.0), ndm.Identity(), ndm.Denoiser(net()), ndm.DiscretizedDecoder(4)
    process = ndm.NDM(*parts, noise=noise, latent=ndm.GaussianLatent(encoder, M))
    x, z = torch.randint(0, 4, (3, 1, 8, 8)), torch.randn(3, 1, 8, 8)
    process.bound(x).total.mean().backward()
    assert all(p.grad is not None for p in process.latent.parameters())
    level = process.schedule(torch.full((3,), 0.5))
    with torch.no_grad():
        one, other = (process.denoiser(z, level, torch.full((3, M), value)) for value in (0.0, 1.0))
    assert (one - other).abs().max() > 1e-4
    found = ndm.log_likelihood(process, x, samples=2, generator=torch.Generator().manual_seed(0))
    assert found.log_prob.isfinite().all()
    assert found.kind.endswith("the latent c from q(c | x)")
