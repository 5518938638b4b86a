r"""A small network that gives log p(x) of a model of a table at once, with measured errors.

The network is fitted to log-densities of the model (:mod:`ndm.scoring.distilling`). It knows nothing of the model
beyond them, so its errors were measured on other rows, by the distance of a row from the training data: the Euclidean
distance in the model's coordinates, standardised, to the nearest of some training rows. A row farther than all measured
ones has no known error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ndm.method.parts import Part
from ndm.networks import ResidualMLP
from ndm.storage.checkpoints import save_part

__all__ = ["QUANTILES", "DistilledScore", "FastScores"]

#: The quantiles of the absolute error that are stated.
QUANTILES = (0.5, 0.95)

#: The number of quantiles of the scores of the validation rows, for :meth:`DistilledScore.level`.
LEVELS = 1001


@dataclass(frozen=True)
class FastScores:
    """Scores of rows.

    Attributes:
        log_prob: (n,), nats.
        distance: from the training data, (n,), in standard deviations.
        errors: the quantiles ``QUANTILES`` of the absolute error of rows at such a distance, (n, 2), nats; infinite
            for a row farther than all measured ones.
    """

    log_prob: Tensor
    distance: Tensor
    errors: Tensor


class DistilledScore(Part):
    """log p(x) from the model's coordinates of a row, by a network fitted to the densities of the model.

    Args:
        net: a perceptron with one output and without a noise level.
        model: the fingerprint of the model.
        references: the number of training rows to which distances are measured.
        bins: the number of intervals of the distance.
    """

    mean: Tensor
    scale: Tensor
    offset: Tensor
    factor: Tensor
    near: Tensor
    edges: Tensor
    quantiles: Tensor
    levels: Tensor

    def __init__(self, net: ResidualMLP, model: str, references: int = 1024, bins: int = 8) -> None:
        super().__init__()
        d = net.features
        self.net = net
        self.model = model
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("near", torch.zeros(references, d))
        self.register_buffer("edges", torch.zeros(bins))
        self.register_buffer("quantiles", torch.zeros(bins, len(QUANTILES)))
        self.register_buffer("levels", torch.zeros(LEVELS))

    def standardized(self, data: Tensor) -> Tensor:
        """The network's input, (n, d), from the model's coordinates of rows, (n, d)."""
        return (data.to(self.mean) - self.mean) / self.scale

    @torch.no_grad()
    def forward(self, data: Tensor) -> FastScores:
        """The scores of rows, given in the model's coordinates, (n, d): ``model.to_model(x)``."""
        z = self.standardized(data)
        distance = self.distances(z)
        place = torch.bucketize(distance, self.edges)
        beyond = self.quantiles.new_full((1, len(QUANTILES)), math.inf)
        return FastScores(
            log_prob=self.offset + self.factor * self.net(z)[:, 0],
            distance=distance,
            errors=torch.cat([self.quantiles, beyond])[place],
        )

    def distances(self, z: Tensor) -> Tensor:
        """The distance of each row, (n, d), from the nearest of the training rows, (n,)."""
        return torch.cdist(z, self.near).amin(1)

    def level(self, part: float) -> float:
        """The score below which this part of the validation rows lies, in nats."""
        at = part * (LEVELS - 1)
        low = int(at)
        high = min(low + 1, LEVELS - 1)
        return torch.lerp(self.levels[low], self.levels[high], at - low).item()

    def save_to(self, folder: Path) -> None:
        """Write the network to a folder, replacing an earlier one.

        Raises:
            FileExistsError: the folder holds something else.
        """
        save_part(self, folder)

    def set_errors(self, data: Tensor, log_prob: Tensor) -> None:
        """Measure the errors on rows that the network was not fitted to, in the model's coordinates.

        The distances are divided at quantiles, finer towards far rows.

        Args:
            data: (n, d).
            log_prob: the densities, (n,).
        """
        found = self(data)
        bins = len(self.edges)
        # 1/2, 3/4, ... of the rows and all of them
        parts = 1 - 2.0 ** -torch.arange(1, bins + 1, dtype=torch.float64)
        parts[-1] = 1
        self.edges.copy_(found.distance.double().quantile(parts))
        error, place = (found.log_prob - log_prob).abs().double(), torch.bucketize(found.distance, self.edges)
        levels = torch.tensor(QUANTILES, dtype=torch.float64)
        for i in range(bins):
            # With the bins below where there are few rows, so that a far row's error is not understated by chance.
            some = error[place == i] if (place == i).sum() >= 20 else error[place <= i]
            self.quantiles[i] = some.quantile(levels)
        self.quantiles.copy_(self.quantiles.cummax(0).values)
