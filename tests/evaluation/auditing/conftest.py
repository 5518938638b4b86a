"""Gaussian data and their exact model, and images of 16 levels with a small network."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.data import Gaussian, Tensors
from ndm.networks import ConvNet
from tests.evaluation.models import HIGH, LOW, Exact, R

LEVELS = 16


@pytest.fixture
def exact() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    return Gaussian(features=2, variance=R, train=2000, validation=10, test=2000)


@pytest.fixture(scope="session")
def images() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(LEVELS, (120, 1, 4, 4), generator=generator)
    return Tensors(x[:60], None, x[60:], levels=LEVELS)


@pytest.fixture
def pixels() -> ndm.NDM:
    """A network for noise levels from LOW to HIGH, whatever the schedule, and a discretised decoder."""
    net = ConvNet(channels=1, width=8, depth=2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    denoiser = ndm.Denoiser(net, gamma_range=(LOW, HIGH))
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), denoiser, ndm.DiscretizedDecoder(LEVELS))
