r"""A latent variable of the model: its distribution given the data, and the forward and reverse process given it.

    p(x) = E_{p(c)}[ p(x | c) ],    p(c) = N(0, I),    q(c | x) = N( mean(x), diag(std(x)^2) )

The forward process q(z_t | x, c) may depend on c through its noise (:class:`ndm.LatentNoise`), and the reverse process
is given c. The bound has one more term (MuLAN, Sahoo et al., arXiv 2312.13236, section 3):

    -log p(x) <= KL( q(c | x) || p(c) ) + E_{q(c | x)}[ bound of -log p(x | c) ]

Since both processes have the same c, they have the same noise, and y depends on x through F alone. In the rest of the
package c takes the place of the class labels, (B, size).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ndm._internal.precision import run_network
from ndm._internal.random import Randomness, normal_like
from ndm.method.parts import Part

if TYPE_CHECKING:
    from ndm.method.process import Process

__all__ = ["GaussianLatent", "Latent", "LatentDraw", "given_latent"]

#: The largest absolute value of log std(x).
LIMIT = 5.0


class LatentDraw(NamedTuple):
    """A sample of c, and what the bounds need of it.

    Attributes:
        code: c, (B, size).
        kl: KL( q(c | x) || p(c) ), (B,), nats.
        log_ratio: log p(c) - log q(c | x) of the sample, (B,), nats.
    """

    code: Tensor
    kl: Tensor
    log_ratio: Tensor


class Latent(Part):
    """Base class of latent variables c with a prior p(c) and a distribution given the data, q(c | x).

    Args:
        size: the number of components of c.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"The size of a latent must be a whole number of at least 1, got {size!r}.")
        self.size = size

    @abstractmethod
    def draw(self, x: Tensor, generator: Randomness = None) -> LatentDraw:
        r"""Draw c from q(c | x) for x of shape (B, \*shape) in the model's units."""

    @abstractmethod
    def prior(self, n: int, like: Tensor, generator: Randomness = None) -> Tensor:
        """n samples of p(c), (n, size), on the device and in the precision of ``like``."""

    def extra_repr(self) -> str:
        return f"size={self.size}"


class GaussianLatent(Latent):
    r"""A latent c with p(c) = N(0, I) and a Gaussian q(c | x) from a network.

    The denoiser's network is given c (``latent=size`` of the networks in :mod:`ndm.networks`), and so is the noise of
    the forward process, if it is a :class:`ndm.LatentNoise`. MuLAN's latent is a subset of 50 elements; a Gaussian has
    exact reparametrised gradients and a closed divergence.

    Args:
        net: the encoder, called as net(x), x (B, \\*shape); returns 2 size features, (B, 2 size): the mean and log std.
        size: the number of components of c.

    Raises:
        ValueError: ``size`` is not a whole number of at least 1, or the network returns another shape.

    Example:
        >>> import torch, ndm
        >>> from ndm.networks import ResidualMLP
        >>> model = ndm.NDM(
        ...     ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, latent=4)),
        ...     noise=ndm.LatentNoise(ResidualMLP(4, level=False, outputs=3 * 2), (2,), terms=3),
        ...     latent=ndm.GaussianLatent(ResidualMLP(2, level=False, outputs=8), size=4),
        ... )
        >>> terms = model.bound(torch.randn(5, 2))
        >>> terms.total.shape, terms.latent.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__(size)
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""q(c | x): its mean and log std, both (B, size), for x of shape (B, \*shape) in the model's units.

        Raises:
            ValueError: the network returns another shape.
        """
        found = run_network(self.net, x)
        if found.shape != (len(x), 2 * self.size):
            raise ValueError(
                f"The network of a GaussianLatent of size {self.size} must return {2 * self.size} features, "
                f"{(len(x), 2 * self.size)}, and returned {tuple(found.shape)}."
            )
        mean, log_std = found.to(torch.promote_types(found.dtype, x.dtype)).chunk(2, 1)
        return mean, LIMIT * torch.tanh(log_std / LIMIT)

    def draw(self, x: Tensor, generator: Randomness = None) -> LatentDraw:
        mean, log_std = self(x)
        noise = normal_like(mean, generator)
        code = mean + log_std.exp() * noise
        kl = ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).sum(1) / 2
        log_ratio = ((noise**2 - code**2) / 2 + log_std).sum(1)
        return LatentDraw(code, kl, log_ratio)

    def prior(self, n: int, like: Tensor, generator: Randomness = None) -> Tensor:
        return normal_like(like.new_empty(n, self.size), generator)


def given_latent(
    process: Process, x: Tensor, labels: Tensor | None, generator: Randomness = None
) -> tuple[Tensor | None, LatentDraw | None]:
    r"""What the denoiser is given for data x, and the sample of c that it is.

    Args:
        process: the model.
        x: (B, \*shape), in the model's units.
        labels: class labels, (B,); or c, (B, size), for the process given c.
        generator: for c.

    Returns:
        The labels; or for a model with a latent, without labels, c from q(c | x), and the sample.
    """
    if process.latent is None or labels is not None:
        return labels, None
    draw = process.latent.draw(x, generator)
    return draw.code, draw
