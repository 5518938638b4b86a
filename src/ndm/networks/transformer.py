"""A transformer for images."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ndm.networks.base import Backbone, checkpointed, in_full_precision, normalized

__all__ = ["ImageTransformer"]

_EPSILON = 1e-6  # of the norms, as in DiT


class ImageTransformer(Backbone):
    """The transformer of DiT (arXiv 2212.09748): an image's patches are its tokens.

    The conditions scale, shift and gate every block's two branches ("adaLN-Zero"); without conditions the scales,
    shifts and gates are learned constants. Positions are sines and cosines of a patch's row and column, computed for
    each image size, so any size is supported. The default is DiT-S/2.

    It can be differentiated in forward mode with respect to z and u, nested or under reverse mode, with an attention
    kernel that has such derivatives: ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        channels: channels of an image. In a configuration, null means those of the data, which `ndm train` fills in.
        patch: side of a patch, in pixels; the cost grows with the fourth power of 1 / patch.
        width: features of a token; divisible by 4 and by ``attention_heads``.
        depth: number of blocks.
        attention_heads: number of attention heads.
        heads: number of outputs of the image's shape, stacked along the channels.
        level: whether the noise level is an input; if false, the network is called as ``net(x)``.
        classes: number of classes for a network with labels, else 0.
        latent: size of the latent of a model with one, which the network is given as its labels, else 0.
        embedding: width of the embedding of the noise level and of the class.
        zero_init: initialise the blocks to the identity and the output to zero.
        dropout: fraction of hidden units dropped in training.
        checkpointing: recompute the activations inside the blocks in the backward pass instead of storing them.

    Raises:
        ValueError: ``channels`` is None, or ``width`` is not divisible by 4 and by ``attention_heads``.

    Example:
        >>> import torch
        >>> net = ImageTransformer(channels=1, patch=2, width=16, depth=2, attention_heads=2)
        >>> net(torch.randn(5, 1, 8, 8), torch.rand(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int | None,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        attention_heads: int = 6,
        heads: int = 1,
        level: bool = True,
        classes: int = 0,
        embedding: int = 256,
        zero_init: bool = True,
        dropout: float = 0.0,
        checkpointing: bool = False,
        latent: int = 0,
    ) -> None:
        super().__init__()
        if channels is None:
            raise ValueError("ImageTransformer needs the number of channels of an image, as in channels=3.")
        if width % 4 or width % attention_heads:
            raise ValueError(f"width must be divisible by 4 and by attention_heads={attention_heads}, got {width}.")
        self.channels, self.patch = channels, patch
        self._take_conditions(level, classes, latent)
        self.checkpointing = checkpointing
        conditions = self._build_embeddings(embedding)
        self.input = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.ModuleList(
            _Block(width, conditions, attention_heads, zero_init, dropout) for _ in range(depth)
        )
        self.modulation = _Modulation(conditions, 2, width, zero_init)
        self.output = nn.Linear(width, heads * channels * patch**2)
        if zero_init:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, z: Tensor, u: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            z: (B, channels, H, W), H and W divisible by ``patch``.
            u: (B,) noise level, about [0, 1].
            labels: (B,) integers in [0, classes]; ``classes`` means no class; or the latent, (B, latent).

        Returns:
            (B, heads * channels, H, W).

        Raises:
            ValueError: z has another shape, or a condition is missing or unknown to the network.
        """
        self._check_conditions(u, labels)
        if z.ndim != 4 or z.shape[1] != self.channels or z.shape[2] % self.patch or z.shape[3] % self.patch:
            raise ValueError(
                f"This ImageTransformer takes images (B, {self.channels}, H, W) with H and W divisible by "
                f"{self.patch}, not a batch of shape {tuple(z.shape)}."
            )
        condition = self._condition(u, labels)
        h = in_full_precision(self.input, z)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + _positions(rows, columns, h)
        for block in self.blocks:
            h = checkpointed(block, h, condition) if self.checkpointing else block(h, condition)
        shift, scale = self.modulation(condition)
        output = self.output((1 + scale) * normalized(h, _EPSILON) + shift)
        return nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)


def _positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """Sines and cosines of each patch's column, then of its row, (rows * columns, width), with DiT's frequencies.

    Args:
        rows: the number of rows of patches.
        columns: the number of columns of patches.
        like: a tensor (B, width, ...) with the required device and precision.
    """
    quarter = like.shape[1] // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, device=like.device, dtype=like.dtype) / quarter)
    row = torch.arange(rows, device=like.device, dtype=like.dtype)[:, None, None].expand(rows, columns, 1) * frequencies
    column = torch.arange(columns, device=like.device, dtype=like.dtype)[None, :, None] * frequencies
    column = column.expand(rows, columns, quarter)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=2).flatten(0, 1)


class _Modulation(nn.Module):
    """Vectors that scale, shift and gate tokens: linear in the conditions, or constants without conditions.

    Shapes:
        condition: (B, conditions) or None -> ``vectors`` tensors (B or 1, 1, width).
    """

    def __init__(self, conditions: int, vectors: int, width: int, zero_init: bool) -> None:
        super().__init__()
        self.vectors = vectors
        self.linear = nn.Linear(conditions, vectors * width) if conditions else None
        self.constants = None if conditions else nn.Parameter(0.5 * torch.randn(vectors * width))
        if zero_init:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, condition: Tensor | None) -> tuple[Tensor, ...]:
        if self.linear is None or condition is None:
            assert self.constants is not None
            vectors = self.constants[None]
        else:
            vectors = self.linear(nn.functional.silu(condition))
        return vectors[:, None].chunk(self.vectors, dim=2)


class _Block(nn.Module):
    """h + gate attention(h'), then h + gate MLP(h'), where h' = (1 + scale) norm(h) + shift.

    Shapes:
        h: (B, tokens, width) -> the same.
    """

    def __init__(self, width: int, conditions: int, attention_heads: int, zero_init: bool, dropout: float) -> None:
        super().__init__()
        self.modulation = _Modulation(conditions, 6, width, zero_init)
        self.attention = Attention(
            width, heads=attention_heads, dim_head=width // attention_heads, bias=True, dropout=dropout
        )
        self.layers = FeedForward(width, dropout=dropout, activation_fn="gelu-approximate")

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        shift, scale, gate, layers_shift, layers_scale, layers_gate = self.modulation(condition)
        h = h + gate * self.attention((1 + scale) * normalized(h, _EPSILON) + shift)
        return h + layers_gate * self.layers((1 + layers_scale) * normalized(h, _EPSILON) + layers_shift)
