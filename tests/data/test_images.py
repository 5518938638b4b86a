"""Data sets of images: every pixel and label where it belongs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ndm.data import SPLITS, Images, building
from tests.data.pictures import N, as_values

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_pixels_and_labels_are_the_sources(train_file: Path, pixels: np.ndarray) -> None:
    data, x = Images(str(train_file)), as_values(pixels)
    assert data.shape == (3, 6, 5)
    assert data.levels == 256
    for name in SPLITS:
        labels = data.labels(name)
        assert labels.dtype == torch.int64
        assert data.split(name).dtype == torch.float32
        assert torch.equal(data.split(name), x[labels])
        assert torch.equal(data.examples(name)[torch.tensor([2, 0])], x[labels[[2, 0]]])
        assert torch.equal(data.examples(name)[1:3], x[labels[1:3]])


def test_missing_splits_are_taken_out_of_training(train_file: Path, pattern: str) -> None:
    p = np.random.RandomState(0).permutation(N).tolist()
    data = Images(str(train_file))  # a tenth each
    assert data.labels("validation").tolist() == sorted(p[:4])
    assert data.labels("test").tolist() == sorted(p[4:8])
    assert data.labels("train").tolist() == sorted(p[8:])
    assert len(data.examples("train")) == 32

    p = np.random.RandomState(0).permutation(24).tolist()
    data = Images(pattern, validation=5)
    assert data.labels("validation").tolist() == sorted(p[:5])
    assert data.labels("train").tolist() == sorted(p[5:])
    assert data.labels("test").tolist() == list(range(24, N))


def test_splits_of_its_own_are_kept(pattern: str, tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    write_parquet(tmp_path / "set" / "val.parquet", [encode(p) for p in pixels[:3]], [7, 8, 9])
    data = Images(pattern)
    assert data.labels("train").tolist() == list(range(24))
    assert data.labels("validation").tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match=r"already has validation and test splits.*: leave validation out"):
        Images(pattern, validation=3).train  # noqa: B018


def test_files_in_folders(tmp_path: Path, pixels: np.ndarray) -> None:
    for i, (split, label) in enumerate(itertools.product(("train", "validation", "test"), ("cat", "dog"))):
        for j in range(3):
            file = tmp_path / "set" / split / label / f"{j}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[3 * i + j]).save(file)
    data = Images(str(tmp_path / "set"))
    x = torch.cat([data.split(name) for name in SPLITS])
    assert torch.equal(x, as_values(pixels[:18]))
    for name in SPLITS:
        assert data.labels(name).tolist() == [0, 0, 0, 1, 1, 1]


def test_withheld_labels_are_none(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    files = [encode(p) for p in pixels[:20]]
    write_parquet(tmp_path / "train.parquet", files, list(range(20)))
    write_parquet(tmp_path / "test.parquet", files, [-1] * 20)
    data = Images(str(tmp_path / "*.parquet"))
    assert data.labels("test") is None
    assert data.labels("train") is not None
    assert data.labels("validation") is not None


def test_without_labels(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    data = Images(str(write_parquet(tmp_path / "x.parquet", [encode(p) for p in pixels])))
    assert all(data.labels(name) is None for name in SPLITS)


def test_size_and_channels(train_file: Path) -> None:
    data = Images(str(train_file), size=4, channels=1)
    assert data.shape == (1, 4, 4)
    assert data.test.shape == (4, 1, 4, 4)
    data = Images(str(train_file), size=3)
    assert data.shape == (3, 3, 3)
    assert data.test.shape == (4, 3, 3, 3)


def test_grey_images_among_coloured_ones_are_made_to_fit(
    tmp_path: Path, pixels: np.ndarray, encode, write_parquet
) -> None:
    files = [encode(pixels[0]), encode(pixels[1, ..., 0]), *(encode(p) for p in pixels[2:])]
    data = Images(str(write_parquet(tmp_path / "x.parquet", files, list(range(N)))))
    everything = torch.cat([data.split(name) for name in SPLITS])
    labels = torch.cat([data.labels(name) for name in SPLITS]).tolist()
    expected = as_values(np.stack([pixels[1, ..., 0]] * 3, axis=-1)[None])[0]
    assert torch.equal(everything[labels.index(1)], expected)


def test_grey_images_before_coloured_ones_are_made_coloured(
    tmp_path: Path, pixels: np.ndarray, encode, write_parquet
) -> None:
    files = [encode(pixels[0, ..., 0]), *(encode(p) for p in pixels[1:])]
    path = write_parquet(tmp_path / "x.parquet", files, list(range(N)))
    data = Images(str(path))
    assert data.shape == (3, 6, 5)
    rows = {int(label): x for name in SPLITS for label, x in zip(data.labels(name), data.split(name), strict=True)}
    assert torch.equal(rows[0], as_values(np.stack([pixels[0, ..., 0]] * 3, axis=-1)[None])[0])
    assert torch.equal(rows[39], as_values(pixels[39:])[0])
    assert Images(str(path), channels=1).shape == (1, 6, 5)
    refused = pytest.raises(ValueError, match="The second is a colour image, unlike the others: give")
    with building.Decoder(None, None, (1, 6, 5)) as decoder, refused:
        decoder(files[:2], ["first", "second"])


def test_mirrored_where_u_says_so(train_file: Path) -> None:
    x = torch.arange(2 * 3.0 * 2 * 5).view(2, 3, 2, 5)
    u = torch.tensor([0.4999, 0.5])
    flipped = Images(str(train_file), flip=True).augment(x, u)
    assert torch.equal(flipped[0], x[0, :, :, [4, 3, 2, 1, 0]])
    assert torch.equal(flipped[1], x[1])
    assert torch.equal(Images(str(train_file)).augment(x, u), x)
