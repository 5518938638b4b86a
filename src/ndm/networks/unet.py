"""A U-Net for images, built from the blocks of diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from ndm.networks.base import Backbone, LevelFeatures, at_least_float32, checkpointed, in_forward_mode, normalized

__all__ = ["UNet"]


class UNet(Backbone):
    """The U-Net of DDPM (arXiv 2006.11239), and with one resolution that of VDM (arXiv 2107.00630, appendix B).

    It is diffusers' ``UNet2DModel`` with the noise level features of this package. VDM's network for CIFAR-10 is
    ``UNet(3, width=128, multipliers=(1,), blocks=32, attention="middle", fourier=(7, 8), groups=32, dropout=0.1)``; it
    adds z to its estimate of the noise, for which ``ndm.Denoiser(net, "v")`` has an equivalent: sigma z + alpha times
    the output.

    It can be differentiated in forward mode with respect to z and u, nested or under reverse mode. With attention this
    needs a kernel with such derivatives: ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        channels: channels of an image. In a configuration, null means those of the data, which `ndm train` fills in.
        width: channels at full resolution.
        multipliers: channels at each resolution in units of ``width``; each resolution is half the previous one.
        blocks: residual blocks per resolution on the way down; there is one more on the way up.
        heads: number of outputs of the image's shape, stacked along the channels.
        attention: where to use attention: false for nowhere; ``middle``, between the way down and the way up; a list of
            resolutions, counted from 0 (the full one), in addition to the middle; true for the lowest resolution and
            the middle.
        attention_heads: number of attention heads; must divide the channels where there is attention.
        level: whether the noise level is an input; if false, the network is called as ``net(x)``.
        classes: number of classes for a network with labels, else 0.
        latent: size of the latent of a model with one, which the network is given as its labels, else 0.
        groups: groups of every group normalisation; must divide the channels at each resolution.
        fourier: exponents n of the Fourier features sin(2^n pi z) and cos(2^n pi z) that are concatenated to the input
            of the first convolution. 256 levels in [-1, 1] are 2^-7 apart: adjacent levels differ by half a period at n
            = 7 and by a full period at n = 8, where the features show only the noise. VDM uses 7 and 8.
        zero_init: initialise the output to zero.
        dropout: fraction of hidden units dropped in training.
        checkpointing: recompute the activations inside the residual blocks in the backward pass instead of storing
            them.

    Raises:
        ValueError: ``channels`` is None, ``groups`` does not divide the channels at some resolution,
            ``attention_heads`` does not divide those where there is attention, or ``attention`` names a resolution that
            does not exist.

    Example:
        >>> import torch
        >>> net = UNet(channels=1, width=8, multipliers=(1, 2))
        >>> net(torch.randn(5, 1, 8, 8), torch.rand(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int | None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        heads: int = 1,
        attention: bool | Literal["middle"] | Sequence[int] = False,
        attention_heads: int = 1,
        level: bool = True,
        classes: int = 0,
        groups: int = 8,
        fourier: Sequence[int] = (),
        zero_init: bool = True,
        dropout: float = 0.0,
        checkpointing: bool = False,
        latent: int = 0,
    ) -> None:
        super().__init__()
        if channels is None:
            raise ValueError("UNet needs the number of channels of an image, as in channels=3.")
        widths = tuple(width * m for m in multipliers)
        if any(w % groups for w in widths):
            raise ValueError(f"groups={groups} must divide the channels at each resolution, which are {widths}.")
        attentive = _attentive(attention, len(widths))
        if attention is not False and any(widths[i] % attention_heads for i in {*attentive, len(widths) - 1}):
            raise ValueError(
                f"attention_heads={attention_heads} must divide the channels wherever there is attention; "
                f"those of the resolutions are {widths}."
            )
        self.channels = channels
        self._take_conditions(level, classes, latent)
        self.stride = 2 ** (len(widths) - 1)
        self.unet = UNet2DModel(
            in_channels=channels * (1 + 2 * len(fourier)),
            out_channels=heads * channels,
            block_out_channels=widths,
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if i in attentive else "DownBlock2D" for i in range(len(widths))),
            up_block_types=tuple("AttnUpBlock2D" if i in attentive else "UpBlock2D" for i in range(len(widths)))[::-1],
            downsample_type="conv",
            add_attention=attention is not False,
            attention_head_dim=None,
            norm_num_groups=groups,
            class_embed_type="identity" if latent else None,
            num_class_embeds=classes + 1 if classes else None,
            dropout=dropout,
        )
        self.unet.conv_in = _Input(self.unet.conv_in, fourier)
        features = LevelFeatures()
        self.unet.time_proj = features
        self.unet.time_embedding = TimestepEmbedding(features.width, 4 * widths[0])
        self.embed_latent = nn.Linear(latent, 4 * widths[0]) if latent else None
        for module in list(self.unet.modules()):
            for name, norm in module.named_children():
                if isinstance(norm, nn.GroupNorm):
                    setattr(module, name, _GroupNorm(norm.num_groups, norm.num_channels, norm.eps))
            if isinstance(module, Attention):  # built with one head over all channels
                module.heads = attention_heads
                module.scale = (module.inner_dim // attention_heads) ** -0.5
        if checkpointing:
            self.unet.enable_gradient_checkpointing(checkpointed)
        if zero_init:
            nn.init.zeros_(self.unet.conv_out.weight)
            nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, z: Tensor, u: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            z: (B, channels, H, W), H and W divisible by 2 ** (number of resolutions - 1).
            u: (B,) noise level, about [0, 1].
            labels: (B,) integers in [0, classes]; ``classes`` means no class; or the latent, (B, latent).

        Returns:
            (B, heads * channels, H, W).

        Raises:
            ValueError: z has another shape, or a condition is missing or unknown to the network.
        """
        self._check_conditions(u, labels)
        if z.ndim != 4 or z.shape[1] != self.channels or z.shape[2] % self.stride or z.shape[3] % self.stride:
            raise ValueError(
                f"This UNet takes images (B, {self.channels}, H, W) with H and W divisible by {self.stride}, "
                f"not a batch of shape {tuple(z.shape)}."
            )
        if u is None:  # the blocks require a level; a constant one acts as a learned bias
            u = z.new_zeros(len(z))
        if self.embed_latent is not None:
            labels = self.embed_latent(labels)
        return self.unet(z, u, class_labels=labels, return_dict=False)[0]


def _attentive(attention: bool | str | Sequence[int], resolutions: int) -> set[int]:
    """The resolutions with attention."""
    if attention is True:
        return {resolutions - 1}
    if attention is False or attention == "middle":
        return set()
    if not attention or not all(i in range(resolutions) for i in attention):
        raise ValueError(
            f"attention must be true, false, 'middle' or a list of resolutions from 0 to {resolutions - 1}, got "
            f"{attention!r}."
        )
    return {int(i) for i in attention}


class _Input(nn.Conv2d):
    """A convolution of z and its Fourier features, in full precision: low noise levels would be lost under autocast.

    The features are sin(2^n pi z) for every exponent n and then every channel, followed by the cosines in the same
    order.
    """

    def __init__(self, convolution: nn.Conv2d, fourier: Sequence[int]) -> None:
        # The weights are those of the replaced convolution; no weights are drawn only to be discarded.
        with torch.device("meta"):
            super().__init__(convolution.in_channels, convolution.out_channels, 3, padding=1)
        self.weight, self.bias = convolution.weight, convolution.bias
        self.fourier = tuple(fourier)

    def forward(self, z: Tensor) -> Tensor:
        inputs = [z]
        if self.fourier:
            z = at_least_float32(z)
            phases = torch.cat([2.0**n * math.pi * z for n in self.fourier], dim=1)
            inputs = [z, phases.sin(), phases.cos()]
        with torch.autocast(z.device.type, enabled=False):
            return super().forward(torch.cat(inputs, dim=1).to(self.weight.dtype))


class _GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of its weights, which can be differentiated in forward mode.

    Under autocast the input may be in half precision, too low for a variance.

    PyTorch's formula for the forward-mode derivative views the tangent as (B, groups, ...), which fails for the memory
    layouts produced by attention and ``channels_last``. With nested derivatives the tangent's layout is not accessible
    here, so the input is made contiguous; outside forward mode nothing is copied. When ``torch.compile`` traces a
    derivative the formula always fails, so elementary operations, which are fused, replace it.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if not in_forward_mode():
            return super().forward(x)
        if not torch.compiler.is_compiling():
            return super().forward(x.clone(memory_format=torch.contiguous_format))
        normed = normalized(x.reshape(len(x), self.num_groups, -1), self.eps).reshape(x.shape)
        per_channel = (-1, *[1] * (x.ndim - 2))
        return normed * self.weight.reshape(per_channel) + self.bias.reshape(per_channel)
