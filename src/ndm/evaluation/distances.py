r"""Distances between two samples: the sliced Wasserstein distance, and an unbiased kernel distance (MMD).

With theta a unit vector, and W_p the exact Wasserstein distance in one dimension:

    sliced Wasserstein   (E_theta W_p(theta.x, theta.y)^p)^{1/p}      (Bonneel et al., J. Math. Imaging Vis. 51, 2015)
    MMD^2                E k(x, x') + E k(y, y') - 2 E k(x, y)        (Gretton et al., JMLR 13, 2012, lemma 6)

For two finite samples of the same distribution, the sliced Wasserstein distance is positive, and the kernel distance
has mean zero. Each distance is therefore returned with its jackknife standard error, and with the values for random
permutations of the examples between the samples. The rows of a sample are assumed to be independent and unordered.

Neither is informative for images in pixel space; see :mod:`ndm.evaluation.quality` for distances of network features.
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

#: Number of jackknife groups.
GROUPS = 20

#: Minimum number of examples per sample: with fewer, the jackknife groups are too small.
FEWEST = 4

#: Widths of the Gaussian kernels of MMD, in units of the scale. Each is twice the previous one.
WIDTHS = (1 / 4, 1 / 2, 1, 2, 4)

#: Number of examples whose pairwise distances determine the scale.
PAIRED = 1000

#: Quantile of the permutations for the level.
CONFIDENCE = 0.95

#: Approximate number of values in memory at a time.
NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class SampleDistance:
    """A distance between two samples, with reference values.

    Attributes:
        value: the distance.
        stderr: its standard error, over draws of both samples and of the directions, if any. For samples of the same
            distribution it is somewhat too large; use ``same`` and ``level`` instead.
        same: mean distance over random permutations of the pooled examples, which is the expected distance of two
            samples of these sizes from one distribution. None without permutations.
        level: 95% quantile of the permutations; None without permutations.
        p_value: fraction of permutations with at least this distance, the observed one included; None without
            permutations.
        examples_x: number of examples of x.
        examples_y: number of examples of y.
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
    r"""Compute the sliced Wasserstein distance of order p, in the units of the data (the root of the mean).

    Two samples that only differ by a shift m have distance \|m\| / sqrt(d) for p = 2. The sample sizes may differ: the
    distance along each direction is exact. It increases with decreasing sample size, so report it with the sample sizes
    and with ``same``.

    Args:
        x: first sample, (N, \\*shape).
        y: second sample, (M, \\*shape).
        projections: number of random directions.
        p: the order, at least 1.
        permutations: number of random permutations; 0 for none, which is the fastest.
        generator: generator of the directions and the permutations.

    Raises:
        ValueError: the samples have different shapes, are too small or not finite, or a number is out of its range.

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
        projections = 1  # there is only one direction
    directions = normal_like(rows.new_empty(projections, rows.shape[1]), generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    divisions = _divisions(n, len(rows) - n, permutations, generator).to(rows.device)
    costs = []
    for some in directions.split(max(1, NUMBERS_AT_ONCE // (4 * len(rows)))):
        places, order = (some @ rows.T).sort(dim=1)
        # Sorted once: a subset of a sorted row is sorted.
        costs.append(torch.stack([_transport(places, division[order], p) for division in divisions]))
    each = torch.cat(costs, dim=1)  # W_p^p, (permutations, projections)
    values = each.mean(1) ** (1 / p)
    # Derivative of the root times the error of the mean over directions.
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
    r"""Compute the unbiased squared maximum mean discrepancy. Its mean is zero for samples of the same distribution, so
    it can be negative.

    The kernel is the mean of five Gaussian kernels with widths 1/4, 1/2, 1, 2 and 4 times ``scale``, which detect both
    large and small differences; a single width would have to be tuned. It lies between 0 and 1, and does not depend on
    the data's units.

    Args:
        x: first sample, (N, \\*shape): the reference, if there is one.
        y: second sample, (M, \\*shape).
        scale: the middle width; by default the median distance between examples of x (of 1,000 of them, evenly spaced).
            It only depends on x, so that values for several y are comparable.
        permutations: number of random permutations; 0 for none, which is the fastest.
        generator: generator of the permutations.

    Raises:
        ValueError: the samples have different shapes, are too small or not finite, or the scale is not positive.

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
            f"scale must be positive and finite, got {scale}: if most examples of x are equal, pass scale=."
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
    # Exclude the diagonal, which is 1.
    values = (within_x - a) / (a * (a - 1)) + (within_y - b) / (b * (b - 1)) - 2 * between / (a * b)
    return _distance(values, n, len(rows) - n)


