"""Gaussian data whose bound has a closed form, under an exact linear denoiser.

Every term is then a quadratic function of x and of the noise, for which a few sign patterns in place of random numbers
give the exact expectation; times are replaced by the nodes of a quadrature. Numbers of the method are reproduced to all
their digits, not to Monte Carlo error.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

import ndm
import ndm.method.bounds
from ndm.method.schedules import per_example
from ndm.networks import ResidualMLP

R, LOW, HIGH = 1.7, -8.0, 6.0


def f64(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def sigmoid(gamma):
    return 1 / (1 + math.exp(-gamma))


def one(gamma: Tensor) -> Tensor:
    return torch.ones_like(gamma)


def rising(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R) and F = a(gamma) x."""

    def __init__(self, a=one) -> None:
        super().__init__()
        self.a = a

    def forward(self, z: Tensor, level) -> Tensor:
        a = self.a(level.gamma)
        return per_example(level.alpha * a * R / (level.alpha**2 * a**2 * R + level.sigma**2), z) * z


class BestVolatility(nn.Module):
    """eta^2 = (a/2 - da) / (a/2) for a = rising."""

    def forward(self, gamma: Tensor) -> Tensor:
        a, da = rising(gamma), 0.8 * torch.sigmoid(gamma) * torch.sigmoid(-gamma)
        return ((a / 2 - da) / (a / 2)).sqrt()


def gaussian_model(a=one, schedule=None, **options) -> ndm.NDM:
    transform = ndm.Identity() if a is one else ndm.Scale(a)
    return ndm.NDM(schedule or ndm.LinearSchedule(LOW, HIGH), transform, Exact(a), **options)


def diffusion(model: ndm.NDM, noise, steps: int | None, nodes: int = 300) -> float:
    """E[L_diff] for x ~ N(0, R), exactly: signs for x and the noise, quadrature for the time."""
    if steps is None:
        u, weights = leggauss(nodes)
        u, weights = (u + 1) / 2, weights / 2
    else:
        u, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    x, eps = (f64(v)[:, None] for v in zip(*itertools.product([R**0.5, -(R**0.5)], [1, -1]), strict=True))
    noise(eps.repeat_interleave(len(u), 0))
    terms = model.bound(x.repeat_interleave(len(u), 0), steps, times=f64(u).repeat(4))
    return (terms.diffusion.detach().reshape(4, -1).mean(0) * f64(weights)).sum().item()


def network(d: int = 2, **options) -> ResidualMLP:
    return ResidualMLP(d, hidden=12, depth=1, embedding=8, zero_init=False, **options)
