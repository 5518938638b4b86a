"""What every test starts from."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Asserts in the modules that tests share are explained as well.
pytest.register_assert_rewrite(
    *(f"tests.{folder.name}" for folder in Path(__file__).parent.iterdir() if folder.is_dir())
)

torch.set_num_threads(1)  # the tensors are small, and tests should not fight each other for cores


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch's global generator, so that a test that fails fails again."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as it is in a shell: what a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