def jackknife(left_out: Tensor) -> float:
    r"""Compute the jackknife standard error from the values, (G,), with one of G groups of examples left out at a time:

        sqrt( (G - 1) / G  sum_g (v_g - mean v)^2 )

    For a statistic of two independent samples, leave out the same group of both. (Efron and Tibshirani, *An
    Introduction to the Bootstrap*, 1993, chapter 11.)

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0, 4.0, 9.0])
        >>> round(jackknife((x.sum() - x) / 3), 6), round(x.std().item() / 2, 6)  # of a mean: the usual one
        (1.779513, 1.779513)
    """
    groups = len(left_out)
    return ((groups - 1) / groups * (left_out - left_out.mean()).square().sum()).sqrt().item()


def _pooled(x: Tensor, y: Tensor, permutations: int) -> tuple[Tensor, int]:
    """Return the rows of both samples, (N + M, d) in float64, and N."""
    x, y = as_tensor(x, "samples"), as_tensor(y, "samples")
    if x.dim() < 2 or x.shape[1:] != y.shape[1:] or x[0].numel() == 0:
        raise ValueError(
            f"Samples must have shapes (N, *shape) and (M, *shape), got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if min(len(x), len(y)) < FEWEST:
        raise ValueError(f"Each sample needs at least {FEWEST} examples, got {len(x)} and {len(y)}.")
    if permutations < 0:
        raise ValueError(f"permutations must be at least 0, got {permutations}.")
    rows = torch.cat([x.flatten(1).double(), y.flatten(1).to(x.device).double()])
    if not torch.isfinite(rows).all():
        raise ValueError("The samples contain NaN or infinite values: check the sampler.")
    return rows - rows.mean(0), len(x)  # centred, to avoid cancellation


def _divisions(n: int, m: int, permutations: int, generator: torch.Generator | None) -> Tensor:
    """Assign n + m examples to the samples: 1 for the first, -1 for the second, 0 for left out.

    The first row is the original assignment. The next rows leave a group out of both samples; the others are random
    permutations. Shape (1 + groups + permutations, n + m).
    """
    own = torch.cat([torch.ones(n, dtype=torch.int8), -torch.ones(m, dtype=torch.int8)])
    groups = min(GROUPS, n, m)
    group = torch.cat([torch.arange(n), torch.arange(m)]) % groups
    left_out = [torch.where(group == g, torch.zeros_like(own), own) for g in range(groups)]
    device = "cpu" if generator is None else generator.device
    mixed = [own[torch.randperm(n + m, generator=generator, device=device).cpu()] for _ in range(permutations)]
    return torch.stack([own, *left_out, *mixed])


def _distance(values: Tensor, n: int, m: int, further: float = 0.0) -> SampleDistance:
    """Summarize the values of all assignments; ``further`` is an additional error, not due to the examples."""
    groups = min(GROUPS, n, m)
    value, left_out, mixed = values[0].item(), values[1 : 1 + groups], values[1 + groups :]
    same = level = p_value = None
    if len(mixed):
        same, level = mixed.mean().item(), mixed.quantile(CONFIDENCE).item()
        p_value = (1 + int((mixed >= value).sum())) / (1 + len(mixed))
    return SampleDistance(value, math.hypot(jackknife(left_out), further), same, level, p_value, n, m)


# ---- sliced Wasserstein


def _transport(places: Tensor, division: Tensor, p: float) -> Tensor:
    """Compute W_p^p of the two samples along each direction, (K,).

    Args:
        places: sorted projections of all examples, (K, N + M).
        division: their assignment to the samples, (K, N + M).
        p: the order.
    """
    x, y = (places[division == sign].view(len(places), -1) for sign in (1, -1))
    widths, i, j = (t.to(places.device) for t in _steps(x.shape[1], y.shape[1]))
    return ((x[:, i] - y[:, j]).abs() ** p) @ widths.to(places.dtype)


@lru_cache(maxsize=8)
def _steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the intervals of (0, 1) on which both quantile functions are constant: their widths, and the indices of
    the sorted examples of both samples.
    """
    # In units of 1 / (n m), in which all end points are integers.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    return widths, (ends - 1) // m, (ends - 1) // n


# ---- MMD


def _kernel(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The mean of the Gaussian kernels, (N, M)."""
    power = (torch.cdist(a, b).square() / (-2 * (WIDTHS[-1] * scale) ** 2)).exp_()
    total = power.clone()
    for _ in WIDTHS[1:]:  # halving the width raises the kernel to the fourth power
        power = power.square_().square_()
        total += power
    return total / len(WIDTHS)


def _median_distance(rows: Tensor) -> float:
    some = rows[:: -(-len(rows) // PAIRED)]
    return torch.pdist(some).median().item()
