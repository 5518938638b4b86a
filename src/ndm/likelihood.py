r"""The likelihood under the reverse ODE, a continuous normalising flow of its own (method, section 5).

    log p(z_0) = log N(z_1; 0, I) + integral_0^1 div f(z_t, t) dt

with f the ODE's drift (Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, appendix D.2). The divergence is
exact, by d backward passes, or by Hutchinson's probes without bias (Grathwohl et al., arXiv 1810.01367).

The path does not depend on the divergence, which costs most. So the path is solved by Runge and Kutta's method in N
equal steps, the divergence is taken at their ends and middles, and integrated by Gregory's formula. A path of N / 2
steps, and the divergence at the ends alone, tell the error; N is doubled for the examples for which that is too large.
What that costs, and what another implementation does, is in benchmarks/likelihood.py.

The bound of :mod:`ndm.bounds` is the SDE's, another model of the same data; neither has to lie below the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ndm.inputs import Values, as_labels
from ndm.noise import normal_like
from ndm.precision import residual_path
from ndm.process import Process, at_rest
from ndm.schedules import per_example
from ndm.solvers import solve_fixed
from ndm.transforms.curve import tile

__all__ = ["LogLikelihood", "log_likelihood"]

#: Up to this many dimensions the divergence is exact by default.
EXACT_UP_TO = 16

#: Samples of dequantisation noise are taken together up to this many numbers in a batch of z.
NUMBERS_AT_ONCE = 65536

#: Nats per dimension that N / 2 steps may be away by default.
TOLERANCE = 1e-2

#: N, the number of steps, at first where that is the tolerance; and at most.
STEPS, MOST_STEPS = 12, 768

#: Gregory's coefficients: of the differences of order 0, 1, ... at both ends of an integral by the trapezoidal rule.
_GREGORY = (1 / 2, 1 / 12, 1 / 24, 19 / 720, 3 / 160, 863 / 60480)

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
        log_prob: (B,), nats: a log-density in the data's own units, or for K-level data a lower bound on the
            log-probability.
        stderr: (B,), nats: the standard error of the Monte-Carlo parts (probes, dequantisation noise), estimated from
            their spread; 0 where nothing is random, NaN where one sample leaves no spread.
        solver_error: (B,), nats: how far the result of half as many steps is away, the mean over samples and probes.
            The error of log_prob itself is a small part of that where the steps resolve the path.
        nfe: how often the drift was evaluated, over all solves.
        kind: what log_prob is, in words.
        dimensions: d.
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    nfe: int
    kind: str
    dimensions: int

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

    An example's answer does not depend on what else is in the batch, except through the random numbers it is given.

    Args:
        model: the model.
        x: data in their own units, (B, \\*shape), as for ``model.bound``.
        divergence: ``exact`` (d backward passes), ``hutchinson``, or ``auto``: exact up to 16 dimensions.
        probes: Rademacher probes for ``hutchinson``, each fixed along the path.
        dequantization: for K-level data ``uniform``, ``variational`` (the default there; z_0 from q(z_0 | x), which is
            tighter) or ``importance`` (tighter still as ``samples`` grows). For continuous data None, the density of
            x = z_0 / alpha_0 itself; ``variational`` and ``importance`` bound the density of the decoder's x instead,
            which suits a transformation with F(x, gamma_0) far from x. Importance
            weights are exponentials, which turn the zero-mean error of Hutchinson's probes into a bias upwards: the
            result is then an estimate and no longer a bound, as ``kind`` says.
        samples: how many z_0 (or dequantised x) are drawn for each example.
        tolerance: nats: the number of steps of an example's path is doubled until half as many give a log_prob no
            farther away than that, or than rounding allows; up to 768. By default 0.01 a dimension, from 12 steps on.
        labels: class labels, (B,), for a conditional denoiser.
        generator: for probes and dequantisation noise.

    Raises:
        ValueError: an unknown divergence or dequantisation, one that does not fit the data, or data that do not pass
            the model's check.
        RuntimeError: the path of an example is not finite in however many steps.
    """
    dequantization = _dequantization(model, dequantization)
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
    with at_rest(model), residual_path(data.device):
        if dequantization is None:
            level_0 = model.schedule(data.new_zeros(data.shape[0]))
            # z_0 = alpha_0 x is one to one, so its density is x's but for the Jacobian.
            log_p, error = flow.log_prob(per_example(level_0.alpha, data) * data)
            log_p = log_p + data[0].numel() * level_0.alpha.log() + model.log_det(data)
            mean, stderr = log_p.mean(0), torch.zeros_like(log_p[0]) if exact else _spread(log_p)
        else:
            draw = _uniform if dequantization == "uniform" else _variational
            portions = [draw(flow, model, data, n, generator) for n in _portions(samples, data)]
            weights, error = (torch.cat(part) for part in zip(*portions, strict=True))
            error = error.mean(0)
            mean, stderr = _combine(weights + model.log_det(data), importance=dequantization == "importance")
    kind = _PROBED_IMPORTANCE if dequantization == "importance" and not exact else _KINDS[dequantization]
    return LogLikelihood(mean, stderr, error, flow.evaluations, kind, data[0].numel())


