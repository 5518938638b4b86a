"""Small models of every kind, to be saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import ndm
import ndm.storage.checkpoints
from ndm.method.parts import Part
from ndm.networks import ResidualMLP
from ndm.storage.checkpoints import CHECKSUMS, CONFIG


class Own(Part):
    """A network of the user's own."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(2, 2)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.layer(z)) * (self.width + u[:, None])


def net(**options) -> ResidualMLP:
    return ResidualMLP(2, hidden=8, depth=1, embedding=8, zero_init=False, **options)


def levels() -> tuple[ndm.NDM, Tensor]:
    model = ndm.NDM(
        ndm.LearnedSchedule(-9.0, 4.0, learn_endpoints=True),
        ndm.Separable(net(heads=3, level=False), terms=3, basis="bumps"),
        ndm.DirectDenoiser(net(heads=3), "eps", ode=True),
        ndm.DiscretizedDecoder(16),
        reverse_variance="predicted",
        volatility=ndm.LearnedVolatility(3),
    )
    return model, torch.randint(16, (40, 2))


def continuous() -> tuple[ndm.NDM, Tensor]:
    x = torch.randn(40, 2) * torch.tensor([3.0, 0.2]) + 1 / 3
    model = ndm.NDM(
        ndm.CosineSchedule(gamma_max=7.1),
        ndm.Neural(net(), gate="anchored"),
        ndm.Denoiser(net(), gamma_range=(-9, 3)),
        reverse_variance=ndm.LearnedVariance(5),
        volatility=1.25,
        standardize=ndm.Standardize.fit(x),
    )
    return model, x


def calibrated() -> tuple[ndm.NDM, Tensor]:
    model, x = ndm.NDM(ndm.DDPMSchedule(), ndm.Identity(), ndm.Denoiser(net())), torch.randn(40, 2)
    model.calibrate(x, 3, "isotropic").calibrate(x, 5, "diagonal").calibrate(x, 7, "full").calibrate(
        x, 8, "full", rank=1
    )
    model.calibrate(x, 4, "diagonal", spacing="optimal")
    return model, x


def random_parameters(model: ndm.NDM) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))


def total(model: ndm.NDM, x: Tensor, steps: int | None) -> Tensor:
    return model.bound(x, steps, generator=torch.Generator().manual_seed(1)).total.detach()


def plain_model() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net()))


def edit(path: Path, change) -> None:
    config = json.loads((path / CONFIG).read_text())
    change(config)
    (path / CONFIG).write_text(json.dumps(config))
    (path / CHECKSUMS).unlink()  # as whoever changes it on purpose has to
