r"""The likelihood under the reverse ODE, a continuous normalising flow (method, section 5).

    log p(z_0) = log N(z_1; 0, I) + integral_0^1 div f(z_t, t) dt

with f the ODE's drift (Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, appendix D.2). The divergence is
computed exactly, by d backward passes, or estimated without bias by Hutchinson's probes (Grathwohl et al., arXiv
1810.01367).

The equation is solved in gamma instead of t. F and the denoiser depend only on gamma, so the result is the same for all
schedules with the same end points. In t, a clipped schedule would cover most of gamma in one step and be constant in
others.

The path does not depend on the divergence, which is the most expensive part. The path is solved by the Runge-Kutta
method in N equal steps, and the divergence is evaluated at their ends and middles and integrated by Gregory's formula.
The error is estimated from a path of N / 2 steps and from the divergence at the ends only; N is doubled for the
examples whose error is too large. benchmarks/likelihood.py compares the cost with that of another implementation.

The bound of :mod:`ndm.method.bounds` is that of the SDE, a different model of the same data; either value may be lower.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_labels
from ndm._internal.precision import residual_path
from ndm._internal.random import normal_like
from ndm.inference.divergence import exact_divergence, integral_and_error, or_by_chance, quadratic_forms
from ndm.inference.solvers import solve_fixed
from ndm.method.conditionals import of_given_columns
from ndm.method.process import Process, frozen
from ndm.method.schedules import per_example
from ndm.method.transforms.curve import tile

__all__ = ["LogLikelihood", "log_likelihood"]

#: Up to this many dimensions the divergence is exact by default.
EXACT_UP_TO = 16

#: Samples of dequantisation noise are batched up to this many numbers in z.
NUMBERS_AT_ONCE = 65536

#: The default tolerance: the difference to N / 2 steps in nats per dimension.
TOLERANCE = 1e-2

#: The initial number of steps N at the default tolerance, and the largest N.
STEPS, MOST_STEPS = 16, 768

#: Factor on the difference to half as many steps. If a path turns faster than the steps resolve, as near a very narrow
#: mode, errors of 2.8 times that difference have been measured.
SAFETY = 3

#: A path that is not finite with this many times the initial number of steps is not tried with more.
FINITE_WITHIN = 4

#: Rounding errors of log p, in units of the precision's last place of (\|log p\| + d).
ROUNDING = 32

_KINDS = {
    None: "density of the reverse ODE",
    "uniform": "lower bound on log p(x), uniform dequantisation",
    "variational": "lower bound on log p(x), z_0 from q(z_0 | x)",
    "importance": "lower bound on log p(x), importance-weighted over q(z_0 | x)",
}
_PROBED_IMPORTANCE = "estimate of log p(x), importance-weighted over q(z_0 | x) with Hutchinson's probes: not a bound"


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: (B,), nats: a log-density in the data's original units, or for K-level data a lower bound on the
            log-probability.
        stderr: (B,), nats: the standard error of the Monte-Carlo parts (probes, dequantisation noise), estimated from
            their spread; 0 if nothing is random, NaN if there is only one sample.
        solver_error: (B,), nats: three times the difference to the result with half as many steps, averaged over
            samples and probes, plus a bound on rounding errors. The actual error of log_prob is much smaller if the
            steps resolve the path. Infinite where log_prob is not finite.
        nfe: the number of drift evaluations over all solves.
        kind: a description of log_prob.
        dimensions: d.
        solved: (B,), bool: whether the solver's error is within the tolerance for every sample. Otherwise log_prob is
            the best result found, with error solver_error. log_prob is NaN if the path is not finite, and -inf if it
            underflows.
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    nfe: int
    kind: str
    dimensions: int
    solved: Tensor

    @property
    def bits_per_dim(self) -> Tensor:
        """-log_prob / (d log 2), (B,)."""
        return -self.log_prob / (self.dimensions * math.log(2))


@torch.no_grad()
def log_likelihood(
    model: Process,
    x: Values,
    *,
    divergence: str = "auto",
    probes: int = 4,
    dequantization: str | None = None,
    samples: int = 4,
    tolerance: float | None = None,
    labels: Values | None = None,
    generator: torch.Generator | None = None,
) -> LogLikelihood:
    r"""The log-likelihood of each example under the reverse ODE.

    An example's result does not depend on the rest of the batch, except through its random numbers, and depends on the
    schedule only through its end points. One warning gives the number of examples not solved to the tolerance;
    ``solved`` of the result identifies them.

    Args:
        model: the model.
        x: data in original units, (B, \\*shape), as for ``model.bound``.
        divergence: ``exact`` (d backward passes), ``hutchinson``, or ``auto``: exact up to 16 dimensions.
        probes: Rademacher probes for ``hutchinson``, each fixed along the path.
        dequantization: for K-level data ``uniform``, ``variational`` (the default there; z_0 from q(z_0 | x), which is
            tighter) or ``importance`` (tighter still as ``samples`` grows). For continuous data None, the density of
            x = z_0 / alpha_0 itself; ``variational`` and ``importance`` bound the density of the decoder's x instead,
            which suits a transformation with F(x, gamma_0) far from x. With ``importance`` and Hutchinson's probes the
            result is an estimate biased upwards and not a bound, since importance weights are exponentials of the
            probes' errors; ``kind`` says so.
        samples: the number of z_0 (or dequantised x) drawn for each example.
        tolerance: nats: the number of steps of an example's path, which are even in gamma, is doubled (up to 768) until
            log_prob differs from that with half as many steps by at most the tolerance, or by at most the rounding
            error. By default 0.01 per dimension, starting with 16 steps.
        labels: class labels, (B,), for a conditional denoiser.
        generator: for probes and dequantisation noise.

    Raises:
        ValueError: the divergence or dequantisation is unknown or does not fit the data, or the data are invalid.

    Warns:
        RuntimeWarning: some examples are not solved to the tolerance; the message says how many.
    """
    dequantization = _dequantization(model, dequantization)
    model, x, labels = of_given_columns(model, x, labels)
    data = model.to_model(x)
    labels = as_labels(model, labels, len(data))
    exact = _is_exact(divergence, data[0].numel())
    if tolerance is None:
        tolerance = TOLERANCE * data[0].numel()
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}.")
    if probes < 1 or samples < 1:
        raise ValueError(f"probes and samples must be at least 1, got probes={probes}, samples={samples}.")
    flow = _Flow(model, labels, 0 if exact else probes, tolerance, generator)
    with frozen(model), residual_path(data.device):
        if dequantization is None:
            level_0 = model.schedule(data.new_zeros(data.shape[0]))
            # z_0 = alpha_0 x is one-to-one, so its density is that of x up to the Jacobian.
            log_p, error, solved = flow.log_prob(per_example(level_0.alpha, data) * data)
            log_p = log_p + data[0].numel() * level_0.alpha.log() + model.log_det(data)
            mean, stderr = log_p.mean(0), torch.zeros_like(log_p[0]) if exact else _spread(log_p)
        else:
            draw = _uniform if dequantization == "uniform" else _variational
            parts = [draw(flow, model, data, n, generator) for n in portions(samples, data.numel())]
            weights, error, solved = (torch.cat(part) for part in zip(*parts, strict=True))
            error, solved = error.mean(0), solved.all(0)
            mean, stderr = _combine(weights + model.log_det(data), importance=dequantization == "importance")
    kind = _PROBED_IMPORTANCE if dequantization == "importance" and not exact else _KINDS[dequantization]
    held = mean.isfinite()
    error, solved = torch.where(held, error, torch.full_like(error, math.inf)), solved & held
    if not solved.all():
        warnings.warn(_missed(mean, error, solved, tolerance), RuntimeWarning, stacklevel=3)
    stderr = torch.where(held, stderr, torch.full_like(stderr, math.nan))
    return LogLikelihood(mean, stderr, error, flow.evaluations, kind, data[0].numel(), solved)


def _missed(log_prob: Tensor, error: Tensor, solved: Tensor, tolerance: float) -> str:
    """The warning about examples that are not solved."""
    held, parts = log_prob.isfinite(), []
    if count := int((~solved & held).sum()):
        worst = error[~solved & held].max().item()
        parts.append(
            f"the solver's error is above the tolerance of {tolerance:g} nats for {count} of {len(solved)} examples, "
            f"{worst:.2g} nats at most"
        )
    if count := int((~held).sum()):
        parts.append(
            f"log_prob is nan or -inf for {count} of {len(solved)} examples, whose paths or sizes are too large"
        )
    return (
        f"In log_likelihood {'; and '.join(parts)}. Look at these examples, which may be far from the data; "
        "use float64, or train longer."
    )


def _dequantization(model: Process, name: str | None) -> str | None:
    discrete, levels = model.decoder.discrete, model.decoder.levels
    if name not in _KINDS:
        known = ", ".join(repr(k) for k in _KINDS if k)
        raise ValueError(f"There is no dequantization {name!r}; choose one of {known}.")
    if name == "uniform" and levels is None:
        raise ValueError("Uniform dequantisation is for K-level data, and this model's decoder is for continuous data.")
    return "variational" if name is None and discrete else name


def _is_exact(divergence: str, d: int) -> bool:
    if divergence not in ("auto", "exact", "hutchinson"):
        raise ValueError(f"There is no divergence {divergence!r}; choose one of 'auto', 'exact', 'hutchinson'.")
    return divergence == "exact" or (divergence == "auto" and d <= EXACT_UP_TO)


def _spread(estimates: Tensor) -> Tensor:
    """The standard error of the mean over the first axis, (B,); NaN for a single estimate."""
    n = estimates.shape[0]
    return estimates.std(0) / math.sqrt(n) if n > 1 else torch.full_like(estimates[0], math.nan)


def _combine(weights: Tensor, importance: bool) -> tuple[Tensor, Tensor]:
    """The bound and its standard error, (B,), from one log-weight per sample, (n, B)."""
    if not importance:
        return weights.mean(0), _spread(weights)
    log_mean = torch.logsumexp(weights, 0) - math.log(weights.shape[0])
    # The weights divided by their mean have mean 1, so their standard error is that of the logarithm to first order.
    return log_mean, _spread(torch.exp(weights - log_mean))


def portions(samples: int, numbers: int) -> list[int]:
    """The numbers of samples per example to process at a time, for a batch of so many numbers."""
    most = max(1, NUMBERS_AT_ONCE // max(1, numbers))
    return [min(most, samples - done) for done in range(0, samples, most)]


def _uniform(
    flow: _Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x + u) + d log(cell) for n draws of u, uniform over a level's cell, whose width is 2 / K, the solver's
    error, and whether it is within the tolerance, each (n, B).
    """
    assert model.decoder.levels is not None
    cell, rows = 2 / model.decoder.levels, tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    device = x.device if generator is None else generator.device
    u = torch.rand(rows.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    log_p, error, solved = flow.log_prob(per_example(level.alpha, rows) * (rows + cell * (u - 0.5)))
    log_p = log_p.mean(0) + x[0].numel() * (level.alpha.log() + math.log(cell))
    return log_p.reshape(n, -1), error.reshape(n, -1), solved.reshape(n, -1)


def _variational(
    flow: _Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(z_0) + log p(x | z_0) - log q(z_0 | x) for n draws of z_0 from q, the solver's error, and whether it is
    within the tolerance, each (n, B).
    """
    rows = tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    noise = normal_like(rows, generator)
    # z_0 = alpha_0 (x + gap)
    gap = model.transform(rows).displacement(level.gamma) + per_example(level.sigma / level.alpha, rows) * noise
    log_q = -((noise**2 + math.log(2 * math.pi)).flatten(1).sum(1) / 2 + x[0].numel() * level.sigma.log())
    # The mean over the probes: the bounds use one unbiased estimate per sample.
    log_p, error, solved = flow.log_prob(per_example(level.alpha, rows) * (rows + gap))
    log_p = log_p.mean(0) - model.decoder.nll(rows, gap, level.gamma) - log_q
    return log_p.reshape(n, -1), error.reshape(n, -1), solved.reshape(n, -1)


class _Flow:
    """The reverse ODE as a normalising flow, with a count of evaluations; ``probes=0`` is the exact divergence."""

    def __init__(
        self,
        model: Process,
        labels: Tensor | None,
        probes: int,
        tolerance: float,
        generator: torch.Generator | None,
    ) -> None:
        self.model = model
        self.labels = labels
        self.probes = probes
        self.tolerance = tolerance
        self.generator = generator
        self.low, self.high = model.schedule.end_points()
        self.evaluations = 0

    def log_prob(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(z_0), (probes or 1, B), one estimate per probe, for z_0 = ``z``, (B, \\*shape); its error, (B,); and
        whether that is within the tolerance, (B,). For a path that is not finite they are nan, infinite and false.

        The batch may contain several consecutive copies of the labelled batch.
        """
        labels = None if self.labels is None else tile(self.labels, z.shape[0] // self.labels.shape[0])
        probes = self._draw_probes(z)
        log_p = z.new_full((max(self.probes, 1), len(z)), math.nan)
        apart, rounding = z.new_full((len(z),), math.inf), z.new_zeros(len(z))
        first = steps = _first_steps(self.tolerance / z[0].numel())
        rows = torch.arange(len(z), device=z.device)
        while len(rows) and steps <= MOST_STEPS:
            labels_now = None if labels is None else labels[rows]
            found, now = self._solve(z[rows], labels_now, None if probes is None else probes[:, rows], steps)
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

    def _solve(self, z: Tensor, labels: Tensor | None, probes: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """log p(z_0) in ``steps`` steps, (columns, B), and its error from half as many, (B,); nan if not finite."""
        path, coarse = self._path(z, labels, steps), self._path(z, labels, steps // 2)
        gammas, step = self._gammas(z, 2 * steps), (self.high - self.low) / steps
        whole = [self._slope_and_growth(y, g, labels, probes) for y, g in zip(path, gammas[::2], strict=True)]
        between = [
            (y + after) / 2 + step * (slope - slope_after) / 8  # cubic interpolation, as accurate as the path
            for (y, after), ((slope, _), (slope_after, _)) in zip(pairwise(path), pairwise(whole), strict=True)
        ]
        half = [self._slope_and_growth(y, g, labels, probes) for y, g in zip(between, gammas[1::2], strict=True)]
        points, middles = (
            (self.high - self.low) * torch.stack([growth for _, growth in found]) for found in (whole, half)
        )  # (steps + 1, B, columns) and (steps, B, columns)
        total, error = integral_and_error(points, middles)
        # The difference of log N(z; 0, I) between the two end states, per dimension.
        change = ((path[-1] - coarse[-1]) * (path[-1] + coarse[-1]) / 2).flatten(1)
        # The two errors might cancel, so their signs are taken as random.
        apart = torch.maximum(change.sum(1).abs(), or_by_chance(change)) + error.mean(0)
        return _log_normal(path[-1]) + total, SAFETY * apart

    def _drift(self, z: Tensor, gamma: Tensor, labels: Tensor | None) -> Tensor:
        """dz/dgamma at z, (B, \\*shape), and gamma, (B,)."""
        return self.model.drift_at(z, self.model.schedule.level_at(gamma), labels, eta=0.0)

    def _slope_and_growth(
        self, z: Tensor, gamma: Tensor, labels: Tensor | None, probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """dz/dgamma at z and gamma, (B, \\*shape), and its divergence, (B, columns)."""

        def drift(y: Tensor) -> Tensor:
            return self._drift(y, gamma.expand(len(y)), labels)

        self.evaluations += 1
        return exact_divergence(drift, z) if probes is None else quadratic_forms(drift, z, probes)

    def _path(self, z: Tensor, labels: Tensor | None, steps: int) -> list[Tensor]:
        """z at gamma_0, ..., gamma_1 in ``steps`` equal steps, each (B, \\*shape)."""

        def drift(gamma: Tensor, y: Tensor) -> Tensor:
            self.evaluations += 1
            return self._drift(y, gamma, labels)

        return [z, *solve_fixed(drift, z, pairwise(self._gammas(z, steps)), "rk4")]

    def _gammas(self, z: Tensor, steps: int) -> Tensor:
        return torch.linspace(self.low, self.high, steps + 1, dtype=z.dtype, device=z.device)

    def _draw_probes(self, z: Tensor) -> Tensor | None:
        """The vectors e = +-1 of Hutchinson's estimates e^T (df/dz) e, (probes, B, \\*shape)."""
        if not self.probes:
            return None
        device = z.device if self.generator is None else self.generator.device
        signs = torch.randint(2, (self.probes, *z.shape), generator=self.generator, device=device)
        return (2 * signs - 1).to(z)


def _first_steps(tolerance: float) -> int:
    """The initial N (even) for a tolerance per dimension: the error decreases as N^-6, like that of the quadrature."""
    return min(max(6, 2 * round(STEPS / 2 * (TOLERANCE / tolerance) ** (1 / 6))), 96)


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (B, \\*shape) -> (B,)."""
    return -((z**2 + math.log(2 * math.pi)).flatten(1).sum(1)) / 2
