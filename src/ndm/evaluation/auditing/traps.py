"""Warnings about known traps of likelihoods: units, precision, dropout, latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ndm._internal.precision import residual_path
from ndm._internal.random import normal_like
from ndm.data import Data
from ndm.evaluation.auditing.bounds import Part
from ndm.evaluation.per_example import device_of
from ndm.method.latents import given_latent
from ndm.method.process import frozen
from ndm.method.steps import ContinuousTime
from ndm.model import NDM

__all__ = ["require_labels", "warnings_about"]

#: Modules that differ in training mode; both classes are the base of all of their kind.
_OF_TRAINING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)

#: Number of examples that are looked at.
EXAMPLES = 64

#: The smallest number of weights from which their precision can be told.
WEIGHTS = 50

#: The noise level, sigma = alpha, at which the estimate of x is compared with x.
GAMMA = 0.0

#: The largest difference of the means of x and its estimate, in standard deviations of x.
BIAS = 0.5

#: The largest relative difference of two evaluations of the same input that can be rounding.
ROUNDING = 1e-3


def require_labels(model: NDM, data: Data, split: str) -> None:
    """Raise a ValueError if the network has classes and the data no labels."""
    if model.num_classes and data.labels(split) is None:
        raise ValueError(
            f"The network has {model.num_classes} classes and the {split} split has no labels: use data with labels, "
            "since the bound is that of an example given its class."
        )


def warnings_about(model: NDM, data: Data, part: Part, was_training: bool) -> list[str]:
    """The sentences of all traps that were found."""
    x, labels = part.examples[: min(EXAMPLES, len(part.examples))], part.labels
    labels = None if labels is None else labels[: len(x)].to(device_of(model))
    found = [*_of_units(model, data, x), *_of_precision(model)]
    if was_training and any(isinstance(module, _OF_TRAINING) for module in model.modules()):
        found.append(
            "The model was in training mode; the audit evaluates it in evaluation mode, without dropout: call "
            "model.eval() before model.bound."
        )
    return [*found, *_of_network(model, x.to(device_of(model)), labels)]


def _of_units(model: NDM, data: Data, x: Tensor) -> Iterator[str]:
    """Warnings about continuous images: latents, and values that are not in [-1, 1]."""
    if len(data.shape) != 3 or model.decoder.levels is not None:
        return
    if data.shape[0] not in (1, 3):
        yield (
            f"Examples of {data.shape[0]} channels are not pixels: if they are latents, the number is the density "
            "of the latents, which cannot be compared with that of images."
        )
        return
    low, high = x.min().item(), x.max().item()
    if low < 0:
        return
    # With x = (y + 1) / 2 the density of x is 2 times that of y for each dimension, so its -log is lower by log 2.
    if high <= 1:
        differs, bits = "lower by d log 2 nats than", 8
    else:
        differs, bits = "higher by d log 127.5 nats than", 0
    yield (
        f"The images are numbers from {low:.3g} to {high:.3g}, not from -1 to 1: their -log p is {differs} that of "
        f"pixels in [-1, 1]. For bits per dimension of 8-bit pixels add {bits} to nats / (d log 2); 7 is for [-1, 1]."
    )


def _of_precision(model: NDM) -> Iterator[str]:
    """Warnings about weights that are, or were, in half precision."""
    if torch.is_autocast_enabled(device_of(model).type):
        yield "The networks run in lower precision (autocast): the numbers to quote are those in single precision."
    half = {p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if half:
        yield (
            f"Some weights have half precision ({', '.join(sorted(map(str, half)))}): convert them with model.float(), "
            "and use a checkpoint in single precision."
        )
        return
    weights = [p.detach().flatten() for p in model.denoiser.parameters() if p.dtype in (torch.float32, torch.float64)]
    whole = torch.cat(weights) if weights else torch.zeros(0)
    whole = whole[(whole != 0) & (whole != 1)]
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        if len(whole) >= WEIGHTS and (whole.to(dtype).to(whole.dtype) == whole).all():
            yield (
                f"Every weight of the network is a number of {name}: the checkpoint was stored in half precision, "
                "which may cost some hundredths of a bit; compare with the weights in single precision, if they exist."
            )
            return


@torch.no_grad()
def _of_network(model: NDM, data: Tensor, labels: Tensor | None) -> Iterator[str]:
    """Warnings from the denoiser's estimates: whether they are random, and in the units of the data."""
    states = getattr(model.denoiser, "default_states", None)
    if states is not None and states(1) is not None:  # some columns given others, which the estimate needs
        return
    x = model.to_model(data, check=False)
    low, high = model.schedule.end_points()
    level = model.schedule(model.schedule.time_at(x.new_full((len(x),), min(max(GAMMA, low), high))))
    generator = torch.Generator(x.device).manual_seed(0)
    with frozen(model), residual_path(x.device):
        labels, _ = given_latent(model, x, labels, generator)
        value = ContinuousTime(level, torch.ones_like(level.gamma)).path_value(model.curve(x, labels))
        z = model.perturbed(x, value, normal_like(x, generator), level)
        first, second = (model.denoiser.estimate(z, level, labels).mean for _ in range(2))
    size = first.abs().max().item()
    if (first - second).abs().max().item() > ROUNDING * max(size, 1e-30):
        yield (
            "Two evaluations of the network on the same input differ: dropout is active, or it draws random numbers. "
            "Put the network into evaluation mode (net.eval()); a function is not reached by model.eval()."
        )
    if model.denoiser.direct or not first.isfinite().all():
        return
    bias = (first.double() - x.double()).mean().item()
    if abs(bias) > BIAS * max(x.double().std().item(), 1e-12):
        yield (
            f"At sigma = alpha the mean of the network's estimate of the data is {first.double().mean():.3g}, and that "
            f"of the data {x.double().mean():.3g}: the network may be for data of another scale, such as [0, 1] or "
            "[0, 255] in the place of [-1, 1]."
        )