def _dequantization(model: Process, name: str | None) -> str | None:
    discrete = model.decoder.levels is not None
    if name not in _KINDS:
        known = ", ".join(repr(k) for k in _KINDS if k)
        raise ValueError(f"There is no dequantization {name!r}; choose one of {known}.")
    if name == "uniform" and not discrete:
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
    # The weights over their mean have mean 1: their standard error is that of the logarithm, to first order.
    return log_mean, _spread(torch.exp(weights - log_mean))


def _portions(samples: int, x: Tensor) -> list[int]:
    """How many samples of every example to take at a time: as many as are small enough together to be one batch."""
    most = max(1, NUMBERS_AT_ONCE // max(1, x.numel()))
    return [min(most, samples - done) for done in range(0, samples, most)]


def _uniform(
    flow: _Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """log p(x + u) + d log(cell) for n draws of u, uniform over a level's cell, whose width is 2 / K, and the solver's
    error, both (n, B).
    """
    assert model.decoder.levels is not None
    cell, rows = 2 / model.decoder.levels, tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    device = x.device if generator is None else generator.device
    u = torch.rand(rows.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    log_p, error = flow.log_prob(per_example(level.alpha, rows) * (rows + cell * (u - 0.5)))
    log_p = log_p.mean(0) + x[0].numel() * (level.alpha.log() + math.log(cell))
    return log_p.reshape(n, -1), error.reshape(n, -1)


def _variational(
    flow: _Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """log p(z_0) + log p(x | z_0) - log q(z_0 | x) for n draws of z_0 from q, and the solver's error, both (n, B)."""
    rows = tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    noise = normal_like(rows, generator)
    # z_0 = alpha_0 (x + gap)
    gap = model.transform(rows).displacement(level.gamma) + per_example(level.sigma / level.alpha, rows) * noise
    log_q = -((noise**2 + math.log(2 * math.pi)).flatten(1).sum(1) / 2 + x[0].numel() * level.sigma.log())
    # The mean over the probes: the bounds are made of one unbiased estimate per sample.
    log_p, error = flow.log_prob(per_example(level.alpha, rows) * (rows + gap))
    log_p = log_p.mean(0) - model.decoder.nll(rows, gap, level.gamma) - log_q
    return log_p.reshape(n, -1), error.reshape(n, -1)


class _Flow:
    """The reverse ODE as a normalising flow; ``probes`` 0 means the exact divergence. Counts its evaluations."""

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
        self.evaluations = 0

    def log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z_0), (probes or 1, B), one estimate per probe, for z_0 = ``z``, (B, \\*shape); and its error, (B,).

        The batch may be the labels' several times over, one copy after another.

        Raises:
            RuntimeError: the path of an example is not finite.
        """
        labels = None if self.labels is None else tile(self.labels, z.shape[0] // self.labels.shape[0])
        probes = self._draw_probes(z)
        log_p = z.new_full((max(self.probes, 1), len(z)), math.nan)
        error = z.new_full((len(z),), math.inf)
        rows, steps = torch.arange(len(z), device=z.device), _first_steps(self.tolerance / z[0].numel())
        while len(rows) and steps <= MOST_STEPS:
            labels_now = None if labels is None else labels[rows]
            found, apart = self._solve(z[rows], labels_now, None if probes is None else probes[:, rows], steps)
            closer = apart < error[rows]
            log_p[:, rows[closer]], error[rows[closer]] = found[:, closer], apart[closer]
            rounding = 32 * torch.finfo(z.dtype).eps * (log_p[:, rows].abs().amax(0) + z[0].numel())
            rows = rows[~(error[rows] <= rounding.clamp_min(self.tolerance))]  # nan is not
            steps *= 2
        if lost := int((~error.isfinite()).sum()):
            raise RuntimeError(
                f"The ODE solver gave up on {lost} of {len(z)} examples: in {MOST_STEPS} steps their paths are not "
                "finite, so the model's vector field is too rough, or not finite itself. Use float64, or train longer."
            )
        return log_p, error

    def _solve(self, z: Tensor, labels: Tensor | None, probes: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """log p(z_0) in so many steps, (columns, B), and how far half as many are away, (B,); nan where not finite."""
        path, coarse = self._path(z, labels, steps), self._path(z, labels, steps // 2)
        times = self._times(z, 2 * steps)
        whole = [self._slope_and_growth(y, t, labels, probes) for y, t in zip(path, times[::2], strict=True)]
        between = [
            (y + after) / 2 + (slope - slope_after) / (8 * steps)  # cubic, as exact as the path is
            for (y, after), ((slope, _), (slope_after, _)) in zip(pairwise(path), pairwise(whole), strict=True)
        ]
        half = [self._slope_and_growth(y, t, labels, probes) for y, t in zip(between, times[1::2], strict=True)]
        growth = torch.stack([growth for _, growth in whole])  # (steps + 1, B, columns)
        fine = growth.repeat_interleave(2, 0)[:-1]
        fine[1::2] = torch.stack([growth for _, growth in half])
        end, total = _log_normal(path[-1]), _integral(fine)
        # That the two errors might cancel is no reason for trust.
        apart = (end - _log_normal(coarse[-1])).abs() + (total - _integral(growth)).abs().mean(0)
        return end + total, apart

    def _slope_and_growth(
        self, z: Tensor, t: Tensor, labels: Tensor | None, probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The drift at z and t, (B, \\*shape), and its divergence, (B, columns)."""

        def drift(y: Tensor) -> Tensor:
            return self.model.drift(y, t.expand(len(y)), labels, eta=0.0)

        self.evaluations += 1
        return _exact_divergence(drift, z) if probes is None else _quadratic_forms(drift, z, probes)

    def _path(self, z: Tensor, labels: Tensor | None, steps: int) -> list[Tensor]:
        """z_t at 0, 1 / steps, ..., 1, each (B, \\*shape)."""

        def drift(t: Tensor, y: Tensor) -> Tensor:
            self.evaluations += 1
            return self.model.drift(y, t, labels, eta=0.0)

        times = self._times(z, steps)
        return [z, *solve_fixed(drift, z, pairwise(times), "rk4")]

    def _times(self, z: Tensor, steps: int) -> Tensor:
        return torch.linspace(0, 1, steps + 1, dtype=z.dtype, device=z.device)

    def _draw_probes(self, z: Tensor) -> Tensor | None:
        """The vectors e = +-1 of Hutchinson's estimates e^T (df/dz) e, (probes, B, \\*shape)."""
        if not self.probes:
            return None
        device = z.device if self.generator is None else self.generator.device
        signs = torch.randint(2, (self.probes, *z.shape), generator=self.generator, device=device)
        return (2 * signs - 1).to(z)


def _first_steps(tolerance: float) -> int:
    """N for a tolerance per dimension, even: the error falls with its sixth power, as that of the quadrature does."""
    return min(max(6, 2 * round(STEPS / 2 * (TOLERANCE / tolerance) ** (1 / 6))), 96)


def _integral(values: Tensor) -> Tensor:
    """The integral over [0, 1] of values at evenly spaced points, (N + 1, B, columns) -> (columns, B).

    Gregory's formula: the trapezoidal rule with corrections at both ends that make it exact for polynomials of fifth
    degree. In between all points count alike, which suits an integrand whose features may be anywhere.
    """
    n = len(values) - 1
    weights = values.new_ones(n + 1)
    for order, coefficient in enumerate(_GREGORY):
        for j in range(order + 1):
            change = coefficient * (-1) ** j * math.comb(order, j)
            weights[j] -= change
            weights[n - j] -= change
    return torch.einsum("n,nbk->kb", weights / n, values)


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (B, \\*shape) -> (B,)."""
    return -((z**2 + math.log(2 * math.pi)).flatten(1).sum(1)) / 2


def _exact_divergence(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and its divergence, (B, 1)."""
    basis = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)
    value, forms = _quadratic_forms(f, z, basis.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape))
    return value, forms.sum(1, keepdim=True)


def _quadratic_forms(f: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and v^T (df/dz) v for each of k directions v, (k, B, \\*shape) -> (B, k).

    In reverse mode: one evaluation of f serves all directions. Forward mode takes longer with every network of ours,
    and one batched backward pass is not faster than k of them (benchmarks/likelihood.py).
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = f(z)
        forms = [(v * torch.autograd.grad(value, z, v, retain_graph=True)[0]).flatten(1).sum(1) for v in directions]
    return value.detach(), torch.stack(forms, dim=1).detach()
