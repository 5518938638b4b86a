r"""The likelihood under the reverse ODE, a continuous normalising flow (method, section 5).

    log p(z_0) = log N(z_1; 0, I) + integral_0^1 div f(z_t, t) dt

with f the ODE's drift (Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, appendix D.2). The divergence is
computed exactly, by d backward passes, or estimated without bias by Hutchinson's probes (Grathwohl et al., arXiv
1810.01367).

The solver and the estimate of its error are in :mod:`ndm.inference.flow`. benchmarks/likelihood.py compares the cost
with that of another implementation.

For a model with a latent c (:mod:`ndm.method.latents`) the ODE has a density given c, and

    log p(x) >= E_{q(c | x)}[ log p(x | c) + log p(c) - log q(c | x) ].

The bound of :mod:`ndm.method.bounds` is that of the SDE, a different model of the same data; either value may be lower.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_labels
from ndm._internal.precision import residual_path
from ndm._internal.random import normal_like
from ndm.inference.flow import TOLERANCE, Flow, SolverCalibration, calibrate
from ndm.method import decoding
from ndm.method.conditionals import of_given_columns
from ndm.method.decoders import LevelDecoder
from ndm.method.process import Process, frozen
from ndm.method.schedules import per_example
from ndm.method.transforms.curve import tile

__all__ = ["LogLikelihood", "SolverCalibration", "calibrate_solver", "is_exact", "log_likelihood"]

DIVERGENCES = ("auto", "exact", "hutchinson")

#: Up to this many dimensions the divergence is exact by default, for vectors (rows of a table) and for other data. For
#: a row of 30 columns the probes' error is some nats. For images a pass of the network costs more.
EXACT_UP_TO, EXACT_UP_TO_OTHERS = 64, 16

#: Samples of dequantisation noise are batched up to this many numbers in z.
NUMBERS_AT_ONCE = 65536

_KINDS = {
    None: "density of the reverse ODE",
    "uniform": "lower bound on log p(x), uniform dequantisation",
    "variational": "lower bound on log p(x), z_0 from q(z_0 | x)",
    "importance": "lower bound on log p(x), importance-weighted over q(z_0 | x)",
}
#: Added for a model with a latent.
_LATENT = ", the latent c from q(c | x)"
_LATENT_ALONE = "lower bound on the log-density of the reverse ODE"
_PROBED_IMPORTANCE = "estimate of log p(x), importance-weighted over q(z_0 | x) with Hutchinson's probes: not a bound"


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: (B,), nats: a log-density in the data's original units, or for K-level data a lower bound on the
            log-probability; for a model with a latent, a lower bound on either.
        stderr: (B,), nats: the standard error of the Monte-Carlo parts (probes, dequantisation noise), estimated from
            their spread; 0 if nothing is random, NaN if there is only one sample.
        solver_error: (B,), nats: an estimate of the solver's error, averaged over samples, plus a bound on rounding
            errors. It covers the actual error of at least 95% of rows like the data, at two to ten times its median;
            with a calibration at two to five times (docs/results-speed.md). Infinite where log_prob is not finite.
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
    calibration: SolverCalibration | None = None,
) -> LogLikelihood:
    r"""The log-likelihood of each example under the reverse ODE.

    An example's result does not depend on the rest of the batch, except through its random numbers, and depends on the
    schedule only through its end points. One warning gives the number of examples not solved to the tolerance;
    ``solved`` of the result identifies them.

    Args:
        model: the model.
        x: data in original units, (B, \\*shape), as for ``model.bound``.
        divergence: ``exact`` (d backward passes), ``hutchinson``, or ``auto``: exact up to 64 dimensions of vectors
            and up to 16 of other data.
        probes: Rademacher probes for ``hutchinson``, each fixed along the path.
        dequantization: for K-level data ``uniform``, ``variational`` (the default there; z_0 from q(z_0 | x), which is
            tighter) or ``importance`` (tighter still as ``samples`` grows). For continuous data None, the density of
            x = z_0 / alpha_0 itself; ``variational`` and ``importance`` bound the density of the decoder's x instead,
            which suits a transformation with F(x, gamma_0) far from x. With ``importance`` and Hutchinson's probes the
            result is an estimate biased upwards and not a bound, since importance weights are exponentials of the
            probes' errors; ``kind`` says so.
        samples: the number of z_0 (or dequantised x), and of c for a model with a latent, drawn for each example.
        tolerance: nats: the number of steps of an example's path, which are even in gamma, is doubled (up to 768) until
            its solver_error is at most the tolerance, or at most the rounding error. By default 0.01 per dimension.
        labels: class labels, (B,), for a conditional denoiser; for a model with a latent c, (B, size), for
            log p(x | c).
        generator: for probes and dequantisation noise.
        calibration: of the solver's error for this model, from :func:`ndm.inference.likelihood.calibrate_solver`. It
            saves steps where there are many rows.

    Raises:
        ValueError: the divergence or dequantisation is unknown or does not fit the data, or the data are invalid.

    Warns:
        RuntimeWarning: some examples are not solved to the tolerance; the message says how many.
    """
    dequantization = _dequantization(model, dequantization)
    model, x, labels = of_given_columns(model, x, labels)
    data = model.to_model(x)
    labels = as_labels(model, labels, len(data))
    exact = is_exact(divergence, data.shape[1:])
    if tolerance is None:
        tolerance = TOLERANCE * data[0].numel()
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}.")
    if probes < 1 or samples < 1:
        raise ValueError(f"probes and samples must be at least 1, got probes={probes}, samples={samples}.")
    flow = Flow(model, labels, 0 if exact else probes, tolerance, generator, calibration)
    latent = model.latent is not None and labels is None
    with frozen(model), residual_path(data.device):
        if dequantization is None and not latent:
            log_p, error, solved = _of_density(flow, model, data)
            log_p = log_p + model.log_det(data)
            mean, stderr = log_p.mean(0), torch.zeros_like(log_p[0]) if exact else _spread(log_p)
        else:
            parts = [
                _drawn(flow, model, data, n, dequantization, latent, generator) for n in portions(samples, data.numel())
            ]
            weights, error, solved = (torch.cat(part) for part in zip(*parts, strict=True))
            error, solved = error.mean(0), solved.all(0)
            mean, stderr = _combine(weights + model.log_det(data), importance=dequantization == "importance")
    kind = _kind(dequantization, exact, latent)
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


def is_exact(divergence: str, shape: torch.Size) -> bool:
    """Whether the divergence is exact for examples of this shape.

    Raises:
        ValueError: the divergence is unknown.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"There is no divergence {divergence!r}; choose one of 'auto', 'exact', 'hutchinson'.")
    most = EXACT_UP_TO if len(shape) == 1 else EXACT_UP_TO_OTHERS
    return divergence == "exact" or (divergence == "auto" and shape.numel() <= most)


