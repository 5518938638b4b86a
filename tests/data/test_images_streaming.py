"""Streams of images: reproducible batches of every example."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ndm.data import SPLITS, Images
from tests.data.pictures import N, as_values, numbers, take

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_only_a_stream_has_batches_of_its_own(train_file: Path) -> None:
    assert Images(str(train_file)).training_batches(4, 0, 0) is None


def test_a_stream_keeps_the_first_rows(train_file: Path, pattern: str) -> None:
    data = Images(str(train_file), streaming=True, held=6, validation=3)
    assert {name: data.labels(name).tolist() for name in SPLITS} == {
        "validation": [0, 1, 2],
        "test": [3, 4, 5],
        "train": [6, 7, 8, 9, 10, 11],
    }
    data = Images(pattern, streaming=True, held=4)
    assert {name: data.labels(name).tolist() for name in SPLITS} == {
        "validation": [0, 1, 2, 3],
        "test": [24, 25, 26, 27],
        "train": [4, 5, 6, 7],
    }


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_each_pass_has_every_example_at_most_once(pattern: str, pixels: np.ndarray, buffer: int) -> None:
    data = Images(pattern, streaming=True, held=3, buffer=buffer)
    batches = take(data, 12)  # three passes of 21 examples, 4 batches each
    x = as_values(pixels)
    passes = []
    for k in range(3):
        seen = []
        for images, labels in batches[4 * k : 4 * k + 4]:
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert torch.equal(images, x[labels])
            seen += labels.tolist()
        assert len(set(seen)) == 20
        assert set(seen) <= set(range(3, 24))  # none of validation or test
        passes.append(seen)
    if buffer > 1:
        assert passes[0] != passes[1] != passes[2]
        assert passes[0] != sorted(passes[0])


def test_a_batch_is_a_function_of_seed_and_step(pattern: str) -> None:
    data = Images(pattern, streaming=True, held=3, buffer=6)
    batches = take(data, 14)
    for first in (0, 1, 3, 4, 5, 11):
        for (x, y), (x0, y0) in zip(take(data, 3, first=first), batches[first : first + 3], strict=True):
            assert torch.equal(y, y0)
            assert torch.equal(x, x0)
    other = take(data, 4, seed=1)
    assert [y.tolist() for _, y in other] != [y.tolist() for _, y in batches[:4]]


def test_a_stream_of_unknown_length(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the hub's data sets that do not say how long they are."""
    known = [y.tolist() for _, y in take(Images(pattern, streaming=True, held=3), 11)]
    real = Images._held_and_streamed

    def unknown(self: Images):
        held, train = real(self)
        return held, type(train)(train.table, train.image, train.label, None, train.where)

    monkeypatch.setattr(Images, "_held_and_streamed", unknown)
    data = Images(pattern, streaming=True, held=3)
    assert [y.tolist() for _, y in take(data, 11)] == known
    assert [y.tolist() for _, y in take(data, 4, first=6)] == known[6:10]


def test_a_stream_shorter_than_announced_goes_on(
    pattern: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Images._held_and_streamed

    def wrong(self: Images):
        held, train = real(self)
        return held, type(train)(train.table, train.image, train.label, 1000, train.where)

    monkeypatch.setattr(Images, "_held_and_streamed", wrong)
    with caplog.at_level(logging.WARNING, "ndm.data"):
        assert len(take(Images(pattern, streaming=True, held=3), 9)) == 9
    assert "should have 1000 rows but has fewer" in caplog.text
    with pytest.raises(ValueError, match="too few examples for a batch of 25"):
        take(Images(pattern, streaming=True, held=3), 1, batch_size=25)


def test_files_in_a_folder_are_streamed_in_any_order(tmp_path: Path, pixels: np.ndarray) -> None:
    for i in range(N):
        file = tmp_path / "set" / f"class {i // 10}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(file)
    data, x = Images(str(tmp_path / "set"), streaming=True, held=10, buffer=1), as_values(pixels)
    parts = [numbers(data.split(name), x) for name in SPLITS]
    p = np.random.RandomState(0).permutation(N).tolist()
    assert parts == [p[20:30], p[:10], p[10:20]]
    assert data.labels("test").tolist() == [i // 10 for i in p[10:20]]
    streamed = [i for images, _ in take(data, 4) for i in numbers(images, x)]
    assert sorted(streamed) == sorted(p[20:])
    assert len({i // 10 for i in streamed[:10]}) > 1  # a small buffer notwithstanding


def test_a_stream_of_the_hub(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray, encode: Callable[..., bytes]) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=N)})
    table = datasets.Dataset.from_dict(
        {"img": [{"bytes": encode(p), "path": None} for p in pixels], "label": list(range(N))}, features=features
    ).to_iterable_dataset(num_shards=4)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.IterableDatasetDict({"train": table}))
    data, x = Images("somebody/images", streaming=True, held=5), as_values(pixels)
    assert torch.equal(data.test, x[5:10])
    batches = take(data, 12)
    assert sorted(set(torch.cat([y for _, y in batches]).tolist())) == list(range(10, N))
    for images, labels in batches:
        assert torch.equal(images, x[labels])
    assert torch.equal(take(data, 1, first=8)[0][0], batches[8][0])
