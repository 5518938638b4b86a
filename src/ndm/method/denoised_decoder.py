"""DDPM's last step: a discretised Gaussian around the denoiser's estimate at the first noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ndm.method.decoders import LevelDecoder
from ndm.method.denoisers import Estimate
from ndm.method.schedules import NoiseLevel

__all__ = ["DenoisedDecoder"]

#: A bound of a level's cell that stands for infinity, in standard deviations; its derivatives are finite.
FAR = 1e4


class DenoisedDecoder(LevelDecoder):
    """p(x | z_0), a product over dimensions of the probability of a level's cell under N(x_hat(z_0), s^2).

    DDPM, arXiv 2006.11239, equation 13; Improved DDPM, arXiv 2102.09672, section 3. The cells of the first and the last
    level are open. Here z_0 is DDPM's z_1, and x_hat is the denoiser's, so it costs one more evaluation of the network.

    Args:
        levels: K: 256 for 8-bit pixels.
        log_variance: log s^2; with ``largest`` its value where the second half of the network's channels is -1.
        largest: log s^2 where the second half of the network's channels is 1, for a network with a head for the
            variance (Improved DDPM, equation 15); None for a fixed variance.
        ends: see :class:`~ndm.method.decoders.LevelDecoder`.
        approximate: use the published code's approximation of the normal distribution function by tanh, and its lower
            limit of 1e-12 for a probability, so that the numbers are the same as in the papers. The probabilities then
            do not sum to one where they are that small.

    Raises:
        ValueError: there are fewer than two levels, or a log-variance is not finite.
    """

    denoised = True

    def __init__(
        self,
        levels: int = 256,
        log_variance: float = -9.8,
        largest: float | None = None,
        ends: bool = True,
        approximate: bool = False,
    ) -> None:
        super().__init__(levels, ends)
        if not all(math.isfinite(a) for a in (log_variance, largest or 0.0)):
            raise ValueError(f"The log-variances must be finite, got {log_variance} and {largest}.")
        self.log_variance = log_variance
        self.largest = largest
        self.approximate = approximate

    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor, estimate: Estimate | None = None) -> Tensor:
        """-log p(x | z_0), (B,) in nats; ``estimate`` is that of the denoiser at z_0.

        Raises:
            ValueError: there is no estimate, or it lacks the head for the variance.
        """
        estimate = _required(estimate)
        rate = torch.exp(-self._log_variance(estimate) / 2)
        k, error = self.nearest(x), x - estimate.mean
        low, high = (error - self.cell / 2) * rate, (error + self.cell / 2) * rate
        low = torch.where(k == 0, torch.full_like(low, -FAR), low)
        high = torch.where(k == self.levels - 1, torch.full_like(high, FAR), high)
        log_p = _approximate(low, high) if self.approximate else log_normal_between(low, high)
        return -log_p.flatten(1).sum(1)

    def decode(self, z: Tensor, level: NoiseLevel, estimate: Estimate | None = None) -> Tensor:
        """The most likely x given z_0, (B, \\*shape): the levels nearest to the estimate."""
        x = _required(estimate).mean
        return self.level_values(x)[self.nearest(x)]

    def _log_variance(self, estimate: Estimate) -> Tensor:
        """log s^2, which broadcasts to (B, \\*shape)."""
        if self.largest is None:
            return estimate.mean.new_tensor(self.log_variance)
        if estimate.log_ratio is None:
            raise ValueError(
                "A DenoisedDecoder with largest= needs a network that returns twice the channels of the data: the "
                "second half interpolates between the two variances."
            )
        return torch.lerp(
            estimate.mean.new_tensor(self.log_variance),
            estimate.mean.new_tensor(self.largest),
            (estimate.log_ratio + 1) / 2,
        )


def _required(estimate: Estimate | None) -> Estimate:
    if estimate is None:
        raise ValueError("A DenoisedDecoder needs the denoiser's estimate at z_0: see ndm.method.decoding.")
    return estimate


def log_normal_between(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, elementwise, accurate in both tails."""
    flip = low + high > 0  # by symmetry the interval is then in the lower tail, where log Phi does not cancel
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return above + torch.log(-torch.expm1(below - above))


def _approximate(low: Tensor, high: Tensor) -> Tensor:
    """The same as in improved-diffusion's losses.py, discretized_gaussian_log_likelihood."""

    def phi(a: Tensor) -> Tensor:
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2

    return (phi(high) - phi(low)).clamp(min=1e-12).log()
