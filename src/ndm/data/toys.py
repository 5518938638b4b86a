"""Toy distributions with known densities, for comparison with a model's likelihood.

Every toy has one of three forms, which determines its density:

* a mixture of Gaussians, p(x) = mean_k N(x; m_k, S_k), optionally transformed by an area-preserving map;
* a curve c(s), s uniform, with Gaussian noise: p(x) = integral of N(x; c(s), noise^2 I) ds;
* a uniform distribution.

The entropy of two-dimensional toys, - integral of p log p, is computed by the trapezoidal rule, which converges faster
than any power of the step for such smooth densities.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import SPLITS, Data
from ndm.storage.memory import require

__all__ = ["Checkerboard", "EightGaussians", "Gaussian", "Pinwheel", "SwissRoll", "Toy", "TwoMoons"]


class Toy(Data):
    """A distribution with a known density, sampled into splits. The splits are drawn independently of each other.

    A subclass defines ``sample``, ``log_prob`` and ``entropy``.

    Args:
        train: size of the training split.
        validation: size of the validation split.
        test: size of the test split.
        seed: seed of all three splits.

    Raises:
        ValueError: a size is not positive, or the seed is negative.
    """

    shape: tuple[int, ...] = (2,)
    levels = None

    def __init__(self, train: int = 20_000, validation: int = 2_000, test: int = 5_000, seed: int = 0) -> None:
        self.sizes = dict(zip(SPLITS, (train, validation, test), strict=True))
        self.seed = seed
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"The size of the {name} split must be positive, not {size}.")
        if seed < 0:
            raise ValueError(f"The seed must not be negative, got {seed}.")

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n examples, float32 (n, \\*shape)."""
        raise NotImplementedError

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density in nats. x: (B, \\*shape) -> (B,)."""
        raise NotImplementedError

    @cached_property
    def entropy(self) -> float:
        """The exact differential entropy in nats, which is the mean negative log-density of a perfect model."""
        raise NotImplementedError

    def _contents(self) -> Iterator[str]:
        # The parameters instead of the examples, which may differ in the last bit between machines.
        settings: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                settings[name] = [round(x, 4) + 0.0 for x in value.flatten().tolist()]
            elif not isinstance(getattr(type(self), name, None), cached_property):
                settings[name] = value
        yield repr([type(self).__name__, sorted(settings.items())])

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self._splits[name], None

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        require(12 * sum(self.sizes.values()) * math.prod(self.shape), "The data set", "give smaller splits")
        # One random stream per split, so that the test split does not depend on the sizes of the others.
        streams = [torch.Generator().manual_seed(len(SPLITS) * self.seed + i) for i in range(len(SPLITS))]
        return {name: self.sample(n, g) for (name, n), g in zip(self.sizes.items(), streams, strict=True)}


class Gaussian(Toy):
    """N(0, variance I): all quantities of a diffusion model have closed forms.

    Args:
        features: dimension.
        variance: variance of each dimension.
        splits: ``train``, ``validation``, ``test``, ``seed``: see :class:`Toy`.

    Raises:
        ValueError: ``features`` or ``variance`` is not positive, or a size or the seed is out of range.
    """

    def __init__(
        self,
        features: int = 2,
        variance: float = 1.0,
        **splits: int,
    ) -> None:
        super().__init__(**splits)
        _check_positive(features=features, variance=variance)
        self.shape = (features,)
        self.variance = variance

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return (_normal(n, self.shape[0], generator) * math.sqrt(self.variance)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x.square().sum(1) / self.variance + self.shape[0] * math.log(2 * math.pi * self.variance))

    @cached_property
    def entropy(self) -> float:
        return 0.5 * self.shape[0] * math.log(2 * math.pi * math.e * self.variance)


class EightGaussians(Toy):
    """Eight equally likely round Gaussians on a circle.

    Args:
        radius: radius of the circle.
        noise: standard deviation of each Gaussian.
        splits: ``train``, ``validation``, ``test``, ``seed``: see :class:`Toy`.

    Raises:
        ValueError: ``radius`` or ``noise`` is not positive, or a size or the seed is out of range.
    """

    def __init__(
        self,
        radius: float = 2.0,
        noise: float = 0.2,
        **splits: int,
    ) -> None:
        super().__init__(**splits)
        _check_positive(radius=radius, noise=noise)
        self.noise = noise
        self._means = radius * _direction(2 * math.pi * torch.arange(8, dtype=torch.float64) / 8)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        means = self._means[_integers(n, 8, generator)]
        return (means + self.noise * _normal(n, 2, generator)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        return _mixture_log_prob(x, self._means.to(x), self.noise)

    @cached_property
    def entropy(self) -> float:
        return _entropy(self.log_prob, _box(self._means, self.noise), step=self.noise / 2)


class _NoisyCurves(Toy):
    """A point at a uniform position s in [0, 1] on one of several equally likely curves, with Gaussian noise.

    A subclass gives the ``length`` of its longest curve and defines ``_curves``, s: (B,) -> (curves, B, 2).
    """

    length: float

    def __init__(self, noise: float = 0.1, **splits: int) -> None:
        super().__init__(**splits)
        _check_positive(noise=noise)
        self.noise = noise

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        curves = self._curves(_uniform(n, generator))
        points = curves[_integers(n, len(curves), generator), torch.arange(n)]
        return (points + self.noise * _normal(n, 2, generator)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        points, log_weights = (v.to(x) for v in self._nodes)
        return _mixture_log_prob(x, points, self.noise, log_weights)

    @cached_property
    def entropy(self) -> float:
        return _entropy(self.log_prob, _box(self._nodes[0], self.noise), step=self.noise / 2)

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre nodes of the integral over s, closer than the noise: points (K, 2), log-weights (K,)."""
        s, weights = np.polynomial.legendre.leggauss(32 + math.ceil(2 * self.length / self.noise))
        curves = self._curves(torch.from_numpy((s + 1) / 2))
        log_weights = torch.from_numpy(np.log(weights / 2)) - math.log(len(curves))
        return curves.flatten(0, 1), log_weights.repeat(len(curves))

    @abstractmethod
    def _curves(self, s: Tensor) -> Tensor:
        raise NotImplementedError


