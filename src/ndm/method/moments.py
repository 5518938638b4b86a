r"""Second moments of the reverse process's errors, and their shrinkage when there are few examples.

The best reverse covariance is W = v (I + S), with S = E[e e^T] the second moments of e = (true mean - predicted mean) /
sqrt(v) (method, section 3). S has d (d + 1) / 2 free parameters, and an estimate from n examples is zero in directions
that none of them has. So S is combined with the simpler moments of c additional pseudo-examples:

    S_c = (n S + c D) / (n + c),    D = diag(S) for a full covariance, the mean of diag(S) for a diagonal one,

the posterior mean under a conjugate (inverse Wishart) prior (Ledoit and Wolf, *J. Multivariate Analysis* 88, 2004,
shrink a covariance in the same way). c is chosen by cross-validation: e is collected in a few folds, and the cost of a
fold is 1/2 [log det W + tr(W^-1 (I + S_fold))], the term of the bound, with W from the other folds. Closed forms for c,
those of Ledoit and Wolf and of Schäfer and Strimmer (*Stat. Appl. Genet. Mol. Biol.* 4, 2005), minimise the squared
error of S instead. For strongly correlated errors their c is far too large, because they ignore the effect of small
eigenvalues on the determinant.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["MOST_NUMBERS", "Moments", "folds_for"]

#: The candidate values of c, the number of pseudo-examples.
PRIOR_EXAMPLES = (0.0, *(10.0 ** (k / 4) for k in range(-8, 17)), math.inf)

#: The number of folds, and the largest number of stored values; above it there are two folds.
FOLDS, MOST_NUMBERS = 4, 50_000_000


def folds_for(steps: int, d: int, full: bool) -> int:
    """The number of folds for the moments of T steps and d dimensions."""
    return FOLDS if FOLDS * steps * d ** (2 if full else 1) <= MOST_NUMBERS else 2


class Moments:
    """Running second moments of e = Dmu / sqrt(v) at each of T steps, in float64.

    Args:
        steps: T.
        d: the number of dimensions.
        full: keep the full matrix E[e e^T], (d, d), instead of its diagonal.
        folds: K; the examples of a step are assigned to the K folds in turn. With one fold c cannot be chosen.

    Attributes:
        count: the number of examples, (T, K).
        sums: of e_k^2, (T, K, d), or of e e^T, (T, K, d, d).
    """

    def __init__(self, steps: int, d: int, full: bool, folds: int = 1) -> None:
        self.full = full
        self.count = torch.zeros(steps, folds, dtype=torch.float64)
        self.sums = torch.zeros((steps, folds, d, d) if full else (steps, folds, d), dtype=torch.float64)

    def add(self, i: int, e: Tensor) -> None:
        """Add errors e, (B, d), of step i (counted from 0)."""
        folds = self.count.shape[1]
        seen = int(self.count[i].sum())
        for fold in range(folds):
            some = e[(fold - seen) % folds :: folds].double()
            self.count[i, fold] += len(some)
            # Summed on the device, so that less is copied.
            self.sums[i, fold] += (some.T @ some if self.full else (some**2).sum(0)).cpu()

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of errors combined."""
        both = copy.copy(self)
        both.count, both.sums = self.count + other.count, self.sums + other.sums
        return both

    def squares(self) -> Tensor:
        """E[e_k^2], (T, d)."""
        return self._diagonals().sum(1) / self.count.sum(1)[:, None]

    def matrix(self, i: int) -> Tensor:
        """E[e e^T] at step i, (d, d)."""
        return self.sums[i].sum(0) / self.count[i].sum()

    def shrunk_squares(self) -> Tensor:
        """E[e_k^2], (T, d), shrunk towards its mean over k by the amount that is best on held-out examples."""
        return _levelled(self.squares(), _part(self.count.sum(1), self._prior_of_squares()))

    def shrunk_matrices(self) -> Iterator[Tensor]:
        """E[e e^T] of each step, (d, d), shrunk towards the diagonal matrix of :meth:`shrunk_squares`, likewise."""
        priors, squares = self._prior_of_squares(), self.shrunk_squares()
        for i, count in enumerate(self.count):
            part = _part(count.sum(), self._prior_of_matrix(i, priors[i]))
            yield torch.lerp(self.matrix(i), torch.diag(squares[i]), part)

    def _diagonals(self) -> Tensor:
        return self.sums.diagonal(dim1=2, dim2=3) if self.full else self.sums

    def _prior_of_squares(self) -> Tensor:
        """c of a diagonal covariance, (T,)."""
        sums, others = self._diagonals(), self.count.sum(1, keepdim=True) - self.count
        outside = (sums.sum(1, keepdim=True) - sums) / others.clamp(min=1)[..., None]
        inside = sums / self.count.clamp(min=1)[..., None]
        costs = []
        for c in PRIOR_EXAMPLES:
            w = 1 + _levelled(outside, _part(others, c))
            costs.append((self.count * (w.log() + (1 + inside) / w).sum(2)).sum(1))
        return _cheapest(torch.stack(costs), self.count)

    def _prior_of_matrix(self, i: int, prior_of_squares: Tensor) -> Tensor:
        """c of a full covariance at step i, (), given that of its diagonal, ()."""
        count, sums = self.count[i], self.sums[i]
        choices = torch.tensor(PRIOR_EXAMPLES, dtype=torch.float64)
        costs = torch.zeros_like(choices)
        for n, total in zip(count, sums, strict=True):
            others = count.sum() - n
            if min(n, others) <= 0:
                continue
            outside, inside = (sums.sum(0) - total) / others, total / n
            # In units in which W is the identity for infinite c, W has the same eigenvectors for every c.
            unit = 1 + _levelled(outside.diagonal(), _part(others, prior_of_squares))
            one, scale = torch.eye(len(unit), dtype=unit.dtype), unit.rsqrt() * unit.rsqrt()[:, None]
            values, vectors = torch.linalg.eigh((one + outside) * scale)
            found = ((((one + inside) * scale) @ vectors) * vectors).sum(0)  # of I + S of the fold, per eigenvector
            w = torch.lerp(values, torch.ones_like(values), _part(others, choices)[:, None])
            costs += n * (w.log() + found / w).sum(1)
        return _cheapest(costs, count)


def _cheapest(costs: Tensor, count: Tensor) -> Tensor:
    """The c with the lowest cost; costs (choices, ...), for steps with ``count`` examples, (..., K), in their folds."""
    chosen = torch.tensor(PRIOR_EXAMPLES, dtype=torch.float64)[costs.argmin(0)]
    unknown = 0.0 if count.shape[-1] == 1 else math.inf  # a single example has no information on the directions
    return torch.where((count > 0).sum(-1) > 1, chosen, unknown)


def _part(n: Tensor, c: Tensor | float) -> Tensor:
    """c / (n + c), the weight of the pseudo-examples."""
    c = torch.as_tensor(c, dtype=torch.float64)
    return torch.where(c.isinf(), 1.0, c / (n + c).clamp(min=1e-300))


def _levelled(squares: Tensor, part: Tensor) -> Tensor:
    """E[e_k^2], (..., d), mixed with its mean over k with weight ``part``, (...)."""
    return torch.lerp(squares, squares.mean(-1, keepdim=True).expand_as(squares), part[..., None].expand_as(squares))
