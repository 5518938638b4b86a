r"""A learned standard deviation of the forward process, std(x, gamma) = sigma e^{h(x, gamma)} in each dimension.

    q(z_t | x) = N( alpha_t F(x, t), diag(std(x, t)^2) )

(Bartosh et al., *Neural Flow Diffusion Models*, arXiv 2404.12940, section 4). With h independent of x it is a noise
schedule per dimension, as in MuLAN without its latent (arXiv 2312.13236, section 3).

The reverse process is that of :mod:`ndm.method.process`, with another y, which depends on z too:

    y = F(x, t) + slope - tilt (z / alpha_t - F(x, t))

    tilt = 2 / (1 + eta^2) (dh/dgamma + eta^2 / 2 (e^{-2h} - 1))                                  in continuous time
    tilt = -rho / gain (c(x) / c - 1),  c(x) = sqrt(std(x, s)^2 - v) / std(x, t),  rho = 1 - gain  over a step

The bound, the steps, the SDE and the ODE are then the same functions of y. The variance v of a step must be below
std(x, s)^2 for every x: h is limited, and v is at most e^{-2 limit} sigma_s^2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ndm.method.parts import Part
from ndm.method.transforms.bases import basis_named
from ndm.method.transforms.curve import unit_interval
from ndm.method.transforms.learned import combined, functions_of
from ndm.method.variances import LARGEST_SHARE

__all__ = ["DimensionNoise", "LearnedNoise", "Noise", "NoiseCurve"]


class NoiseCurve:
    r"""gamma -> h(x, gamma) = log(std / sigma) for a fixed batch x.

    h = limit tanh(w(u) sum_k phi_k(u) h_k / limit) with u = (gamma - low) / (high - low) and w = 16 u^2 (1 - u)^2. It
    vanishes with its derivative at both ends of the schedule, where std = sigma.

    Args:
        terms: h_k of each example, (B, K, \*shape), or of all, (1, K, \*shape).
        basis: the name of the functions phi_k, see :mod:`ndm.method.transforms.bases`.
        limit: the limit of \|h\|.
        ends: gamma at t = 0 and t = 1, (2,).
    """

    def __init__(self, terms: Tensor, basis: str, limit: float, ends: Tensor) -> None:
        self.terms, self.basis, self.limit, self.ends = terms, basis, limit, ends

    def __call__(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        r"""h and dh/dgamma at fixed x, both (\*gamma.shape, \*shape), for gamma (B,) or (P, B)."""
        low, high = self.ends.to(gamma)
        u = unit_interval(gamma, (low, high)).clamp(0, 1)
        window, slope = 16 * (u * (1 - u)) ** 2, 32 * u * (1 - u) * (1 - 2 * u)
        phi, dphi = basis_named(self.basis)(u, self.terms.shape[1])
        factors = torch.stack([window[..., None] * phi, slope[..., None] * phi + window[..., None] * dphi])
        inside, derivative = combined(factors, self.terms)
        bent = torch.tanh(inside / self.limit)
        return self.limit * bent, (1 - bent**2) * derivative / (high - low)


class Noise(Part):
    """Base class of the learned standard deviation.

    It is called with x and gamma's ends, and returns the :class:`~ndm.method.noise.NoiseCurve`.
    """

    def __init__(self, terms: int, basis: str, limit: float) -> None:
        super().__init__()
        if terms < 1:
            raise ValueError(f"The noise needs at least one term, got {terms}.")
        if not 0 < limit <= 5:
            raise ValueError(f"The limit of log(std / sigma) must be above 0 and at most 5, got {limit}.")
        basis_named(basis)  # raises for an unknown name
        self.terms, self.basis, self.limit = terms, basis, limit

    @property
    def largest_share(self) -> float:
        """The largest v / sigma_s^2 of a step, for which v is below std(x, s)^2 for every x."""
        return math.exp(-2 * self.limit) * LARGEST_SHARE

    @abstractmethod
    def functions(self, x: Tensor) -> Tensor:
        r"""h_k, (B, K, \*shape) or (1, K, \*shape), for x of shape (B, \*shape)."""

    def forward(self, x: Tensor, ends: Tensor) -> NoiseCurve:
        r"""The curve of x, (B, \*shape); ``ends`` is gamma at t = 0 and t = 1, (2,)."""
        return NoiseCurve(self.functions(x), self.basis, self.limit, ends)


class LearnedNoise(Noise):
    """log(std / sigma) from a network of x: the noise of one example differs from that of another.

    One network pass for x and one for x_hat give the whole curve and its exact derivative.

    Args:
        net: called as net(x), x (B, \\*shape); returns ``terms`` times the channels (or features), the terms outermost.
        terms: K, the number of functions of the noise level.
        basis: ``cosine``, ``legendre`` or ``bumps``; see :mod:`ndm.method.transforms.bases`.
        limit: the limit of the absolute value of log(std / sigma). The variance of a step is at most e^{-2 limit} of
            sigma_s^2, so a model of few steps needs a small one.

    Raises:
        ValueError: an argument is out of range, the basis is unknown, or the network returns another number of
            channels.
    """

    def __init__(self, net: nn.Module, terms: int = 3, basis: str = "cosine", limit: float = 0.5) -> None:
        super().__init__(terms, basis, limit)
        self.net = net

    def functions(self, x: Tensor) -> Tensor:
        return functions_of(self.net, x, self.terms, "LearnedNoise")


class DimensionNoise(Noise):
    """log(std / sigma) as a function of the noise level alone, one for each dimension: learned noise schedules.

    Args:
        shape: the shape of one example, such as (columns,) or (channels, height, width); 1 in the place of a size for
            one function along that axis, such as (channels, 1, 1).
        terms: K, the number of functions of the noise level.
        basis: as for :class:`LearnedNoise`.
        limit: as for :class:`LearnedNoise`.

    Raises:
        ValueError: an argument is out of range, the basis is unknown, or an example has another shape.
    """

    def __init__(self, shape: Sequence[int], terms: int = 5, basis: str = "cosine", limit: float = 0.5) -> None:
        super().__init__(terms, basis, limit)
        self.shape = [int(n) for n in shape]
        self.coefficients = nn.Parameter(torch.zeros(1, terms, *self.shape))

    def functions(self, x: Tensor) -> Tensor:
        sizes = x.shape[1:]
        if len(sizes) != len(self.shape) or any(n not in (1, size) for n, size in zip(self.shape, sizes, strict=True)):
            raise ValueError(f"DimensionNoise has shape {tuple(self.shape)}, and examples have {tuple(x.shape[1:])}.")
        return self.coefficients.to(x)
