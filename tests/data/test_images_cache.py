"""Images are decoded once, and again where the source or the cache has changed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from ndm.data import Data, Images, building
from tests.data.pictures import N

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_decoded_once(train_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Images(str(train_file)).test
    folders = [p for p in cache.iterdir() if p.is_dir()]
    assert len(folders) == 1

    def never(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(building, "decode", never)
    assert torch.equal(Images(str(train_file)).test, first)
    Images(str(train_file), validation=3, flip=True).train  # noqa: B018  # what does not matter to pixels
    for different in ({"channels": 1}, {"size": 4}, {"column": "image"}, {"streaming": True, "held": 3}):
        with pytest.raises(AssertionError, match="decoded again"):
            Images(str(train_file), **different).train  # noqa: B018


def test_decoded_again_when_the_source_changes(train_file: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    before = Images(str(train_file)).train
    write_parquet(train_file, [encode(255 - p) for p in pixels], list(range(N)))
    assert torch.equal(Images(str(train_file)).train, -before)


def test_decoded_again_when_the_cache_is_damaged(train_file: Path, cache: Path) -> None:
    before = Images(str(train_file)).train
    (file,) = cache.glob("*/train.npy")
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(Images(str(train_file)).train, before)


def test_a_cache_of_ones_own(train_file: Path, tmp_path: Path, cache: Path) -> None:
    Images(str(train_file), cache=str(tmp_path / "mine")).train  # noqa: B018
    assert list((tmp_path / "mine").glob("*/train.npy"))
    assert not cache.exists()


def test_a_failed_decoding_leaves_no_images(
    tmp_path: Path, cache: Path, pixels: np.ndarray, encode, write_parquet
) -> None:
    files = [encode(p) for p in pixels]
    files[30] = files[30][:-40]
    path = write_parquet(tmp_path / "x.parquet", files)
    with pytest.raises(ValueError, match=r"The image in row 30 of the train split of .*x\.parquet cannot be decoded"):
        Images(str(path)).train  # noqa: B018
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_nothing_is_touched_before_it_is_needed() -> None:
    data = Images("/nowhere/*.parquet", size=8, channels=3)
    assert data.shape == (3, 8, 8)
    with pytest.raises(FileNotFoundError, match="No file matches"):
        data.examples("train")


def test_named_in_a_configuration() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Data, "data")
    init_args = {"path": "/nowhere/*.parquet", "size": 8, "channels": 1, "flip": True}
    tree = parser.parse_object({"data": {"class_path": "ndm.data.Images", "init_args": init_args}})
    assert parser.instantiate(tree).data.shape == (1, 8, 8)


def test_sent_to_another_process(train_file: Path) -> None:
    data = Images(str(train_file))
    x = data.train
    pickled = pickle.dumps(data)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled).train, x)
