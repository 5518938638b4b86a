r"""The likelihood under the reverse ODE, a continuous normalising flow of its own (method, section 5).

    log p(z_0) = log N(z_1; 0, I) + integral_0^1 div f(z_t, t) dt

with f the ODE's drift (Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, appendix D.2). The divergence is
exact, by d forward-mode derivatives, or by Hutchinson's probes without bias (Grathwohl et al., arXiv 1810.01367).
The bound of :mod:`ndm.bounds` is the SDE's, another model of the same data; neither has to lie below the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vmap

from ndm.noise import normal_like
from ndm.precision import residual_path
from ndm.process import Process, at_rest
from ndm.schedules import per_example
from ndm.solvers import solve_adaptive
from ndm.transforms.curve import tile

__all__ = ["LogLikelihood", "log_likelihood"]

#: Up to this many dimensions the divergence is exact by default.
EXACT_UP_TO = 16

#: Samples of dequantisation noise are taken together up to this many numbers in a batch of z.
NUMBERS_AT_ONCE = 65536

#: How many directional derivatives, of all examples together, the exact divergence takes at a time.
DIRECTIONS_AT_ONCE = 8192

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
            their spread; 0 where nothing is random, NaN where one sample leaves no spread. The solver's own error is
            not in it: that is what the tolerances are for.
        nfe: how often the drift was evaluated, over all solves.
        kind: what log_prob is, in words.
        dimensions: d.
    """

    log_prob: Tensor
    stderr: Tensor
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
    x: Tensor,
    *,
    divergence: str = "auto",
    probes: int = 4,
    dequantization: str | None = None,
    samples: int = 4,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    nodes: int | None = None,
) -> LogLikelihood:
    r"""The log-likelihood of each example under the reverse ODE.

    An example's answer does not depend on what else is in the batch, except through the random numbers it is given.

    Args:
        model: the model.
        x: data in their own units, (B, \\*shape), as for ``model.bound``.
        divergence: ``exact`` (d directional derivatives), ``hutchinson``, or ``auto``: exact up to 16 dimensions.
        probes: Rademacher probes for ``hutchinson``, each fixed along the path.
        dequantization: for K-level data ``uniform``, ``variational`` (the default there; z_0 from q(z_0 | x), which is
            tighter) or ``importance`` (tighter still as ``samples`` grows). For continuous data None, the density of
            x = z_0 / alpha_0 itself; ``variational`` and ``importance`` bound the density of the decoder's x instead,
            which suits a transformation with F(x, gamma_0) far from x. Importance
            weights are exponentials, which turn the zero-mean error of Hutchinson's probes into a bias upwards: the
            result is then an estimate and no longer a bound, as ``kind`` says.
        samples: how many z_0 (or dequantised x) are drawn for each example.
        rtol: relative tolerance of the adaptive solver.
        atol: absolute tolerance of the adaptive solver.
        labels: class labels, (B,), for a conditional denoiser.
        generator: for probes and dequantisation noise.
        nodes: take the divergence at so many Gauss-Legendre nodes of the path only, and not at every stage of every
            step, where it costs most of the time. The path does not depend on it; the tolerances are then the path's,
            and the integral of the divergence has the error of the quadrature, which they do not see: compare two
            numbers of nodes. 24 suit a trained model of a few dimensions.

    Raises:
        ValueError: an unknown divergence or dequantisation, one that does not fit the data, or data that do not pass
            the model's check.
        RuntimeError: the solver gave up.
    """
    dequantization = _dequantization(model, dequantization)
    data = model.to_model(x)
    exact = _is_exact(divergence, data[0].numel())
    if nodes is not None and nodes < 1:
        raise ValueError(f"nodes must be at least 1, or None, got {nodes}.")
    if probes < 1 or samples < 1:
        raise ValueError(f"probes and samples must be at least 1, got probes={probes}, samples={samples}.")
    flow = _Flow(model, labels, 0 if exact else probes, rtol, atol, generator, nodes)
    with at_rest(model), residual_path(data.device):
        if dequantization is None:
            level_0 = model.schedule(data.new_zeros(data.shape[0]))
            # z_0 = alpha_0 x is one to one, so its density is x's but for the Jacobian.
            log_p = flow.log_prob(per_example(level_0.alpha, data) * data)
            log_p = log_p + data[0].numel() * level_0.alpha.log() + model.log_det(data)
            mean, stderr = log_p.mean(0), torch.zeros_like(log_p[0]) if exact else _spread(log_p)
        else:
            draw = _uniform if dequantization == "uniform" else _variational
            weights = torch.cat([draw(flow, model, data, n, generator) for n in _portions(samples, data)])
            mean, stderr = _combine(weights + model.log_det(data), importance=dequantization == "importance")
    kind = _PROBED_IMPORTANCE if dequantization == "importance" and not exact else _KINDS[dequantization]
    return LogLikelihood(mean, stderr, flow.evaluations, kind, data[0].numel())


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