def calibrate_solver(
    model: Process, x: Values, *, divergence: str = "auto", tolerance: float | None = None, labels: bool = False
) -> SolverCalibration | None:
    """Measure the error of :func:`log_likelihood` for a model, on samples of the model.

    The result gives a closer ``solver_error`` and the number of steps that suits the model. It costs as much as about
    400 rows. It does not depend on the values of x.

    Args:
        model: the model.
        x: some of the data, (B, \\*shape), as for :func:`log_likelihood`.
        divergence: as for :func:`log_likelihood`.
        tolerance: as for :func:`log_likelihood`.
        labels: whether the denoiser is conditional on labels.

    Returns:
        The calibration; None for a divergence that is not exact, and for conditional models and those with a latent,
        which are not calibrated.

    Raises:
        ValueError: the divergence is unknown, or the data are invalid.
    """
    unconditional, data, given = of_given_columns(model, x, None)
    data = unconditional.to_model(data)
    if labels or given is not None or unconditional.latent is not None or not is_exact(divergence, data.shape[1:]):
        return None
    return calibrate(unconditional, data, TOLERANCE * data[0].numel() if tolerance is None else tolerance)


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


def _kind(dequantization: str | None, exact: bool, latent: bool) -> str:
    """What the log-likelihood is."""
    if dequantization == "importance" and not exact:
        return _PROBED_IMPORTANCE + (_LATENT if latent else "")
    if not latent:
        return _KINDS[dequantization]
    return (_LATENT_ALONE if dequantization is None else _KINDS[dequantization]) + _LATENT


def _drawn(
    flow: Flow,
    model: Process,
    x: Tensor,
    n: int,
    dequantization: str | None,
    latent: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x) from n draws of z_0 and, for a model with a latent, of c; the solver's error, and whether it is within
    the tolerance, each (n, B).
    """
    log_ratio = x.new_zeros(n, len(x))
    if latent:
        assert model.latent is not None
        draw = model.latent.draw(tile(x, n), generator)
        # One row of c for each copy of an example.
        flow.labels, log_ratio = draw.code, draw.log_ratio.reshape(n, -1)
    if dequantization is None:
        log_p, error, solved = _of_density(flow, model, tile(x, n))
        log_p, error, solved = log_p.mean(0).reshape(n, -1), error.reshape(n, -1), solved.reshape(n, -1)
    else:
        of = _uniform if dequantization == "uniform" else _variational
        log_p, error, solved = of(flow, model, x, n, generator)
    return log_p + log_ratio, error, solved


def _of_density(flow: Flow, model: Process, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x) in the model's units, (probes or 1, B), the solver's error, and whether it is within the tolerance."""
    level_0 = model.schedule(x.new_zeros(x.shape[0]))
    # z_0 = alpha_0 x is one-to-one, so its density is that of x up to the Jacobian.
    log_p, error, solved = flow.log_prob(per_example(level_0.alpha, x) * x)
    return log_p + x[0].numel() * level_0.alpha.log(), error, solved


def _uniform(
    flow: Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x + u) + d log(cell) for n draws of u, uniform over a level's cell, the solver's
    error, and whether it is within the tolerance, each (n, B).
    """
    assert isinstance(model.decoder, LevelDecoder)
    cell, rows = model.decoder.cell, tile(x, n)
    level = model.schedule(rows.new_zeros(rows.shape[0]))
    device = x.device if generator is None else generator.device
    u = torch.rand(rows.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    log_p, error, solved = flow.log_prob(per_example(level.alpha, rows) * (rows + cell * (u - 0.5)))
    log_p = log_p.mean(0) + x[0].numel() * (level.alpha.log() + math.log(cell))
    return log_p.reshape(n, -1), error.reshape(n, -1), solved.reshape(n, -1)


def _variational(
    flow: Flow, model: Process, x: Tensor, n: int, generator: torch.Generator | None
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
    log_p = log_p.mean(0) - decoding.nll(model, rows, gap, level, flow.tiled_labels(len(rows))) - log_q
    return log_p.reshape(n, -1), error.reshape(n, -1), solved.reshape(n, -1)
