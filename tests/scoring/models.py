"""Gaussian data whose bound and density have closed forms, and a small network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import ndm
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP

LOW, HIGH, R = -6.0, 8.0, 1.7


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R I)."""

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        return per_example(level.alpha * R / (level.alpha**2 * R + level.sigma**2), z) * z


def gaussian(**parts) -> ndm.NDM:
    """The exact model of N(0, R I)."""
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact(), **parts)


def bound_of_gaussian(x: Tensor) -> Tensor:
    """E of the bound at x, (B,): the integral over gamma of e^-gamma E |x - x_hat|^2 / 2 has a closed form at fixed x.

    With a = alpha^2 R + sigma^2 the error is (sigma^2 x - alpha sigma R noise) / a, and with u = e^-gamma, both
    variances over a^2 are rational in u.
    """
    d, u0, u1 = x.shape[1], math.exp(-LOW), math.exp(-HIGH)
    square = x.double().square().sum(1)
    # e^-gamma |x - x_hat|^2 dgamma = -(|x|^2 + u R^2 d) / (1 + R u)^2 du
    first = (1 / (1 + R * u1) - 1 / (1 + R * u0)) / R
    second = math.log((1 + R * u0) / (1 + R * u1)) / R**2 + (1 / (1 + R * u0) - 1 / (1 + R * u1)) / R**2
    diffusion = (square * first + R**2 * d * second) / 2
    alpha, sigma = 1 / (1 + math.exp(HIGH)), 1 / (1 + math.exp(-HIGH))  # squared
    prior = (d * sigma + alpha * square - d - d * math.log(sigma)) / 2
    return diffusion + prior + d / 2 * (math.log(2 * math.pi) + LOW + 1)


def log_density_of_gaussian(x: Tensor) -> Tensor:
    """Under the exact denoiser's linear flow: of z_1, standard normal, as in tests/inference/test_likelihood.py."""
    alpha, sigma = ([1 / (1 + math.exp(s * g)) for g in (LOW, HIGH)] for s in (1, -1))
    variance = [a * R + s for a, s in zip(alpha, sigma, strict=True)]
    scale = math.sqrt(variance[0] / variance[1] / alpha[0])
    return torch.distributions.Normal(0.0, scale).log_prob(x.double()).sum(1)


def draw(n: int, d: int = 3) -> Tensor:
    return math.sqrt(R) * torch.randn(n, d, generator=torch.Generator().manual_seed(1))


def small(**arguments) -> ndm.NDM:
    """A model that nobody has trained."""
    torch.manual_seed(0)
    net = ResidualMLP(3, hidden=8, depth=1, embedding=4, zero_init=False, **arguments)
    return ndm.NDM(ndm.LinearSchedule(-4, 5), ndm.Identity(), ndm.Denoiser(net))


FAST = {"times": 2, "likelihood": False, "batch_size": 16, "progress": False}
