"""Gaussian data, models of them, and the closed forms of what each sampler makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.denoisers import BaseDenoiser
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP

# Data x ~ N(MEAN, R) in each dimension; z_t ~ N(alpha a MEAN, alpha^2 a^2 R + sigma^2) under F = a x.
MEAN, R = 0.8, 1.7
LOW, HIGH = -8.0, 16.0  # with gamma_1 = 16, z_1 is standard normal up to 1e-7 in its variance


def one(gamma: Tensor) -> Tensor:
    return torch.ones_like(gamma)


def widening(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


SCALES = {"identity": one, "scale": widening}


class Exact(nn.Module):
    """E[x | z], the best denoiser there is for Gaussian data under F = a(gamma) x. Labels, if given, shift the mean."""

    def __init__(self, a: Callable[[Tensor], Tensor] = one) -> None:
        super().__init__()
        self.a = a

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        a, alpha, sigma = (per_example(v, z) for v in (self.a(level.gamma), level.alpha, level.sigma))
        mean = MEAN if labels is None else MEAN + per_example(labels.to(z), z)
        return mean + alpha * a * R * (z - alpha * a * mean) / (alpha**2 * a**2 * R + sigma**2)


def gaussian(name: str = "identity", **parts) -> ndm.NDM:
    transform = ndm.Identity() if name == "identity" else ndm.Scale(SCALES[name])
    parts = {"denoiser": Exact(SCALES[name]), **parts}
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), transform, **parts)


def small(**parts) -> ndm.NDM:
    """A model with weights, for what does not depend on what it has learned."""
    parts = {"denoiser": ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, zero_init=False)), **parts}
    return ndm.NDM(ndm.LinearSchedule(-6, 4), ndm.Identity(), **parts)


def level(t: float) -> tuple[float, float, float]:
    """alpha, sigma, gamma."""
    gamma = LOW + (HIGH - LOW) * t
    return math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma))), gamma


def a_of(name: str, gamma: float) -> float:
    return SCALES[name](torch.tensor(gamma, dtype=torch.float64)).item()


def moments(name: str, t: float) -> tuple[float, float]:
    """Mean and variance of q(z_t)."""
    alpha, sigma, gamma = level(t)
    a = a_of(name, gamma)
    return alpha * a * MEAN, alpha**2 * a**2 * R + sigma**2


def posterior_mean(name: str, t: float) -> tuple[float, float]:
    """x_hat = intercept + slope z."""
    alpha, _, gamma = level(t)
    mean, variance = moments(name, t)
    slope = alpha * a_of(name, gamma) * R / variance
    return MEAN - slope * mean, slope


def ancestral_moments(name: str, steps: int, eta: float) -> tuple[float, float]:
    """Mean and variance of z_0 / alpha_0 when the reverse steps' variance is v = eta^2 v_DDPM, from z_1 ~ N(0, 1)."""
    mean, variance = 0.0, 1.0
    for i in range(steps, 0, -1):
        (alpha_t, sigma_t, gamma_t), (alpha_s, sigma_s, gamma_s) = level(i / steps), level((i - 1) / steps)
        v = eta**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2) * sigma_s**2 / sigma_t**2
        c = math.sqrt(sigma_s**2 - v) / sigma_t
        intercept, slope = posterior_mean(name, i / steps)
        k = alpha_s * a_of(name, gamma_s) - c * alpha_t * a_of(name, gamma_t)
        mean = (c + k * slope) * mean + k * intercept
        variance = (c + k * slope) ** 2 * variance + v
    return mean / level(0)[0], variance / level(0)[0] ** 2


def euler_maruyama_moments(name: str, steps: int, eta: float) -> tuple[float, float]:
    """The same for Euler and Maruyama's steps of dz = [m' + (sigma'/sigma + g^2 / 2 sigma^2)(z - m)] dt + g dw."""
    mean, variance = 0.0, 1.0
    for i in range(steps, 0, -1):
        t, h = i / steps, 1e-6
        alpha, sigma, gamma = level(t)
        dgamma = HIGH - LOW
        g_squared = eta**2 * sigma**2 * dgamma
        intercept, slope = posterior_mean(name, t)
        m = alpha * a_of(name, gamma)

        def m_at(t: float) -> float:
            alpha, _, gamma = level(t)
            return alpha * a_of(name, gamma)

        dm = (m_at(t + h) - m_at(t - h)) / (2 * h)
        pull = (1 - sigma**2) * dgamma / 2 + g_squared / (2 * sigma**2)  # sigma'/sigma = alpha^2 gamma' / 2
        shift, factor = (dm - pull * m) * intercept, pull + (dm - pull * m) * slope
        mean = mean - (factor * mean + shift) / steps
        variance = (1 - factor / steps) ** 2 * variance + g_squared / steps
    return mean / level(0)[0], variance / level(0)[0] ** 2


def data_moments(name: str) -> tuple[float, float]:
    mean, variance = moments(name, 0.0)
    return mean / level(0)[0], variance / level(0)[0] ** 2


def assert_moments(x: Tensor, expected: tuple[float, float], bias: float = 0.0) -> None:
    """Mean and variance agree to four standard errors, and ``bias`` besides."""
    mean, variance = expected
    n = x.numel()
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + bias)
    assert x.var().item() == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / n) + bias)


N = 50_000


class Direct(BaseDenoiser):
    """The exact estimate of y = F - 2 / (1 + eta^2) dF/dgamma under F = a(gamma) x, and of F as well if asked for."""

    direct = True

    def __init__(self, a: Callable[[Tensor], Tensor], ode: bool) -> None:
        super().__init__()
        self.a, self.ode, self.exact = a, ode, Exact(a)

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> ndm.Estimate:
        x_hat = self.exact(z, level, labels)
        a, da = torch.func.jvp(self.a, (level.gamma,), (torch.ones_like(level.gamma),))
        y_hat = per_example(a - da, z) * x_hat
        transformed = per_example(a, z) * x_hat if self.ode else None
        return ndm.Estimate(mean=y_hat, residual=lambda target, _, noise: target - y_hat, transformed=transformed)


EVERY_WAY = [
    ("ancestral", 5, None), ("ddim", 5, None), ("ode", None, None), ("ode", 5, "heun"), ("ode", 5, "rk4"),
    ("ode", 5, "dpm++2m"), ("sde", 5, None), ("sde", 5, "dpm++2m"), ("sde", 5, "euler"), ("sde", 5, "srk"),
    ("sde", None, None),
]  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


QUICK_WAYS = [way for way in EVERY_WAY if way[:2] != ("sde", None)]
