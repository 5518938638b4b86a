"""A residual MLP for points, tables and small images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ndm.networks.base import Backbone, Norm, in_full_precision

__all__ = ["ResidualMLP"]


class ResidualMLP(Backbone):
    """Residual blocks of two layers each; the noise level scales and shifts the input of each block.

    The blocks are pre-norm, as in transformers; the conditioning is that of FiLM (arXiv 1709.07871) and DiT (arXiv
    2212.09748).

    Args:
        features: number of features of one example, the product of its shape. In a configuration, null means that of
            the data, which `ndm train` fills in.
        hidden: width of the residual stream. In a configuration, null means a width that `ndm train` chooses from the
            number of features.
        depth: number of residual blocks.
        heads: number of outputs of the example's shape, stacked along dimension 1.
        level: whether the noise level is an input; if false, the network is called as ``net(x)``.
        classes: number of classes for a network with labels, else 0.
        latent: size of the latent of a model with one, which the network is given as its labels, else 0.
        embedding: width of the embedding of the noise level and of the class.
        zero_init: initialise the output to zero.
        dropout: fraction of hidden units dropped in training.
        outputs: number of outputs, (B, outputs); by default null, heads of the example's shape.
        context: number of further inputs, given as ``context``, (B, context).

    Raises:
        ValueError: ``features`` or ``hidden`` is None.

    Example:
        >>> import torch
        >>> net = ResidualMLP(features=2, hidden=32, heads=2)
        >>> net(torch.randn(5, 2), torch.rand(5)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        features: int | None,
        hidden: int | None = 128,
        depth: int = 3,
        heads: int = 1,
        level: bool = True,
        classes: int = 0,
        embedding: int = 64,
        zero_init: bool = True,
        dropout: float = 0.0,
        outputs: int | None = None,
        context: int = 0,
        latent: int = 0,
    ) -> None:
        super().__init__()
        if features is None:
            raise ValueError("ResidualMLP needs the number of features of an example, as in features=2.")
        if hidden is None:
            raise ValueError("ResidualMLP needs a width, as in hidden=128.")
        self.features, self.heads = features, heads
        self._take_conditions(level, classes, latent)
        conditions = self._build_embeddings(embedding)
        self.outputs, self.context = outputs, context
        self.input = nn.Linear(features + context, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, conditions, dropout) for _ in range(depth))
        self.norm = Norm(hidden)
        self.output = nn.Linear(hidden, heads * features if outputs is None else outputs)
        if zero_init:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(
        self, z: Tensor, u: Tensor | None = None, labels: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """The network's output.

        Args:
            z: (B, \\*shape), the product of shape being ``features``.
            u: (B,) noise level, about [0, 1].
            labels: (B,) integers in [0, classes]; ``classes`` means no class; or the latent, (B, latent).
            context: (B, context) further inputs, for a network built with them.

        Returns:
            (B, heads * shape[0], \\*shape[1:]), or (B, outputs) if that is given.

        Raises:
            ValueError: z has another number of features, or a condition is missing or unknown to the network.
        """
        self._check_conditions(u, labels)
        batch, *shape = z.shape
        if math.prod(shape) != self.features:
            raise ValueError(f"This ResidualMLP takes {self.features} features, not examples of shape {tuple(shape)}.")
        if (0 if context is None else context.shape[-1]) != self.context:
            raise ValueError(f"This ResidualMLP takes {self.context} further inputs as its context.")
        condition = self._condition(u, labels)
        z = z.reshape(batch, self.features)
        h = in_full_precision(self.input, z if context is None else torch.cat([z, context.to(z)], 1))
        for block in self.blocks:
            h = block(h, condition)
        output = self.output(nn.functional.silu(self.norm(h)))
        if self.outputs is not None:
            return output
        return output.reshape(batch, self.heads * shape[0], *shape[1:])


class _Block(nn.Module):
    """h + MLP((1 + scale) norm(h) + shift), with scale and shift linear in the conditions if there are any."""

    def __init__(self, hidden: int, conditions: int, dropout: float) -> None:
        super().__init__()
        self.norm = Norm(hidden)
        self.modulation = nn.Linear(conditions, 2 * hidden) if conditions else None
        self.layers = nn.Sequential(
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)
        )

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        inner = self.norm(h)
        if self.modulation is not None:
            scale, shift = self.modulation(condition).chunk(2, dim=1)
            inner = (1 + scale) * inner + shift
        return h + self.layers(inner)
