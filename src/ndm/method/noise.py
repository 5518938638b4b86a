r"""A learned standard deviation of the forward process, std(x, gamma) = sigma e^{h(x, gamma)} in each dimension.

    q(z_t | x) = N( alpha_t F(x, t), diag(std(x, t)^2) )

(Bartosh et al., *Neural Flow Diffusion Models*, arXiv 2404.12940, section 4). With h independent of x it is a noise
schedule per dimension, as in MuLAN without its latent (arXiv 2312.13236, section 3).

The reverse process is that of :mod:`ndm.method.process`, with another y, which depends on z too:

    y = F(x, t) + slope - tilt (z / alpha_t - F(x, t))

    tilt = 2 / (1 + eta^2) (dh/dgamma + eta^2 / 2 (r - 1))                                        in continuous time
    tilt = -rho / gain (c(x) / c - 1),  c(x) = std(x, s) sqrt(1 - q) / std(x, t),  rho = 1 - gain  over a step

with r and q those of the variance of a step, q = v / std(x, s)^2. There are two kinds:

- A noise of x (:class:`LearnedNoise`). The variance of a step may not depend on x. It is that of the schedule: v is at
  most e^{-2 limit} sigma_s^2, and r = e^{-2h}.
- A noise given to the reverse process (:class:`DimensionNoise`, :class:`FrequencyNoise`, :class:`LatentNoise`). Each
  dimension has its own noise schedule, gamma + 2 h, and the variance of a step is that of it, as in MuLAN. With eta = 1
  the forward process is a Markov chain, and r = 1 + 2 dh/dgamma. Where gamma + 2 h hardly increases or falls, r is a
  small positive number.

All of this is elementwise in the coordinates of the data, or for :class:`FrequencyNoise` in those of the cosine
transform. The bound, the steps, the SDE and the ODE are then the same functions of y, in which the standard deviation
of a step is multiplied by ``spread``: 1 for the first kind, e^h sqrt(r) for the second in continuous time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ndm._internal.precision import run_network
from ndm.method.coordinates import DATA, FREQUENCIES, Coordinates
from ndm.method.parts import Part
from ndm.method.schedules import per_example
from ndm.method.transforms.bases import basis_named
from ndm.method.transforms.curve import unit_interval
from ndm.method.transforms.learned import combined, functions_of
from ndm.method.variances import LARGEST_SHARE, Step

__all__ = ["DimensionNoise", "FrequencyNoise", "LatentNoise", "LearnedNoise", "Noise", "NoiseCurve", "NoiseValue"]


class NoiseValue(NamedTuple):
    r"""The noise for a step or a time of the reverse process, all (B, \*shape) or (1, \*shape).

    Attributes:
        log_ratio: h, log(std / sigma), at t.
        tilt: see :mod:`ndm.method.noise`.
        spread: the standard deviation of the reverse process in units of the schedule's; None for 1.
        coordinates: those of all three.
    """

    log_ratio: Tensor
    tilt: Tensor
    spread: Tensor | None
    coordinates: Coordinates


#: r, relative to that of the schedule, below which it is continued by a hyperbola, so that it is positive.
LEAST = 0.1


class NoiseCurve:
    r"""gamma -> h(x, gamma) = log(std / sigma) for a fixed batch x.

    h = limit tanh(w(u) sum_k phi_k(u) h_k / limit) with u = (gamma - low) / (high - low) and w = 16 u^2 (1 - u)^2. It
    vanishes with its derivative at both ends of the schedule, where std = sigma.

    Args:
        terms: h_k of each example, (B, K, \*shape), or of all, (1, K, \*shape).
        basis: the name of the functions phi_k, see :mod:`ndm.method.transforms.bases`.
        limit: the limit of \|h\|.
        ends: gamma at t = 0 and t = 1, (2,).
        given: whether the reverse process knows h.
        coordinates: those of h.
        shares: of bands in each place, (H, W, bands), if the last axis of the terms is that of bands in place of those
            of height and width.
    """

    def __init__(
        self,
        terms: Tensor,
        basis: str,
        limit: float,
        ends: Tensor,
        given: bool,
        coordinates: Coordinates = DATA,
        shares: Tensor | None = None,
    ) -> None:
        self.terms, self.basis, self.limit, self.ends = terms, basis, limit, ends
        self.given, self.coordinates, self.shares = given, coordinates, shares

    def __call__(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        r"""h and dh/dgamma at fixed x, both (\*gamma.shape, \*shape), for gamma (B,) or (P, B)."""
        low, high = self.ends.to(gamma)
        u = unit_interval(gamma, (low, high)).clamp(0, 1)
        window, slope = 16 * (u * (1 - u)) ** 2, 32 * u * (1 - u) * (1 - 2 * u)
        phi, dphi = basis_named(self.basis)(u, self.terms.shape[1])
        factors = torch.stack([window[..., None] * phi, slope[..., None] * phi + window[..., None] * dphi])
        sums = combined(factors, self.terms)
        if self.shares is not None:  # after the sum over the terms, which is much cheaper for bands than for places
            sums = torch.einsum("...b,hwb->...hw", sums, self.shares)
        inside, derivative = sums
        bent = torch.tanh(inside / self.limit)
        return self.limit * bent, (1 - bent**2) * derivative / (high - low)

    def at_time(self, gamma: Tensor, eta: Tensor) -> NoiseValue:
        """The noise in continuous time, for gamma and eta (B,)."""
        h, dh = self(gamma)
        change = _positive(1 + 2 * dh) - 1 if self.given else torch.expm1(-2 * h)
        tilt = per_example(2 / (1 + eta**2), h) * (dh + per_example(eta**2 / 2, h) * change)
        spread = torch.exp(h) * (1 + change).sqrt() if self.given else None
        return NoiseValue(h, tilt, spread, self.coordinates)

    def over_step(self, step: Step) -> NoiseValue:
        """The noise over a step."""
        ends = torch.stack([step.t.gamma, step.s.gamma])
        (h_t, h_s), _ = self(ends)
        q = per_example(step.q, h_t)
        spread = None
        if self.given:
            drop = per_example(step.s.gamma - step.t.gamma, h_t)
            empty = drop == 0
            own, of_schedule = torch.expm1(drop + 2 * (h_s - h_t)), torch.expm1(drop)
            r = _positive(torch.where(empty, torch.ones_like(own), own / torch.where(empty, -1.0, of_schedule)))
            share = (q * r).clamp(max=LARGEST_SHARE)
            # r is also the ratio for q = 0, as of DDIM.
            spread = torch.exp(h_s) * torch.where(q > 0, share / torch.where(q > 0, q, 1.0), r).sqrt()
        else:
            share = q * torch.exp(-2 * h_s)
        change = torch.expm1((torch.log1p(-share) - torch.log1p(-q)) / 2 + h_s - h_t)
        # An empty step (of a clipped schedule) has zero gain.
        gain = torch.where(step.gain == 0, torch.ones_like(step.gain), step.gain)
        return NoiseValue(h_t, -per_example((1 - step.gain) / gain, h_t) * change, spread, self.coordinates)


def _positive(r: Tensor) -> Tensor:
    """r where it is at least ``LEAST``, below that a hyperbola with the same value and slope there."""
    return torch.where(r >= LEAST, r, LEAST / (2 - r.clamp(max=LEAST) / LEAST))


class Noise(Part):
    """Base class of the learned standard deviation.

    It is called with x and gamma's ends, and returns the :class:`~ndm.method.noise.NoiseCurve`.
    """

    #: Whether the reverse process knows the noise, which then does not depend on x.
    given = False

    #: The coordinates in which the noise is independent.
    coordinates: Coordinates = DATA

    #: The shares of bands of frequencies in each place, (H, W, bands); None for functions of each place.
    shares: Tensor | None

    def __init__(self, terms: int, basis: str, limit: float) -> None:
        super().__init__()
        if not isinstance(terms, int) or terms < 1:
            raise ValueError(f"The noise needs at least one term, a whole number, got {terms!r}.")
        if not 0 < limit <= 5:
            raise ValueError(f"The limit of log(std / sigma) must be above 0 and at most 5, got {limit}.")
        basis_named(basis)  # raises for an unknown name
        self.terms, self.basis, self.limit = terms, basis, limit
        self.register_buffer("shares", None, persistent=False)

    @property
    def largest_share(self) -> float:
        """The largest v / sigma_s^2 of a step of the schedule, for which v is below std(x, s)^2 for every x."""
        return LARGEST_SHARE if self.given else math.exp(-2 * self.limit) * LARGEST_SHARE

    @abstractmethod
    def functions(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        r"""h_k, (B, K, \*shape) or (1, K, \*shape), for x of shape (B, \*shape); (1, K, C, bands) of bands."""

    def forward(self, x: Tensor, ends: Tensor, labels: Tensor | None = None) -> NoiseCurve:
        r"""The curve of x.

        Args:
            x: (B, \*shape).
            ends: gamma at t = 0 and t = 1, (2,).
            labels: the classes, (B,), or the latent c, (B, size); None without them.
        """
        shares = None if self.shares is None else self.shares.to(x)
        return NoiseCurve(self.functions(x, labels), self.basis, self.limit, ends, self.given, self.coordinates, shares)


class LearnedNoise(Noise):
    """log(std / sigma) from a network of x: the noise of one example differs from that of another.

    One network pass for x and one for x_hat give the whole curve and its exact derivative.

    Args:
        net: called as net(x), x (B, \\*shape); returns ``terms`` times the channels (or features), the terms outermost.
        terms: K, the number of functions of the noise level.
        basis: ``cosine``, ``legendre`` or ``bumps``; see :mod:`ndm.method.transforms.bases`.
        limit: the limit of the absolute value of log(std / sigma). The variance of a step is at most e^{-2 limit} of
            sigma_s^2, so a model of few steps needs a small one.

    Raises:
        ValueError: an argument is out of range, the basis is unknown, or the network returns another number of
            channels.
    """

    def __init__(self, net: nn.Module, terms: int = 3, basis: str = "cosine", limit: float = 0.5) -> None:
        super().__init__(terms, basis, limit)
        self.net = net

    def functions(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return functions_of(self.net, x, self.terms, "LearnedNoise")


class DimensionNoise(Noise):
    """log(std / sigma) as a function of the noise level alone, one for each dimension: learned noise schedules, as in
    MuLAN without its latent (arXiv 2312.13236, section 3).

    Args:
        shape: the shape of one example, such as (columns,) or (channels, height, width); 1 in the place of a size for
            one function along that axis, such as (channels, 1, 1). In a configuration, null means that of the data.
        terms: K, the number of functions of the noise level.
        basis: as for :class:`LearnedNoise`.
        limit: the limit of the absolute value of log(std / sigma).

    Raises:
        ValueError: an argument is out of range, ``shape`` is None, the basis is unknown, or an example has another
            shape.
    """

    given = True

    def __init__(self, shape: Sequence[int] | None, terms: int = 5, basis: str = "cosine", limit: float = 0.5) -> None:
        super().__init__(terms, basis, limit)
        self.shape = _as_shape(self, shape)
        self.coefficients = nn.Parameter(torch.zeros(1, terms, *self.shape))

    def functions(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        _check_shape(self, self.shape, x)
        return self.coefficients.to(x)


class FrequencyNoise(DimensionNoise):
    r"""log(std / sigma) as a function of the noise level for each band of frequencies of an image, and for the mean and
    the differences of its channels.

    The noise is independent in the coordinates of the cosine transform (:class:`ndm.method.coordinates.Frequencies`):
    a learned noise schedule for each of them, as :class:`DimensionNoise` has one for each pixel. Blurring diffusion
    (arXiv 2209.05557) has such a schedule that is fixed.

    The radius of the frequency (i, j) is r = sqrt((i N / H)^2 + (j N / W)^2) with N the larger of H and W. Its function
    is linear in log(1 + r) between those of the two nearest bands.

    Args:
        shape: (channels, height, width). In a configuration, null means that of the data.
        bands: the number of radii that have a function of their own, evenly spaced in log(1 + r).
        terms: K, the number of functions of the noise level.
        basis: as for :class:`LearnedNoise`.
        limit: the limit of the absolute value of log(std / sigma).

    Raises:
        ValueError: an argument is out of range, ``shape`` is not that of an image, the basis is unknown, or an example
            has another shape.
    """

    coordinates = FREQUENCIES

    def __init__(
        self,
        shape: Sequence[int] | None,
        bands: int = 8,
        terms: int = 5,
        basis: str = "cosine",
        limit: float = 3.0,
    ) -> None:
        super().__init__(shape, terms, basis, limit)
        if len(self.shape) != 3:
            raise ValueError(f"FrequencyNoise needs the shape of an image, as in shape=(3, 32, 32), not {self.shape}.")
        if not isinstance(bands, int) or bands < 1:
            raise ValueError(f"The noise needs at least one band, a whole number, got {bands!r}.")
        channels, height, width = self.shape
        self.bands = bands
        self.coefficients = nn.Parameter(torch.zeros(1, terms, channels, bands))
        rows, columns = (torch.arange(n) * (max(height, width) / n) for n in (height, width))
        radius = torch.log1p((rows[:, None] ** 2 + columns**2).sqrt())
        place = radius / radius.max().clamp(min=1e-6) * (bands - 1)
        shares = (1 - (place[..., None] - torch.arange(bands)).abs()).clamp(min=0)
        self.shares = shares

    def functions(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if list(x.shape[1:]) != self.shape:
            raise ValueError(f"FrequencyNoise has shape {tuple(self.shape)}, and examples have {tuple(x.shape[1:])}.")
        return self.coefficients.to(x)


class LatentNoise(Noise):
    r"""log(std / sigma) from the model's latent c: a noise schedule of each dimension that depends on the example.

    It is that of MuLAN (arXiv 2312.13236, section 3), with another latent and another function of the noise level.
    The model needs a latent, :class:`ndm.GaussianLatent`.

    Args:
        net: called as net(c), c (B, size); returns ``terms`` times the product of ``shape`` features.
        shape: as for :class:`DimensionNoise`.
        terms: as for :class:`LearnedNoise`.
        basis: as for :class:`LearnedNoise`.
        limit: the limit of the absolute value of log(std / sigma).

    Raises:
        ValueError: an argument is out of range, ``shape`` is None, the basis is unknown, an example has another shape,
            the network returns another number of features, or there is no latent.
    """

    given = True

    def __init__(
        self, net: nn.Module, shape: Sequence[int] | None, terms: int = 3, basis: str = "cosine", limit: float = 0.5
    ) -> None:
        super().__init__(terms, basis, limit)
        self.net = net
        self.shape = _as_shape(self, shape)

    def functions(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        _check_shape(self, self.shape, x)
        if labels is None or labels.ndim != 2:
            raise ValueError("LatentNoise needs the latent c of each example: give the model a GaussianLatent.")
        found, wanted = run_network(self.net, labels), self.terms * math.prod(self.shape)
        if found.shape != (len(x), wanted):
            raise ValueError(
                f"The network of a LatentNoise with terms={self.terms} and shape {tuple(self.shape)} must return "
                f"{wanted} features, {(len(x), wanted)}, and returned {tuple(found.shape)}."
            )
        return found.reshape(len(x), self.terms, *self.shape)


def _as_shape(noise: Noise, shape: Sequence[int] | None) -> list[int]:
    if not isinstance(shape, Sequence) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"{type(noise).__name__} needs the shape of an example, as in shape=(1, 8, 8), not {shape!r}.")
    return [*shape]


def _check_shape(noise: Noise, shape: Sequence[int], x: Tensor) -> None:
    """Raise a ValueError unless the shape broadcasts to that of an example."""
    sizes = x.shape[1:]
    if len(sizes) != len(shape) or any(n not in (1, size) for n, size in zip(shape, sizes, strict=True)):
        raise ValueError(f"{type(noise).__name__} has shape {tuple(shape)}, and examples have {tuple(sizes)}.")
