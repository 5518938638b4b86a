"""What is said of a data set of images: its summary, fingerprint, labels and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ndm.data import SPLITS, Images, check_labels

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_a_summary_tells_what_was_found_and_done(tmp_path: Path, pixels: np.ndarray) -> None:
    for i in range(20):
        file = tmp_path / "set" / "ab"[i % 2] / f"{i:02}.{'png' if i < 15 else 'webp'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        alpha = np.full_like(pixels[i, ..., :1], 255 if i else 100)
        image = np.concatenate([pixels[i], alpha], axis=2) if i < 3 else pixels[i]
        Image.fromarray(image).save(file, **({"lossless": True} if i >= 15 else {}))
    (tmp_path / "set" / "notes.txt").write_text("x")
    data = Images(str(tmp_path / "set"))
    lines = data.summary()
    assert lines[0] == "data: coloured images of 5 x 6 pixels"
    assert "left out: 1 .txt (images are read)" in lines
    assert "modes: 17 RGB, 3 RGBA" in lines
    assert "sizes: all 5 x 6 pixels" in lines
    assert "images partly transparent, and put on a white background: 1" in lines
    assert "splits: train 16, validation 2, test 2" in lines
    assert "classes: 2: a (10), b (10)" in lines
    assert (data.classes, data.class_names) == (2, ("a", "b"))
    again = Images(str(tmp_path / "set"))
    assert again.summary() == lines  # without decoding them once more
    resized = Images(str(tmp_path / "set"), size=6).summary()
    assert any("resized to 6 pixels" in line and "20 images are enlarged" in line for line in resized)
    with pytest.raises(ValueError, match=r"/00\.png of .* is partly transparent: give --data.background white"):
        Images(str(tmp_path / "set"), background=None).train  # noqa: B018
    with pytest.raises(ValueError, match="background must be a colour"):
        Images(str(tmp_path / "set"), background="chequered")


def test_copies_across_splits_are_counted(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    files = [encode(p) for p in pixels[:20]]
    write_parquet(tmp_path / "set" / "train.parquet", [*files[:10], files[0]])
    write_parquet(tmp_path / "set" / "validation.parquet", files[10:15])
    write_parquet(tmp_path / "set" / "test.parquet", [*files[15:], files[3], files[3]])
    lines = Images(str(tmp_path / "set")).summary()
    copies = "duplicates: 1 of 11 in train, 1 of 7 in test are exact copies of others in the same split"
    assert copies in lines
    assert sum("2 of the 7 test examples are exact copies of train" in line for line in lines) == 1


def test_a_class_sorted_folder_has_all_classes_in_every_split(tmp_path: Path) -> None:
    """The splits are a random part: 20 of 4 classes of 50 images each, whose order in the folder is by class."""
    for i in range(200):
        file = tmp_path / "set" / f"class {i // 50}" / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(file)
    data = Images(str(tmp_path / "set"))
    for name in ("validation", "test"):
        counts = torch.bincount(data.labels(name), minlength=4)
        assert counts.sum() == 20
        assert counts.min() >= 1
        assert counts.max() <= 12


def test_a_fingerprint_is_of_the_contents(tmp_path: Path, train_file: Path, pixels: np.ndarray, encode) -> None:
    first = Images(str(train_file)).fingerprint()
    moved = tmp_path / "moved" / "y.parquet"
    moved.parent.mkdir()
    train_file.rename(moved)
    moved.touch()
    assert Images(str(moved)).fingerprint() == first
    assert Images(str(moved), cache=str(tmp_path / "other")).fingerprint() == first
    assert Images(str(moved), flip=True).fingerprint() == first
    for different in ({"validation": 5}, {"size": 4}, {"channels": 1}):
        assert Images(str(moved), **different).fingerprint() != first
    assert Images(str(moved), streaming=True, held=5).fingerprint() is None


def test_one_more_image_is_another_fingerprint(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    found = set()
    files = [encode(p) for p in pixels]
    for rows, labels in ((30, range(30)), (31, range(31)), (30, reversed(range(30)))):
        path = write_parquet(tmp_path / "x.parquet", files[:rows], list(labels))
        found.add(Images(str(path)).fingerprint())
    assert len(found) == 3


@pytest.mark.parametrize("first", [None, float("nan"), 2.0])
def test_labels_are_missing_whatever_the_first_is(
    tmp_path: Path, pixels: np.ndarray, encode, write_parquet, first: float | None
) -> None:
    values = [first, 1.0, None, float("nan"), 0.0] * 4
    files = [encode(p) for p in pixels[:20]]
    path = write_parquet(
        tmp_path / "x.parquet", files, hub=False, number=pa.array(values, pa.float64(), from_pandas=False)
    )
    data = Images(str(path), label_column="number")
    labels = torch.cat([data.labels(name) for name in SPLITS])
    assert (labels == -1).sum() == (8 if first == 2.0 else 12)
    with pytest.raises(ValueError, match=r"In the train split, some labels are missing \(-1\)"):
        check_labels(data, 3)
    assert any("examples without a label" in line for line in data.summary())


def test_a_column_called_label_that_holds_none_is_spoken_of(
    tmp_path: Path, pixels: np.ndarray, encode, write_parquet
) -> None:
    files = [encode(p) for p in pixels[:20]]
    path = write_parquet(tmp_path / "x.parquet", files, hub=False, target=[0.5] * 20)
    data = Images(str(path))
    assert data.labels("train") is None
    assert any("'target' holds float64 and is not read" in line for line in data.summary())
    with pytest.raises(ValueError, match=r"has the label 0\.5: labels must be integers"):
        Images(str(path), label_column="target").train  # noqa: B018


def test_names_of_classes_are_the_sources(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encode(p) for p in pixels[:20]], [3, 1] * 10)
    data = Images(str(path))
    assert data.class_names == tuple("0123456789")
    assert data.classes == 10
