"""The models of a comparison."""

from __future__ import annotations

import math
from typing import Any

from bench import parameters
from torch import nn

import ndm
from ndm.data import Data
from ndm.networks import Backbone, ConvNet, LevelTable, ResidualMLP, UNet
from suite.settings import Comparison, Model

#: Relative difference that is allowed between a model's number of parameters and the reference's.
TOLERANCE = 0.005

#: Groups of a U-Net's normalisation, width of the embedding of the noise level in a transformation's network, and
#: terms of learned noise.
GROUPS, F_EMBEDDING, NOISE_TERMS = 2, 8, 3


def build(model: Model, comparison: Comparison, data: Data) -> ndm.NDM:
    """A model with initial weights from PyTorch's global generator."""
    if data.levels is None:
        rest: dict[str, Any] = {"decoder": ndm.GaussianDecoder(), "standardize": ndm.Standardize.fit(data.train)}
    else:
        rest = {"decoder": ndm.WeightedDecoder(data.levels)}
    # The order in which the parts draw their weights is schedule, transformation, denoiser.
    parts = _schedule(model), _transform(model, data), _denoiser(model, comparison, data.shape)
    rest |= {"volatility": ndm.LearnedVolatility() if model.volatility == "learned" else 1.0}
    return ndm.NDM(*parts, noise=_noise(model, data.shape), latent=_latent(model, data.shape), **rest)


def check_sizes(built: dict[str, ndm.NDM], comparison: Comparison) -> None:
    """Refuse models that do not have the numbers of parameters that they must have."""
    total = parameters(next(iter(built.values())))
    for name, model in built.items():
        wanted = comparison.models[name].size * total
        if abs(parameters(model) - wanted) > TOLERANCE * wanted:
            raise ValueError(
                f"{name} has {parameters(model):,} parameters, and must have {wanted:,.0f} to within {TOLERANCE:.1%}. "
                "Change its widths in suite.yaml."
            )


def _schedule(model: Model) -> ndm.Schedule:
    if model.schedule == "linear":
        return ndm.LinearSchedule(model.gamma_min, model.gamma_max)
    return ndm.LearnedSchedule(
        model.gamma_min, model.gamma_max, learn_endpoints=True, minimize_variance=model.minimize_variance
    )


def _transform(model: Model, data: Data) -> ndm.Transform:
    if model.transform == "identity":
        return ndm.Identity()
    if model.transform != "separable":
        raise ValueError(f"transform must be identity or separable, not {model.transform}.")
    net = _transform_net(model, data)
    return ndm.Separable(net, terms=model.terms, basis=model.basis, gate=model.gate)


def _transform_net(model: Model, data: Data) -> Backbone:
    mlp, size = None, (math.prod(data.shape), model.f_width, model.f_depth)
    if model.f_network.endswith("mlp"):
        mlp = ResidualMLP(*size, heads=model.terms, level=False, embedding=F_EMBEDDING)
    if model.f_network == "mlp":
        assert mlp is not None
        return mlp
    if data.levels is None:
        raise ValueError("A table needs data with levels, and these are continuous.")
    return LevelTable(data.levels, heads=model.terms, beside=mlp)


def _noise(model: Model, shape: tuple[int, ...]) -> ndm.Noise | None:
    if model.noise == "none":
        return None
    if model.noise == "dimension":
        return ndm.DimensionNoise(shape if len(shape) == 1 or shape[0] == 1 else (shape[0], *[1] * (len(shape) - 1)))
    if model.noise == "frequency":
        return ndm.FrequencyNoise(shape)
    if model.noise == "mlp":
        return ndm.LearnedNoise(ResidualMLP(math.prod(shape), model.noise_width, 0, heads=NOISE_TERMS, level=False))
    if model.noise == "conv":
        return ndm.LearnedNoise(ConvNet(shape[0], model.noise_width, heads=NOISE_TERMS, level=False))
    if model.noise == "latent":
        shape = (1, *shape[1:]) if len(shape) > 1 else shape
        outputs = NOISE_TERMS * math.prod(shape)
        net = ResidualMLP(model.latent, model.noise_width, 0, level=False, outputs=outputs)
        return ndm.LatentNoise(net, shape, NOISE_TERMS)
    raise ValueError(f"noise must be none, mlp, conv, dimension, frequency or latent, not {model.noise}.")


def _latent(model: Model, shape: tuple[int, ...]) -> ndm.GaussianLatent | None:
    if not model.latent:
        return None
    net = ResidualMLP(math.prod(shape), model.latent_width, 0, level=False, outputs=2 * model.latent)
    return ndm.GaussianLatent(net, model.latent)


def _denoiser(model: Model, comparison: Comparison, shape: tuple[int, ...]) -> ndm.Denoiser | ndm.DirectDenoiser:
    heads = 2 if model.direct == "ode" else 1
    if comparison.network == "mlp":
        size = math.prod(shape), model.denoiser[0], comparison.depth
        net: nn.Module = ResidualMLP(*size, heads=heads, embedding=model.embedding, latent=model.latent)
    else:
        net = UNet(
            shape[0], width=1, multipliers=model.denoiser, blocks=comparison.depth, heads=heads, groups=GROUPS,
            latent=model.latent,
        )  # fmt: skip
    return ndm.DirectDenoiser(net, ode=model.direct == "ode") if model.direct else ndm.Denoiser(net)
