"""A residual MLP for points, tables and small images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ndm._internal.jacobians import jacobian_wanted, linearized
from ndm.networks.base import Backbone, Norm, in_forward_mode, in_full_precision, slope_of_silu

__all__ = ["ResidualMLP"]

#: Derivatives are propagated up to this many numbers at a time, which stay in a processor's cache.
AT_ONCE = 2**17


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
    ) -> None:
        super().__init__()
        if features is None:
            raise ValueError("ResidualMLP needs the number of features of an example, as in features=2.")
        if hidden is None:
            raise ValueError("ResidualMLP needs a width, as in hidden=128.")
        self.features, self.heads, self.level, self.classes = features, heads, level, classes
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
            labels: (B,) integers in [0, classes]; ``classes`` means no class.
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
        if jacobian_wanted(z) and context is None and self._is_fixed(condition):
            output = linearized(z, *self.with_jacobian(z.detach(), condition))
        else:
            h = in_full_precision(self.input, z if context is None else torch.cat([z, context.to(z)], 1))
            for block in self.blocks:
                h = block(h, condition)
            output = self.output(nn.functional.silu(self.norm(h)))
        if self.outputs is not None:
            return output
        return output.reshape(batch, self.heads * shape[0], *shape[1:])

    def _is_fixed(self, condition: Tensor | None) -> bool:
        """Whether the network is a function of z alone: nothing is trained, and all examples have one condition."""
        shared = condition is None or (len(condition) == 1 and not condition.requires_grad)
        return shared and not (self.training or in_forward_mode() or self.input.weight.requires_grad)

    @torch.no_grad()
    def with_jacobian(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The network's output and its derivatives with respect to z.

        The derivatives are propagated forwards, some directions at a time. They cost 0.6 of as many backward passes,
        because the factors of a block are computed once for all directions (benchmarks/likelihood.py).

        Args:
            z: (B, features).
            condition: the conditioning vector of all examples, (1, width); None without conditions.

        Returns:
            The output, (B, outputs), and its derivative with respect to each feature, (features, B, outputs).
        """
        h = self.input(z)
        blocks = []
        for block in self.blocks:
            assert isinstance(block, _Block)
            linear = _LinearizedBlock(block, h, condition)
            blocks.append(linear)
            h = linear.output
        last = _Normalized(h, self.norm.epsilon)
        inner = last.value * self.norm.weight + self.norm.bias
        slope = slope_of_silu(inner) * self.norm.weight
        columns = self.input.weight.T[:, None]  # (features, 1, hidden): the same for all examples
        derivatives = []
        for tangents in columns.split(max(1, AT_ONCE // h.numel())):
            for linear in blocks:
                tangents = linear.push(tangents)
            derivatives.append(last.push(tangents).mul_(slope) @ self.output.weight.T)
        return self.output(nn.functional.silu(inner)), torch.cat(derivatives)


class _Normalized:
    """The normalised h, (B, hidden), and its derivative."""

    def __init__(self, h: Tensor, epsilon: float) -> None:
        centred = h - h.mean(1, keepdim=True)
        self.scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + epsilon)  # (B, 1)
        self.value = centred * self.scale
        self.part = self.value / h.shape[1]

    def along(self, tangents: Tensor) -> Tensor:
        """The mean over the features of the value times each tangent, (k, B or 1, hidden) -> (k, B, 1)."""
        return (tangents * self.part).sum(-1, keepdim=True)

    def push(self, tangents: Tensor) -> Tensor:
        """The derivative of the value along tangents of h, (k, B or 1, hidden) -> (k, B, hidden)."""
        inner = torch.addcmul(tangents, self.along(tangents), self.value, value=-1)
        return inner.sub_(tangents.mean(-1, keepdim=True)).mul_(self.scale)


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


class _LinearizedBlock:
    """A block's output at h, (B, hidden), and its derivative, for one condition for all examples, (1, width) or None.

    Attributes:
        output: (B, hidden).
    """

    def __init__(self, block: _Block, h: Tensor, condition: Tensor | None) -> None:
        first, second = block.layers[0], block.layers[3]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        self.normalized = _Normalized(h, block.norm.epsilon)
        scale: Tensor = block.norm.weight
        shift: Tensor = block.norm.bias
        if block.modulation is not None:
            factor, offset = block.modulation(condition)[0].chunk(2)
            scale, shift = (1 + factor) * scale, (1 + factor) * shift + offset
        weight = first.weight * scale  # of the normalised h
        self.along = self.normalized.value @ weight.T
        inner = self.along + nn.functional.linear(shift, first.weight, first.bias)
        self.output = h + second(nn.functional.silu(inner))
        self.slope = slope_of_silu(inner) * self.normalized.scale
        self.first = weight - weight.mean(1, keepdim=True)  # with the derivative of the mean
        self.second = second.weight

    def push(self, tangents: Tensor) -> Tensor:
        """The derivative of the output along tangents of h, (k, B or 1, hidden) -> (k, B, hidden)."""
        along = self.normalized.along(tangents)
        inner = torch.addcmul(tangents @ self.first.T, along, self.along, value=-1).mul_(self.slope)
        start = tangents.expand_as(inner).flatten(0, 1)
        return torch.addmm(start, inner.flatten(0, 1), self.second.T).view_as(inner)
