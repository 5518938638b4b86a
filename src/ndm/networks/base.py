"""How a network is called, how it sees the noise level and the class, and what several networks are made of.

Under autocast the matrix products run in half precision, and three things must not: the features of the noise level
and of the image, whose fine differences would round away, the layer that first meets the image, for the same reason
(at the low end of a likelihood model's noise levels the noise is a thousandth of the pixel), and the norms' variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ndm.method.parts import Part

__all__ = [
    "Backbone",
    "LevelEmbedding",
    "LevelFeatures",
    "Norm",
    "at_least_float32",
    "checkpointed",
    "in_forward_mode",
    "in_full_precision",
    "normalized",
]


class Backbone(Part):
    """A network ``(z, u) -> output``, told the noise level as a number u of about [0, 1] and nothing else of diffusion.

    Built with ``level=False`` it is called as ``net(x)``; built with ``classes=K`` it is also given ``labels``, of
    which ``K`` stands for no class: what a network needs to learn, and be asked for, to be guided without a classifier
    (arXiv 2207.12598). It has an embedding of its own, trained by the examples that are given it.
    Any module that is called in the same way will do in its place.

    Shapes:
        z: (B, C, ...), u: (B,), labels: (B,) integers in [0, classes]; the output is (B, heads * C, ...), the heads
        stacked along the first dimension after the batch's. Under autocast it may come in half precision.
    """

    level: bool
    classes: int
    embed_level: LevelEmbedding | None
    embed_class: nn.Embedding | None

    def _check_conditions(self, u: Tensor | None, labels: Tensor | None) -> None:
        name = type(self).__name__
        if self.level and u is None:
            raise ValueError(f"This {name} sees the noise level: call it as net(z, u), or build it with level=False.")
        if not self.level and u is not None:
            raise ValueError(f"This {name} was built with level=False: call it as net(x), without a noise level.")
        if self.classes and labels is None:
            raise ValueError(f"This {name} was built with classes={self.classes}: give it labels.")
        if not self.classes and labels is not None:
            raise ValueError(f"This {name} was given labels but knows no classes: build it with classes=K.")

    def _build_embeddings(self, width: int) -> int:
        """The embeddings of the conditions that the network knows, and their width: 0 if it knows none."""
        self.embed_level = LevelEmbedding(width) if self.level else None
        self.embed_class = nn.Embedding(self.classes + 1, width) if self.classes else None
        return width if self.level or self.classes else 0

    def _condition(self, u: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """What the blocks are told, (B, width): the sum of the level's and the class's embeddings."""
        condition = None
        if self.embed_level is not None:
            condition = self.embed_level(u)
        if self.embed_class is not None:
            embedded = self.embed_class(labels)
            condition = embedded if condition is None else condition + embedded
        return condition


class LevelFeatures(nn.Module):
    """The noise level as (u, sin(pi 2^k u), cos(pi 2^k u)), k = 0 ... octaves - 1, in float32 at least.

    The bound differentiates networks with respect to u, and the last octave multiplies that derivative by
    pi 2^(octaves - 1). The positional embedding of 1000 u, usual elsewhere, would multiply it by 1000.

    Shapes:
        u: (B,) -> (B, width), width = 1 + 2 octaves.
    """

    def __init__(self, octaves: int = 5) -> None:
        super().__init__()
        self.octaves = octaves
        self.width = 1 + 2 * octaves

    def forward(self, u: Tensor) -> Tensor:
        u = at_least_float32(u)[:, None]
        phases = u * (math.pi * 2.0 ** torch.arange(self.octaves, dtype=u.dtype, device=u.device))
        return torch.cat([u, phases.sin(), phases.cos()], dim=1)

    def extra_repr(self) -> str:
        return f"octaves={self.octaves}"


class LevelEmbedding(nn.Sequential):
    """The noise level's features through two layers: (B,) -> (B, width)."""

    def __init__(self, width: int) -> None:
        features = LevelFeatures()
        super().__init__(features, nn.Linear(features.width, width), nn.SiLU(), nn.Linear(width, width))


class Norm(nn.Module):
    """Layer normalisation over the last dimension, with a learned scale and shift.

    ``nn.LayerNorm`` will not do for a network that is differentiated in forward mode: the derivative of its
    forward-mode derivative takes the variance for a constant and is silently wrong (pytorch issue 196700), and so would
    be the gradient of a bound that contains dF/d gamma. Elsewhere it is used, for it is faster.
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        h = h.to(self.weight.dtype)  # under autocast h may come in half precision, too coarse for a variance
        if in_forward_mode():
            return normalized(h, self.epsilon) * self.weight + self.bias
        return nn.functional.layer_norm(h, h.shape[-1:], self.weight, self.bias, self.epsilon)


def normalized(h: Tensor, epsilon: float) -> Tensor:
    """h with mean 0 and variance 1 along its last dimension, in elementary operations (see :class:`Norm`)."""
    centred = h - h.mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)


def at_least_float32(x: Tensor) -> Tensor:
    """x, in single precision if it came in half."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """layer(x) in the precision of the layer's weights, whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative is being taken."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def checkpointed(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(\\*inputs), computed again in the backward pass rather than kept for it (arXiv 1604.06174).

    While a forward-mode derivative is being taken the block is computed as ever: computed again in the backward pass it
    would lack the tangents, and PyTorch refuses to go on.
    """
    if in_forward_mode():
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False)
