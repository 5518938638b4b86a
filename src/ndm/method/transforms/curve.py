r"""The result of a data transformation: the curve gamma -> F(x, gamma) for a fixed x.

F is needed at several noise levels of the same x, or with its derivative. One curve is created per x, so that
computations independent of gamma (a network pass, a cosine transform) are done once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from ndm.method.coordinates import DATA, Coordinates
from ndm.method.parts import Part

if TYPE_CHECKING:
    from ndm.method.noise import NoiseCurve, NoiseValue

__all__ = ["Curve", "LinearTransform", "PathValue", "Transform"]


class Curve:
    """gamma -> F(x, gamma) for a fixed batch x of shape (B, \\*shape).

    Every method takes gamma of shape (B,), or (P, B) for P points of each example's curve evaluated in one batch, and
    returns tensors of shape (\\*gamma.shape, \\*shape).

    A curve is defined by its displacement F(x, gamma) - x: it is small near the data, and differences of F are computed
    from it without cancellation (method, section 6).
    """

    #: The learned noise of the process, if it has one (:mod:`ndm.method.noise`).
    noise: NoiseCurve | None = None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @abstractmethod
    def displacement(self, gamma: Tensor) -> Tensor:
        """F(x, gamma) - x."""

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """F(x, gamma) - x and dF/dgamma at fixed x; by default in forward mode."""
        return value_and_slope(self.displacement, gamma)

    def evaluate(self, gamma: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The displacement and the derivative at gamma, (B,), and the displacement at other noise levels, (P, B).

        Subclasses may share computations between them.

        Returns:
            F(x, gamma) - x and dF/dgamma, both (B, \\*shape), and F(x, others) - x, (P, B, \\*shape).
        """
        return (*self.displacement_with_derivative(gamma), self.displacement(others))

    def __call__(self, gamma: Tensor | float) -> Tensor:
        """F(x, gamma); a number is the noise level of all examples."""
        if not isinstance(gamma, Tensor):
            gamma = self.x.new_full((len(self.x),), gamma)
        return self.x + self.displacement(gamma)

    def with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """F(x, gamma) and dF/dgamma at fixed x."""
        displacement, derivative = self.displacement_with_derivative(gamma)
        return self.x + displacement, derivative


class PathValue(NamedTuple):
    """The values of a curve for one step or one time of the reverse process, all (B, \\*shape).

    Attributes:
        displacement: F(x, gamma_t) - x.
        slope: the change of F over the step, in the units of the reverse process: see :mod:`ndm.method.process`.
        log_ratio: log(std / sigma) at t; None for a process without learned noise, in which it is 0.
        tilt: the part of z / alpha_t - F(x, gamma_t) that y is lower by (:mod:`ndm.method.noise`); None for 0.
        spread: the standard deviation of the reverse process in units of the schedule's; None for 1.
        coordinates: those of the last three (:mod:`ndm.method.coordinates`).
    """

    displacement: Tensor
    slope: Tensor
    log_ratio: Tensor | None = None
    tilt: Tensor | None = None
    spread: Tensor | None = None
    coordinates: Coordinates = DATA

    def with_noise(self, noise: NoiseValue | None) -> PathValue:
        """This value with that of the noise; itself without a noise."""
        if noise is None:
            return self
        return self._replace(**noise._asdict())

    @property
    def offset(self) -> Tensor:
        """y - x, where y = F(x, gamma_t) + slope is the target of the reverse process, without the tilt."""
        return self.displacement + self.slope

    def scaled(self, noise: Tensor) -> Tensor:
        """The noise of z_t in units of sigma, V e^{log_ratio} noise, (B, \\*shape)."""
        return self.coordinates.scaled(noise, None if self.log_ratio is None else self.log_ratio.exp())

    def tilted(self, from_path: Tensor) -> Tensor:
        """What y is lower by, V tilt V^T (z / alpha_t - F(x, gamma_t)), (B, \\*shape)."""
        assert self.tilt is not None
        return self.coordinates.back(self.tilt * self.coordinates.into(from_path))

    def standardized(self, gap: Tensor) -> Tensor:
        """An error of y over the spread, V^T gap / spread, (B, \\*shape)."""
        return gap if self.spread is None else self.coordinates.into(gap) / self.spread


class Transform(Part):
    """A data transformation: call it with x of shape (B, \\*shape) and get the :class:`Curve` gamma -> F(x, gamma)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Curve:
        """The curve of ``x``."""

    def difference(
        self, value: PathValue, x_hat: Tensor, residual: Tensor, evaluate: Callable[[Curve], PathValue]
    ) -> Tensor:
        """y(x) - y(x_hat), with y = F + slope, computed from x - x_hat without cancellation (method, section 6).

        Args:
            value: the evaluated curve of x.
            x_hat: the estimate of x, (B, \\*shape).
            residual: x - x_hat, (B, \\*shape), from the denoiser.
            evaluate: the function that computed ``value`` from a curve.

        Returns:
            (B, \\*shape).
        """
        return residual + (value.offset - evaluate(self(x_hat)).offset)

    def set_gamma_range(self, gamma_min: float, gamma_max: float) -> None:
        """Set the schedule's end points. Transformations that do not need them ignore the call."""


class LinearTransform(Transform):
    """A transformation linear in x: F(x, .) - F(x_hat, .) = F(x - x_hat, .), so one curve of the residual is enough."""

    def difference(
        self, value: PathValue, x_hat: Tensor, residual: Tensor, evaluate: Callable[[Curve], PathValue]
    ) -> Tensor:
        return residual + evaluate(self(residual)).offset


def unit_interval(gamma: Tensor, gamma_range: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """u = (gamma - gamma_min) / (gamma_max - gamma_min), the noise level passed to networks, of gamma's shape."""
    low, high = gamma_range
    return (gamma - low) / (high - low)


def value_and_slope(f: Callable[[Tensor], Tensor], gamma: Tensor) -> tuple[Tensor, Tensor]:
    """f(gamma) and df/dgamma by forward mode, for an elementwise f."""
    value, slope = jvp(f, (gamma,), (torch.ones_like(gamma),))[:2]
    return value, slope


def check_batch(gamma: Tensor, x: Tensor) -> None:
    """Raise a ValueError unless gamma is (B,) or (P, B) for x of shape (B, ...)."""
    if gamma.ndim not in (1, 2) or gamma.shape[-1] != x.shape[0]:
        raise ValueError(
            f"gamma must have shape (B,) or (P, B) with B = {x.shape[0]}, the number of examples; "
            f"got {tuple(gamma.shape)}."
        )


def tile(x: Tensor, points: int) -> Tensor:
    """x, (B, \\*shape), repeated for P points: (P * B, \\*shape), the points outermost."""
    return x if points == 1 else torch.cat([x] * points)
