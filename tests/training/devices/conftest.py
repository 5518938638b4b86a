"""Configurations of trainings on several devices, and a training by one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.devices.processes import IMAGES, POINTS, train


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a training on a folder of images that are not symmetric, in three classes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for i in range(125):
        level = np.linspace(20, 60 + 60 * (i % 3), 6)[None, :] + random.uniform(0, 60, (6, 1))
        (folder / "png" / "train" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(level.astype(np.uint8)).save(folder / "png" / "train" / str(i % 3) / f"{i}.png")
    (folder / "images.yaml").write_text(IMAGES.replace("FOLDER", str(folder / "png")))
    return folder / "images.yaml"


@pytest.fixture(scope="session")
def alone(images: Path) -> Path:
    """The training on images by one process, only to be read."""
    return train(images, images.parent / "alone")


@pytest.fixture
def points(tmp_path: Path) -> Path:
    (tmp_path / "points.yaml").write_text(POINTS)
    return tmp_path / "points.yaml"
