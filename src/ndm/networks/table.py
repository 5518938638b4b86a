"""A table with one learned number per level, for a cheap learned transformation of K-level data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndm.networks.base import Backbone, at_least_float32

__all__ = ["LevelTable"]


class LevelTable(Backbone):
    """h(x) looked up by the level of each dimension separately: K learned numbers per head, with linear interpolation.

    In ``Separable`` it makes F an elementwise embedding of the levels as a function of the noise level. A pass needs
    one look-up per dimension, instead of hundreds of multiplications for other networks. The table is constant beyond
    the first and last levels.

    Args:
        levels: K, the number of levels: 2 (k + 1/2) / K - 1 for k = 0..K-1, as in the decoders.
        channels: channels of an image, each with its own table; 1 for one shared table.
        heads: number of outputs of the data's shape, stacked along the channels.
        beside: a network whose output, of the same shape, is added. It is called as beside(x) and may depend on all
            dimensions.

    Raises:
        ValueError: there are fewer than two levels.

    Example:
        >>> import torch
        >>> net = LevelTable(levels=256, heads=4)
        >>> net(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(self, levels: int = 256, channels: int = 1, heads: int = 1, beside: nn.Module | None = None) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}.")
        self.level, self.classes = False, 0
        self.levels, self.channels, self.heads = levels, channels, heads
        self.beside = beside
        self.values = nn.Parameter(torch.zeros(channels * levels, heads))

    def forward(self, x: Tensor, u: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Look up the learned numbers of x's levels.

        Args:
            x: (B, C, \\*rest), in [-1, 1]; C is ``channels``, or anything if that is 1.

        Returns:
            (B, heads * C, \\*rest).

        Raises:
            ValueError: a noise level or labels are given, the channels are not those of the table, or ``beside``
                returns another shape.
        """
        self._check_conditions(u, labels)
        if self.channels not in (1, x.shape[1]):
            raise ValueError(f"This LevelTable has tables for {self.channels} channels, not for {x.shape[1]}.")
        place = ((at_least_float32(x) + 1) * self.levels - 1) / 2
        place = place.clamp(0, self.levels - 1)
        below = place.detach().floor().clamp(max=self.levels - 2)
        part = (place - below).unsqueeze(-1)
        first = below.long()
        if self.channels > 1:
            offset = self.levels * torch.arange(self.channels, device=x.device)
            first = first + offset.reshape(-1, *[1] * (x.ndim - 2))
        low, high = (nn.functional.embedding(first + i, self.values) for i in (0, 1))
        found = torch.lerp(low, high, part.to(low)).movedim(-1, 1)  # (B, heads, C, *rest)
        found = found.flatten(1, 2)
        return found if self.beside is None else found + self._beside(x, found.shape)

    def _beside(self, x: Tensor, shape: torch.Size) -> Tensor:
        assert self.beside is not None
        output = self.beside(x)
        if output.shape != shape:
            raise ValueError(
                f"The network beside a LevelTable must return {self.heads} times the channels, shape {tuple(shape)}; "
                f"it returned shape {tuple(output.shape)}. Give both as many heads as Separable has terms."
            )
        return output
