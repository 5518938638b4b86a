r"""What a network receives and what its output means: the path of its input, the number for the noise level, and the
parameterisation of its output.

The same z_t can be written on several paths, which differ by a factor of z (Karras et al., *Elucidating the Design
Space of Diffusion-Based Generative Models*, arXiv 2206.00364, section 2):

    vp   alpha^2 + sigma^2 = 1    DDPM, score_sde's VP
    ve   alpha = 1                EDM, score_sde's VE
    ot   alpha + sigma = 1        flow matching, rectified flow

A network trained on one path can be used in a model with another one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ndm.method.schedules import NoiseLevel, per_example

__all__ = ["Clipped", "FunctionNetwork", "Network", "Reading", "on_path", "v_reading"]

PATHS = ("own", "vp", "ve", "ot")


def on_path(path: str, z: Tensor, level: NoiseLevel) -> tuple[Tensor, NoiseLevel]:
    """z, (B, \\*shape), and its noise level on a path of ``PATHS``; ``own`` is that of the model's schedule."""
    if path == "own":
        return z, level
    gamma = level.gamma
    if path == "vp":
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    elif path == "ve":
        alpha, sigma = torch.ones_like(gamma), torch.exp(gamma / 2)
    else:
        alpha, sigma = torch.sigmoid(-gamma / 2), torch.sigmoid(gamma / 2)
    return z * per_example(alpha / level.alpha, z), replace(level, alpha=alpha, sigma=sigma)


class Reading:
    """A network's output interpreted in a parameterisation at the noise level of one batch."""

    def __init__(self, output: Tensor, z: Tensor, level: NoiseLevel) -> None:
        self.output = output
        self.z = z
        self.alpha = per_example(level.alpha, z)
        self.sigma = per_example(level.sigma, z)

    @abstractmethod
    def mean(self) -> Tensor:
        """The estimate of the target."""

    @abstractmethod
    def residual(self, target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
        """target - mean, given z = alpha (target + displacement) + sigma noise."""


class _V(Reading):
    r"""v = alpha noise - sigma x (Salimans and Ho, arXiv 2202.00512, appendix D), so x = (alpha z - sigma v) / n.

    n = alpha^2 + sigma^2 is 1 for a variance-preserving schedule. Substituting z gives the residual x - x_hat = (sigma
    (v_hat - v) - alpha^2 displacement) / n.
    """

    def mean(self) -> Tensor:
        return (self.alpha * self.z - self.sigma * self.output) / (self.alpha**2 + self.sigma**2)

    def residual(self, target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
        v = self.alpha * noise - self.sigma * target
        gap = self.sigma * (self.output - v) - self.alpha**2 * displacement
        return gap / (self.alpha**2 + self.sigma**2)


class _Eps(Reading):
    """The noise (DDPM, arXiv 2006.11239, section 3.2): x_hat = (z - sigma eps_hat) / alpha."""

    def mean(self) -> Tensor:
        return (self.z - self.sigma * self.output) / self.alpha

    def residual(self, target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
        return self.sigma / self.alpha * (self.output - noise) - displacement


class _Score(_Eps):
    """grad log q(z) = -E[noise | z] / sigma (Song et al., arXiv 2011.13456, section 2), so eps_hat = -sigma score."""

    def __init__(self, output: Tensor, z: Tensor, level: NoiseLevel) -> None:
        super().__init__(output, z, level)
        self.output = -self.sigma * output


class _Velocity(Reading):
    r"""noise - x, dz/dt of alpha = 1 - t, sigma = t (flow matching, arXiv 2210.02747; rectified flow, 2209.03003).

    z = (alpha + sigma) x + sigma velocity, so x_hat = (z - sigma velocity_hat) / (alpha + sigma), and x - x_hat =
    (sigma (velocity_hat - velocity) - alpha displacement) / (alpha + sigma).
    """

    def mean(self) -> Tensor:
        return (self.z - self.sigma * self.output) / (self.alpha + self.sigma)

    def residual(self, target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
        gap = self.sigma * (self.output - (noise - target)) - self.alpha * displacement
        return gap / (self.alpha + self.sigma)


class _X(Reading):
    """The data itself: x_hat is the output."""

    def mean(self) -> Tensor:
        return self.output

    def residual(self, target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
        return target - self.output


def v_reading(output: Tensor, z: Tensor, level: NoiseLevel) -> Reading:
    """A network's output as v, see :class:`ndm.Denoiser`."""
    return _V(output, z, level)


READINGS: dict[str, type[Reading]] = {"v": _V, "eps": _Eps, "x": _X, "score": _Score, "velocity": _Velocity}


class Clipped(Reading):
    """A reading with its mean clipped to [-most, most]."""

    def __init__(self, reading: Reading, most: float) -> None:
        self.reading, self.most = reading, most

    def mean(self) -> Tensor:
        return self.reading.mean().clamp(-self.most, self.most)

    def residual(self, target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
        beyond = self.reading.mean().abs() > self.most
        return torch.where(beyond, target - self.mean(), self.reading.residual(target, displacement, noise))


if TYPE_CHECKING:
    Network = nn.Module | Callable[..., Tensor]
else:
    # For configurations, which cannot name functions. It is not in the module of the denoisers: jsonargparse would read
    # the line above there, and its errors would be about unions.
    Network = nn.Module


class FunctionNetwork(nn.Module):
    """A function as a network. Weights that it uses are not part of the model: it cannot be saved or trained.

    Args:
        function: called as function(z, u), as for :class:`ndm.Denoiser`.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)
