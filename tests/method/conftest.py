"""Noise whose average is an exact expectation."""

from __future__ import annotations

import pytest
from torch import Tensor

import ndm
import ndm.method.bounds


@pytest.fixture
def noise(monkeypatch):
    """Replace the noise that the bound draws by given numbers."""

    def put(values: Tensor) -> None:
        monkeypatch.setattr(ndm.method.bounds, "normal_like", lambda x, generator: values.to(x))

    return put
