"""The volatility eta(gamma) of the reverse SDE (method, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ndm.method.parts import Part
from ndm.method.transforms.bases import basis_named
from ndm.method.transforms.curve import unit_interval
from ndm.method.transforms.ranges import GammaRange

__all__ = ["ConstantVolatility", "LearnedVolatility"]


class ConstantVolatility(Part):
    """eta(gamma) = eta: the reverse SDE's noise is g^2 = eta^2 sigma^2 gamma' (method, section 4).

    Args:
        eta: the volatility; 1 in the paper and in VDM.

    Raises:
        ValueError: eta is not positive, so that the bound is infinite. (The samplers accept eta = 0.)
    """

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(
                f"The volatility must be positive, got {eta}; to sample by DDIM, pass eta=0 to ndm.sample."
            )
        self.eta = eta

    def forward(self, gamma: Tensor) -> Tensor:
        return torch.full_like(gamma, self.eta)


class LearnedVolatility(GammaRange):
    """log eta(gamma) = sum_k a_k sqrt(2) cos(pi k u), trained on the bound, as in NFDM (arXiv 2404.12940).

    Args:
        terms: the number of cosines; initially eta = 1.
        gamma_range: the noise levels mapped to u = 0 and u = 1; by default the end points of the schedule of the first
            model that uses the volatility.
    """

    def __init__(self, terms: int = 8, gamma_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.terms = terms
        self._basis = basis_named("cosine")
        self.coefficients = nn.Parameter(torch.zeros(terms))
        self._take_range(gamma_range)

    def forward(self, gamma: Tensor) -> Tensor:
        phi, _ = self._basis(unit_interval(gamma, self.gamma_range).clamp(0, 1), self.terms)
        return torch.exp(phi @ self.coefficients.to(gamma.dtype))
