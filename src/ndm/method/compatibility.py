"""Whether the parts of a process fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndm._internal.inputs import known_classes, network_of
from ndm.method.encoding import TableEncoding
from ndm.method.latents import Latent
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.noise import LatentNoise, Noise
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
    noise = process.noise
    wanted = (
        ("noise", noise, Noise, "DimensionNoise(shape)"),
        ("latent", process.latent, Latent, "GaussianLatent(net, size)"),
    )
    for name, part, kind, example in wanted:
        if part is not None and not isinstance(part, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, such as {example}, not a {type(part).__name__}.")
    if noise is not None and process.denoiser.conditional:
        raise ValueError(
            "A model of some columns given others has no learned noise: leave noise out, or train without given "
            "columns and conditionals."
        )
    if isinstance(noise, LatentNoise):
        if process.latent is None:
            raise ValueError("LatentNoise needs a latent: give the model latent=GaussianLatent(net, size).")
        _check_input(noise.net, "LatentNoise", process.latent)


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
    if known_classes(process.denoiser):
        raise ValueError(
            "A model with class labels has no latent: leave latent out, or build the network without classes."
        )
    if isinstance(process.denoiser, MixedDenoiser):
        raise ValueError(
            "A model of a table with categories, whole numbers, recurring or missing values, or with given columns, "
            "has no latent: leave latent out, or read all columns as real numbers, by ndm train --data.kinds numeric."
        )
    _check_level(getattr(latent, "net", None), type(latent).__name__)
    if size is not None and size != latent.size:
        raise ValueError(
            f"The latent has size {latent.size}, and the denoiser's network is given one of size {size}: build it with "
            f"latent={latent.size}."
        )


def _check_input(net: object, name: str, latent: Latent) -> None:
    """Raise a ValueError if a network of :mod:`ndm.networks` does not take the latent as its input."""
    _check_level(net, name)
    features = getattr(net, "features", latent.size)
    if features != latent.size:
        raise ValueError(
            f"The network of {name} takes {features} features, and the latent has {latent.size}: build it with "
            f"features={latent.size}."
        )


def _check_level(net: object, name: str) -> None:
    if getattr(net, "level", False) is True:
        raise ValueError(f"The network of {name} is not given the noise level: build it with level=False.")


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
