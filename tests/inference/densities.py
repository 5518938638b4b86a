"""Data and models whose density under the reverse ODE has a closed form, or is had by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor, nn

import ndm
from ndm.inference.likelihood import LogLikelihood, log_likelihood
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP

TIGHT = {"tolerance": 1e-7}
LEVELS = torch.tensor([-2 / 3, 0.0, 2 / 3], dtype=torch.float64)
LOOSE = {"tolerance": 2e-2}  # where the Monte-Carlo error is larger still


class Mixed(nn.Module):
    """E[x | z] for x of a mixture of normal distributions in one dimension."""

    def __init__(self, weights: list[float], means: list[float], variances: list[float]) -> None:
        super().__init__()
        self.weights, self.means, self.variances = (
            torch.tensor(v, dtype=torch.float64) for v in (weights, means, variances)
        )

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
        variance = alpha**2 * self.variances + sigma**2
        gap = z - alpha * self.means
        share = torch.softmax(self.weights.log() - variance.log() / 2 - gap**2 / (2 * variance), dim=1)
        return (share * (self.means + alpha * self.variances / variance * gap)).sum(1, keepdim=True)


def density_along_the_ode(schedule: ndm.Schedule, mixture: Mixed, x: float) -> float:
    """log p(x): in one dimension the ODE keeps the order of its paths, and so the share of the mass below each."""
    weights, means, variances = (v.numpy() for v in (mixture.weights, mixture.means, mixture.variances))

    def at(gamma: float) -> tuple[float, np.ndarray, np.ndarray]:
        level = schedule.level_at(torch.tensor([gamma], dtype=torch.float64))
        alpha, sigma = level.alpha.item(), level.sigma.item()
        return alpha, alpha * means, np.sqrt(alpha**2 * variances + sigma**2)

    def total(kind: Callable[..., np.ndarray], z: float, m: np.ndarray, s: np.ndarray) -> float:
        return float(np.logaddexp.reduce(np.log(weights) + kind((z - m) / s)))

    low, high = schedule.end_points()
    (alpha, *first), (_, *last) = at(low), at(high)
    below = total(norm.logcdf, alpha * x, *first) < total(norm.logsf, alpha * x, *first)
    kind = norm.logcdf if below else norm.logsf  # the smaller share is the one that is exact
    share = total(kind, alpha * x, *first)
    end = brentq(lambda z: total(kind, z, *last) - share, -1000, 1000, xtol=1e-13)
    p_first, p_last = (
        float(np.logaddexp.reduce(np.log(weights) + norm.logpdf(z, m, s)))
        for z, (m, s) in ((alpha * x, first), (end, last))
    )
    return norm.logpdf(end) + p_first - p_last + math.log(alpha)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def widening(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


class Exact(nn.Module):
    """E[x | z] for x ~ N(mean, covariance) under F = a(gamma) x; one vector per example."""

    def __init__(self, mean: Tensor, covariance: Tensor, a=torch.ones_like) -> None:
        super().__init__()
        self.mean, self.a = mean, a
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        scale, sigma = per_example(level.alpha * self.a(level.gamma), z), per_example(level.sigma, z)
        mean = self.mean if labels is None else self.mean + per_example(labels.to(z), z)
        shrink = scale * self.values / (scale**2 * self.values + sigma**2)
        return mean + (((z - scale * mean) @ self.vectors) * shrink) @ self.vectors.T


def net(features: int, **arguments) -> ResidualMLP:
    return ResidualMLP(features, **{"hidden": 12, "depth": 1, "embedding": 8, "zero_init": False, **arguments})


def small(features: int = 2, transform: str = "identity", **parts) -> ndm.NDM:
    """A model that nobody has trained, float64."""
    transforms = {
        "identity": ndm.Identity,
        "neural": lambda: ndm.Neural(net(features)),
        "separable": lambda: ndm.Separable(net(features, heads=3, level=False), terms=3),
    }
    parts = {"schedule": ndm.LinearSchedule(-4, 10), "denoiser": ndm.Denoiser(net(features)), **parts}
    return ndm.NDM(transform=transforms[transform](), **parts).double()


def whole(model: ndm.NDM, x: Tensor) -> np.ndarray:
    """log p of points (B, d), by scipy's solver on the state and the divergence together, the latter by differences."""

    def drift(z: np.ndarray, t: float) -> np.ndarray:
        with torch.no_grad():
            time = torch.full((len(z),), t, dtype=torch.float64)
            return model.drift(torch.from_numpy(z), time, eta=0.0).numpy()

    def field(t: float, state: np.ndarray) -> np.ndarray:
        z, step = state.reshape(len(x), -1)[:, :-1], 1e-5
        sides = [step * row for row in np.eye(z.shape[1])]
        growth = sum((drift(z + s, t) - drift(z - s, t)) @ s / (2 * step**2) for s in sides)
        return np.concatenate([drift(z, t), growth[:, None]], axis=1).ravel()

    alpha = model.schedule(torch.zeros(1, dtype=torch.float64)).alpha.item()
    start = np.concatenate([alpha * x.numpy(), np.zeros((len(x), 1))], axis=1).ravel()
    end = solve_ivp(field, (0, 1), start, method="DOP853", rtol=1e-7, atol=1e-8).y[:, -1].reshape(len(x), -1)
    normal = -(end[:, :-1] ** 2 + math.log(2 * math.pi)).sum(1) / 2
    return normal + end[:, -1] + x.shape[1] * math.log(alpha)


SCHEDULES = {
    "linear": lambda: ndm.LinearSchedule(-13.3, 13.3),
    "cosine": ndm.CosineSchedule,
    "straight path": ndm.OTSchedule,
    "betas": ndm.DDPMSchedule,
    "learned": lambda: bent(-13.3, 5.0),
    "clipped early": lambda: ndm.CosineSchedule(gamma_min=-9.0, gamma_max=2.0),
}


def bent(low: float, high: float) -> ndm.LearnedSchedule:
    schedule = ndm.LearnedSchedule(low, high)
    with torch.no_grad():
        schedule.logits.add_(torch.linspace(-2, 2, 17))
    return schedule


def truth(schedule: ndm.Schedule, variance: Tensor, x: Tensor) -> Tensor:
    """log p of N(0, diag variance) data: the flow stretches each dimension by the ratio of its deviations."""
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    (alpha, alpha_1), (sigma, sigma_1) = ends.alpha.tolist(), ends.sigma.tolist()
    before, after = alpha**2 * variance + sigma**2, alpha_1**2 * variance + sigma_1**2
    z_1 = alpha * x * (after / before).sqrt()
    return torch.distributions.Normal(0.0, 1.0).log_prob(z_1).sum(1) + (alpha * (after / before).sqrt()).log().sum()


def probed(model: ndm.NDM, x: Tensor, probes: int, **arguments) -> LogLikelihood:
    return log_likelihood(model, x, divergence="hutchinson", probes=probes, generator=seeded(0), **arguments)
