"""The decoder of a process, with the denoiser's estimate at z_0 for decoders that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ndm._internal.precision import residual_path
from ndm.method.schedules import NoiseLevel, per_example

if TYPE_CHECKING:
    from ndm.method.process import Process

__all__ = ["decode", "expected_nll", "nll"]


def nll(process: Process, x: Tensor, gap: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
    """-log p(x | z_0), (B,) in nats.

    Args:
        process: the model.
        x: the data, (B, \\*shape).
        gap: z_0 / alpha_0 - x, (B, \\*shape), formed without cancellation.
        level: the noise level of z_0.
        labels: class labels, (B,).
    """
    z = per_example(level.alpha, x) * (x + gap)
    return process.decoder.nll(x, gap, level.gamma, **_given(process, z, level, labels))


def expected_nll(
    process: Process, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel, labels: Tensor | None = None
) -> Tensor:
    """E[-log p(x | z_0)] over q(z_0 | x), (B,) in nats; see :meth:`ndm.Decoder.expected_nll` for the arguments."""
    if not process.decoder.denoised:
        return process.decoder.expected_nll(x, displacement, noise, level)
    return nll(process, x, displacement + per_example(level.sigma / level.alpha, x) * noise, level, labels)


def decode(process: Process, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """The most likely x given z_0 = ``z``, both (B, \\*shape)."""
    level = process.schedule(z.new_zeros(len(z)))
    return process.decoder.decode(z, level, **_given(process, z, level, labels))


def _given(process: Process, z: Tensor, level: NoiseLevel, labels: Tensor | None) -> dict[str, Any]:
    """The further arguments of a decoder's methods at z_0."""
    if not process.decoder.denoised:
        return {}
    with residual_path(z.device):
        return {"estimate": process.denoiser.estimate(z, level, labels)}
