"""What a path names, which files belong to which split, and which columns are meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ndm.data.sources import Rows, find_source


def load(path: Path | str, **columns: str) -> dict[str, Rows]:
    return find_source(str(path)).load(False, columns.get("column"), columns.get("label_column"))


def labels_of(rows: Rows) -> list[int]:
    return [label for _, labels in rows.pieces(3) for label in labels]


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


@pytest.fixture
def some(encode: Callable[..., bytes]) -> list[bytes]:
    return [encode(np.full((4, 4), i, np.uint8)) for i in range(7)]


# ---- parquet


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["mnist-train", "mnist-test"], {"train": 1, "test": 1}),
        (["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"], {"train": 2, "validation": 1}),
        (["TRAIN", "Val", "x.test.y"], {"train": 1, "validation": 1, "test": 1}),
        (["my_training", "my_valid", "testing"], {"train": 1, "validation": 1, "test": 1}),
        (["trains", "contest", "intervals"], {"train": 3}),  # these names speak of no split
    ],
)
def test_files_are_sorted_into_splits_by_name(
    tmp_path: Path, some: list[bytes], write_parquet, names: list[str], splits: dict[str, int]
) -> None:
    folder = tmp_path / "test train [1]"  # names of folders above play no part
    for name in names:
        write_parquet(folder / f"{name}.parquet", some, list(range(7)))
    escaped = str(folder).replace("[", "[[]")
    for path in (folder, f"{escaped}/*.parquet"):
        found = load(path)
        assert {split: rows.count for split, rows in found.items()} == {s: 7 * n for s, n in splits.items()}
        for rows in found.values():
            assert labels_of(rows) == list(range(7)) * (rows.count // 7)


def test_files_are_sorted_into_splits_by_folder(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    write_parquet(tmp_path / "data" / "train" / "0000.parquet", some[:4])
    write_parquet(tmp_path / "data" / "test" / "0000.parquet", some[:3])
    write_parquet(tmp_path / ".cache" / "download.parquet", some)
    for path in (tmp_path, f"{tmp_path}/data/**/*.parquet"):
        assert {split: rows.count for split, rows in load(path).items()} == {"train": 4, "test": 3}


def test_a_files_own_name_comes_before_its_folders(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    write_parquet(tmp_path / "train and test" / "x-train.parquet", some[:4])
    write_parquet(tmp_path / "train and test" / "x-test.parquet", some[:3])
    assert {split: rows.count for split, rows in load(tmp_path).items()} == {"train": 4, "test": 3}


def test_a_single_file_is_for_training_whatever_its_name(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    assert list(load(write_parquet(tmp_path / "mnist-test.parquet", some))) == ["train"]


def test_a_file_of_no_split_among_others_is_refused(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    for name in ("train", "test", "extra"):
        write_parquet(tmp_path / f"{name}.parquet", some)
    with pytest.raises(ValueError, match=r"extra\.parquet is not: rename or remove it"):
        load(tmp_path)


def test_files_of_two_data_sets_are_refused(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    write_parquet(tmp_path / "a-train.parquet", some)
    write_parquet(tmp_path / "b-train.parquet", some, column="picture")
    with pytest.raises(ValueError, match=r"a-train.parquet has .*image.* but b-train.parquet has .*picture"):
        load(tmp_path / "*.parquet")


def test_without_a_training_split_nothing_goes(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    for name in ("test-0", "test-1"):
        write_parquet(tmp_path / f"{name}.parquet", some)
    with pytest.raises(ValueError, match="has no training split: it has test only"):
        load(tmp_path)


def test_taking_and_skipping(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    rows = load(write_parquet(tmp_path / "x.parquet", some, list(range(7))))["train"]
    assert labels_of(rows.take(3)) == [0, 1, 2]
    assert labels_of(rows.skip(5)) == [5, 6]
    assert rows.take(99).count == 7
    assert rows.skip(5).count == 2
    assert rows.skip(99).count == 0
    assert labels_of(rows.skip(2).take(99)) == [2, 3, 4, 5, 6]
    assert [label for _, label in rows.skip(2)] == [2, 3, 4, 5, 6]


def test_missing_labels_are_minus_one(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    rows = load(write_parquet(tmp_path / "x.parquet", some[:3], [4, None, 2]))["train"]
    assert labels_of(rows) == [4, -1, 2]
    assert [label for _, label in rows] == [4, -1, 2]
    rows = load(write_parquet(tmp_path / "y.parquet", some[:2]))["train"]
    assert labels_of(rows) == [-1, -1]


def test_truncated_and_damaged_files_are_named(tmp_path: Path, encode, write_parquet) -> None:
    noise = [encode(np.random.RandomState(i).randint(0, 256, (32, 32, 3)).astype(np.uint8)) for i in range(50)]
    path = write_parquet(tmp_path / "train.parquet", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read as a parquet file: it may be truncated"):
        load(path)
    path.write_bytes(data[:20] + b"\xff" * 2000 + data[2020:])
    with pytest.raises(OSError, match=r"Rows of the train split of .* cannot be read: a file may be damaged"):
        list(load(path)["train"].pieces(10))


# ---- columns


def test_columns_are_found_by_type(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    path = write_parquet(tmp_path / "x.parquet", some, list(range(7)), column="img", size=[4] * 7, name=["a"] * 7)
    rows = load(path)["train"]
    assert (rows.image, rows.label) == ("img", "label")
    assert next(iter(rows))[0]["bytes"] == some[0]


def test_columns_without_the_hubs_features(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    rows = load(write_parquet(tmp_path / "x.parquet", some, list(range(7)), column="img", hub=False))["train"]
    assert (rows.image, rows.label) == ("img", "label")
    assert next(iter(rows))[0]["bytes"] == some[0]


def test_a_column_of_bytes(tmp_path: Path, some: list[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"jpg": some, "cls": list(range(7)), "text": ["a"] * 7}), tmp_path / "x.parquet")
    rows = load(tmp_path / "x.parquet")["train"]
    assert (rows.image, rows.label) == ("jpg", None)
    assert next(iter(rows))[0] == some[0]
    assert load(tmp_path / "x.parquet", label_column="cls")["train"].label == "cls"


def test_of_fine_and_coarse_labels_the_fine_are_taken(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "fine_label": datasets.ClassLabel(num_classes=9),
            "coarse_label": datasets.ClassLabel(num_classes=3),
        }
    )
    rows = {"image": [{"bytes": b"", "path": None}], "fine_label": [7], "coarse_label": [1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet")["train"].label == "fine_label"


def test_refused_columns(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    path = write_parquet(tmp_path / "x.parquet", some, list(range(7)), name=["a"] * 7)
    with pytest.raises(
        ValueError, match=r"no column 'img' in the train split of .*: its columns are image, label, name"
    ):
        load(path, column="img")
    with pytest.raises(ValueError, match=r"column 'label' of .* does not hold images: ClassLabel"):
        load(path, column="label")
    with pytest.raises(ValueError, match="no column 'y' in"):
        load(path, label_column="y")
    with pytest.raises(ValueError, match=r"column 'name' of .* does not hold class numbers"):
        load(path, label_column="name")


def test_ambiguous_columns(tmp_path: Path) -> None:
    features = {
        "a": datasets.Image(),
        "b": datasets.Image(),
        "shape": datasets.ClassLabel(num_classes=2),
        "hue": datasets.ClassLabel(num_classes=2),
    }
    empty = {"bytes": b"", "path": None}
    rows = {"a": [empty], "b": [empty], "shape": [0], "hue": [1]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"several columns of images in .*, a, b: choose one with --data.column"):
        load(tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match=r"several columns of labels in .*, shape, hue: choose one with --data.label_column"
    ):
        load(tmp_path / "x.parquet", column="b")
    found = load(tmp_path / "x.parquet", column="b", label_column="hue")["train"]
    assert (found.image, found.label) == ("b", "hue")


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"x": [1], "y": ["a"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no column of images in .*: its columns are x, y"):
        load(tmp_path / "x.parquet")


# ---- folders of images


def paths_of(rows: Rows, below: Path) -> list[str]:
    return [str(Path(cell["path"]).relative_to(below)) for cell, _ in rows]


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.JPG", "cat/0.jpeg", "cat/notes.txt"):
        put(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    put(tmp_path / ".thumbnails" / "0.png")
    found = load(tmp_path)
    assert list(found) == ["train"]
    assert paths_of(found["train"], tmp_path) == ["cat/0.jpeg", "cat/2.JPG", "dog/1.png"]
    assert labels_of(found["train"]) == [0, 0, 1]


def test_folders_are_splits_and_then_classes(tmp_path: Path) -> None:
    for name in ("train/b/0.png", "train/c/1.png", "test/a/0.png", "test/c/1.png", "Val/b/0.png"):
        put(tmp_path / name)
    found = load(tmp_path)
    assert {split: labels_of(rows) for split, rows in found.items()} == {
        "train": [1, 2],
        "validation": [1],
        "test": [0, 2],  # numbered alike in all splits
    }


def test_folders_of_splits_without_classes(tmp_path: Path) -> None:
    for name in ("train/0.png", "train/1.png", "test/0.png"):
        put(tmp_path / name)
    found = load(tmp_path)
    assert {split: rows.count for split, rows in found.items()} == {"train": 2, "test": 1}
    assert found["train"].label is None


@pytest.mark.parametrize("names", [["0.png", "1.png"], ["all/0.png", "all/1.png"], ["a/0.png", "b/c/1.png"]])
def test_folders_that_are_not_classes(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        put(tmp_path / name)
    assert load(tmp_path)["train"].label is None
    assert load(tmp_path)["train"].count == 2


def test_a_stray_image_beside_splits_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "train" / "0.png")
    put(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"/0\.png is in none of them: move it"):
        load(tmp_path)


# ---- what a path names


def test_what_a_file_is_changes_with_it(tmp_path: Path, some: list[bytes], write_parquet) -> None:
    path = write_parquet(tmp_path / "x.parquet", some)
    put(tmp_path / "images" / "0.png")
    for source in (path, tmp_path / "images"):
        before = find_source(str(source)).fingerprint()
        assert find_source(str(source)).fingerprint() == before
    before = find_source(str(path)).fingerprint()
    write_parquet(path, some[:5])
    assert find_source(str(path)).fingerprint() != before
    before = find_source(str(tmp_path / "images")).fingerprint()
    put(tmp_path / "images" / "1.png")
    assert find_source(str(tmp_path / "images")).fingerprint() != before


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        (
            "nowhere/x.parquet",
            FileNotFoundError,
            "no file or folder nowhere/x.parquet, and it is not a valid name on the hub",
        ),
        ("/nowhere/x", FileNotFoundError, "no file or folder /nowhere/x"),
        ("a/b/c", FileNotFoundError, "no file or folder a/b/c"),
        ("nowhere/*.parquet", FileNotFoundError, r"No file matches nowhere/\*\.parquet"),
        ("{tmp}/empty", FileNotFoundError, "The folder .*/empty has neither parquet files nor images"),
        ("{tmp}/notes.txt", ValueError, r"notes\.txt is not a Parquet file"),
        ("{tmp}/*", ValueError, "is not a Parquet file: give Parquet files, or a folder"),
    ],
)
def test_what_is_nothing_is_refused(tmp_path: Path, path: str, error: type, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(error, match=sentence):
        find_source(path.format(tmp=tmp_path))


def test_states_and_configurations_are_the_hubs(tmp_path: Path) -> None:
    put(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"subset is for data sets of the hub, but .* is local"):
        find_source(str(tmp_path), subset="mnist")
    with pytest.raises(ValueError, match="revision is for data sets of the hub"):
        find_source(str(tmp_path), revision="main")


# ---- the hub, as its library shows it


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, some: list[bytes]) -> dict:
    """Stands in for the hub: what was asked for, and what it has."""
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in some], "label": list(range(7))},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=7)}),
    )
    there: dict = {"splits": ["train", "test"], "asked": None, "error": None}

    def load_dataset(*args, **kwargs):
        there["asked"] = (args, kwargs)
        if there["error"] is not None:
            raise there["error"]
        tables = dict.fromkeys(there["splits"], table)
        if kwargs["streaming"]:
            return datasets.IterableDatasetDict({s: t.to_iterable_dataset() for s, t in tables.items()})
        return datasets.DatasetDict(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return there


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub(hub: dict, some: list[bytes], streaming: bool) -> None:
    hub["splits"] = ["valid", "train", "extra", "test"]
    found = find_source("ylecun/mnist", subset="mnist", revision="abc").load(streaming, None, None)
    assert hub["asked"] == (("ylecun/mnist", "mnist"), {"revision": "abc", "streaming": streaming})
    assert list(found) == ["train", "validation", "test"]
    for rows in found.values():
        assert rows.count == (None if streaming else 7)
        assert [(cell["bytes"], label) for cell, label in rows] == list(zip(some, range(7), strict=True))
        assert labels_of(rows) == list(range(7))


def test_the_hub_may_say_how_many_rows_it_streams(hub: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.splits import SplitDict, SplitInfo

    load_dataset = datasets.load_dataset

    def telling(*args, **kwargs):
        tables = load_dataset(*args, **kwargs)
        for split, table in tables.items():
            table.info.splits = SplitDict({split: SplitInfo(name=split, num_examples=7)})
            table._split = datasets.NamedSplit(split)
        return tables

    monkeypatch.setattr(datasets, "load_dataset", telling)
    assert find_source("a/b").load(True, None, None)["train"].count == 7


def test_the_only_split_of_the_hub_is_for_training(hub: dict) -> None:
    hub["splits"] = ["full"]
    assert list(find_source("a/b").load(False, None, None)) == ["train"]
    hub["splits"] = ["one", "two"]
    with pytest.raises(ValueError, match="a/b has no training split: it has one, two only"):
        find_source("a/b").load(False, None, None)


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
            FileNotFoundError,
            "a/b is neither a local file or folder nor a data set of the hub .*doesn't exist",
        ),
        (ConnectionError("Couldn't reach it\nmore"), ConnectionError, r"hub cannot be reached \(Couldn't reach it\):"),
        (ValueError("Config name is missing."), ValueError, "a/b cannot be read: Config name is missing .*subset"),
        (RuntimeError("Dataset scripts are no longer supported"), ValueError, "scripts are no longer supported"),
    ],
)
def test_what_the_hub_refuses(hub: dict, error: Exception, kind: type, sentence: str) -> None:
    hub["error"] = error
    with pytest.raises(kind, match=sentence):
        find_source("a/b").load(False, None, None)


def test_what_is_here_comes_before_the_hub(
    hub: dict, tmp_path: Path, some: list[bytes], write_parquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "ylecun" / "mnist" / "train.parquet", some[:2])
    monkeypatch.chdir(tmp_path)
    assert load("ylecun/mnist")["train"].count == 2
    assert find_source("ylecun/mnist").fingerprint() != find_source("ylecun/other").fingerprint()
