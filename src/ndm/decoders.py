r"""Decoders p(x | z_0): from the least noisy z back to data, continuous or with K levels (method, section 3)."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ndm.parts import Part
from ndm.schedules import NoiseLevel, per_example

__all__ = ["Decoder", "DiscretizedDecoder", "GaussianDecoder", "WeightedDecoder"]


class Decoder(Part):
    """Base of the decoders.

    Attributes:
        levels: K for K-level data, None for continuous data.
    """

    levels: int | None = None

    @abstractmethod
    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        """-log p(x | z_0), (B,) in nats.

        Args:
            x: the data, (B, \\*shape).
            gap: z_0 / alpha_0 - x, (B, \\*shape), formed without cancellation.
            gamma_0: the noise level of z_0, (B,).
        """

    def expected_nll(self, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """E[-log p(x | z_0)] over q(z_0 | x), (B,) in nats: the bound's L_rec; here by one sample of z_0.

        Args:
            x: the data, (B, \\*shape).
            displacement: F(x, gamma_0) - x, (B, \\*shape).
            noise: standard normal, (B, \\*shape).
            level: the noise level of z_0.
        """
        return self.nll(x, displacement + per_example(level.sigma / level.alpha, x) * noise, level.gamma)

    @abstractmethod
    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        """The most likely x given z_0, (B, \\*shape)."""

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless x, (B, \\*shape), is data that this decoder can give a probability to."""
        if not torch.isfinite(x).all():
            raise ValueError("The data contain NaN or infinite values; remove or replace them.")

    def encode(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Integer data to the numbers the model works on, in the precision ``dtype`` (torch's default if None).

        Raises:
            ValueError: the decoder is for continuous data, or a value is not one of its levels.
        """
        raise ValueError(
            f"{type(self).__name__} is for continuous data and got integers ({values.dtype}): pass "
            "floating-point data, or use DiscretizedDecoder(levels=K)."
        )


class GaussianDecoder(Decoder):
    """p(x | z_0) = N(x; z_0 / alpha_0, e^{gamma_0} I), for continuous data.

    E[-log p(x | z_0)] = d/2 (log 2 pi + gamma_0 + 1) + ||F(x, gamma_0) - x||^2 / (2 e^{gamma_0}), in closed form.
    """

    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        d = x[0].numel()
        return d / 2 * (math.log(2 * math.pi) + gamma_0) + self._square(gap, gamma_0)

    def expected_nll(self, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        # The noise adds its expected square, d e^{gamma_0}, to that of the displacement.
        return self.nll(x, displacement, level.gamma) + x[0].numel() / 2

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        return z / per_example(level.alpha, z)

    @staticmethod
    def _square(gap: Tensor, gamma_0: Tensor) -> Tensor:
        return (gap**2).flatten(1).sum(1) / (2 * gamma_0.exp())


class DiscretizedDecoder(Decoder):
    """p(x | z_0), a product over dimensions of a softmax over K levels with logits -(z_0/alpha_0 - level)^2 / (2
    e^{gamma_0}).

    The levels are 2 (k + 1/2) / K - 1 for k = 0..K-1: VDM, arXiv 2107.00630, equation 8 and appendix A. Of the K logits
    those are left out that would change nothing: with Delta = 2 / K, a level m + 1 or more places from the nearest one
    has e^{-m (m + 1) Delta^2 / (2 e^{gamma_0})} of its probability at most, which is made less than the arithmetic can
    see. With K = 256 and float32 this leaves 3 levels at gamma_0 = -13.3, 15 at -10, 103 at -6.

    Args:
        levels: K: 256 for 8-bit pixels.
        chunk: how many times K logits are held at a time. The logits are made again in the backward pass, so memory is
            ``chunk`` times K whatever the size of the batch.

    Raises:
        ValueError: there are fewer than two levels.
    """

    def __init__(self, levels: int = 256, chunk: int = 65536) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"Discretised data have at least 2 levels, got levels={levels}.")
        self.levels: int = levels
        self.chunk = chunk

    def level_values(self, like: Tensor) -> Tensor:
        """The K levels in [-1, 1], (K,), in the precision and on the device of ``like``."""
        k = torch.arange(self.levels, device=like.device, dtype=like.dtype)
        return (2 * k + 1) / self.levels - 1

    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        window = self._window(gamma_0)
        at_once = max(1, self.chunk * self.levels // window)
        gamma_0 = per_example(gamma_0, gap).expand_as(gap)
        flat = x.flatten(), gap.flatten(), gamma_0.flatten()
        if gap.numel() <= at_once:
            return self._nll(*flat, window).reshape(gap.shape).flatten(1).sum(1)
        pieces = zip(*(a.split(at_once) for a in flat), strict=True)
        nll = torch.cat([checkpoint(self._nll, *piece, window, use_reentrant=False) for piece in pieces])
        return nll.reshape(gap.shape).flatten(1).sum(1)

    def _window(self, gamma_0: Tensor) -> int:
        """How many levels, around the one nearest to z_0 / alpha_0, have a probability that can be seen."""
        unseen = self._spread() - 2 * math.log(torch.finfo(gamma_0.dtype).eps)  # K of them: eps^2 K is far below eps
        squares = 2 * math.exp(gamma_0.detach().max().item()) * unseen / (2 / self.levels) ** 2
        m = math.ceil((math.sqrt(1 + 4 * squares) - 1) / 2) if math.isfinite(squares) else self.levels
        return min(2 * m + 1, self.levels)

    def _spread(self) -> float:
        """By how much the logits of two levels may differ but for their distances from z_0."""
        return 0.0

    def _places(self, near: Tensor, window: int) -> Tensor:
        """The indices of the levels around these values, (N,): (N, window)."""
        first = (self.nearest(near) - window // 2).clamp(0, self.levels - window)
        return first[:, None] + torch.arange(window, device=near.device)

    def _nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor, window: int) -> Tensor:
        """-log p(x | z_0) per dimension, (N,)."""
        return torch.logsumexp(self._logits(x, gap, gamma_0, self._places(x + gap.detach(), window)), dim=1)

    def _logits(self, x: Tensor, gap: Tensor, gamma_0: Tensor, places: Tensor) -> Tensor:
        """log p(level | z_0) - log p(x | z_0) of the levels at these places, (N, window)."""
        # z_0/alpha_0 - level = gap + (x - level), and x - level is a whole number of levels; relative to x's own level
        # the square of gap drops out: the difference of logits is -(step^2 + 2 step gap) / (2 e^{gamma_0}), with
        # step = x - level.
        step = (places - self.nearest(x)[:, None]).to(x.dtype) * (-2 / self.levels)
        return -step * (step + 2 * gap[:, None]) / (2 * gamma_0.exp()[:, None])

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        return self.level_values(z)[self.nearest(z / per_example(level.alpha, z))]

    def nearest(self, x: Tensor) -> Tensor:
        """The index k, 0..K-1, of the level nearest to x, an integer tensor of the same shape."""
        return torch.floor((x + 1) / 2 * self.levels).clamp(0, self.levels - 1).long()

    def encode(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        values = values.long()  # a comparison of uint8 with 256 would wrap
        if values.numel() and (values.min() < 0 or values.max() >= self.levels):
            raise ValueError(
                f"The data have integer values from {values.min().item()} to {values.max().item()}, but the decoder "
                f"has K = {self.levels} levels, 0 to {self.levels - 1}; use DiscretizedDecoder(levels="
                f"{int(values.max()) + 1}) or rescale the data."
            )
        return self.level_values(torch.empty(0, device=values.device, dtype=dtype))[values]

    def check(self, x: Tensor) -> None:
        super().check(x)
        off = (x - self.level_values(x)[self.nearest(x)]).abs().max() if x.numel() else 0.0
        if off > 0.01 / self.levels:
            raise ValueError(
                f"The data do not lie on the decoder's K = {self.levels} levels, 2 (k + 1/2)/{self.levels} - 1 for "
                f"k = 0..{self.levels - 1} (the farthest value is {float(off):.3g} away from one). "
                "Pass integers 0..K-1, which are put there, or use GaussianDecoder for continuous data."
            )


class WeightedDecoder(DiscretizedDecoder):
    """:class:`DiscretizedDecoder` with a learned weight of each level: logits log w_k - (z_0/alpha_0 - level)^2 / (2
    e^{gamma_0}).

    With F = x and w_k the frequency of level k this is the posterior of a pixel given its own z_0 (Bayes' rule), the
    best that a decoder can do that looks at one dimension at a time and does not ask which; equal weights take all
    levels for equally frequent. It makes a higher gamma_0 cheap for data that use few of their levels. The weights
    begin equal and are trained on the bound.

    Args:
        levels: K: 256 for 8-bit pixels.
        chunk: how many times K logits are held at a time.

    Attributes:
        log_weights: log w_k but for a constant, (K,).

    Raises:
        ValueError: there are fewer than two levels.
    """

    def __init__(self, levels: int = 256, chunk: int = 65536) -> None:
        super().__init__(levels, chunk)
        self.log_weights = nn.Parameter(torch.zeros(levels))

    def _spread(self) -> float:
        low, high = self.log_weights.detach().aminmax()
        return (high - low).item()

    def _logits(self, x: Tensor, gap: Tensor, gamma_0: Tensor, places: Tensor) -> Tensor:
        weights = self.log_weights.to(x.dtype)
        here = weights[self.nearest(x)][:, None]
        return super()._logits(x, gap, gamma_0, places) + weights[places] - here

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        """The most likely x given z_0, (B, \\*shape): not always the level nearest to z_0 / alpha_0."""
        window = self._window(level.gamma)
        at_once = max(1, self.chunk * self.levels // window)
        gamma_0 = per_example(level.gamma, z).expand_as(z).flatten()
        near = (z / per_example(level.alpha, z)).flatten()
        found = [
            self._likeliest(*piece, window) for piece in zip(near.split(at_once), gamma_0.split(at_once), strict=True)
        ]
        return self.level_values(z)[torch.cat(found)].reshape(z.shape)

    def _likeliest(self, near: Tensor, gamma_0: Tensor, window: int) -> Tensor:
        places, x = self._places(near, window), self.level_values(near)[self.nearest(near)]
        best = self._logits(x, near - x, gamma_0, places).argmax(dim=1, keepdim=True)
        return places.gather(1, best)[:, 0]
