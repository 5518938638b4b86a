r"""Transformations linear in x: Identity, Scale and Blur. Their special cases are in method, section 6."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ndm.method.coordinates import FREQUENCIES
from ndm.method.schedules import per_example
from ndm.method.transforms.curve import Curve, LinearTransform, check_batch, value_and_slope

__all__ = ["Blur", "Identity", "Scale"]


class Identity(LinearTransform):
    """F(x, gamma) = x: conventional diffusion models (DDPM, DDIM, VDM), and flow matching's path with OTSchedule."""

    def forward(self, x: Tensor) -> Curve:
        return _Still(x)


class _Still(Curve):
    def displacement(self, gamma: Tensor) -> Tensor:
        check_batch(gamma, self.x)
        return self.x.new_zeros(()).expand(gamma.shape + self.x.shape[1:])

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return self.displacement(gamma), self.displacement(gamma)


class Scale(LinearTransform):
    """F(x, gamma) = a(gamma) x: equivalent to a change of schedule, and so a test oracle (method, sections 4 and 7).

    Args:
        a: gamma -> a(gamma), elementwise and differentiable; a function, or a module, which is trained and saved.
    """

    def __init__(self, a: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a = a

    def forward(self, x: Tensor) -> Curve:
        return _Scaled(x, self.a)


class _Scaled(Curve):
    def __init__(self, x: Tensor, a: Callable[[Tensor], Tensor]) -> None:
        super().__init__(x)
        self.a = a

    def displacement(self, gamma: Tensor) -> Tensor:
        check_batch(gamma, self.x)
        return per_example(self.a(gamma) - 1, self.x) * self.x

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        check_batch(gamma, self.x)
        a, da = value_and_slope(self.a, gamma)
        return per_example(a - 1, self.x) * self.x, per_example(da, self.x) * self.x


class Blur(LinearTransform):
    """Heat dissipation: F(x, gamma) = V diag(exp(-lambda_k tau(gamma))) V^T x, with V the cosine transform of an image.

    lambda = pi^2 (i^2 / H^2 + j^2 / W^2) are the eigenvalues of minus the Laplacian, and
    tau = (blur_max^2 / 2) sigmoid(gamma)^2, so that the blur's standard deviation is blur_max sigma^2 pixels for a
    variance-preserving schedule: Hoogeboom and Salimans, *Blurring Diffusion Models*, arXiv 2209.05557, section 4,
    whose cosine schedule has sigma = sin(pi t / 2).

    Args:
        blur_max: the blur's standard deviation in pixels as gamma goes to infinity.

    Raises:
        ValueError: ``blur_max`` is negative, or x is not a batch of images, (B, C, H, W).
    """

    def __init__(self, blur_max: float = 2.0) -> None:
        super().__init__()
        if blur_max < 0:
            raise ValueError(f"blur_max is a standard deviation in pixels and must not be negative, got {blur_max}.")
        self.blur_max = blur_max

    def forward(self, x: Tensor) -> Curve:
        if x.ndim != 4:
            raise ValueError(f"Blur works on images of shape (B, C, H, W), got {tuple(x.shape)}.")
        return _Blurred(x, self.blur_max)


class _Blurred(Curve):
    def __init__(self, x: Tensor, blur_max: float) -> None:
        super().__init__(x)
        self.blur_max = blur_max
        height, width = x.shape[-2:]
        i, j = torch.arange(height).to(x), torch.arange(width).to(x)
        self.eigenvalues = math.pi**2 * ((i[:, None] / height) ** 2 + (j / width) ** 2)
        self.coefficients = FREQUENCIES.into(x)

    def displacement(self, gamma: Tensor) -> Tensor:
        check_batch(gamma, self.x)
        tau, _ = self._tau(gamma)
        return self._back(torch.expm1(-self.eigenvalues * tau))

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        check_batch(gamma, self.x)
        tau, dtau = self._tau(gamma)
        damping = -self.eigenvalues * tau
        return self._back(torch.expm1(damping)), self._back(-self.eigenvalues * dtau * damping.exp())

    def _tau(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        gamma = per_example(gamma, self.x)
        variance = torch.sigmoid(gamma)
        tau = self.blur_max**2 / 2 * variance**2
        return tau, 2 * tau * (1 - variance)

    def _back(self, factors: Tensor) -> Tensor:
        return FREQUENCIES.back(factors * self.coefficients)