class TwoMoons(_NoisyCurves):
    """Two interleaved half circles with Gaussian noise, as in scikit-learn's ``make_moons``.

    Args:
        noise: standard deviation of the noise.
        splits: ``train``, ``validation``, ``test``, ``seed``: see :class:`Toy`.

    Raises:
        ValueError: ``noise`` is not positive, or a size or the seed is out of range.
    """

    length = math.pi

    def _curves(self, s: Tensor) -> Tensor:
        upper = _direction(math.pi * s)
        lower = torch.tensor([1.0, 0.5], dtype=s.dtype) - upper
        return torch.stack([upper, lower])


class SwissRoll(_NoisyCurves):
    """A spiral with Gaussian noise: scikit-learn's ``make_swiss_roll`` projected along its axis and scaled by 1/5.

    Args:
        noise: standard deviation of the noise.
        splits: ``train``, ``validation``, ``test``, ``seed``: see :class:`Toy`.

    Raises:
        ValueError: ``noise`` is not positive, or a size or the seed is out of range.
    """

    length = 17.9  # the integral of sqrt(1 + angle^2) / 5 over the angles below

    def _curves(self, s: Tensor) -> Tensor:
        angle = 1.5 * math.pi * (1 + 2 * s)
        return (angle[:, None] * _direction(angle) / 5)[None]


