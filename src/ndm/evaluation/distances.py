r"""How far two samples are apart: the sliced Wasserstein distance, and a kernel distance without bias.

With theta a direction of unit length, and W_p the exact Wasserstein distance of numbers on a line:

    sliced Wasserstein   (E_theta W_p(theta.x, theta.y)^p)^{1/p}      (Bonneel et al., J. Math. Imaging Vis. 51, 2015)
    MMD^2                E k(x, x') + E k(y, y') - 2 E k(x, y)        (Gretton et al., JMLR 13, 2012, lemma 6)

Two finite samples of one distribution are not at distance zero: the sliced Wasserstein distance is then positive, and
the kernel distance scatters around zero. So each comes with its standard error, from leaving groups of examples out,
and with what the same examples give when they are divided between the two samples at random. The rows of a sample are
taken to be independent and in no order.

For images in pixels both say little; see :mod:`ndm.evaluation.quality` for distances of a network's features.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ndm._internal.inputs import as_tensor
from ndm._internal.random import normal_like

__all__ = ["SampleDistance", "jackknife", "mmd", "sliced_wasserstein"]

#: Groups of examples that are left out, one at a time, for the standard error.
GROUPS = 20

#: Fewest examples of each sample: with fewer, too few are left when a group is out.
FEWEST = 4

#: Widths of the Gaussian kernels of MMD, over the scale. Each is twice the one before.
WIDTHS = (1 / 4, 1 / 2, 1, 2, 4)

#: Examples from whose pairs the scale is taken.
PAIRED = 1000

#: The part of the random divisions that stay below the level.
CONFIDENCE = 0.95

#: Numbers that are in memory at a time, about.
NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class SampleDistance:
    """A distance between two samples, and what to compare it with.

    Attributes:
        value: the distance.
        stderr: its standard error, over draws of both samples, and of the directions where there are any. For samples
            of one distribution it is somewhat too large: how far those are apart, ``same`` and ``level`` say.
        same: what the examples of both samples together give on average when they are divided at random: the
            distance of two samples of these sizes that have one distribution. None without permutations.
        level: what 95% of the random divisions stay below; None without permutations.
        p_value: how often a random division is at least as far apart, this one counted; None without permutations.
        examples_x: how many examples of x.
        examples_y: how many examples of y.
    """

    value: float
    stderr: float
    same: float | None
    level: float | None
    p_value: float | None
    examples_x: int
    examples_y: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, in JSON's types."""
        return asdict(self)


