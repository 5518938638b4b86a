"""Images and arguments that are refused by a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ndm.data import Images
from tests.data.pictures import take

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_unequal_images(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    files = [encode(p) for p in pixels]
    files[17] = encode(pixels[17, :4, :3])
    path = write_parquet(tmp_path / "x.parquet", files)
    sentence = r"images of 2 sizes, most often 5 x 6 \(39\), 3 x 4 \(1\) pixels: give --data.size 4 \(size=4\)"
    with pytest.raises(ValueError, match=sentence):
        Images(str(path)).train  # noqa: B018
    assert Images(str(path), size=3).shape == (3, 3, 3)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("oops")
    with pytest.raises(ValueError, match=r"The image .*/1\.png of the train split of .* is not an image"):
        Images(str(tmp_path)).train  # noqa: B018


def test_a_broken_image_in_a_stream(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    files = [encode(p) for p in pixels]
    files[30] = files[30][:-40]
    data = Images(str(write_parquet(tmp_path / "x.parquet", files)), streaming=True, held=5)
    with pytest.raises(ValueError, match=r"The image in batch \d of a pass of the train split of .* cannot be decoded"):
        take(data, 6)


def test_a_batch_that_cannot_be_filled(pattern: str) -> None:
    with pytest.raises(
        ValueError, match=r"the train split of .* has too few examples for a batch of 25: reduce the batch size"
    ):
        take(Images(pattern, streaming=True, held=3), 1, batch_size=25)


def test_too_few_to_split(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    path = str(write_parquet(tmp_path / "x.parquet", [encode(p) for p in pixels]))
    with pytest.raises(ValueError, match="has 40 training examples, too few to take 20 for each of"):
        Images(path, validation=20).train  # noqa: B018
    with pytest.raises(ValueError, match=r"There are no images for the train split: .*x\.parquet has too few"):
        Images(path, validation=40, streaming=True).train  # noqa: B018
    assert len(Images(path, validation=19).train) == 2


def test_packages_that_are_missing(train_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"the package 'datasets'.*: pip install datasets filelock pillow"):
        Images(str(train_file)).train  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 0}, "size must be positive, not 0"),
        ({"validation": 0}, "validation must be positive"),
        ({"held": -1}, "held must be positive"),
        ({"buffer": 0}, "buffer must be positive"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(colour\), not 4"),
    ],
)
def test_arguments_out_of_range(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Images("x", **arguments)
