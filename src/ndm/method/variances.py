r"""The variance W of a reverse step p(z_s | z_t) = N(mean, W), which matters most at few steps.

With the forward posterior's variance v and e = (true mean - predicted mean) / sqrt(v), a step costs

    KL = 1/2 sum_k [ v/w_k - 1 - log(v/w_k) + v/w_k e_k^2 ],

in any orthonormal basis in which W is diagonal (method, section 3). A covariance is represented by the logarithms of
the ratios w_k / v and the basis. The best w_k is v (1 + E[e_k^2]): Bao et al., *Analytic-DPM*, arXiv 2201.06503,
theorem 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ndm._internal.inputs import check_steps
from ndm.method.coordinates import DATA, FREQUENCIES, Coordinates
from ndm.method.denoisers import Estimate
from ndm.method.moments import Moments
from ndm.method.parts import Part
from ndm.method.schedules import NoiseLevel, per_example
from ndm.method.transforms.curve import unit_interval
from ndm.method.transforms.ranges import GammaRange

__all__ = [
    "COVARIANCES",
    "LARGEST_SHARE",
    "CalibratedVariance",
    "Covariance",
    "Diagonal",
    "LearnedVariance",
    "LowRank",
    "PosteriorVariance",
    "PredictedVariance",
    "ReverseVariance",
    "Step",
]

#: The largest v / sigma_s^2 of a step: the mean of z_s depends on z_t by a root of the rest.
LARGEST_SHARE = 1 - 1e-6


@dataclass(frozen=True)
class Step:
    r"""One step of the reverse process, from noise level t down to s; fields (B,) unless noted.

    With q = v / sigma_s^2, v = eta^2 v_DDPM, and v_DDPM = sigma_s^2 (1 - e^{gamma_s - gamma_t}) for every schedule
    (method, section 2):

    Attributes:
        t: the noise level at the start of the step.
        s: the noise level at its end.
        v: the variance of q(z_s | z_t, x).
        q: v / sigma_s^2.
        c: the coefficient of z_t in its mean, sqrt(sigma_s^2 - v) / sigma_t.
        gain: 1 - rho with rho = c alpha_t / alpha_s, so that the mean is c z_t + alpha_s gain y,
            y = F(x, t) + (F(x, s) - F(x, t)) / gain.
        scale: alpha_s gain / sqrt(v), which converts an error of y to units of sqrt(v); zero for an empty step.
        index: the number of the step, 1..T, an integer tensor.
        steps: T, or None if the step is not part of a uniform grid.
    """

    t: NoiseLevel
    s: NoiseLevel
    v: Tensor
    q: Tensor
    c: Tensor
    gain: Tensor
    scale: Tensor
    index: Tensor
    steps: int | None

    @classmethod
    def between(
        cls, s: NoiseLevel, t: NoiseLevel, eta: Tensor, index: Tensor, steps: int | None, largest: float = LARGEST_SHARE
    ) -> Step:
        """The step from level t to level s with v = eta^2 v_DDPM and at most ``largest`` sigma_s^2; eta (B,), 0 for
        DDIM.
        """
        drop = s.gamma - t.gamma
        q = (-(eta**2) * torch.expm1(drop)).clamp(max=largest)
        gain = -torch.expm1(torch.log1p(-q) / 2 + drop / 2)
        safe = torch.where(q > 0, q, torch.ones_like(q))
        scale = torch.where(q > 0, torch.exp(-s.gamma / 2) * gain / safe.sqrt(), torch.zeros_like(q))
        c = s.sigma / t.sigma * (1 - q).sqrt()
        return cls(t=t, s=s, v=q * s.sigma**2, q=q, c=c, gain=gain, scale=scale, index=index, steps=steps)

    @classmethod
    def of_sde(cls, s: NoiseLevel, t: NoiseLevel, eta: Tensor, largest: float = LARGEST_SHARE) -> Step:
        r"""The step from level t to level s, not equal, that solves the reverse SDE exactly for a constant x_hat.

        v = sigma_s^2 (1 - e^{-eta^2 h}) with h = gamma_t - gamma_s; eta (B,), 0 for the ODE. For eta = 0 and eta = 1
        it is the step of :meth:`between`.
        """
        drop = s.gamma - t.gamma
        over_ddpm = torch.expm1(eta**2 * drop) / torch.expm1(drop)
        return cls.between(s, t, over_ddpm.sqrt(), torch.zeros_like(drop, dtype=torch.int64), None, largest)


class Covariance:
    """W / v of a batch of steps, with its KL divergence and its sampling."""

    @abstractmethod
    def kl(self, e: Tensor) -> Tensor:
        """KL( q(z_s | z_t, x) || p(z_s | z_t) ) in nats, (B,), for e = Dmu / sqrt(v), (B, \\*shape)."""

    @abstractmethod
    def apply_sqrt(self, noise: Tensor) -> Tensor:
        """Multiply standard normal noise, (B, \\*shape), by the square root of W / v."""


def _kl(log_ratio: Tensor, squares: Tensor) -> Tensor:
    """1/2 [v/w - 1 - log(v/w) + v/w e^2], elementwise; the first three terms nearly cancel if w is close to v."""
    return (torch.expm1(-log_ratio) + log_ratio + torch.exp(-log_ratio) * squares) / 2


@dataclass(frozen=True)
class Diagonal(Covariance):
    """W diagonal in some coordinates, by default the data's dimensions.

    Attributes:
        log_ratio: log(w / v), broadcastable to (B, \\*shape).
        coordinates: V of W = V diag(w) V^T.
    """

    log_ratio: Tensor
    coordinates: Coordinates = DATA

    def kl(self, e: Tensor) -> Tensor:
        return _kl(self.log_ratio.expand_as(e), self.coordinates.into(e) ** 2).flatten(1).sum(1)

    def apply_sqrt(self, noise: Tensor) -> Tensor:
        return self.coordinates.back(noise * torch.exp(self.log_ratio / 2))


@dataclass(frozen=True)
class LowRank(Covariance):
    """W / v = basis^T diag(e^{log_ratio}) basis + e^{rest} (I - basis^T basis), one matrix per step of the grid.

    Attributes:
        index: the matrix of each example, 0..T-1, (B,).
        basis: orthonormal rows, (T, r, d).
        log_ratio: (T, r).
        rest: (T,), the log-ratio in the directions outside the basis; unused if r = d.
    """

    index: Tensor
    basis: Tensor
    log_ratio: Tensor
    rest: Tensor

    def kl(self, e: Tensor) -> Tensor:
        e = e.flatten(1)
        inside = self._by_step(e, lambda rows, i: rows @ self.basis[i].T)
        kl = _kl(self.log_ratio[self.index], inside**2).sum(1)
        outside = (e**2).sum(1) - (inside**2).sum(1)
        d, r = e.shape[1], self.basis.shape[1]
        if r == d:
            return kl
        rest = self.rest[self.index]
        return kl + (d - r) * _kl(rest, outside.clamp(min=0) / (d - r))

    def apply_sqrt(self, noise: Tensor) -> Tensor:
        def matrix(rows: Tensor, i: int) -> Tensor:
            common = torch.exp(self.rest[i] / 2)
            stretch = torch.exp(self.log_ratio[i] / 2) - common
            return common * rows + (rows @ self.basis[i].T * stretch) @ self.basis[i]

        return self._by_step(noise.flatten(1), matrix).reshape(noise.shape)

    def _by_step(self, rows: Tensor, apply: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Apply each step's matrix to the rows at that step; a gathered (B, r, d) tensor would not fit in memory."""
        out: Tensor | None = None
        for i in self.index.unique().tolist():
            here = self.index == i
            result = apply(rows[here], i)
            out = rows.new_zeros(rows.shape[0], result.shape[1]) if out is None else out
            out[here] = result
        assert out is not None
        return out


