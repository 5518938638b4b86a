"""The divergence of a flow, its integral along a path, and the error of that integral."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["exact_divergence", "integral", "integral_and_error", "or_by_chance", "quadratic_forms"]

#: Gregory's coefficients of the differences of order 0, 1, ... at both ends of the trapezoidal rule.
_GREGORY = (1 / 2, 1 / 12, 1 / 24, 19 / 720, 3 / 160, 863 / 60480)


def exact_divergence(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and its divergence, (B, 1)."""
    basis = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)
    value, forms = quadratic_forms(f, z, basis.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape))
    return value, forms.sum(1, keepdim=True)


def quadratic_forms(f: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and v^T (df/dz) v for each of k directions v, (k, B, \\*shape) -> (B, k).

    Computed in reverse mode, with one evaluation of f for all directions. Forward mode is slower for all networks of
    this package, and one batched backward pass is not faster than k separate ones (benchmarks/likelihood.py).
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = f(z)
        forms = [(v * torch.autograd.grad(value, z, v, retain_graph=True)[0]).flatten(1).sum(1) for v in directions]
    return value.detach(), torch.stack(forms, dim=1).detach()


def integral(values: Tensor) -> Tensor:
    """The integral over [0, 1] of values at evenly spaced points, (N + 1, B, columns) -> (columns, B).

    Gregory's formula: the trapezoidal rule with corrections at both ends that make it exact for polynomials of fifth
    degree. All interior points have equal weight, which suits integrands whose features may be anywhere.
    """
    n = len(values) - 1
    weights = values.new_ones(n + 1)
    for order, coefficient in enumerate(_GREGORY):
        for j in range(order + 1):
            change = coefficient * (-1) ** j * math.comb(order, j)
            weights[j] -= change
            weights[n - j] -= change
    return torch.einsum("n,nbk->kb", weights / n, values)


def integral_and_error(points: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    """The integral over [0, 1], (columns, B), and its difference from the integral without the middles, (columns, B).

    Args:
        points: values at N + 1 evenly spaced points, at least 5, (N + 1, B, columns).
        middles: values halfway between them, (N, B, columns).
    """
    values = points.repeat_interleave(2, 0)[:-1]
    values[1::2] = middles
    found = integral(values)
    # The middles interpolated by cubics through four points: the two integrals differ by these gaps.
    expected = torch.empty_like(middles)
    expected[1:-1] = (9 * (points[1:-2] + points[2:-1]) - points[:-3] - points[3:]) / 16
    expected[0] = (5 * points[0] + 15 * points[1] - 5 * points[2] + points[3]) / 16
    expected[-1] = (5 * points[-1] + 15 * points[-2] - 5 * points[-3] + points[-4]) / 16
    gaps = (middles - expected).transpose(0, 2) / (2 * len(middles))
    return found, torch.maximum((found - integral(points)).abs(), or_by_chance(gaps) / 2)


def or_by_chance(parts: Tensor) -> Tensor:
    """The size of the sum of the parts if their signs were random, (..., n) -> (...).

    The actual sum of errors may be small only because they cancel.
    """
    return parts.square().sum(-1).sqrt()
