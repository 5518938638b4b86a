r"""Learned transformations: Neural, whose network depends on the noise level, and Separable, whose network does not."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndm._internal.precision import run_network
from ndm.method.schedules import per_example
from ndm.method.transforms.bases import basis_named
from ndm.method.transforms.curve import Curve, Transform, check_batch, tile, unit_interval, value_and_slope
from ndm.method.transforms.gates import gate_named
from ndm.method.transforms.ranges import GammaRange

__all__ = ["LearnedTransform", "Neural", "Separable", "combined", "functions_of"]


class LearnedTransform(GammaRange, Transform):
    """F(x, gamma) = x + b(gamma) h(x, gamma) with a network in h and a gate b from
    :data:`ndm.method.transforms.gates.GATES`.

    gamma is mapped affinely to u, with the values ``gamma_range`` mapped to 0 and 1. If the range is not given, the
    first model that uses the transformation sets it to its schedule's end points. It is then fixed: with learned end
    points u may slightly exceed [0, 1] or not reach its ends.
    """

    def __init__(self, gate: str, gamma_range: tuple[float, float] | None) -> None:
        super().__init__()
        gate_named(gate)  # raises for an unknown name
        self.gate = gate
        self._take_range(gamma_range)

    def holds_elsewhere(self, gamma_0: float) -> bool:
        """Whether the range is known and starts at another noise level than ``gamma_0``."""
        return self._gamma_range is not None and self._gamma_range[0] != gamma_0

    @abstractmethod
    def forward(self, x: Tensor) -> Curve: ...

    def b(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """The gate at gamma and its derivative d/dgamma, both of the same shape."""
        return gate_named(self.gate)(gamma, self.gamma_range[0])


class Neural(LearnedTransform):
    """F(x, gamma) = x + b(gamma) net(x, u): the paper's transformation (NDM, arXiv 2310.08337, section 3).

    Each point of the curve needs one network pass; the points of one call are evaluated in one batch. The derivative is
    computed in forward mode through the network.

    Args:
        net: called as net(x, u), x (B, \\*shape), u (B,) in [0, 1]; returns (B, \\*shape). All its operations need
            forward-mode derivatives if the model is trained in continuous time or used with ODE or SDE. Fused attention
            has none, so it is replaced by plain attention within that call.
        gate: ``sigma2``, ``sigma``, ``anchored`` or ``free``.
        gamma_range: the noise levels mapped to u = 0 and u = 1; by default the end points of the schedule of the first
            model that uses the transformation.

    Raises:
        ValueError: the gate is unknown, or the range is empty.
    """

    def __init__(self, net: nn.Module, gate: str = "sigma2", gamma_range: tuple[float, float] | None = None) -> None:
        super().__init__(gate, gamma_range)
        self.net = net

    def forward(self, x: Tensor) -> Curve:
        return _NeuralCurve(x, self)


class _NeuralCurve(Curve):
    def __init__(self, x: Tensor, transform: Neural) -> None:
        super().__init__(x)
        self.transform = transform

    def displacement(self, gamma: Tensor) -> Tensor:
        check_batch(gamma, self.x)
        flat = gamma.reshape(-1)
        u = unit_interval(flat, self.transform.gamma_range)
        h = run_network(self.transform.net, tile(self.x, flat.shape[0] // self.x.shape[0]), u)
        return (per_example(self.transform.b(flat)[0], h) * h).reshape(gamma.shape + self.x.shape[1:])

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            return value_and_slope(self.displacement, gamma)


class Separable(LearnedTransform):
    """F(x, gamma) = x + b(gamma) sum_k phi_k(u) h_k(x): a learned path with a network of x only.

    One network pass gives the whole curve and its exact derivative.

    Args:
        net: called as net(x), x (B, \\*shape); returns ``terms`` times the channels (or features):
            (B, terms * shape[0], \\*shape[1:]), the terms outermost.
        terms: K, the number of functions of the noise level.
        basis: ``cosine``, ``legendre`` or ``bumps``; see :mod:`ndm.method.transforms.bases`.
        gate: ``sigma2``, ``sigma``, ``anchored`` or ``free``.
        gamma_range: the noise levels mapped to u = 0 and u = 1; by default the end points of the schedule of the first
            model that uses the transformation.

    Raises:
        ValueError: the gate or the basis is unknown, ``terms`` is below 1, the range is empty, or the network returns
            another number of channels.
    """

    def __init__(
        self,
        net: nn.Module,
        terms: int = 4,
        basis: str = "cosine",
        gate: str = "sigma2",
        gamma_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(gate, gamma_range)
        if terms < 1:
            raise ValueError(f"Separable needs at least one term, got {terms}.")
        self.net = net
        self.terms = terms
        basis_named(basis)  # raises for an unknown name
        self.basis = basis

    def forward(self, x: Tensor) -> Curve:
        return _SeparableCurve(x, functions_of(self.net, x, self.terms, "Separable"), self)

    def factors(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """b(gamma) phi_k(u) and its derivative d/dgamma, both (\\*gamma.shape, K)."""
        low, high = self.gamma_range
        b, db = self.b(gamma)
        phi, dphi = basis_named(self.basis)(unit_interval(gamma, self.gamma_range), self.terms)
        return b[..., None] * phi, db[..., None] * phi + b[..., None] * (dphi / (high - low))


class _SeparableCurve(Curve):
    def __init__(self, x: Tensor, h: Tensor, transform: Separable) -> None:
        super().__init__(x)
        self.h = h  # (B, K, *shape)
        self.transform = transform

    def displacement(self, gamma: Tensor) -> Tensor:
        check_batch(gamma, self.x)
        return self._combine(self.transform.factors(gamma)[0])

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        check_batch(gamma, self.x)
        value, derivative = self._combine(torch.stack(self.transform.factors(gamma)))
        return value, derivative

    def evaluate(self, gamma: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # One product for all points: the cost is call overhead for small examples and reading h for large ones.
        points = torch.cat([gamma[None], others])
        check_batch(points, self.x)
        values, slopes = self.transform.factors(points)
        found = self._combine(torch.cat([values, slopes[:1]]))
        return found[0], found[-1], found[1:-1]

    def _combine(self, factors: Tensor) -> Tensor:
        return combined(factors, self.h)


def functions_of(net: nn.Module, x: Tensor, terms: int, owner: str) -> Tensor:
    """The K functions h_k(x) of a network, (B, K, \\*shape), for x (B, \\*shape).

    Args:
        net: called as net(x); returns K times the channels (or features), the terms outermost.
        x: (B, \\*shape).
        terms: K.
        owner: the name of the part in the error.

    Raises:
        ValueError: the network returns another shape.
    """
    h = run_network(net, x)
    expected = (x.shape[0], terms * x.shape[1], *x.shape[2:])
    if h.shape != expected:
        raise ValueError(
            f"The network of {owner}(terms={terms}) must return shape {expected} for x of shape {tuple(x.shape)}: the "
            f"terms times the channels; it returned {tuple(h.shape)}."
        )
    return h.reshape(x.shape[0], terms, *x.shape[1:])


def combined(factors: Tensor, h: Tensor) -> Tensor:
    """sum_k factors_k h_k, (..., B, \\*shape), for factors (..., B, K) and h (B, K, \\*shape), or (1, K, \\*shape)."""
    each = factors.reshape(-1, *factors.shape[-2:]).transpose(0, 1)  # (B, points, K)
    found = torch.bmm(each, h.flatten(2).expand(len(each), -1, -1)).transpose(0, 1)
    return found.reshape(*factors.shape[:-1], *h.shape[2:])