class ReverseVariance(Part):
    """Base class: computes the covariance of a reverse step from the step and the denoiser's estimate at its start."""

    @abstractmethod
    def forward(self, step: Step, estimate: Estimate) -> Covariance: ...

    def set_gamma_range(self, gamma_min: float, gamma_max: float) -> None:
        """Set the schedule's end points. Variances that do not need them ignore the call."""


class PosteriorVariance(ReverseVariance):
    """w = v: the variance of the paper, and DDPM's "small" variance (arXiv 2006.11239, section 3.2)."""

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        return Diagonal(estimate.mean.new_zeros(()))


class LearnedVariance(GammaRange, ReverseVariance):
    """w / v = 1 + (e^{gamma_t - gamma_s} - 1) kappa(gamma_t), with a positive function kappa trained on the bound.

    For F = x and eta = 1 the expected squared error of the mean is exactly of this form, with kappa the mean squared
    error of the noise estimate at gamma_t, for every s (method, section 3). One function is therefore enough for all
    numbers of steps, and w tends to v for small steps. For other F the bound is still valid.

    kappa starts at sigmoid(-gamma), its exact value for standard normal data.

    Args:
        knots: the number of evenly spaced noise levels between which the change of log kappa from its initial value is
            interpolated linearly. More knots need more steps T in training.
        gamma_range: the noise levels of the first and the last knot; by default the end points of the schedule of the
            first model that uses the variance.

    Raises:
        ValueError: there are fewer than two knots, or the range is empty.
    """

    #: The change of log kappa per unit change of a parameter: an optimiser such as Adam changes each parameter by about
    #: the learning rate per step, and log kappa may have to change by several units.
    UNIT = 10.0

    def __init__(self, knots: int = 12, gamma_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError(f"The learned reverse variance needs at least 2 knots, got {knots}.")
        self.knots = knots
        self.shift = nn.Parameter(torch.zeros(knots))
        self._take_range(gamma_range)

    def kappa(self, gamma: Tensor) -> Tensor:
        """kappa at gamma, (B,)."""
        at = unit_interval(gamma, self.gamma_range).clamp(0, 1) * (self.knots - 1)
        left = at.detach().floor().long().clamp(max=self.knots - 2)
        shift = self.UNIT * self.shift.to(gamma.dtype)
        return torch.sigmoid(-gamma) * torch.lerp(shift[left], shift[left + 1], at - left).exp()

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        growth = torch.expm1(step.t.gamma - step.s.gamma) * self.kappa(step.t.gamma)
        return Diagonal(per_example(torch.log1p(growth), estimate.mean))


class PredictedVariance(ReverseVariance):
    """log(w / v) per example and dimension, a head of the denoiser's (cf. Improved DDPM, arXiv 2102.09672, 3.1)."""

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        if estimate.log_ratio is None:
            raise ValueError(
                'reverse_variance="predicted" needs a denoiser whose network returns twice the channels of the data: '
                "the second half is log(w / v)."
            )
        # An empty step (of a clipped schedule) is deterministic for every output of the head.
        empty = per_example(step.gain, estimate.log_ratio) == 0
        return Diagonal(torch.where(empty, torch.zeros_like(estimate.log_ratio), estimate.log_ratio))


#: Forms of a calibrated covariance.
COVARIANCES = ("isotropic", "diagonal", "frequency", "full")


class CalibratedVariance(ReverseVariance):
    """The best covariance for T steps, measured on data with a trained model: W = v (I + E[e e^T]), with E[e e^T]
    shrunk according to the number of examples (:mod:`ndm.method.moments`).

    Args:
        steps: T.
        covariance: ``isotropic``, ``diagonal`` (a variance per dimension), ``frequency`` (for images: a variance per
            frequency of the cosine transform) or ``full``.
        shape: the shape of one example.
        rank: the number of leading eigenvectors kept by a full covariance; the other directions share one variance.
            None keeps all of them up to 1024 dimensions, and 256 above.
        grid: the times of the T steps it is calibrated for, T + 1 of them, increasing from 0 to 1; None for even ones.
            A model with this variance uses these steps.

    Raises:
        ValueError: the covariance is unknown or not for this shape, ``steps`` or ``rank`` is below one, or the grid is
            invalid.
    """

    log_ratio: Tensor
    basis: Tensor
    rest: Tensor

    def __init__(
        self,
        steps: int,
        covariance: str = "isotropic",
        shape: Iterable[int] = (1,),
        rank: int | None = None,
        grid: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_calibration(steps, covariance)
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ValueError(
                f'rank must be at least 1 and whole, got {rank!r}: use covariance="isotropic" instead of rank 0.'
            )
        if grid is not None:
            check_grid(grid, steps)
        self.steps = steps
        self.covariance = covariance
        self.shape = tuple(shape)
        if covariance == "frequency" and len(self.shape) != 3:
            raise ValueError(
                f'covariance="frequency" is for images, (channels, height, width), not examples of shape {self.shape}.'
            )
        self.grid = None if grid is None else torch.tensor(list(grid), dtype=torch.float64)
        d = torch.Size(self.shape).numel()
        self.rank = min(rank or (d if d <= 1024 else 256), d)
        size = {"isotropic": 1, "full": self.rank}.get(covariance, d)
        self.register_buffer("log_ratio", torch.zeros(steps, size))
        if covariance == "full":
            self.register_buffer("basis", torch.zeros(steps, self.rank, d))
            self.register_buffer("rest", torch.zeros(steps))

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        if step.steps != self.steps:
            raise ValueError(f"This reverse variance was calibrated for {self.steps} steps, not for {step.steps}.")
        like = estimate.mean
        if self.covariance != "isotropic" and like.shape[1:] != self.shape:
            raise ValueError(
                f"This reverse variance was calibrated for examples of shape {self.shape}, not {tuple(like.shape[1:])}."
            )
        index = step.index - 1
        if self.covariance == "full":
            return LowRank(index, self.basis.to(like), self.log_ratio.to(like), self.rest.to(like))
        log_ratio = self.log_ratio.to(like)[index]
        shape = (1,) * len(self.shape) if self.covariance == "isotropic" else self.shape
        return Diagonal(log_ratio.reshape(-1, *shape), self.coordinates)

    @property
    def coordinates(self) -> Coordinates:
        """Those of the moments that :meth:`fit` takes."""
        return coordinates_of(self.covariance)

    def fit(self, moments: Moments) -> None:
        """Set the covariance from the second moments of e at every step.

        With few examples a diagonal covariance is shrunk towards an isotropic one, and a full one towards a diagonal
        one, by the amount that is best on held-out examples: see :mod:`ndm.method.moments`.

        Raises:
            ValueError: the moments are not finite.
        """
        if not torch.isfinite(moments.squares()).all():
            raise ValueError(
                "The reverse variance cannot be calibrated, because the model's errors on these data are not finite: "
                "check that its training did not diverge, and that no example is far from the training data."
            )
        if self.covariance == "isotropic":
            self.log_ratio.copy_(torch.log1p(moments.squares().mean(1, keepdim=True)))
        elif self.covariance != "full":
            self.log_ratio.copy_(torch.log1p(moments.shrunk_squares()))
        else:
            for i, matrix in enumerate(moments.shrunk_matrices()):
                values, vectors = torch.linalg.eigh(matrix)  # ascending
                self.basis[i] = vectors[:, -self.rank :].T
                self.log_ratio[i] = torch.log1p(values[-self.rank :].clamp(min=0))
                if self.rank < len(values):
                    self.rest[i] = torch.log1p(values[: -self.rank].clamp(min=0).mean())


def coordinates_of(covariance: str, noise: Coordinates = DATA) -> Coordinates:
    """Those in which a calibrated covariance is diagonal, beyond those of the process's noise."""
    return FREQUENCIES if covariance == "frequency" and noise is DATA else DATA


def check_calibration(steps: int, covariance: str, allowed: Sequence[str] = COVARIANCES) -> None:
    """Raise a ValueError unless a covariance of this name can be calibrated for T steps."""
    if covariance not in allowed:
        raise ValueError(f"There is no covariance {covariance!r}; choose one of {', '.join(allowed)}.")
    check_steps(steps)


def check_grid(grid: Sequence[float], steps: int) -> None:
    """Raise a ValueError unless the grid is the times of T steps."""
    rising = all(a < b for a, b in pairwise(grid))
    if len(grid) != steps + 1 or not rising or (grid[0], grid[-1]) != (0, 1):
        raise ValueError(
            f"A grid of {steps} steps has {steps + 1} times, rising from 0 to 1; got "
            + (f"{len(grid)} numbers from {grid[0]:g} to {grid[-1]:g}." if len(grid) else "none.")
        )