def _uniform(flow: _Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """log p(x + u) + d log(cell) for n draws of u, uniform over a level's cell, whose width is 2 / K: (n, B)."""
    assert model.decoder.levels is not None
    cell, rows = 2 / model.decoder.levels, tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    device = x.device if generator is None else generator.device
    u = torch.rand(rows.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    log_p = flow.log_prob(per_example(level.alpha, rows) * (rows + cell * (u - 0.5))).mean(0)
    return (log_p + x[0].numel() * (level.alpha.log() + math.log(cell))).reshape(n, -1)


def _variational(flow: _Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """log p(z_0) + log p(x | z_0) - log q(z_0 | x) for n draws of z_0 from q, (n, B)."""
    rows = tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    noise = normal_like(rows, generator)
    # z_0 = alpha_0 (x + gap)
    gap = model.transform(rows).displacement(level.gamma) + per_example(level.sigma / level.alpha, rows) * noise
    log_q = -((noise**2 + math.log(2 * math.pi)).flatten(1).sum(1) / 2 + x[0].numel() * level.sigma.log())
    # The mean over the probes: the bounds are made of one unbiased estimate per sample.
    log_p = flow.log_prob(per_example(level.alpha, rows) * (rows + gap)).mean(0)
    return (log_p - model.decoder.nll(rows, gap, level.gamma) - log_q).reshape(n, -1)


class _Flow:
    """The reverse ODE as a normalising flow; ``probes`` 0 means the exact divergence. Counts its evaluations."""

    def __init__(
        self,
        model: Process,
        labels: Tensor | None,
        probes: int,
        rtol: float,
        atol: float,
        generator: torch.Generator | None,
        nodes: int | None,
    ) -> None:
        self.model = model
        self.labels = labels
        self.probes = probes
        self.rtol = rtol
        self.atol = atol
        self.generator = generator
        self.nodes = nodes
        self.evaluations = 0

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z_0), (probes or 1, B), one estimate per probe, for z_0 = ``z``, (B, \\*shape).

        The batch may be the labels' several times over, one copy after another.
        """
        labels = None if self.labels is None else tile(self.labels, z.shape[0] // self.labels.shape[0])
        divergence = self._probed(z) if self.probes else _exact_divergence
        columns = max(self.probes, 1)
        d = z[0].numel()
        if self.nodes is not None:
            end, growth = self._at_nodes(z, labels, divergence, self.nodes)
            return _log_normal(end) + growth.T

        def drift(t: Tensor, state: Tensor) -> Tensor:
            now = state[:, :d].reshape(z.shape)
            f, div = divergence(lambda y: self.model.drift(y, t, labels, eta=0.0), now)
            return torch.cat([f.flatten(1), div], dim=1)

        start = torch.cat([z.flatten(1), z.new_zeros(z.shape[0], columns)], dim=1)
        solution = solve_adaptive(drift, start, 0.0, 1.0, self.rtol, self.atol)
        self.evaluations += solution.evaluations
        end = solution.states[-1]
        return _log_normal(end[:, :d]) + end[:, d:].T

    def _at_nodes(self, z: Tensor, labels: Tensor | None, divergence: Callable, nodes: int) -> tuple[Tensor, Tensor]:
        """z_1, (B, d), and the integral of the divergence along the path, (B, columns), by Gauss-Legendre."""
        places, weights = np.polynomial.legendre.leggauss(nodes)
        times = z.new_tensor((places + 1) / 2)

        def drift(t: Tensor, state: Tensor) -> Tensor:
            return self.model.drift(state.reshape(z.shape), t, labels, eta=0.0).flatten(1)

        solution = solve_adaptive(drift, z.flatten(1), 0.0, 1.0, self.rtol, self.atol, at=times)
        total = z.new_zeros(())
        for time, weight, state in zip(times, weights / 2, solution.states, strict=False):  # the last one is z_1
            t = time.expand(z.shape[0])
            _, div = divergence(lambda y, t=t: self.model.drift(y, t, labels, eta=0.0), state.reshape(z.shape))
            total = total + weight * div
        self.evaluations += solution.evaluations + nodes
        return solution.states[-1], total

    def _probed(self, z: Tensor) -> Callable:
        """Hutchinson's estimate, e^T (df/dz) e for fixed e = +-1."""
        device = z.device if self.generator is None else self.generator.device
        signs = torch.randint(2, (self.probes, *z.shape), generator=self.generator, device=device)
        e = (2 * signs - 1).to(z)

        def divergence(f: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
            value, along = _directional(f, y, e)
            return value, (e * along).flatten(2).sum(2).T

        return divergence


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (B, d) -> (B,)."""
    return -((z**2 + math.log(2 * math.pi)).sum(1)) / 2


def _exact_divergence(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and its divergence, (B, 1)."""
    d = z[0].numel()
    at_once = max(1, DIRECTIONS_AT_ONCE // z.shape[0])
    total = z.new_zeros(z.shape[0])
    value = z
    for directions in torch.eye(d, dtype=z.dtype, device=z.device).split(at_once):
        tangents = directions.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape)
        value, along = _directional(f, z, tangents)
        total = total + (tangents * along).flatten(2).sum((0, 2))
    return value, total[:, None]


def _directional(f: Callable[[Tensor], Tensor], z: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (B, \\*shape), and (df/dz) v for each of k tangents, (k, B, \\*shape)."""
    # With gradients switched off, some of torch's forward-mode formulas (SiLU's) cannot be differentiated once more, as
    # is needed where the drift itself contains dF/dgamma. Nothing is recorded: nothing here asks for a gradient.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.enable_grad():
        # Of the k copies of the value that vmap returns all are the same; it computes it once.
        values, along = vmap(lambda v: jvp(f, (z,), (v,))[:2])(tangents)
    return values[0], along
