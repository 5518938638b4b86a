r"""Gates: the factor b(gamma) in F(x, gamma) = x + b(gamma) h(x, gamma).

A gate returns its values and their derivatives d/dgamma. The bound weights errors of F by e^{-gamma}, up to 6e5 near
the data, so b must be small there (method, section 6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["GATES", "Gate", "gate_named"]

#: (gamma, gamma_0) -> b(gamma) and db/dgamma, both of gamma's shape. gamma_0 is the schedule's gamma(0).
Gate = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def _variance(gamma: Tensor, gamma_0: float) -> tuple[Tensor, Tensor]:
    b = torch.sigmoid(gamma)
    return b, b * torch.sigmoid(-gamma)


def _deviation(gamma: Tensor, gamma_0: float) -> tuple[Tensor, Tensor]:
    b = torch.sigmoid(gamma).sqrt()
    return b, b * torch.sigmoid(-gamma) / 2


def _anchored(gamma: Tensor, gamma_0: float) -> tuple[Tensor, Tensor]:
    # sigmoid(gamma) - sigmoid(gamma_0), in a form that is exactly zero at gamma_0. The plain difference is not, since
    # PyTorch's sigmoid may differ in the last digit between elements of one tensor.
    start = gamma.new_tensor(gamma_0)
    variance, slope = _variance(gamma, gamma_0)
    return variance * torch.sigmoid(-start) * -torch.expm1(start - gamma), slope


def _free(gamma: Tensor, gamma_0: float) -> tuple[Tensor, Tensor]:
    return torch.ones_like(gamma), torch.zeros_like(gamma)


#: The gates by name.
#:
#: ``sigma2``: b = sigmoid(gamma), the variance of a variance-preserving schedule: DiffEnc's (arXiv 2310.19789).
#: ``sigma``: its square root, which is larger near the data.
#: ``anchored``: sigmoid(gamma) - sigmoid(gamma_0): F(x, gamma_0) = x exactly.
#: ``free``: b = 1, as in the paper: F is kept near the data only by the bound's reconstruction term.
GATES: dict[str, Gate] = {"sigma2": _variance, "sigma": _deviation, "anchored": _anchored, "free": _free}


def gate_named(name: str) -> Gate:
    """The gate of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in GATES:
        raise ValueError(f"There is no gate {name!r}; choose one of {', '.join(GATES)}.")
    return GATES[name]
