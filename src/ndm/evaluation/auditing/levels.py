r"""The bound in continuous time by noise level, and with other ends of the schedule (method, section 4).

    L_diff(gamma_0) = integral from gamma_0 to gamma_1 of l(gamma) d gamma

The networks are functions of gamma, so l does not depend on the schedule, and one pass gives the bound for every
gamma_0. Only the reconstruction depends on gamma_0 in addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from ndm._internal.precision import residual_path
from ndm._internal.random import normal_like, seed_of
from ndm.data.base import Examples
from ndm.evaluation.per_example import block_by_block, device_of
from ndm.method import decoding
from ndm.method.decoders import Decoder
from ndm.method.latents import given_latent
from ndm.method.schedules import NoiseLevel, Schedule
from ndm.model import NDM

__all__ = ["Profile", "between", "profile", "reconstructions"]

#: The largest number of samples of z_0 per example for the reconstruction.
SAMPLES = 20

#: Streams of random numbers.
_LEVELS, _ENDS = 11, 12


class _Between(Schedule):
    """The noise levels of another schedule between two of them, even in gamma."""

    def __init__(self, schedule: Schedule, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self._whole = (schedule,)  # in a tuple, so that it is not a submodule

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = torch.lerp(t.new_tensor(self.low), t.new_tensor(self.high), t)
        return gamma, torch.full_like(t, self.high - self.low)

    def level_at(self, gamma: Tensor, dgamma: Tensor | None = None) -> NoiseLevel:
        return self._whole[0].level_at(gamma, dgamma)


@contextmanager
def between(model: NDM, low: float, high: float) -> Iterator[None]:
    """Context manager that temporarily gives the model a schedule from gamma = ``low`` to ``high``.

    The other parts keep the mapping of gamma on which they were trained, so that no check is needed.
    """
    own = model.schedule
    nn.Module.__setattr__(model, "schedule", _Between(own, low, high))
    try:
        yield
    finally:
        nn.Module.__setattr__(model, "schedule", own)


@dataclass(frozen=True, eq=False)
class Profile:
    """The bound of N examples by noise level, in nats.

    Attributes:
        edges: the edges of the intervals of gamma, increasing, (P + 1,).
        density: unbiased estimates of the mean of l(gamma) of each example and interval, (N, P).
        prior: the prior term, (N,).
    """

    edges: Tensor
    density: Tensor
    prior: Tensor

    def diffusion(self, low: float, high: float | None = None) -> Tensor:
        """The diffusion term between two edges, by default up to the last, of each example, (N,)."""
        first = self._number(low)
        last = len(self.edges) - 1 if high is None else self._number(high)
        return self.density[:, first:last] @ self.edges.diff()[first:last]

    def _number(self, gamma: float) -> int:
        """The number of the edge nearest to gamma."""
        return int((self.edges - gamma).abs().argmin())


def profile(
    model: NDM,
    data: Examples,
    edges: Sequence[float],
    *,
    labels: Tensor | None = None,
    times: int,
    seed: int = 0,
    batch_size: int,
) -> Profile:
    r"""Compute the bound by noise level.

    In each interval every example is evaluated at about ``times`` / P levels, stratified, at least one. The work is
    shared as in :func:`ndm.evaluation.bound_per_example`.

    Args:
        model: the model.
        data: (N, \*shape).
        edges: the edges of the intervals, increasing, (P + 1,).
        labels: class labels, (N,).
        times: number of noise levels per example.
        seed: seed of the levels and the noise.
        batch_size: batch size; the noise depends on it.
    """
    levels = torch.tensor(edges, dtype=torch.float64)
    intervals, device, repeats = len(edges) - 1, device_of(model), max(1, times // (len(edges) - 1))
    low, whole = edges[0], edges[-1] - edges[0]

    def measure(block: int, x: Tensor, y: Tensor | None) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed_of(seed, block, _LEVELS))
        found = torch.zeros(len(x), intervals + 1, dtype=torch.float64, device=device)
        with between(model, low, edges[-1]):
            for p, r in product(range(intervals), range(repeats)):
                u = torch.rand(len(x), generator=generator, dtype=torch.float64, device=device)
                t = (edges[p] - low + (edges[p + 1] - edges[p]) * (r + u) / repeats) / whole
                terms = model.bound(x, None, labels=y, times=t, generator=generator, check=p == r == 0)
                found[:, p] += terms.diffusion.double() / whole / repeats
            found[:, intervals] = terms.prior.double()
        return found.cpu()

    with torch.no_grad():
        found = block_by_block(measure, data, labels, batch_size, device, columns=intervals + 1)
    return Profile(levels, found[:, :intervals], found[:, intervals])


def reconstructions(
    model: NDM,
    data: Examples,
    ends: Sequence[float],
    decoder: Decoder,
    *,
    labels: Tensor | None = None,
    times: int,
    seed: int = 0,
    batch_size: int,
) -> Tensor:
    r"""The reconstruction term with gamma_0 at each of the ends, (N, E), in nats, with the same noise for all.

    Args:
        model: the model, without learned noise.
        data: (N, \*shape).
        ends: the noise levels.
        decoder: the decoder; one around the denoised data must be the model's own.
        labels: class labels, (N,).
        times: number of samples of z_0 per example, of which 20 are enough.
        seed: seed of the noise.
        batch_size: batch size; the noise depends on it.
    """
    device, samples = device_of(model), min(times, SAMPLES)

    def measure(block: int, data: Tensor, y: Tensor | None) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed_of(seed, block, _ENDS))
        found = torch.zeros(len(data), len(ends), dtype=torch.float64, device=device)
        x = model.to_model(data)
        with residual_path(x.device):
            y, _ = given_latent(model, x, y, generator)
            curve = model.curve(x, y)
            levels = [model.schedule.level_at(x.new_full((len(x),), gamma)) for gamma in ends]
            shifts = [curve.displacement(level.gamma) for level in levels]
            for _ in range(samples):
                noise = normal_like(x, generator)
                for i, (level, shift) in enumerate(zip(levels, shifts, strict=True)):
                    if decoder is model.decoder:
                        nll = decoding.expected_nll(model, x, shift, noise, level, y)
                    else:
                        nll = decoder.expected_nll(x, shift, noise, level)
                    found[:, i] += (nll - model.log_det(x)).double() / samples
        return found.cpu()

    with torch.no_grad():
        return block_by_block(measure, data, labels, batch_size, device, columns=len(ends))
