"""A small convolutional network, for a learned transformation of images that is cheap relative to the denoiser."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ndm.networks.base import Backbone, in_full_precision

__all__ = ["ConvNet"]


class ConvNet(Backbone):
    """Convolutions at full resolution with smooth activations between them; the conditions scale and shift channels.

    There are no norms, skips or attention: every operation has forward-mode derivatives of any order, and the cost is
    that of the convolutions. With ``kernel=1`` it is one perceptron applied to every pixel. With ``patch=2`` it works
    on blocks of 2x2 pixels at half the resolution, where a layer with four times as many parameters needs the same
    number of operations, so it is much faster for the same number of parameters.

    Args:
        channels: channels of an image. In a configuration, null means those of the data, which `ndm train` fills in.
        width: channels between the convolutions.
        depth: number of convolutions, at least 2.
        kernel: kernel size, odd; the receptive field is ``depth * (kernel - 1) + 1`` pixels wide.
        heads: number of outputs of the image's shape, stacked along the channels.
        level: whether the noise level is an input; if false, the network is called as ``net(x)``.
        classes: number of classes for a network with labels, else 0.
        latent: size of the latent of a model with one, which the network is given as its labels, else 0.
        embedding: width of the embedding of the noise level and of the class.
        zero_init: initialise the output to zero.
        dropout: fraction of hidden units dropped in training.
        patch: side of the blocks whose pixels become channels before the first convolution (``pixel_unshuffle``) and
            pixels again after the last one.

    Raises:
        ValueError: ``channels`` is None, ``depth`` is below 2, ``kernel`` is not odd, or ``patch`` is not positive.

    Example:
        >>> import torch
        >>> net = ConvNet(channels=3, heads=4, level=False)
        >>> net(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 12, 8, 8])
    """

    def __init__(
        self,
        channels: int | None,
        width: int = 16,
        depth: int = 3,
        kernel: int = 3,
        heads: int = 1,
        level: bool = True,
        classes: int = 0,
        embedding: int = 64,
        zero_init: bool = True,
        dropout: float = 0.0,
        patch: int = 1,
        latent: int = 0,
    ) -> None:
        super().__init__()
        if channels is None:
            raise ValueError("ConvNet needs the number of channels of an image, as in channels=3.")
        if depth < 2:
            raise ValueError(f"depth must be at least 2, for an input and an output convolution, got {depth}.")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the output has the size of the image, got {kernel}.")
        if patch < 1:
            raise ValueError(f"patch, the side of a block in pixels, must be at least 1, got {patch}.")
        self.channels, self.patch = channels, patch
        self._take_conditions(level, classes, latent)
        conditions = self._build_embeddings(embedding)
        self.modulation = nn.Linear(conditions, 2 * width * (depth - 1)) if conditions else None
        padding = kernel // 2
        self.input = nn.Conv2d(channels * patch**2, width, kernel, padding=padding)
        self.hidden = nn.ModuleList(nn.Conv2d(width, width, kernel, padding=padding) for _ in range(depth - 2))
        self.output = nn.Conv2d(width, heads * channels * patch**2, kernel, padding=padding)
        self.dropout = nn.Dropout(dropout)
        if zero_init:
            for parameter in self.output.parameters():
                nn.init.zeros_(parameter)

    def forward(self, z: Tensor, u: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            z: (B, channels, H, W).
            u: (B,) noise level, about [0, 1].
            labels: (B,) integers in [0, classes]; ``classes`` means no class; or the latent, (B, latent).

        Returns:
            (B, heads * channels, H, W).

        Raises:
            ValueError: z has another shape, its sides are not divisible by ``patch``, or a condition is missing or
                unknown to the network.
        """
        self._check_conditions(u, labels)
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(
                f"This ConvNet takes images (B, {self.channels}, H, W), not a batch of shape {tuple(z.shape)}."
            )
        if z.shape[2] % self.patch or z.shape[3] % self.patch:
            raise ValueError(
                f"The sides of the images, {z.shape[2]} x {z.shape[3]}, are not divisible by patch={self.patch}."
            )
        h = in_full_precision(self.input, nn.functional.pixel_unshuffle(z, self.patch))
        modulations = self._modulations(self._condition(u, labels))
        for convolution, modulation in zip([*self.hidden, self.output], modulations, strict=True):
            if modulation is not None:
                scale, shift = modulation
                h = scale * h + shift
            h = convolution(self.dropout(nn.functional.silu(h)))
        return nn.functional.pixel_shuffle(h, self.patch)

    def _modulations(self, condition: Tensor | None) -> Sequence[tuple[Tensor, Tensor] | None]:
        """A scale and a shift, (B, width, 1, 1), for the input of each activation; None without conditions."""
        activations = len(self.hidden) + 1
        if self.modulation is None:
            return [None] * activations
        scales, shifts = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        return list(zip((1 + scales).chunk(activations, dim=1), shifts.chunk(activations, dim=1), strict=True))
