r"""The solver of the reverse ODE as a continuous normalising flow: log p(z_0), with an estimate of its error.

The equation is solved in gamma instead of t. F and the denoiser depend only on gamma, so the result is the same for all
schedules with the same end points. In t, a clipped schedule would cover most of gamma in one step and be constant in
others.

The path is solved by the classical Runge-Kutta method in N equal steps. The divergence does not influence the path and
is the most expensive part: it is evaluated at the N + 1 ends of the steps only, together with the first stage of each
step, and integrated by Gregory's formula (:mod:`ndm.inference.divergence`).

**The error** of log p is estimated from two quantities:

- for the integral: fourth differences of the divergence, which are large where N + 1 points do not resolve it;
- for the path: the difference between log N(z_1; 0, I) at its end and at that of a path of N / 2 steps.

The error is a factor times a weighted sum of the two. The factor depends on the model and on N. :func:`calibrate`
measures it on samples of the model, as a quantile, so that it covers the error of about that part of the examples. It
also measures the part of the error that all examples have in common, which is subtracted.
Without a calibration it is ``FACTOR``, which is high. N is doubled for the examples whose error is above the
tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ndm._internal.precision import residual_path
from ndm.inference.divergence import exact_divergence, integral, or_by_chance, quadratic_forms
from ndm.method.process import Process, frozen
from ndm.method.transforms.curve import tile

__all__ = ["TOLERANCE", "Flow", "SolverCalibration", "calibrate"]

#: The default tolerance in nats per dimension.
TOLERANCE = 1e-2

#: The initial number of steps N at the default tolerance, and the largest N.
STEPS, MOST_STEPS = 16, 768

#: The weight of the path's difference in the sum, and the factor of the sum without a calibration. For the closed forms
#: of tests/inference/test_likelihood_errors.py the path's error is up to twice the difference. For networks the factors
#: of calibrations are between 0.05 and 0.5.
OF_PATH, FACTOR = 4.0, 0.6

#: A path that is not finite with this many times the initial number of steps is not tried with more.
FINITE_WITHIN = 4

#: Rounding errors of log p, in units of the precision's last place of (\|log p\| + d).
ROUNDING = 32

#: The calibration: numbers of steps, the number of steps they are compared with, samples of the model, the quantile of
#: their errors that the factor covers, a margin, the part of them that must be within the tolerance at the initial N,
#: and the smallest factor. The margin is for data that are harder than samples, and because examples with a stated
#: error above the tolerance are solved again: those that remain have stated errors that are rather too low.
CALIBRATED, COMPARED, SAMPLES, COVERED, MARGIN, MET, LEAST = (8, 10, 12, 16), 32, 48, 0.98, 1.3, 0.75, 0.02


@dataclass(frozen=True)
class SolverCalibration:
    """The error of the solver for one model, measured on its samples.

    Attributes:
        first: the initial number of steps N; None for that of the tolerance.
        factors: the factor of the error by N.
        shifts: the median error of log p by N, in nats, which is subtracted. A part of the error of the integral is
            nearly the same for all examples, since it is due to how the network varies with gamma.
    """

    first: int | None = None
    factors: Mapping[int, float] = field(default_factory=dict)
    shifts: Mapping[int, float] = field(default_factory=dict)

    def factor(self, steps: int) -> float:
        """The factor for N = ``steps``: that of the largest calibrated N for all above it, else ``FACTOR``."""
        if steps in self.factors:
            return self.factors[steps]
        largest = max(self.factors, default=steps)
        return self.factors[largest] if largest < steps else FACTOR


class Flow:
    """The reverse ODE as a normalising flow, with a count of evaluations.

    Args:
        model: the model.
        labels: class labels, (B,).
        probes: the number of Hutchinson's probes; 0 for the exact divergence.
        tolerance: in nats.
        generator: for the probes.
        calibration: of the solver's error.
    """

    def __init__(
        self,
        model: Process,
        labels: Tensor | None,
        probes: int,
        tolerance: float,
        generator: torch.Generator | None = None,
        calibration: SolverCalibration | None = None,
    ) -> None:
        self.model = model
        self.labels = labels
        self.probes = probes
        self.tolerance = tolerance
        self.generator = generator
        self.calibration = calibration or SolverCalibration()
        self.low, self.high = model.schedule.end_points()
        self.evaluations = 0

    def tiled_labels(self, rows: int) -> Tensor | None:
        """The labels of consecutive copies of the batch, (rows,); None without labels."""
        return None if self.labels is None else tile(self.labels, rows // len(self.labels))

    def log_prob(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(z_0), (probes or 1, B), one estimate per probe, for z_0 = ``z``, (B, \\*shape); its error, (B,); and
        whether that is within the tolerance, (B,). For a path that is not finite they are nan, infinite and false.

        The batch may contain several consecutive copies of the labelled batch.
        """
        labels = self.tiled_labels(len(z))
        probes = self._draw_probes(z)
        log_p = z.new_full((max(self.probes, 1), len(z)), math.nan)
        apart, rounding = z.new_full((len(z),), math.inf), z.new_zeros(len(z))
        first = steps = self.calibration.first or _first_steps(self.tolerance / z[0].numel())
        rows = torch.arange(len(z), device=z.device)
        while len(rows) and steps <= MOST_STEPS:
            labels_now = None if labels is None else labels[rows]
            found, now = self.solve(z[rows], labels_now, None if probes is None else probes[:, rows], steps)
            found, now = found - self.calibration.shifts.get(steps, 0.0), self.calibration.factor(steps) * now
            closer = now < apart[rows]  # false for nan
            log_p[:, rows[closer]], apart[rows[closer]] = found[:, closer], now[closer]
            size = log_p[:, rows].abs().amax(0).nan_to_num() + z[0].numel()
            rounding[rows] = ROUNDING * torch.finfo(z.dtype).eps * size
            error = apart[rows] + rounding[rows]
            far = (error > self.tolerance) & (apart[rows] > rounding[rows])
            # Examples with non-finite paths do not delay the others.
            rows = rows[far & (error.isfinite() if steps >= FINITE_WITHIN * first else far)]
            steps *= 2
        error = apart + rounding
        return log_p, error, error <= self.tolerance

    def solve(self, z: Tensor, labels: Tensor | None, probes: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """log p(z_0) in ``steps`` steps, (columns, B), and its error before the factor, (B,)."""
        gammas, span = self._gammas(z, steps), self.high - self.low
        slope, growth = self._slope_and_growth(z, gammas[0], labels, probes)
        other = self._path(z, slope, gammas[::2], labels)
        state, growths = z, [growth]
        for start, stop in pairwise(gammas):
            state = self._step(state, slope, start, stop, labels)
            slope, growth = self._slope_and_growth(state, stop, labels, probes)
            growths.append(growth)
        values = span * torch.stack(growths)  # (steps + 1, B, columns)
        # The difference of log N(z; 0, I) between the two end states, per dimension.
        change = ((state - other) * (state + other) / 2).flatten(1)
        # Its parts might cancel, so their signs are also taken as random.
        of_path = torch.maximum(change.sum(1).abs(), or_by_chance(change))
        return _log_normal(state) + integral(values), OF_PATH * of_path + _roughness(values.mean(2))

    def _path(self, z: Tensor, slope: Tensor, gammas: Tensor, labels: Tensor | None) -> Tensor:
        """z at the last of the gammas from z and its slope at the first, in a step between each two, (B, \\*shape)."""
        for start, stop in pairwise(gammas):
            if start != gammas[0]:
                slope = self._drift(z, start, labels)
            z = self._step(z, slope, start, stop, labels)
        return z

    def _step(self, z: Tensor, slope: Tensor, start: Tensor, stop: Tensor, labels: Tensor | None) -> Tensor:
        """z at ``stop`` from z and its slope at ``start`` by the classical Runge-Kutta method, (B, \\*shape)."""
        step, middle = stop - start, (start + stop) / 2
        second = self._drift(z + step / 2 * slope, middle, labels)
        third = self._drift(z + step / 2 * second, middle, labels)
        fourth = self._drift(z + step * third, stop, labels)
        return z + step / 6 * (slope + 2 * second + 2 * third + fourth)

    def _drift(self, z: Tensor, gamma: Tensor, labels: Tensor | None) -> Tensor:
        """dz/dgamma at z, (B, \\*shape), and gamma, a number."""
        self.evaluations += 1
        return self.model.drift_at(z, self.model.schedule.level_at(gamma.expand(len(z))), labels, eta=0.0)

    def _slope_and_growth(
        self, z: Tensor, gamma: Tensor, labels: Tensor | None, probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """dz/dgamma at z and gamma, (B, \\*shape), and its divergence, (B, columns)."""

        def drift(y: Tensor) -> Tensor:
            return self._drift(y, gamma, labels)

        return exact_divergence(drift, z) if probes is None else quadratic_forms(drift, z, probes)

    def _gammas(self, z: Tensor, steps: int) -> Tensor:
        return torch.linspace(self.low, self.high, steps + 1, dtype=z.dtype, device=z.device)

    def _draw_probes(self, z: Tensor) -> Tensor | None:
        """The vectors e = +-1 of Hutchinson's estimates e^T (df/dz) e, (probes, B, \\*shape)."""
        if not self.probes:
            return None
        device = z.device if self.generator is None else self.generator.device
        signs = torch.randint(2, (self.probes, *z.shape), generator=self.generator, device=device)
        return (2 * signs - 1).to(z)

    def samples(self, z: Tensor, steps: int) -> Tensor:
        """z_0 of the model, (B, \\*shape), from z_1 = ``z``."""
        gammas = self._gammas(z, steps).flip(0)
        return self._path(z, self._drift(z, gammas[0], None), gammas, None)


@torch.no_grad()
def calibrate(model: Process, like: Tensor, tolerance: float) -> SolverCalibration:
    """Measure the solver's error, with the exact divergence, on samples of a model without labels.

    The cost is that of about 400 densities.

    Args:
        model: the model.
        like: data of the model, (1 or more, \\*shape), whose shape and precision are used.
        tolerance: of log_prob, in nats.
    """
    with frozen(model), residual_path(like.device):
        flow = Flow(model, None, 0, tolerance)
        shape = (SAMPLES, *like.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        z = flow.samples(noise.to(like), COMPARED)
        z = z[z.isfinite().flatten(1).all(1)]
        fine = flow.solve(z, None, None, COMPARED)[0][0]
        first, factors, shifts = None, {}, {}
        for steps in CALIBRATED:
            found, apart = flow.solve(z, None, None, steps)
            held = found[0].isfinite() & fine.isfinite() & (apart > 0)
            if held.sum() < SAMPLES / 2:
                continue
            error = (found[0] - fine)[held]
            # Rounded, so that they do not depend on the number of threads.
            shifts[steps] = round(error.median().item(), 4)
            ratio = (error - shifts[steps]).abs() / apart[held]
            factors[steps] = max(round(MARGIN * ratio.quantile(COVERED).item(), 2), LEAST)
            if first is None and (factors[steps] * apart[held] <= tolerance).float().mean() >= MET:
                first = steps
    return SolverCalibration(first, factors, shifts)


def _first_steps(tolerance: float) -> int:
    """The initial N, a multiple of 4, for a tolerance per dimension."""
    return min(max(8, 4 * round(STEPS / 4 * (TOLERANCE / tolerance) ** (1 / 4))), 96)


def _roughness(values: Tensor) -> Tensor:
    """The size of the part of the values at N + 1 points, (N + 1, B), that the points do not resolve, (B,).

    Fourth differences are 16 times a value that alternates in sign.
    """
    differences = values.diff(n=4, dim=0)
    return differences.square().sum(0).mul(2).sqrt() / (16 * (len(values) - 1))


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (B, \\*shape) -> (B,)."""
    return -((z**2 + math.log(2 * math.pi)).flatten(1).sum(1)) / 2
