"""Where images come from: parquet files, folders of image files, data sets of the Hugging Face hub.

A source knows its splits as tables of the ``datasets`` library, which are read and never executed.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ndm.data.base import SPLITS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["Rows", "Source", "find_source"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_LABELS = ("label", "labels", "fine_label", "class", "target")
_IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(_NAMES)})(?![a-z])")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Rows:
    """A split: rows of a table, each with an image not decoded yet and perhaps a label.

    Attributes:
        table: the rows.
        image: name of the images' column.
        label: name of the labels' column, or None.
        count: number of rows, or None if nobody knows before all have been read.
        where: what to call the split in a message, in the middle of a sentence.
    """

    table: Dataset | IterableDataset
    image: str
    label: str | None
    count: int | None
    where: str

    def take(self, n: int) -> Rows:
        """The first n rows, or as many as there are."""
        count = None if self.count is None else min(n, self.count)
        table = self.table.take(n if count is None else count)
        return Rows(table, self.image, self.label, count, self.where)

    def skip(self, n: int) -> Rows:
        """All but the first n rows."""
        count = None if self.count is None else max(0, self.count - n)
        table = self.table.skip(n if self.count is None else min(n, self.count))
        return Rows(table, self.image, self.label, count, self.where)

    def shuffled(self, seed: int, buffer: int) -> Rows:
        """The rows in an order of the seed: any order where rows can be drawn at will, else as the buffer allows."""
        import datasets

        if isinstance(self.table, datasets.IterableDataset):
            table = self.table.shuffle(seed=seed, buffer_size=buffer)
        else:
            table = self.table.shuffle(seed=seed, keep_in_memory=True)
        return Rows(table, self.image, self.label, self.count, self.where)

    def spread(self) -> Rows:
        """Rows that can be drawn at will, in a fixed random order; others as they are."""
        import datasets

        if isinstance(self.table, datasets.IterableDataset):
            return self
        order = np.random.RandomState(0).permutation(len(self.table))  # whose stream is frozen by numpy's policy
        return Rows(self.table.select(order, keep_in_memory=True), self.image, self.label, self.count, self.where)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Image and label, row by row; a label that is not there is -1."""
        for row in self._reading(self.table):
            label = None if self.label is None else row[self.label]
            yield row[self.image], -1 if label is None else label

    def pieces(self, n: int) -> Iterator[tuple[list[Any], list[int]]]:
        """The same, n rows at a time, and faster."""
        for piece in self._reading(self.table.with_format("arrow").iter(batch_size=n)):
            images = piece.column(self.image).to_pylist()
            labels = [-1] * len(images) if self.label is None else piece.column(self.label).to_pylist()
            yield images, [-1 if label is None else label for label in labels]

    def _reading(self, rows: Any) -> Iterator[Any]:
        import pyarrow

        try:
            yield from rows
        except (pyarrow.ArrowException, OSError) as error:
            raise OSError(
                f"Rows of {self.where} cannot be read, a file may be damaged or the network away ({_line(error)})."
            ) from None


class Source(Protocol):
    """A place that images come from."""

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the contents without reading them, made of JSON's types."""
        ...

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        """The source's own splits, of which train is one, by their names in :data:`ndm.data.SPLITS`.

        Args:
            streaming: fetch rows as they are read, instead of downloading everything first.
            column: name of the images' column; None to find it by its type.
            label_column: name of the labels' column; None to find it by its type and name, if there is one.

        Raises:
            ValueError: the source is damaged, or its columns are not as they should be.
            ConnectionError: the hub cannot be reached.
            FileNotFoundError: the hub has no such data set.
        """
        ...


def find_source(path: str, subset: str | None = None, revision: str | None = None) -> Source:
    """What a path names; a local file or folder comes before a data set of the hub.

    Raises:
        FileNotFoundError: it can be neither, or a folder has nothing to read.
        ValueError: ``subset`` or ``revision`` is given for local files, or it cannot be told which split a file is of.
    """
    local = Path(path).expanduser()
    files = [Path(f) for f in sorted(glob.glob(str(local), recursive=True))] if glob.has_magic(path) else []
    if not (local.exists() or files):
        return _on_the_hub(path, subset, revision)
    if subset is not None or revision is not None:
        given = "subset" if subset is not None else "revision"
        raise ValueError(f"{given} is for data sets of the hub, but {path} is here: leave {given} out.")
    if local.is_dir():
        return _in_a_folder(local)
    if local.exists():
        files = [local]
    other = next((f for f in files if f.suffix != ".parquet" or not f.is_file()), None)
    if other is not None:
        raise ValueError(f"{other} is not a parquet file: give parquet files, or a folder of PNG or JPEG files.")
    if local.exists():
        return _Parquet({"train": [local]}, path)  # whatever its name: one file has no other splits
    return _Parquet(_by_split(files, Path(os.path.commonpath([file.parent for file in files])), path), path)


