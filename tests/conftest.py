"""What every test starts from."""

from __future__ import annotations

import pytest
import torch

pytest.register_assert_rewrite("tests")  # for the modules that tests share
torch.set_num_threads(1)  # the tensors are small, and tests should not fight each other for cores


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch's global generator, so that a test that fails fails again."""
    torch.manual_seed(0)
    return 0
