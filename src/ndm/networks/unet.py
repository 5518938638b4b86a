"""A U-Net for images, made of the blocks of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from torch.autograd import forward_ad

from ndm.networks.base import Backbone, LevelFeatures

__all__ = ["UNet"]


class UNet(Backbone):
    """The U-Net of DDPM (arXiv 2006.11239): diffusers' ``UNet2DModel``, told the noise level by our own features.

    It can be differentiated in forward mode with respect to z and u, nested or under reverse mode. With attention that
    needs a kernel which has such derivatives: ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        channels: channels of an image.
        width: channels at full resolution.
        multipliers: channels at each resolution in units of ``width``; each resolution is half the one before.
        blocks: residual blocks per resolution.
        heads: how many outputs of the image's shape; they are stacked along the channels.
        attention: whether to attend at the lowest resolution (one head).
        level: whether the network sees the noise level; without, it is called as ``net(x)``.
        classes: number of classes if the network is given labels, else 0.
        groups: groups of every group normalisation; must divide the channels at each resolution.
        zero_init: start from an output of zero.
        dropout: share of hidden units dropped in training.

    Raises:
        ValueError: ``groups`` does not divide the channels at some resolution.

    Example:
        >>> import torch
        >>> net = UNet(channels=1, width=8, multipliers=(1, 2))
        >>> net(torch.randn(5, 1, 8, 8), torch.rand(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        heads: int = 1,
        attention: bool = False,
        level: bool = True,
        classes: int = 0,
        groups: int = 8,
        zero_init: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = tuple(width * m for m in multipliers)
        if any(w % groups for w in widths):
            raise ValueError(f"groups={groups} must divide the channels at each resolution, which are {widths}.")
        self.channels, self.level, self.classes = channels, level, classes
        self.stride = 2 ** (len(widths) - 1)
        plain = len(widths) - 1
        self.unet = UNet2DModel(
            in_channels=channels,
            out_channels=heads * channels,
            block_out_channels=widths,
            layers_per_block=blocks,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D" if attention else "DownBlock2D",),
            up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D",) + ("UpBlock2D",) * plain,
            downsample_type="conv",
            add_attention=attention,
            attention_head_dim=None,
            norm_num_groups=groups,
            num_class_embeds=classes or None,
            dropout=dropout,
        )
        features = LevelFeatures()
        self.unet.time_proj = features
        self.unet.time_embedding = TimestepEmbedding(features.width, 4 * widths[0])
        for module in self.unet.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_contiguous_in_forward_mode)
        if zero_init:
            nn.init.zeros_(self.unet.conv_out.weight)
            nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, z: Tensor, u: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            z: (B, channels, H, W), H and W divisible by 2 ** (number of resolutions - 1).
            u: (B,) noise level, about [0, 1].
            labels: (B,) integers in [0, classes).

        Returns:
            (B, heads * channels, H, W).

        Raises:
            ValueError: z has another shape, or a condition is missing or not one the network knows.
        """
        self._check_conditions(u, labels)
        if z.ndim != 4 or z.shape[1] != self.channels or z.shape[2] % self.stride or z.shape[3] % self.stride:
            raise ValueError(
                f"This UNet takes images (B, {self.channels}, H, W) with H and W divisible by {self.stride}, "
                f"not a batch of shape {tuple(z.shape)}."
            )
        if u is None:  # the blocks want a level: a constant one is a bias that they learn
            u = z.new_zeros(len(z))
        return self.unet(z, u, class_labels=labels, return_dict=False)[0]


def _contiguous_in_forward_mode(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Lay the input of a group normalisation out anew while a forward-mode derivative is being taken.

    PyTorch's formula for that derivative views the tangent as (B, groups, ...), which fails for the layouts that
    attention and ``channels_last`` leave behind. The tangent's layout cannot be seen from here when derivatives are
    nested, so we copy; outside forward mode nothing is copied.
    """
    if getattr(forward_ad, "_current_level", 0) < 0:
        return None
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