def _on_the_hub(path: str, subset: str | None, revision: str | None) -> Source:
    if glob.has_magic(path):
        raise FileNotFoundError(f"No file matches {path}: look for a slip in it.")
    if not _HUB_NAME.fullmatch(path) or path.endswith((".parquet", *_SUFFIXES)):
        raise FileNotFoundError(
            f"There is no file or folder {path}, and the hub has no such names: give parquet files, a folder, "
            "or a name like ylecun/mnist."
        )
    return _Hub(path, subset, revision)


def _in_a_folder(folder: Path) -> Source:
    found: dict[str, list[Path]] = {"parquet": [], "images": []}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))  # such as what downloads leave behind
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            kind = "parquet" if suffix == ".parquet" else "images" if suffix in _SUFFIXES else None
            if kind and not name.startswith("."):
                found[kind].append(Path(parent, name))
    if found["parquet"]:
        return _Parquet(_by_split(found["parquet"], folder, str(folder)), str(folder))
    if found["images"]:
        return _ImageFolder(folder, found["images"])
    raise FileNotFoundError(f"The folder {folder} has neither parquet files nor PNG or JPEG files in it.")


def _by_split(files: Sequence[Path], below: Path, path: str) -> dict[str, list[Path]]:
    """Sort parquet files by the split that their names, or else those of their folders, speak of."""

    def split_of(file: Path) -> str | None:
        for part in reversed(file.relative_to(below).parts):
            match = _IN_A_NAME.search(part.lower())
            if match:
                return _NAMES[match[1]]
        return None

    splits = {file: split_of(file) for file in files}
    if not any(splits.values()):
        return {"train": list(files)}
    nameless = next((file for file, split in splits.items() if split is None), None)
    if nameless is not None:
        raise ValueError(
            f"Of the files of {path} some are named after a split, but {nameless} is not: rename it or leave it out."
        )
    return _with_train({s: [f for f in files if splits[f] == s] for s in SPLITS if s in splits.values()}, path)


def _with_train(splits: dict[str, Any], path: str) -> dict[str, Any]:
    if "train" not in splits:
        raise ValueError(f"{path} has no training split: it has {', '.join(splits)} only.")
    return splits


