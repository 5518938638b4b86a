"""The divergence of a flow and its integral along a path."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["exact_divergence", "integral", "or_by_chance", "quadratic_forms"]

#: Gregory's coefficients of the differences of order 0, 1, ... at both ends of the trapezoidal rule.
_GREGORY = (1 / 2, 1 / 12, 1 / 24, 19 / 720, 3 / 160, 863 / 60480)


def exact_divergence(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and its divergence, (B, 1), by d backward passes."""
    basis = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)
    value, forms = quadratic_forms(f, z, basis.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape))
    return value, forms.sum(1, keepdim=True)


def quadratic_forms(f: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and v^T (df/dz) v for each of k directions v, (k, B, \\*shape) -> (B, k).

    Computed in reverse mode, with one evaluation of f for all directions.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = f(z)
        # The gradient of a sum: autograd with vectors imports sympy, which takes 0.2 seconds.
        along = [torch.autograd.grad((v * value).sum(), z, retain_graph=True)[0] for v in directions]
        forms = [(v * gradient).flatten(1).sum(1) for v, gradient in zip(directions, along, strict=True)]
    return value.detach(), torch.stack(forms, dim=1).detach()


def integral(values: Tensor) -> Tensor:
    """The integral over [0, 1] of values at evenly spaced points, (N + 1, B, columns) -> (columns, B).

    Gregory's formula: the trapezoidal rule with corrections at both ends from differences of the first, of three, or of
    five orders, for N below 24, below 48, and above. The integrand nearly vanishes with its derivatives at the ends, so
    that the trapezoidal rule converges quickly. Few points do not resolve differences of a high order.
    """
    n = len(values) - 1
    weights = values.new_ones(n + 1)
    for order, coefficient in enumerate(_GREGORY[: min(2 + 2 * (n // 24), 6)]):
        for j in range(order + 1):
            change = coefficient * (-1) ** j * math.comb(order, j)
            weights[j] -= change
            weights[n - j] -= change
    return torch.einsum("n,nbk->kb", weights / n, values)


def or_by_chance(parts: Tensor) -> Tensor:
    """The size of the sum of the parts if their signs were random, (..., n) -> (...).

    The actual sum of errors may be small only because they cancel.
    """
    return parts.square().sum(-1).sqrt()
