"""Parts and data of one's own, for points of the plane."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndm import Curve, Part, Schedule
from ndm.data import SPLITS, Data
from ndm.method.transforms import LinearTransform


class Perceptron(Part):
    """A network, net(z, u): z (B, features), u (B,) in [0, 1] -> (B, features)."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features + 1, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, features),
        )

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return self.layers(torch.cat([z, u[:, None]], dim=1))


class Turn(LinearTransform):
    """F(x, gamma): x turned by the angle a sigmoid(gamma); a is learned."""

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Curve:
        return _Turned(x, self.a)


class _Turned(Curve):
    def __init__(self, x: Tensor, a: Tensor) -> None:
        super().__init__(x)
        self.a = a
        self.across = torch.stack([-x[:, 1], x[:, 0]], dim=1)  # x turned by a right angle

    def displacement(self, gamma: Tensor) -> Tensor:
        angle = (self.a * torch.sigmoid(gamma))[..., None]
        # cos - 1 as a square: the displacement is to be small without a subtraction.
        return -2 * torch.sin(angle / 2) ** 2 * self.x + torch.sin(angle) * self.across

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(self.displacement, (gamma,), (torch.ones_like(gamma),))


class PowerSchedule(Schedule):
    """A schedule: gamma(t) = gamma_min + (gamma_max - gamma_min) t^power."""

    def __init__(self, power: float = 1.0, gamma_min: float = -8.0, gamma_max: float = 5.0) -> None:
        super().__init__()
        self.power, self.gamma_min, self.gamma_max = power, gamma_min, gamma_max

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        span = self.gamma_max - self.gamma_min
        return self.gamma_min + span * t**self.power, span * self.power * t ** (self.power - 1)


class Rings(Data):
    """A data set: points near circles of radius 1 and 2, labelled 0 and 1."""

    shape = (2,)
    levels = None

    def __init__(self, train: int = 4000, validation: int = 500, test: int = 500, noise: float = 0.1) -> None:
        self.sizes = dict(zip(SPLITS, (train, validation, test), strict=True))
        self.noise = noise

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(SPLITS.index(name))  # the same arguments give the same data
        n = self.sizes[name]
        ring = torch.randint(2, (n,), generator=generator)
        angle = 2 * torch.pi * torch.rand(n, generator=generator)
        radius = 1 + ring + self.noise * torch.randn(n, generator=generator)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1), ring