def _stamps(files: Sequence[Path]) -> list[Any]:
    """Name, size and time of last change of every file."""
    stats = [(file, os.stat(file)) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


@dataclass(frozen=True)
class _Parquet:
    files: Mapping[str, Sequence[Path]]
    path: str

    def fingerprint(self) -> dict[str, Any]:
        return {split: _stamps([file.resolve() for file in files]) for split, files in self.files.items()}

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        from datasets import load_dataset

        counts = {split: sum(map(_length, files)) for split, files in self.files.items()}
        self._require_one_layout()
        # Streamed in any case: the library would else write everything to a cache of its own before the first row.
        tables = load_dataset(
            "parquet",
            data_files={split: [glob.escape(str(f.resolve())) for f in files] for split, files in self.files.items()},
            streaming=True,
        )
        return {
            split: _rows(tables[split], column, label_column, counts[split], f"the {split} split of {self.path}")
            for split in self.files
        }

    def _require_one_layout(self) -> None:
        """Raise a ValueError if the files have different columns, as those of several data sets have."""
        import pyarrow.parquet

        files = [file for several in self.files.values() for file in several]
        columns = [sorted(pyarrow.parquet.read_schema(file).names) for file in files]
        for file, other in zip(files, columns, strict=True):
            if other != columns[0]:
                raise ValueError(
                    f"The files of {self.path} do not belong together: {files[0].name} has the columns "
                    f"{', '.join(columns[0])}, but {file.name} has {', '.join(other)}; give those of one data set."
                )


def _length(file: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file).num_rows
    except pyarrow.ArrowException:
        raise ValueError(f"{file} cannot be read as a parquet file: it may be truncated or damaged.") from None


@dataclass(frozen=True)
class _ImageFolder:
    """Files of images: folders at the top that are named after splits are splits, and folders in these are classes."""

    folder: Path
    files: Sequence[Path]

    def fingerprint(self) -> dict[str, Any]:
        return {"folder": str(self.folder.resolve()), "files": _stamps(self.files)}

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        from datasets import ClassLabel, Dataset, Features, Image

        splits = self._splits()
        classes = self._classes()
        found = {}
        for split, files in splits.items():
            columns: dict[str, list[Any]] = {"image": [str(file) for file in files]}
            features = {"image": Image(decode=False)}
            if classes:
                columns["label"] = [classes.index(file.parent.name) for file in files]
                features["label"] = ClassLabel(names=classes)
            table = Dataset.from_dict(columns, features=Features(features))
            found[split] = _rows(table, column, label_column, len(files), f"the {split} split of {self.folder}")
        return found

    def _splits(self) -> dict[str, list[Path]]:
        if not self._has_split_folders():
            return {"train": list(self.files)}
        tops = {file: self._top(file) for file in self.files}
        stray = next((file for file, split in tops.items() if split is None), None)
        if stray is not None:
            raise ValueError(f"{self.folder} has folders named after splits, but {stray} is in none of them: move it.")
        splits = {s: [f for f in self.files if tops[f] == s] for s in SPLITS if s in tops.values()}
        return _with_train(splits, str(self.folder))

    def _classes(self) -> list[str]:
        """Names of the folders just above the files, if that is how all files lie; else there are no classes."""
        depth = 3 if self._has_split_folders() else 2
        if any(len(file.relative_to(self.folder).parts) != depth for file in self.files):
            return []
        classes = sorted({file.parent.name for file in self.files})
        return classes if len(classes) > 1 else []

    def _has_split_folders(self) -> bool:
        return any(self._top(file) for file in self.files)

    def _top(self, file: Path) -> str | None:
        """The split that the outermost folder of a file is named after, if it is."""
        return _NAMES.get(file.relative_to(self.folder).parts[0].lower())


@dataclass(frozen=True)
class _Hub:
    name: str
    subset: str | None
    revision: str | None

    def fingerprint(self) -> dict[str, Any]:
        return {"hub": self.name, "subset": self.subset, "revision": self.revision}

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        tables = self._tables(streaming)
        splits = {_NAMES.get(name.lower(), name): name for name in tables}
        if len(splits) == 1:
            splits = {"train": next(iter(tables))}  # under whatever name: it is all there is
        found = {}
        for split in SPLITS:
            if split in _with_train(splits, self.name):
                table = tables[splits[split]]
                count = _announced(table) if streaming else len(table)
                where = f"the {splits[split]} split of {self.name}"
                found[split] = _rows(table, column, label_column, count, where)
        return found

    def _tables(self, streaming: bool) -> Any:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        try:
            return load_dataset(self.name, self.subset, revision=self.revision, streaming=streaming)
        except DatasetNotFoundError as error:
            raise FileNotFoundError(
                f"{self.name} is neither a file or folder here nor a data set of the hub that is open to you "
                f"({_line(error)})."
            ) from None
        except ConnectionError as error:
            raise ConnectionError(
                f"{self.name} is not a file or folder here, and the hub cannot be reached ({_line(error)}): "
                "check the path, or the network."
            ) from None
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"The hub's data set {self.name} cannot be read: {_line(error)} "
                "(subset names one of several configurations, revision another state of it.)"
            ) from None


def _announced(table: Any) -> int | None:
    """How many rows the hub says a split has, if it does."""
    splits = table.info.splits or {}
    return splits[table.split].num_examples or None if table.split in splits else None


def _rows(table: Any, column: str | None, label_column: str | None, count: int | None, where: str) -> Rows:
    import datasets

    features = table.features or table._resolve_features().features
    image = _image_column(features, column, where)
    label = _label_column(features, label_column, where)
    if isinstance(features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    return Rows(table.select_columns([image] + [label] * (label is not None)), image, label, count, where)


def _image_column(features: Mapping[str, Any], column: str | None, where: str) -> str:
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    files = [name for name, feature in features.items() if _holds_bytes(feature)]
    if column is not None:
        _require(column, features, where)
        if column not in images + files:
            raise ValueError(f"The column {column!r} of {where} does not hold images: {features[column]}.")
        return column
    candidates = images or files
    if not candidates:
        raise ValueError(f"There is no column of images in {where}: its columns are {', '.join(features)}.")
    if len(candidates) > 1:
        raise ValueError(
            f"There are several columns of images in {where}, {', '.join(candidates)}: name one by column=."
        )
    return candidates[0]


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return "bytes" in feature and _holds_bytes(feature["bytes"])
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(features: Mapping[str, Any], column: str | None, where: str) -> str | None:
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    whole = [
        name for name, feature in features.items() if re.fullmatch(r"u?int\d+", str(getattr(feature, "dtype", "")))
    ]
    if column is not None:
        _require(column, features, where)
        if column not in whole:
            raise ValueError(f"The column {column!r} of {where} does not hold numbers of classes: {features[column]}.")
        return column
    if len(classes) == 1:
        return classes[0]
    named = [name for name in _LABELS if name in (classes or whole)]
    if len(named) == 1:
        return named[0]
    if named or classes:
        raise ValueError(
            f"There are several columns of labels in {where}, {', '.join(classes or named)}: name one by label_column=."
        )
    return None


def _require(column: str, features: Mapping[str, Any], where: str) -> None:
    if column not in features:
        raise ValueError(f"There is no column {column!r} in {where}: its columns are {', '.join(features)}.")


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
