"""Eight bits a value: exact values, rows of rows, and files that stay on the disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ndm.data import from_levels
from ndm.data.pixels import Pixels, from_pixels


@pytest.fixture
def images() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (12, 3, 4, 5)).astype(np.uint8)


def test_every_level_has_exactly_its_value() -> None:
    k = torch.arange(256)
    assert torch.equal(from_pixels(k.to(torch.uint8)), from_levels(k, 256))


def test_rows_and_ranges(images: np.ndarray) -> None:
    e, x = Pixels(images), from_levels(torch.from_numpy(images), 256)
    assert len(e) == 12
    assert e.shape == (3, 4, 5)
    assert e[torch.tensor([4])].dtype == torch.float32
    for rows in (
        torch.tensor([7, 0, 7, 11]),
        torch.tensor([], dtype=torch.long),
        slice(2, 9),
        slice(10, 99),
        slice(None),
    ):
        assert torch.equal(e[rows], x[rows])


def test_rows_of_some_rows(images: np.ndarray) -> None:
    chosen = np.array([9, 2, 5, 6])
    e, x = Pixels(images, chosen), from_levels(torch.from_numpy(images[chosen]), 256)
    assert len(e) == 4
    for rows in (torch.tensor([3, 0]), slice(1, 3), slice(None)):
        assert torch.equal(e[rows], x[rows])


def test_what_is_returned_is_not_the_array(images: np.ndarray) -> None:
    before = images.copy()
    Pixels(images)[0:2].zero_()
    assert np.array_equal(images, before)


def test_a_mapped_file_is_pickled_by_its_name(images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.tile(images, (100, 1, 1, 1)))
    for rows in (None, np.array([3, 1])):
        e = Pixels(np.load(tmp_path / "x.npy", mmap_mode="r"), rows)
        pickled = pickle.dumps(e)
        assert len(pickled) < 1000
        assert torch.equal(pickle.loads(pickled)[0:2], e[0:2])
    e = Pixels(images, np.array([3, 1]))
    assert torch.equal(pickle.loads(pickle.dumps(e))[:], e[:])
