"""The interface of networks, embeddings of the noise level and the class, and shared layers.

Under autocast matrix products run in half precision, except for three parts that need full precision: the features of
the noise level and of the image, whose small differences would be lost to rounding; the first layer applied to the
image, for the same reason (at the lowest noise levels of a likelihood model the noise is a thousandth of the pixel);
and the norms' variances.
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
    """A network ``(z, u) -> output`` with the noise level u in about [0, 1].

    With ``level=False`` it is called as ``net(x)``. With ``classes=K`` it also takes ``labels``, where label ``K``
    means "no class", as needed for classifier-free guidance (arXiv 2207.12598). This label has its own embedding,
    trained by the examples with that label. With ``latent=m`` the ``labels`` are the latent c of a model with a
    :class:`ndm.GaussianLatent`. Any module with the same signature can be used instead.

    Shapes:
        z: (B, C, ...), u: (B,), labels: (B,) integers in [0, classes], or (B, latent); the output is
        (B, heads * C, ...), the heads stacked along dimension 1. Under autocast the output may be in half precision.
    """

    level: bool
    classes: int
    latent: int = 0
    embed_level: LevelEmbedding | None
    embed_class: nn.Embedding | nn.Linear | None

    def _check_conditions(self, u: Tensor | None, labels: Tensor | None) -> None:
        name = type(self).__name__
        if self.level and u is None:
            raise ValueError(f"This {name} takes the noise level: call it as net(z, u), or build it with level=False.")
        if not self.level and u is not None:
            raise ValueError(f"This {name} was built with level=False: call it as net(x), without a noise level.")
        if self.classes and labels is None:
            raise ValueError(f"This {name} was built with classes={self.classes}: give it labels.")
        if self.latent and (labels is None or labels.shape[1:] != (self.latent,)):
            raise ValueError(
                f"This {name} was built with latent={self.latent}: give it the latent of each example as its labels, "
                f"(B, {self.latent})."
            )
        if not self.classes and not self.latent and labels is not None:
            raise ValueError(f"This {name} got labels but has no classes: build it with classes=K.")

    def _take_conditions(self, level: bool, classes: int, latent: int) -> None:
        """Set what the network is given besides z.

        Raises:
            ValueError: it has classes and a latent.
        """
        if classes and latent:
            raise ValueError(f"A {type(self).__name__} has classes or a latent, not both.")
        self.level, self.classes, self.latent = level, classes, latent

    def _build_embeddings(self, width: int) -> int:
        """Create the embeddings of the network's conditions; returns their width, 0 without conditions."""
        self.embed_level = LevelEmbedding(width) if self.level else None
        self.embed_class = self._class_embedding(width)
        return width if self.level or self.embed_class is not None else 0

    def _class_embedding(self, width: int) -> nn.Embedding | nn.Linear | None:
        """The embedding of the class or of the latent; None without either."""
        if self.latent:
            return nn.Linear(self.latent, width)
        return nn.Embedding(self.classes + 1, width) if self.classes else None

    def _condition(self, u: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """The conditioning vector of the blocks, (B or 1, width): the sum of the level's and the class's embeddings.

        It is (1, width) for a u that is one number expanded to (B,), without labels.
        """
        condition = None
        if self.embed_level is not None:
            assert u is not None
            # An expanded u is the noise level of all examples.
            condition = self.embed_level(u[:1] if u.stride(0) == 0 else u)
        if self.embed_class is not None:
            embedded = self.embed_class(labels)
            condition = embedded if condition is None else condition + embedded
        return condition


class LevelFeatures(nn.Module):
    """The noise level as (u, sin(pi 2^k u), cos(pi 2^k u)), k = 0 ... octaves - 1, in at least float32.

    The bound differentiates networks with respect to u, and the last octave multiplies that derivative by
    pi 2^(octaves - 1). The common positional embedding of 1000 u would multiply it by 1000.

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
    """Two layers applied to the noise level's features: (B,) -> (B, width)."""

    def __init__(self, width: int) -> None:
        features = LevelFeatures()
        super().__init__(features, nn.Linear(features.width, width), nn.SiLU(), nn.Linear(width, width))


class Norm(nn.Module):
    """Layer normalisation over the last dimension, with a learned scale and shift.

    ``nn.LayerNorm`` cannot be used in a network that is differentiated in forward mode: the derivative of its
    forward-mode derivative treats the variance as a constant and is silently wrong (pytorch issue 196700), and so would
    be the gradient of a bound that contains dF/d gamma. It is used outside forward mode because it is faster.
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        h = h.to(self.weight.dtype)  # under autocast h may be in half precision, too low for a variance
        if in_forward_mode():
            return normalized(h, self.epsilon) * self.weight + self.bias
        return nn.functional.layer_norm(h, h.shape[-1:], self.weight, self.bias, self.epsilon)


def normalized(h: Tensor, epsilon: float) -> Tensor:
    """Normalise h to mean 0 and variance 1 along its last dimension with elementary operations (see :class:`Norm`)."""
    centred = h - h.mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert x to single precision if it is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """layer(x) in the precision of the layer's weights, even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative is being computed."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def checkpointed(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(\\*inputs), recomputed in the backward pass instead of stored (arXiv 1604.06174).

    In forward mode the block is not checkpointed: the recomputation would lack the tangents, and PyTorch raises an
    error.
    """
    if in_forward_mode():
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False)
