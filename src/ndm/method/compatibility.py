"""Whether the parts of a process fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndm._internal.inputs import known_classes, network_of
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.noise import LatentNoise
from ndm.method.transforms.learned import LearnedTransform

if TYPE_CHECKING:
    from ndm.method.process import Process

__all__ = ["check_fit"]


def check_fit(process: Process) -> None:
    """Raise a ValueError unless the parts of a process are compatible; the message says which are not."""
    process.denoiser.check_schedule(process.schedule)
    _check_transform(process)
    _check_noise(process)
    _check_latent(process)
    _check_decoder(process)


def _check_transform(process: Process) -> None:
    transform = process.transform
    if not isinstance(transform, LearnedTransform) or transform.gate != "anchored":
        return
    if getattr(process.schedule, "learn_endpoints", False):
        raise ValueError(
            'A transformation with gate="anchored" holds F(x, gamma_0) = x at a fixed gamma_0, but the schedule '
            'learns its end points; use gate="sigma2" or learn_endpoints=False.'
        )
    gamma_0 = process.schedule.end_points()[0]
    if transform.holds_elsewhere(gamma_0):
        raise ValueError(
            'A transformation with gate="anchored" holds F(x, gamma_0) = x at the low end of its gamma_range, '
            f"which is not the schedule's gamma_0 = {gamma_0:g}; leave gamma_range out or make them equal. "
            "(The first model that uses a transformation sets its range: create a new one for another model.)"
        )


def _check_noise(process: Process) -> None:
    if process.noise is not None and process.denoiser.conditional:
        raise ValueError(
            "A model of some columns given others has no learned noise: leave noise out, or train without given "
            "columns and conditionals."
        )
    if isinstance(process.noise, LatentNoise) and process.latent is None:
        raise ValueError("LatentNoise needs a latent: give the model latent=GaussianLatent(net, size).")


def _check_latent(process: Process) -> None:
    network, latent = network_of(process.denoiser), process.latent
    # The size is unknown for a network that is not of ndm.networks.
    size = getattr(network, "latent", None)
    if latent is None:
        if size:
            raise ValueError(
                f"The denoiser's network is given a latent of size {size}: give the model latent=GaussianLatent(net, "
                f"size={size}), or build the network with latent=0."
            )
        return
    if isinstance(process.denoiser, MixedDenoiser) or known_classes(process.denoiser):
        raise ValueError(
            "A model with class labels, with given columns, or of a table with columns of several kinds has no latent: "
            "leave latent out."
        )
    if size is not None and size != latent.size:
        raise ValueError(
            f"The latent has size {latent.size}, and the denoiser's network is given one of size {size}: build it with "
            f"latent={latent.size}."
        )


def _check_decoder(process: Process) -> None:
    encoding, decoder = process.standardize, process.decoder
    if decoder.denoised and process.denoiser.direct:
        raise ValueError("A decoder around the denoiser's estimate of x needs a Denoiser, not a DirectDenoiser.")
    if encoding is not None and decoder.levels is not None:
        raise ValueError("standardize is for continuous data only; K-level data are mapped to the decoder's levels.")
    if isinstance(encoding, TableEncoding) and (encoding.discrete != decoder.discrete or decoder.levels is not None):
        raise ValueError(
            f"A table with{'' if encoding.discrete else 'out'} categories, whole numbers or recurring values needs a "
            f"{'MixedDecoder' if encoding.discrete else 'GaussianDecoder'}, and the model has a "
            f"{type(decoder).__name__}."
        )
