"""Noise whose average is an exact expectation."""

from __future__ import annotations

import pytest
from torch import Tensor

import ndm
import ndm.method.bounds
import ndm.method.calibration


@pytest.fixture
def noise(monkeypatch):
    """Replace the noise that the bound and the calibration draw by given numbers."""

    def put(values: Tensor) -> None:
        for module in (ndm.method.bounds, ndm.method.calibration):
            monkeypatch.setattr(module, "normal_like", lambda x, generator: values.to(x))

    return put
