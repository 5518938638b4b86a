r"""Evaluation of a curve F(x, .) over a discrete step or in continuous time (method, section 2), and a reverse step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ndm.method.coordinates import DATA, Coordinates
from ndm.method.schedules import NoiseLevel, per_example
from ndm.method.transforms.curve import Curve, PathValue
from ndm.method.variances import Covariance, Step

if TYPE_CHECKING:
    from ndm.method.noise import NoiseCurve, NoiseValue

__all__ = ["ContinuousTime", "DiscreteStep", "Kernel", "PathEvaluator"]


@dataclass(frozen=True)
class Kernel:
    """p(z_s | z_t) = N(mean, W): mean (B, \\*shape), the schedule's v (B,), and W over v spread^2 as a covariance.

    ``spread``, (B, \\*shape), is that of a noise that the process is given (:mod:`ndm.method.noise`), or None for 1. It
    and W are in the coordinates of the noise.
    """

    mean: Tensor
    v: Tensor
    covariance: Covariance
    spread: Tensor | None = None
    coordinates: Coordinates = DATA

    def sample(self, noise: Tensor) -> Tensor:
        """z_s from standard normal noise, both (B, \\*shape)."""
        noise = self.coordinates.scaled(self.covariance.apply_sqrt(noise), self.spread)
        return self.mean + per_example(self.v.sqrt(), noise) * noise


class PathEvaluator:
    """Evaluates curves for the reverse process, over a step or at one time."""

    @property
    @abstractmethod
    def level(self) -> NoiseLevel:
        """The noise level of z_t."""

    @property
    @abstractmethod
    def gain(self) -> Tensor:
        """(B,): the slope is the change of F over it, in continuous time -dF/dgamma over it."""

    @abstractmethod
    def path_value(self, curve: Curve) -> PathValue:
        """The curve's displacement at t, and its slope."""

    @abstractmethod
    def path_value_and(self, curve: Curve, others: Tensor) -> tuple[PathValue, Tensor]:
        """Like :meth:`path_value`, and also the displacement at other noise levels: (P, B) -> (P, B, \\*shape)."""

    @abstractmethod
    def noise_value(self, noise: NoiseCurve) -> NoiseValue:
        """The value of a learned noise."""


@dataclass(frozen=True)
class DiscreteStep(PathEvaluator):
    """Over a step: slope = (F(x, s) - F(x, t)) / gain."""

    step: Step

    @property
    def level(self) -> NoiseLevel:
        return self.step.t

    @property
    def gain(self) -> Tensor:
        return self.step.gain

    def path_value(self, curve: Curve) -> PathValue:
        return self.path_value_and(curve, self.step.t.gamma.new_empty(0, len(self.step.t.gamma)))[0]

    def path_value_and(self, curve: Curve, others: Tensor) -> tuple[PathValue, Tensor]:
        ends = torch.stack([self.step.t.gamma, self.step.s.gamma])
        displacement = curve.displacement(torch.cat([ends, others]))
        at_t, at_s = displacement[0], displacement[1]
        # An empty step (of a clipped schedule) has zero gain, and F does not change over it.
        gain = torch.where(self.step.gain == 0, torch.ones_like(self.step.gain), self.step.gain)
        value = PathValue(at_t, (at_s - at_t) / per_example(gain, at_t))
        return value.with_noise(None if curve.noise is None else self.noise_value(curve.noise)), displacement[2:]

    def noise_value(self, noise: NoiseCurve) -> NoiseValue:
        return noise.over_step(self.step)


@dataclass(frozen=True)
class ContinuousTime(PathEvaluator):
    """At one time: slope = -2 / (1 + eta^2) dF/dgamma; eta (B,)."""

    at: NoiseLevel
    eta: Tensor

    @property
    def level(self) -> NoiseLevel:
        return self.at

    @property
    def gain(self) -> Tensor:
        return (1 + self.eta**2) / 2

    def path_value(self, curve: Curve) -> PathValue:
        return self._path_value(curve, *curve.displacement_with_derivative(self.at.gamma))

    def path_value_and(self, curve: Curve, others: Tensor) -> tuple[PathValue, Tensor]:
        displacement, derivative, elsewhere = curve.evaluate(self.at.gamma, others)
        return self._path_value(curve, displacement, derivative), elsewhere

    def _path_value(self, curve: Curve, displacement: Tensor, derivative: Tensor) -> PathValue:
        value = PathValue(displacement, -derivative / per_example(self.gain, derivative))
        return value.with_noise(None if curve.noise is None else self.noise_value(curve.noise))

    def noise_value(self, noise: NoiseCurve) -> NoiseValue:
        return noise.at_time(self.at.gamma, self.eta)
