"""DDPM's last step is a distribution over the levels, and the bound with it is above -log p."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import ndm
from ndm.method.denoised_decoder import log_normal_between
from ndm.method.denoisers import Estimate
from ndm.method.schedules import per_example

GAMMA = torch.zeros(1, dtype=torch.float64)


def estimate(mean: Tensor, head: Tensor | None = None) -> Estimate:
    return Estimate(mean, lambda *arguments: None, head)


def log_p(decoder: ndm.DenoisedDecoder, mean: float, head: float | None = None) -> Tensor:
    """log p of every level, (K,)."""
    levels = decoder.level_values(GAMMA)[:, None]
    told = estimate(torch.full_like(levels, mean), None if head is None else torch.full_like(levels, head))
    return -decoder.nll(levels, torch.zeros_like(levels), GAMMA, told)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("levels", [2, 4, 256])
@pytest.mark.parametrize("mean", [-1.5, -1.0, 0.0, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("log_variance", [-9.8, -3.0, 1.0])
def test_the_probabilities_sum_to_one(levels: int, ends: bool, mean: float, log_variance: float) -> None:
    p = log_p(ndm.DenoisedDecoder(levels, log_variance, ends=ends), mean)
    assert p.isfinite().all()
    assert torch.logsumexp(p, 0).item() == pytest.approx(0, abs=1e-12)


def test_the_probabilities_are_those_of_the_normal_distribution() -> None:
    p = log_p(ndm.DenoisedDecoder(4, math.log(0.3**2)), 0.2).exp()
    edges = norm.cdf([-np.inf, -2 / 3, 0.0, 2 / 3, np.inf], 0.2, 0.3)
    np.testing.assert_allclose(p, np.diff(edges), rtol=1e-12)


def test_the_head_interpolates_between_the_log_variances() -> None:
    decoder = ndm.DenoisedDecoder(16, -6.0, -2.0)
    for head, log_variance in ((-1.0, -6.0), (1.0, -2.0), (0.5, -3.0), (-1.5, -7.0)):
        expected = log_p(ndm.DenoisedDecoder(16, log_variance), 0.1)
        torch.testing.assert_close(log_p(decoder, 0.1, head), expected, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="twice the channels"):
        log_p(decoder, 0.1)


def test_the_tails_are_accurate_and_have_gradients() -> None:
    low = torch.tensor([-60.0, -1.0, 5.0, 30.0, -1e4, 3.0], dtype=torch.float64, requires_grad=True)
    high = torch.tensor([-58.0, 1.5, 6.0, 31.0, -50.0, 1e4], dtype=torch.float64)
    found = log_normal_between(low, high)
    a, b = low.detach().numpy(), high.numpy()
    flip = a + b > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    expected = norm.logcdf(b) + np.log1p(-np.exp(norm.logcdf(a) - norm.logcdf(b)))
    np.testing.assert_allclose(found.detach(), expected, 1e-10)
    found.sum().backward()
    assert low.grad.isfinite().all()
    single = log_normal_between(low.detach().float(), high.float())
    torch.testing.assert_close(single.double(), found.detach(), rtol=1e-4, atol=1e-5)


def test_the_approximation_is_close_where_the_probability_is_not_small() -> None:
    exact, close = (log_p(ndm.DenoisedDecoder(256, -9.8, approximate=a), 0.11) for a in (False, True))
    likely = exact > math.log(1e-3)
    assert likely.sum() > 3
    torch.testing.assert_close(close[likely], exact[likely], rtol=0, atol=0.05)
    assert not torch.equal(close, exact)
    assert close.min().item() == pytest.approx(math.log(1e-12))


# ---- in a model


class Toy:
    """A model of one number with K levels in few steps, whose p(x) is a sum over a fine grid."""

    def __init__(self, variance: str) -> None:
        self.variance = variance
        heads = 2 if variance == "range" else 1

        def net(z: Tensor, k: Tensor) -> Tensor:
            eps = torch.tanh(1.5 * z + 0.1 * k[:, None]) + 0.1
            return torch.cat([eps, torch.sin(z)], 1) if heads == 2 else eps

        decoder = ndm.DenoisedDecoder(4, -3.0, -1.0 if heads == 2 else None)
        self.schedule = ndm.TableSchedule([0.9, 0.6, 0.3, 0.1])
        denoiser = ndm.Denoiser(net, "eps", time="index", clip=1.0)
        self.model = ndm.NDM(self.schedule, ndm.Identity(), denoiser, decoder, variance)
        self.levels = decoder.level_values(GAMMA)

    def probabilities(self) -> Tensor:
        """p(x), (K,), with the steps' means and variances formed here from the schedule and the estimate."""
        model, grid = self.model, torch.linspace(-9, 9, 1801, dtype=torch.float64)
        spacing, z = grid[1] - grid[0], grid[:, None]
        density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
        bar = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float64)
        for t in (3, 2, 1):
            told = model.denoiser.estimate(z, self._level(t, len(z)))
            beta = 1 - bar[t] / bar[t - 1]
            small = beta * (1 - bar[t - 1]) / (1 - bar[t])
            x_part = beta * bar[t - 1].sqrt() / (1 - bar[t]) * told.mean
            mean = (x_part + (1 - bar[t - 1]) * (1 - beta).sqrt() / (1 - bar[t]) * z)[:, 0]
            fraction = {"posterior": 0.0, "large": 1.0}.get(self.variance)
            fraction = (told.log_ratio[:, 0] + 1) / 2 if fraction is None else torch.full_like(mean, fraction)
            std = torch.exp(fraction * beta.log() / 2 + (1 - fraction) * small.log() / 2)
            kernel = torch.exp(-(((grid[None] - mean[:, None]) / std[:, None]) ** 2) / 2)
            kernel = kernel / (std[:, None] * math.sqrt(2 * math.pi))
            density = (density[:, None] * kernel).sum(0) * spacing
        told = model.denoiser.estimate(z, self._level(0, len(z)))
        p = []
        for level in self.levels:
            x = torch.full_like(z, level.item())
            p.append((torch.exp(-model.decoder.nll(x, x, GAMMA, told)) * density).sum() * spacing)
        return torch.stack(p)

    def _level(self, t: int, n: int):
        return self.schedule(torch.full((n,), t / 3, dtype=torch.float64))


