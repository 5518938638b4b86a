"""Models of every kind, and every way of computing with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.calibration import calibrate, error_moments
from ndm.method.coordinates import DATA
from ndm.method.grids import pair_moments
from ndm.networks import ResidualMLP

#: A tolerance that the fewest steps meet.
ANY = 1e9
HALF = [torch.float16, torch.bfloat16]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(**options) -> ResidualMLP:
    return ResidualMLP(2, hidden=8, depth=1, embedding=8, zero_init=False, **options)


def model(classes: int = 0, **options) -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(-13.3, 5.0), ndm.Identity(), ndm.Denoiser(net(classes=classes)), **options)


class Exact(nn.Module):
    """E[x | z] for standard normal x; it has no weights."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return level.alpha[:, None] * z


def bound(m: ndm.NDM, x, steps: int | None = 10, **options) -> Tensor:
    return m.bound(x, steps, generator=seeded(), **options).total.detach()


def calibrated(m: ndm.NDM, x) -> Tensor:
    return calibrate(m, x, 3, "diagonal", generator=seeded()).log_ratio


WAYS = {
    "bound": bound,
    "continuous": lambda m, x: bound(m, x, None),
    "unchecked": lambda m, x: bound(m, x, check=False),
    "likelihood": lambda m, x: ndm.log_likelihood(m, x, tolerance=ANY, generator=seeded()).log_prob,
    "variational": lambda m, x: (
        ndm.log_likelihood(m, x, dequantization="variational", tolerance=ANY, generator=seeded()).log_prob
    ),
    "calibrate": calibrated,
    "moments": lambda m, x: error_moments(m, x, 3, generator=seeded())[DATA].squares(),
    "pairs": lambda m, x: pair_moments(m, x, 4, generator=seeded()).squares(),
    "grid": lambda m, x: ndm.optimal_grid(m, x, 2, candidates=6, generator=seeded()),
    "curvature": lambda m, x: ndm.curvature(m, x, generator=seeded()),
    "to_model": lambda m, x: m.to_model(x),
}


every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def kinds_of_models() -> dict[str, ndm.NDM]:
    torch.manual_seed(0)
    return {
        "plain": model(),
        "standardized": model(standardize=ndm.Standardize([1.0, -2.0], [3.0, 0.1])),
        "neural": ndm.NDM(ndm.LinearSchedule(), ndm.Neural(net()), ndm.Denoiser(net())),
        "without weights": ndm.NDM(ndm.LinearSchedule(-13.3, 5.0), ndm.Identity(), Exact()),
    }


every_model = pytest.mark.parametrize("name", list(kinds_of_models()))