class Pinwheel(Toy):
    """Swirled blades around the origin: a ring of elongated Gaussians with each point g rotated by rate ``|g|``.

    Rotation by an angle that depends only on the radius preserves area, so the density at x is that of the ring at the
    point rotated back. (In other implementations the angle depends on a coordinate of the blade, which does not
    preserve area.)

    Args:
        blades: number of blades.
        radius: distance of the blades' centres from the origin.
        along: standard deviation along a blade.
        across: standard deviation across it.
        rate: rotation angle per unit of radius.
        splits: ``train``, ``validation``, ``test``, ``seed``: see :class:`Toy`.

    Raises:
        ValueError: a parameter other than ``rate`` is not positive, or a size or the seed is out of range.
    """

    def __init__(
        self,
        blades: int = 5,
        radius: float = 2.0,
        along: float = 0.6,
        across: float = 0.2,
        rate: float = 0.8,
        **splits: int,
    ) -> None:
        super().__init__(**splits)
        _check_positive(blades=blades, radius=radius, along=along, across=across)
        self.blades, self.radius, self.along, self.across, self.rate = blades, radius, along, across, rate

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        blade = _normal(n, 2, generator) * torch.tensor([self.along, self.across]) + torch.tensor([self.radius, 0.0])
        ring = _rotate(blade, self._angles[_integers(n, self.blades, generator)])
        return _rotate(ring, self.rate * ring.norm(dim=1)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        return self._ring_log_prob(_rotate(x, -self.rate * x.norm(dim=1)))

    @cached_property
    def entropy(self) -> float:
        centres = self.radius * _direction(self._angles)
        noise = max(self.along, self.across)
        return _entropy(self._ring_log_prob, _box(centres, noise), step=min(self.along, self.across) / 2)

    @property
    def _angles(self) -> Tensor:
        return 2 * math.pi * torch.arange(self.blades, dtype=torch.float64) / self.blades

    def _ring_log_prob(self, g: Tensor) -> Tensor:
        """The log-density before the rotation. g: (B, 2) -> (B,)."""
        turned = torch.stack([_rotate(g, -angle.expand(len(g))) for angle in self._angles.to(g)], dim=1)
        along = (turned[..., 0] - self.radius) / self.along
        across = turned[..., 1] / self.across
        log_scale = math.log(2 * math.pi * self.along * self.across * self.blades)
        return torch.logsumexp(-0.5 * (along.square() + across.square()), dim=1) - log_scale


class Checkerboard(Toy):
    """Uniform on the eight dark squares of a 4x4 board centred at the origin.

    Args:
        square: side of a square.
        splits: ``train``, ``validation``, ``test``, ``seed``: see :class:`Toy`.

    Raises:
        ValueError: ``square`` is not positive, or a size or the seed is out of range.
    """

    def __init__(self, square: float = 1.0, **splits: int) -> None:
        super().__init__(**splits)
        _check_positive(square=square)
        self.square = square

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        number = _integers(n, 8, generator)  # each column has two dark squares, in even or in odd rows
        column = number // 2
        row = 2 * (number % 2) + column % 2
        corner = torch.stack([column, row], dim=1) - 2
        within = torch.stack([_uniform(n, generator), _uniform(n, generator)], dim=1)
        return (self.square * (corner + within)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        cell = torch.floor(x / self.square)
        on_board = ((cell >= -2) & (cell < 2)).all(1)
        dark = cell.sum(1) % 2 == 0
        return x.new_full((len(x),), -self.entropy).masked_fill(~(on_board & dark), -math.inf)

    @cached_property
    def entropy(self) -> float:
        return math.log(8 * self.square**2)


def _check_positive(**parameters: float) -> None:
    for name, value in parameters.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}.")


def _normal(n: int, features: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(n, features, generator=generator, dtype=torch.float64)


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _integers(n: int, end: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(end, (n,), generator=generator)


def _direction(angle: Tensor) -> Tensor:
    """The unit vectors at these angles, (B,) -> (B, 2)."""
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate each point by its angle. x: (B, 2), angle: (B,) -> (B, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)


def _mixture_log_prob(x: Tensor, means: Tensor, noise: float, log_weights: Tensor | None = None) -> Tensor:
    """log sum_k w_k N(x; m_k, noise^2 I), the weights equal unless given. x: (B, 2), means: (K, 2) -> (B,)."""
    if log_weights is None:
        log_weights = means.new_full((len(means),), -math.log(len(means)))
    # Computed in pieces to limit memory, and from differences for accuracy.
    log_sums = [
        torch.logsumexp(log_weights - (piece[:, None] - means).square().sum(2) / (2 * noise**2), dim=1)
        for piece in x.split(4096)
    ]
    return torch.cat(log_sums) - math.log(2 * math.pi * noise**2)


def _box(points: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Corners of a box that contains almost all of the mass."""
    return points.amin(0) - 9 * noise, points.amax(0) + 9 * noise


def _entropy(log_prob: Callable[[Tensor], Tensor], box: tuple[Tensor, Tensor], step: float) -> float:
    """- integral of p log p over the box, by the trapezoidal rule in float64."""
    axes = [torch.arange(low, high + step, step, dtype=torch.float64) for low, high in zip(*box, strict=True)]
    log_p = log_prob(torch.cartesian_prod(*axes))
    return -(log_p.exp() * log_p).sum().item() * step**2
