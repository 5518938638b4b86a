r"""Decoders p(x | z_0) from the least noisy z to data, continuous or with K levels (method, section 3)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ndm.method.parts import Part
from ndm.method.schedules import NoiseLevel, per_example

__all__ = ["Decoder", "DiscretizedDecoder", "GaussianDecoder", "LevelDecoder", "WeightedDecoder"]


class Decoder(Part):
    """Base class of decoders.

    Attributes:
        levels: K for K-level data, None for continuous data.
    """

    levels: int | None = None

    #: Whether p(x | z_0) depends on the denoiser's estimate at z_0: see :mod:`ndm.method.decoding`.
    denoised = False

    @property
    def discrete(self) -> bool:
        """Whether p(x | z_0) gives probabilities to single values, so that the likelihood needs draws of z_0."""
        return self.levels is not None

    @abstractmethod
    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        """-log p(x | z_0), (B,) in nats.

        Args:
            x: the data, (B, \\*shape).
            gap: z_0 / alpha_0 - x, (B, \\*shape), formed without cancellation.
            gamma_0: the noise level of z_0, (B,).
        """

    def expected_nll(self, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """E[-log p(x | z_0)] over q(z_0 | x), (B,) in nats: the bound's L_rec; here estimated with one sample of z_0.

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
        """Raise a ValueError unless this decoder can assign a probability to x, (B, \\*shape)."""
        if not torch.isfinite(x).all():
            raise ValueError("The data contain NaN or infinite values; remove or replace them.")

    def place(self, x: Tensor) -> Tensor:
        """Move data that passed :meth:`check`, (B, \\*shape), to the values used by the model; by default they are."""
        return x

    def encode(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Convert integer data to the values used by the model, in precision ``dtype`` (torch's default if None).

        Raises:
            ValueError: the decoder is for continuous data, or a value is not one of its levels.
        """
        raise ValueError(
            f"{type(self).__name__} is for continuous data and got integers ({values.dtype}): pass "
            "floating-point data, or use DiscretizedDecoder(levels=K)."
        )


def normal_nll(square: Tensor, gamma_0: Tensor, d: int = 1) -> Tensor:
    """-log N(gap; 0, e^{gamma_0} I) in nats, from the sum of squares of gap over d dimensions, of any shape."""
    return d / 2 * (math.log(2 * math.pi) + gamma_0) + square / (2 * gamma_0.exp())


class GaussianDecoder(Decoder):
    """p(x | z_0) = N(x; z_0 / alpha_0, e^{gamma_0} I), for continuous data.

    E[-log p(x | z_0)] = d/2 (log 2 pi + gamma_0 + 1) + ||F(x, gamma_0) - x||^2 / (2 e^{gamma_0}), in closed form.
    """

    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        return normal_nll((gap**2).flatten(1).sum(1), gamma_0, x[0].numel())

    def expected_nll(self, x: Tensor, displacement: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        # The expected square of the noise, d e^{gamma_0}, is added to that of the displacement.
        return self.nll(x, displacement, level.gamma) + x[0].numel() / 2

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        return z / per_example(level.alpha, z)


class LevelDecoder(Decoder):
    """Base class of decoders of data with K levels.

    Data are integers 0..K-1, or floating-point numbers at 2 (k + 1/2) / K - 1; with ``ends`` also at the levels
    themselves.

    Args:
        levels: K.
        ends: whether the first and the last level are -1 and 1, 2 k / (K - 1) - 1, as for networks that were trained on
            pixels / 127.5 - 1; else they are 2 (k + 1/2) / K - 1.

    Raises:
        ValueError: there are fewer than two levels.
    """

    levels: int

    def __init__(self, levels: int, ends: bool) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"Discretised data have at least 2 levels, got levels={levels}.")
        self.levels = levels
        self.ends = ends

    @property
    def cell(self) -> float:
        """The distance between two levels."""
        return 2 / (self.levels - 1) if self.ends else 2 / self.levels

    def level_values(self, like: Tensor) -> Tensor:
        """The K levels in [-1, 1], (K,), in the precision and on the device of ``like``."""
        return _values(self.levels, self.ends, like)

    def nearest(self, x: Tensor) -> Tensor:
        """The index k, 0..K-1, of the level nearest to x, an integer tensor of the same shape."""
        place = (x + 1) / 2 * (self.levels - 1) + 0.5 if self.ends else (x + 1) / 2 * self.levels
        return torch.floor(place).clamp(0, self.levels - 1).long()

    def place(self, x: Tensor) -> Tensor:
        return self.level_values(x)[self.nearest(x)] if self.ends else x

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
        k = self.nearest(x)
        distances = [(x - _values(self.levels, ends, x)[k]).abs() for ends in {False, self.ends}]
        off = torch.stack(distances).amin(0).max() if x.numel() else 0.0
        if off > 0.01 / self.levels:
            raise ValueError(
                f"The data do not lie on the decoder's K = {self.levels} levels, 2 (k + 1/2)/{self.levels} - 1 for k = "
                f"0..{self.levels - 1} (largest distance: {float(off):.3g}). Pass integers 0..K-1, which are mapped to "
                "the levels, or use GaussianDecoder for continuous data."
            )


def _values(levels: int, ends: bool, like: Tensor) -> Tensor:
    k = torch.arange(levels, device=like.device, dtype=like.dtype)
    return 2 * k / (levels - 1) - 1 if ends else (2 * k + 1) / levels - 1


class DiscretizedDecoder(LevelDecoder):
    """p(x | z_0), a product over dimensions of a softmax over K levels with logits -(z_0/alpha_0 - level)^2 / (2
    e^{gamma_0}).

    The levels are 2 (k + 1/2) / K - 1 for k = 0..K-1, unless ``ends`` is set: VDM, arXiv 2107.00630, equation 8 and
    appendix A. Logits that are negligible in floating point are left out: with Delta the distance of two levels, a
    level m + 1 or more places from the nearest one has at most e^{-m (m + 1) Delta^2 / (2 e^{gamma_0})} of its
    probability, and m is chosen so that this is below the machine precision. With K = 256 and float32 this leaves 3
    levels at gamma_0 = -13.3, 13 at -10, 85 at -6.

    The first derivatives with respect to z_0 and gamma_0 are computed with the value, so the logits are not stored for
    the backward pass. Second derivatives are not supported.

    Args:
        levels: K: 256 for 8-bit pixels.
        chunk: the number of rows of K logits in memory at a time, for any batch size.
        ends: see :class:`~ndm.method.decoders.LevelDecoder`.

    Raises:
        ValueError: there are fewer than two levels.
    """

    def __init__(self, levels: int = 256, chunk: int = 65536, ends: bool = False) -> None:
        super().__init__(levels, ends)
        self.chunk = chunk

    def nll(self, x: Tensor, gap: Tensor, gamma_0: Tensor) -> Tensor:
        gamma_0 = per_example(gamma_0, gap).expand_as(gap)
        nll = _Categorical.apply(self, x.flatten(), gap.flatten(), gamma_0.flatten(), self._log_weights(gap))
        return nll.reshape(gap.shape).flatten(1).sum(1)

    def _log_weights(self, like: Tensor) -> Tensor | None:
        """The log-weights of the levels up to a constant, (K,); None if they are equal."""
        return None

    def _window(self, gamma_0: Tensor) -> int:
        """The number of levels around the one nearest to z_0 / alpha_0 whose probability is not negligible."""
        unseen = self._spread() + math.log(self.levels / torch.finfo(gamma_0.dtype).eps)  # K of them together: eps
        squares = 2 * math.exp(gamma_0.detach().max().item()) * unseen / self.cell**2
        m = math.ceil((math.sqrt(1 + 4 * squares) - 1) / 2) if math.isfinite(squares) else self.levels
        return min(2 * m + 1, self.levels)

    def _spread(self) -> float:
        """The largest difference between the logits of two levels, apart from their distances from z_0."""
        return 0.0

    def _pieces(self, window: int, *of: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Split the tensors, (N,) each, into pieces for which a window of logits fits in memory."""
        return zip(*(a.split(max(1, self.chunk * self.levels // window)) for a in of), strict=True)

    def _logits(self, own: Tensor, gap: Tensor, gamma_0: Tensor, window: int) -> _Logits:
        """log p(level | z_0) - log p(x | z_0) of the levels near z_0 / alpha_0, without their weights.

        Args:
            own: x's own level, (N,).
            gap: z_0 / alpha_0 - x, (N,), as in :meth:`nll`.
            gamma_0: (N,).
            window: the number of levels.
        """
        # The position of z_0 / alpha_0 in units of levels; rounding it gives the nearest level.
        near = torch.round(own + gap / self.cell).clamp(0, self.levels - 1).long()
        first = (near - window // 2).clamp(0, self.levels - window)
        places = (first - own)[:, None].to(gap.dtype) + torch.arange(window, device=gap.device, dtype=gap.dtype)
        # z_0/alpha_0 - level = gap + (x - level), and x - level is a whole number of levels. Relative to x's own level
        # the square of gap cancels: the difference of logits is -(step^2 + 2 step gap) / (2 e^{gamma_0}), where step =
        # x - level equals -cell * places.
        square = (self.cell**2 / 2) * torch.exp(-gamma_0)
        line = self.cell * torch.exp(-gamma_0) * gap
        values = torch.addcmul(line[:, None], places, square[:, None], value=-1).mul_(places)
        return _Logits(first, places, values)

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        return self.level_values(z)[self.nearest(z / per_example(level.alpha, z))]


class WeightedDecoder(DiscretizedDecoder):
    """:class:`DiscretizedDecoder` with a learned weight of each level: logits log w_k - (z_0/alpha_0 - level)^2 / (2
    e^{gamma_0}).

    With F = x and w_k the frequency of level k this is the posterior of a pixel given its own z_0 (Bayes' rule), which
    is optimal for a decoder that treats all dimensions alike and separately. Equal weights assume that all levels are
    equally frequent. The weights make a higher gamma_0 cheap for data that use few levels. They start equal and are
    trained on the bound.

    Args:
        levels: K: 256 for 8-bit pixels.
        chunk: the number of rows of K logits in memory at a time.
        ends: see :class:`~ndm.method.decoders.LevelDecoder`.

    Attributes:
        log_weights: log w_k up to a constant, (K,).

    Raises:
        ValueError: there are fewer than two levels.
    """

    def __init__(self, levels: int = 256, chunk: int = 65536, ends: bool = False) -> None:
        super().__init__(levels, chunk, ends)
        self.log_weights = nn.Parameter(torch.zeros(levels))

    def _spread(self) -> float:
        low, high = self.log_weights.detach().aminmax()
        return (high - low).item()

    def _log_weights(self, like: Tensor) -> Tensor:
        return self.log_weights.to(like.dtype)

    def decode(self, z: Tensor, level: NoiseLevel) -> Tensor:
        """The most likely x given z_0, (B, \\*shape): not always the level nearest to z_0 / alpha_0."""
        window = self._window(level.gamma)
        gamma_0 = per_example(level.gamma, z).expand_as(z).flatten()
        near = (z / per_example(level.alpha, z)).flatten()
        found = [self._likeliest(a, gamma, window) for a, gamma in self._pieces(window, near, gamma_0)]
        return self.level_values(z)[torch.cat(found)].reshape(z.shape)

    def _likeliest(self, near: Tensor, gamma_0: Tensor, window: int) -> Tensor:
        own = self.nearest(near)
        logits = self._logits(own, near - self.level_values(near)[own], gamma_0, window)
        weighted = logits.values + _windows(self._log_weights(near), window)[logits.first]
        return logits.first + weighted.argmax(dim=1)


class _Logits(NamedTuple):
    """The logits of N numbers, each with a window of levels.

    Attributes:
        first: the first level of the window, (N,).
        places: the levels relative to the number's own level, (N, window).
        values: the logits, (N, window).
    """

    first: Tensor
    places: Tensor
    values: Tensor


def _windows(a: Tensor, window: int) -> Tensor:
    """All windows of a, (K,): (K - window + 1, window)."""
    return a.unfold(0, window, 1)


class _Categorical(torch.autograd.Function):
    """-log p(x | z_0) of each number, (N,), with its derivatives with respect to gap, gamma_0 and the levels' weights.

    With probabilities p of the levels, and their logits l relative to that of x's own level, nll = log sum e^l and (d
    nll / d theta) = sum p dl / d theta. The derivative is cell / e^gamma_0 sum p k for gap, where k are the levels'
    places; -sum p l for gamma_0, with l without the weights; and p for a level's log-weight, less 1 for x's own level.
    """

    @staticmethod
    def forward(
        ctx: Any, decoder: DiscretizedDecoder, x: Tensor, gap: Tensor, gamma_0: Tensor, weights: Tensor | None
    ) -> Tensor:
        window = decoder._window(gamma_0)
        nll, by_gap, by_gamma_0 = (torch.empty_like(gap) for _ in range(3))
        kept: tuple[Tensor, ...] = ()
        for xs, gaps, gammas, nlls, *by in decoder._pieces(window, x, gap, gamma_0, nll, by_gap, by_gamma_0):
            own = decoder.nearest(xs)
            logits = decoder._logits(own, gaps, gammas, window)
            p = _probabilities(logits, own, weights, nlls)
            by[0].copy_((p * logits.places).sum(1) * torch.exp(-gammas) * decoder.cell)
            by[1].copy_(-(p * logits.values).sum(1))
            if len(xs) == len(x) and ctx.needs_input_grad[4]:  # a single piece: keep it for the backward pass
                kept = own, logits.first, p
            del logits, p  # free memory before the next piece
        inputs = (x, gap, gamma_0, weights) if ctx.needs_input_grad[4] else ()
        ctx.save_for_backward(by_gap, by_gamma_0, *inputs, *kept)
        ctx.decoder, ctx.window = decoder, window
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        by_gap, by_gamma_0, *inputs = ctx.saved_tensors
        by_weights = None
        if ctx.needs_input_grad[4]:
            x, gap, gamma_0, weights, *kept = inputs
            by_weights = torch.zeros_like(weights)
            by_window = torch.zeros_like(_windows(weights, ctx.window))
            for xs, gaps, gammas, gs in ctx.decoder._pieces(ctx.window, x, gap, gamma_0, g):
                if kept:
                    own, first, p = kept
                else:
                    own = ctx.decoder.nearest(xs)
                    logits = ctx.decoder._logits(own, gaps, gammas, ctx.window)
                    first, p = logits.first, _probabilities(logits, own, weights)
                by_weights.index_add_(0, own, -gs)
                by_window.index_add_(0, first, p * gs[:, None])
                del p
            levels = _windows(torch.arange(len(weights), device=g.device), ctx.window)
            by_weights.index_add_(0, levels.flatten(), by_window.flatten())
        return None, None, g * by_gap, g * by_gamma_0, by_weights


def _probabilities(logits: _Logits, own: Tensor, weights: Tensor | None, nll: Tensor | None = None) -> Tensor:
    """p(level | z_0) of each number's window, (N, window). Writes -log p(x | z_0) to ``nll``, (N,), if given."""
    values = logits.values
    if weights is not None:
        values = values + (_windows(weights, values.shape[1])[logits.first] - weights[own][:, None])
    p, most = torch.empty_like(values), values.amax(1, keepdim=True)
    torch.sub(values, most, out=p)
    total = p.exp_().sum(1, keepdim=True)
    if nll is not None:
        nll.copy_((most + total.log())[:, 0])
    return p.div_(total)
