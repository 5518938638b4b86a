"""Gaussian data whose figures have closed forms, and data that are sorted or far off."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

import ndm
from ndm.data import Data, Gaussian
from ndm.evaluation import Evaluation

R = 1.7
LOW, HIGH = -8.0, 6.0


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R I) and F = x."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        return alpha * R * z / (alpha**2 * R + sigma**2)


def truth(steps: int | None, best: bool) -> float:
    """E of the bound on two dimensions of N(0, R), in nats: method, sections 3 and 7, by the sum over the steps."""

    def sigmoid(g: float) -> float:
        return 1 / (1 + math.exp(-g))

    def error(g: float) -> float:
        """E|x - x_hat|^2 at noise level g."""
        return R * sigmoid(g) / (sigmoid(-g) * R + sigmoid(g))

    if steps is None or best:
        diffusion = math.log((1 + R * math.exp(-LOW)) / (1 + R * math.exp(-HIGH))) / 2
    else:
        gammas = [LOW + (HIGH - LOW) * i / steps for i in range(steps + 1)]
        pairs = pairwise(gammas)
        diffusion = sum((math.exp(-s) - math.exp(-t)) * error(t) / 2 for s, t in pairs)
    prior = (sigmoid(HIGH) + sigmoid(-HIGH) * R - 1 - math.log(sigmoid(HIGH))) / 2
    reconstruction = (math.log(2 * math.pi) + LOW + 1) / 2
    return 2 * (diffusion + prior + reconstruction)


def some(value: float = 0.0) -> Evaluation:
    """Two figures of three examples, and one that is no average over examples."""
    rows = [
        {"quantity": "bound", "steps": 10, "variance": "posterior"},
        {"quantity": "log-likelihood", "steps": None, "variance": None},
        {"quantity": "FID", "steps": 250, "variance": None},
    ]
    values = [torch.tensor([1.0, 2.0, value], dtype=torch.float64), torch.tensor([3.0, 4.0, 5.0]), torch.empty(0)]
    return Evaluation(rows, {"split": "test"}, values)


class Sorted(Data):
    """Points around two centres far apart, first all of the one, then all of the other; labels alike."""

    shape, levels = (2,), None

    def __init__(self, n: int = 600) -> None:
        self.n = n

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(["train", "validation", "test"].index(name))
        x = torch.randn(self.n, 2, generator=generator)
        labels = (torch.arange(self.n) >= self.n // 4).long()
        return x * (1 + 4 * labels[:, None]), labels


class Far(Gaussian):
    """Test examples of which number 3 is too far away for float32."""

    def _split(self, name: str):
        x, labels = super()._split(name)
        if name == "test":
            x = x.clone()
            x[3, 1] = 1e30
        return x, labels


def stopped(*arguments: object) -> None:
    raise RuntimeError("stopped")
