"""Gaussian data and their exact model."""

from __future__ import annotations

import pytest

import ndm
from ndm.data import Gaussian
from tests.evaluation.models import HIGH, LOW, Exact, R


@pytest.fixture
def exact() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    return Gaussian(features=2, variance=R, train=3000, validation=10, test=3000)
