"""A saved model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.models import plain_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return plain_model().save_pretrained(tmp_path / "model")
