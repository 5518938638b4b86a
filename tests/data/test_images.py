"""Data sets of images: every pixel and label where it belongs, decoded once, streamed reproducibly."""

from __future__ import annotations

import itertools
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from ndm.data import SPLITS, Data, Images, building, check_labels, from_levels

N = 40


def as_values(pixels: np.ndarray) -> Tensor:
    """What (N, H, W, C) of uint8 should come out as."""
    return from_levels(torch.from_numpy(pixels).permute(0, 3, 1, 2), 256)


def numbers(x: Tensor, among: Tensor) -> list[int]:
    """Which of these images each one is; any two of them differ."""
    same = (x[:, None] == among[None]).flatten(2).all(2)
    assert same.any(1).all(), "an image is none of the source's"
    return same.int().argmax(1).tolist()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images are decoded at a time, so that what holds for many times many is seen."""
    monkeypatch.setattr(building, "_PIECE", 7)
    monkeypatch.setattr(building, "_SHARE", 3)


@pytest.fixture
def train_file(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> Path:
    """One parquet file of N images, the labels of which are their numbers."""
    return write_parquet(tmp_path / "x.parquet", [encode(p) for p in pixels], list(range(N)))


@pytest.fixture
def pattern(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> str:
    """Files of a training split (two, of 12 images each) and a test split."""
    files = [encode(p) for p in pixels]
    for name, rows in (("train-0", range(12)), ("train-1", range(12, 24)), ("test", range(24, N))):
        write_parquet(tmp_path / "set" / f"{name}.parquet", [files[i] for i in rows], list(rows))
    return str(tmp_path / "set" / "*.parquet")


# ---- what comes out


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


# ---- the cache


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


# ---- streaming


def take(data: Images, n: int, batch_size: int = 5, seed: int = 0, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(data.training_batches(batch_size, seed, first), n))


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


# ---- refusals


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


# ---- what is said of them


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