@torch.no_grad()
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 200,
    p: float = 2,
    permutations: int = 100,
    generator: torch.Generator | None = None,
) -> SampleDistance:
    r"""The sliced Wasserstein distance of order p, in the units of the data: the root is taken, after the mean.

    Two samples that differ by a shift m alone are at distance \|m\| / sqrt(d) for p = 2. The samples' sizes may differ:
    along each direction the distance of their step functions is exact. It grows as there are fewer examples, so a
    figure belongs with their numbers, and with ``same``.

    Args:
        x: a sample, (N, \\*shape).
        y: another, (M, \\*shape).
        projections: the number of random directions; the same generator gives the same ones.
        p: the order, at least 1.
        permutations: how many random divisions to compare with; 0 for none, which costs least.
        generator: of the directions and the divisions.

    Raises:
        ValueError: the samples do not fit together, are too small or not finite, or a number is out of its range.

    Example:
        >>> import torch, ndm
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(500, 2, generator=g), torch.randn(400, 2, generator=g)
        >>> near = ndm.sliced_wasserstein(x, y, projections=50, generator=g)
        >>> far = ndm.sliced_wasserstein(x, y + 1, projections=50, permutations=0, generator=g)
        >>> near.value < near.level < far.value
        True
    """
    if projections < 1 or not 1 <= p < math.inf:
        raise ValueError(f"projections must be at least 1 and p at least 1 and finite, got {projections} and {p}.")
    rows, n = _pooled(x, y, permutations)
    if rows.shape[1] == 1:
        projections = 1  # the one direction there is
    directions = normal_like(rows.new_empty(projections, rows.shape[1]), generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    divisions = _divisions(n, len(rows) - n, permutations, generator).to(rows.device)
    costs = []
    for some in directions.split(max(1, NUMBERS_AT_ONCE // (4 * len(rows)))):
        places, order = (some @ rows.T).sort(dim=1)
        # Sorted once: what is left of a sorted row is sorted.
        costs.append(torch.stack([_transport(places, division[order], p) for division in divisions]))
    each = torch.cat(costs, dim=1)  # W_p^p, (divisions, projections)
    values = each.mean(1) ** (1 / p)
    # The derivative of the root, times the error of the mean over directions.
    spread = each[0].std().item() / math.sqrt(projections) if projections > 1 else 0.0
    directional = spread * values[0].item() ** (1 - p) / p if spread else 0.0
    return _distance(values, n, len(rows) - n, directional)


@torch.no_grad()
def mmd(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | None = None,
    permutations: int = 100,
    generator: torch.Generator | None = None,
) -> SampleDistance:
    r"""The squared maximum mean discrepancy, without bias: zero on average for samples of one distribution, and so at
    times below it.

    The kernel is the mean of five Gaussian ones, of widths 1/4, 1/2, 1, 2 and 4 times ``scale``: one width would have
    to be tuned to how large the differences are, five of them see both a wrong place of everything and wrong detail.
    It lies between 0 and 1, and does not depend on the data's units.

    Args:
        x: a sample, (N, \\*shape): the reference, if one of the two is.
        y: another, (M, \\*shape).
        scale: the middle width; by default the median distance of two examples of x (of 1,000 of them, evenly spread).
            It is x's alone, so that figures of several y with one x can be compared.
        permutations: how many random divisions to compare with; 0 for none, which costs least.
        generator: of the divisions.

    Raises:
        ValueError: the samples do not fit together, are too small or not finite, or the scale is not positive.

    Example:
        >>> import torch, ndm
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(500, 2, generator=g), torch.randn(400, 2, generator=g)
        >>> near, far = ndm.mmd(x, y, generator=g), ndm.mmd(x, y + 1, generator=g)
        >>> near.value < near.level < far.value
        True
    """
    rows, n = _pooled(x, y, permutations)
    scale = _median_distance(rows[:n]) if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(
            f"scale must be positive and finite, got {scale}: where most examples of x are the same, give it by hand."
        )
    divisions = _divisions(n, len(rows) - n, permutations, generator).to(rows.device)
    first, second = (divisions == 1).to(rows.dtype).T, (divisions == -1).to(rows.dtype).T  # (examples, divisions)
    within_x, within_y, between = rows.new_zeros(3, len(divisions))
    size = max(1, NUMBERS_AT_ONCE // len(rows))
    for start in range(0, len(rows), size):
        here = slice(start, start + size)
        kernel = _kernel(rows[here], rows, scale)
        to_first, to_second = kernel @ first, kernel @ second
        within_x += (first[here] * to_first).sum(0)
        within_y += (second[here] * to_second).sum(0)
        between += (first[here] * to_second).sum(0)
    a, b = first.sum(0), second.sum(0)
    # An example's likeness to itself, which is 1, is left out.
    values = (within_x - a) / (a * (a - 1)) + (within_y - b) / (b * (b - 1)) - 2 * between / (a * b)
    return _distance(values, n, len(rows) - n)


def jackknife(left_out: Tensor) -> float:
    r"""The standard error of a figure from its values, (G,), with one of G groups of examples left out at a time:

        sqrt( (G - 1) / G  sum_g (v_g - mean v)^2 )

    Where the same group is left out of two independent samples, it is that of a figure of both. (Efron and Tibshirani,
    *An Introduction to the Bootstrap*, 1993, chapter 11.)

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0, 4.0, 9.0])
        >>> round(jackknife((x.sum() - x) / 3), 6), round(x.std().item() / 2, 6)  # of a mean: the usual one
        (1.779513, 1.779513)
    """
    groups = len(left_out)
    return ((groups - 1) / groups * (left_out - left_out.mean()).square().sum()).sqrt().item()


def _pooled(x: Tensor, y: Tensor, permutations: int) -> tuple[Tensor, int]:
    """The rows of both samples, (N + M, d) in float64, and N."""
    x, y = as_tensor(x, "samples"), as_tensor(y, "samples")
    if x.dim() < 2 or x.shape[1:] != y.shape[1:] or x[0].numel() == 0:
        raise ValueError(
            f"Samples are (N, *shape) and (M, *shape), of one shape; got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if min(len(x), len(y)) < FEWEST:
        raise ValueError(f"Each sample needs at least {FEWEST} examples, got {len(x)} and {len(y)}.")
    if permutations < 0:
        raise ValueError(f"permutations must be at least 0, got {permutations}.")
    rows = torch.cat([x.flatten(1).double(), y.flatten(1).to(x.device).double()])
    if not torch.isfinite(rows).all():
        raise ValueError("Some examples are not finite: does the sampler return NaN?")
    return rows - rows.mean(0), len(x)  # distances far from the origin would lose digits


def _divisions(n: int, m: int, permutations: int, generator: torch.Generator | None) -> Tensor:
    """Which sample each of n + m examples is in, 1 for the first and -1 for the second, and 0 if it is left out.

    The first row is the division as it is. In the next ones a group is left out of both samples; in the others all are
    divided at random. (1 + groups + permutations, n + m)
    """
    own = torch.cat([torch.ones(n, dtype=torch.int8), -torch.ones(m, dtype=torch.int8)])
    groups = min(GROUPS, n, m)
    group = torch.cat([torch.arange(n), torch.arange(m)]) % groups
    left_out = [torch.where(group == g, torch.zeros_like(own), own) for g in range(groups)]
    device = "cpu" if generator is None else generator.device
    mixed = [own[torch.randperm(n + m, generator=generator, device=device).cpu()] for _ in range(permutations)]
    return torch.stack([own, *left_out, *mixed])


def _distance(values: Tensor, n: int, m: int, further: float = 0.0) -> SampleDistance:
    """What the values of the divisions come to; ``further`` is an error that is not of the examples."""
    groups = min(GROUPS, n, m)
    value, left_out, mixed = values[0].item(), values[1 : 1 + groups], values[1 + groups :]
    same = level = p_value = None
    if len(mixed):
        same, level = mixed.mean().item(), mixed.quantile(CONFIDENCE).item()
        p_value = (1 + int((mixed >= value).sum())) / (1 + len(mixed))
    return SampleDistance(value, math.hypot(jackknife(left_out), further), same, level, p_value, n, m)


# ---- sliced Wasserstein


def _transport(places: Tensor, division: Tensor, p: float) -> Tensor:
    """W_p^p of the two samples on each line, (K,).

    Args:
        places: of all examples, sorted, (K, N + M).
        division: which sample each of them is in, (K, N + M).
        p: the order.
    """
    x, y = (places[division == sign].view(len(places), -1) for sign in (1, -1))
    widths, i, j = (t.to(places.device) for t in _steps(x.shape[1], y.shape[1]))
    return ((x[:, i] - y[:, j]).abs() ** p) @ widths.to(places.dtype)


@lru_cache(maxsize=8)
def _steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The intervals of (0, 1) on which both quantile functions are constant: their widths, and which of n and which of
    m sorted examples the functions have there.
    """
    # In units of 1 / (n m), where all ends are whole numbers.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    return widths, (ends - 1) // m, (ends - 1) // n


# ---- MMD


def _kernel(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The mean of the Gaussian kernels, (N, M)."""
    power = (torch.cdist(a, b).square() / (-2 * (WIDTHS[-1] * scale) ** 2)).exp_()
    total = power.clone()
    for _ in WIDTHS[1:]:  # half the width is the fourth power
        power = power.square_().square_()
        total += power
    return total / len(WIDTHS)


def _median_distance(rows: Tensor) -> float:
    some = rows[:: -(-len(rows) // PAIRED)]
    return torch.pdist(some).median().item()
