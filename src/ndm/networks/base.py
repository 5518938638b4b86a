"""How a network is called, and how it sees the noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ndm.parts import Part

__all__ = ["Backbone", "LevelFeatures"]


class Backbone(Part):
    """A network ``(z, u) -> output``, told the noise level as a number u of about [0, 1] and nothing else of diffusion.

    Built with ``level=False`` it is called as ``net(x)``; built with ``classes=K`` it is also given ``labels``.
    Any module that is called in the same way will do in its place.

    Shapes:
        z: (B, C, ...), u: (B,), labels: (B,) integers in [0, classes); the output is (B, heads * C, ...), the heads
        stacked along the first dimension after the batch's.
    """

    level: bool
    classes: int

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


class LevelFeatures(nn.Module):
    """The noise level as (u, sin(pi 2^k u), cos(pi 2^k u)), k = 0 ... octaves - 1, as VDM (arXiv 2107.00630) does.

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
        phases = torch.outer(u, math.pi * 2.0 ** torch.arange(self.octaves, dtype=u.dtype, device=u.device))
        return torch.cat([u[:, None], phases.sin(), phases.cos()], dim=1)

    def extra_repr(self) -> str:
        return f"octaves={self.octaves}"
