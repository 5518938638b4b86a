"""Classifier-free guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.schedules import NoiseLevel, Schedule

__all__ = ["GuidedDenoiser"]


class GuidedDenoiser(BaseDenoiser):
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598, equation 6), for sampling with class labels.

    x_hat = (1 + w) x_hat(z, label) - w x_hat(z, no class). w = 0 is the conditional model and w = -1 the unconditional
    one; some papers call 1 + w the guidance scale. Guidance is the same in all parameterisations, because x, v and eps
    are affine functions of each other given z. For a direct denoiser it applies to y and, if there is such a head, to
    the estimate of F, hence to both the SDE and the ODE. The reverse variance is that of the conditional estimate.

    A guided model is only a sampler: it has no bound.

    Args:
        denoiser: a denoiser whose network accepts labels, with label K for "no class".
        weight: w.
        classes: K; by default that of the denoiser's network.

    Raises:
        ValueError: the weight is not finite, K is unknown, or the network has no label for "no class".
    """

    def __init__(self, denoiser: BaseDenoiser, weight: float, classes: int | None = None) -> None:
        super().__init__()
        if not math.isfinite(weight):
            raise ValueError(f"The weight of guidance must be a finite number, got {weight}.")
        network = getattr(denoiser, "net", getattr(denoiser, "module", None))
        known = classes or getattr(network, "classes", 0)
        if not known:
            raise ValueError(
                "Guidance needs a network with classes: build it with classes=K and train it with some of the labels "
                "replaced by K, which means no class."
            )
        if not getattr(network, "knows_no_class", True):
            raise ValueError("Guidance needs a network that was also trained without a class, and this one was not.")
        self.denoiser = denoiser
        self.weight = weight
        self.classes = int(known)
        self.direct = denoiser.direct

    def set_gamma_range(self, gamma_min: float, gamma_max: float) -> None:
        self.denoiser.set_gamma_range(gamma_min, gamma_max)

    def set_schedule(self, schedule: Schedule) -> None:
        self.denoiser.set_schedule(schedule)

    def check_schedule(self, schedule: Schedule) -> None:
        self.denoiser.check_schedule(schedule)

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        if labels is None:
            raise ValueError("Guidance needs labels: give the class of each example.")
        twice = level.map(lambda a: torch.cat([a, a]))
        none = torch.full_like(labels, self.classes)
        both = self.denoiser.estimate(torch.cat([z, z]), twice, torch.cat([labels, none]))
        return Estimate(
            mean=self._guided(both.mean),
            residual=_no_residual,
            log_ratio=None if both.log_ratio is None else both.log_ratio.chunk(2)[0],
            transformed=None if both.transformed is None else self._guided(both.transformed),
        )

    def _guided(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        return conditional + self.weight * (conditional - unconditional)


def _no_residual(target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
    raise ValueError("A guided model has no bound: evaluate the model without guidance.")