@pytest.mark.parametrize("variance", ["posterior", "large", "range"])
def test_the_bound_is_above_the_exact_negative_log_probability(variance: str) -> None:
    toy = Toy(variance)
    p = toy.probabilities()
    assert p.sum().item() == pytest.approx(1, abs=1e-8)
    draws = 20_000
    x = toy.levels.repeat_interleave(draws)[:, None]
    total = toy.model.bound(x, 3, generator=torch.Generator().manual_seed(0)).total.reshape(4, draws)
    mean, error = total.mean(1), total.std(1) / math.sqrt(draws)
    assert (error < 0.05).all()
    assert (mean + 4 * error > -p.log()).all()
    assert (mean < -p.log() + 3).all()


def test_the_likelihood_of_the_ode_uses_the_decoder() -> None:
    toy = Toy("posterior")
    toy.model.denoiser.clip = None  # a smooth drift, which is solved accurately
    x, alpha, sigma = toy.levels[:, None], math.sqrt(0.9), math.sqrt(0.1)
    # By quadrature over z_0, from the density of the flow.
    z, spacing = torch.linspace(-25, 25, 5001, dtype=torch.float64)[:, None], 0.01
    plain = ndm.NDM(toy.schedule, ndm.Identity(), toy.model.denoiser)
    flow = plain.log_prob(z / alpha, tolerance=1e-4) - math.log(alpha)
    told = toy.model.denoiser.estimate(z, toy.schedule(torch.zeros(len(z), dtype=torch.float64)))
    decoded = torch.stack([-toy.model.decoder.nll(level.expand_as(z), z, GAMMA, told) for level in toy.levels])
    exact = torch.exp(decoded + flow).sum(1) * spacing
    assert exact.sum().item() == pytest.approx(1, abs=1e-3)
    q = torch.exp(-(((z[:, 0] - alpha * x) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    bound = (q * (decoded + flow - q.clamp(min=1e-300).log())).sum(1) * spacing

    found = ndm.log_likelihood(toy.model, x, samples=4000, generator=torch.Generator().manual_seed(0))
    assert (found.stderr < 0.1).all()
    assert ((found.log_prob - bound).abs() < 4 * found.stderr + 0.01).all()
    weighted = ndm.log_likelihood(
        toy.model, x, dequantization="importance", samples=2000, generator=torch.Generator().manual_seed(0)
    )
    assert (weighted.log_prob > bound).all()
    assert (weighted.log_prob < exact.log() + 0.1).all()
    assert ndm.log_likelihood(toy.model, x, dequantization="uniform", samples=50).log_prob.isfinite().all()


def test_labels_reach_the_estimate_at_z_0() -> None:
    def net(z: Tensor, k: Tensor, labels: Tensor) -> Tensor:
        return per_example(labels.to(z), z) * torch.ones_like(z)

    model = ndm.NDM(
        ndm.TableSchedule([0.99, 0.5, 0.01]), ndm.Identity(), ndm.Denoiser(net, "x"), ndm.DenoisedDecoder(256, -9.8)
    )
    x = torch.full((2, 1), 1.0, dtype=torch.float64)
    right, wrong = model.bound(x, 2, labels=torch.tensor([1, 0])).reconstruction
    assert right < 1 < 1000 < wrong
    found = ndm.log_likelihood(model, x, labels=torch.tensor([1, 0]), samples=3).log_prob
    assert found[0] > found[1] + 1000
    assert ndm.sample(model, 2, (1,), steps=2, labels=torch.tensor([1, 0])).round().tolist() == [[1], [0]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a Denoiser, not a DirectDenoiser"):
        ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.DirectDenoiser(torch.nn.Identity()), ndm.DenoisedDecoder())
    with pytest.raises(ValueError, match="must be finite"):
        ndm.DenoisedDecoder(256, math.nan)
    with pytest.raises(ValueError, match="at least 2 levels"):
        ndm.DenoisedDecoder(1)
    with pytest.raises(ValueError, match="needs the denoiser's estimate"):
        ndm.DenoisedDecoder().nll(torch.zeros(1, 1), torch.zeros(1, 1), GAMMA)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(lambda z, u: z), reverse_variance="range")
    with pytest.raises(ValueError, match="twice the channels"):
        model.bound(torch.randn(2, 2), 3)
