"""Sources of images: Parquet files, folders of image files, data sets of the Hugging Face hub.

The splits of a source are tables of the ``datasets`` library. No code of a data set is executed.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ndm.data.arrow import require_moderate
from ndm.data.base import SPLITS
from ndm.data.files import IMAGE_SUFFIXES, by_suffix, counted, left_out_line, walk
from ndm.data.rows import Rows, first_line, rows_of

__all__ = ["Rows", "Source", "by_split", "find_source"]

#: Rows of a Parquet file read at once; the library's default is a row group, which may contain all rows.
_ROWS_AT_ONCE = 1024

_FORMATS = ", ".join(dict.fromkeys(IMAGE_SUFFIXES.values()))
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
_IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(_NAMES)})(?![a-z])")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Source(Protocol):
    """A source of images."""

    def fingerprint(self) -> dict[str, Any]:
        """An identifier of the contents, as JSON types, which does not require reading them."""
        ...

    def summary(self) -> list[str]:
        """Short lines about the files that are read and left out."""
        ...

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        """The splits of the source, including train, by their names in :data:`ndm.data.SPLITS`.

        Args:
            streaming: fetch rows when they are read, instead of downloading everything first.
            column: name of the column of the images; None to find it by its type.
            label_column: name of the column of the labels; None to find it by its type and name, if there is one.

        Raises:
            ValueError: the source is damaged, or its columns are invalid.
            ConnectionError: the hub cannot be reached.
            FileNotFoundError: the hub has no such data set.
        """
        ...


def find_source(path: str, subset: str | None = None, revision: str | None = None) -> Source:
    """The source at a path; local files and folders have priority over data sets of the hub.

    Raises:
        FileNotFoundError: the path does not exist and is not a name on the hub, or a folder has nothing to read.
        ValueError: ``subset`` or ``revision`` is given for local files, or the split of a file is ambiguous.
    """
    local = Path(path).expanduser()
    files = [Path(f) for f in sorted(glob.glob(str(local), recursive=True))] if glob.has_magic(path) else []
    if not (local.exists() or files):
        return _on_the_hub(path, subset, revision)
    if subset is not None or revision is not None:
        given = "subset" if subset is not None else "revision"
        raise ValueError(f"{given} is for data sets of the hub, but {path} is local: leave {given} out.")
    if local.is_dir():
        return _in_a_folder(local)
    if local.exists():
        files = [local]
    other = next((f for f in files if f.suffix != ".parquet" or not f.is_file()), None)
    if other is not None:
        raise ValueError(f"{other} is not a Parquet file: give Parquet files, or a folder of images.")
    if local.exists():
        return _Parquet({"train": [local]}, path)  # the name is ignored: a single file is the training split
    return _Parquet(by_split(files, Path(os.path.commonpath([file.parent for file in files])), path), path)


def _on_the_hub(path: str, subset: str | None, revision: str | None) -> Source:
    if glob.has_magic(path):
        raise FileNotFoundError(f"No file matches {path}: check its spelling.")
    if not _HUB_NAME.fullmatch(path) or path.lower().endswith((".parquet", *IMAGE_SUFFIXES)):
        raise FileNotFoundError(
            f"There is no file or folder {path}, and it is not a valid name on the hub: give Parquet files, a folder, "
            "or a name such as ylecun/mnist."
        )
    return _Hub(path, subset, revision)


def _in_a_folder(folder: Path) -> Source:
    found = walk(folder, {".parquet": "parquet"} | dict.fromkeys(IMAGE_SUFFIXES, "images"))
    parquet, images = found.files["parquet"], found.files["images"]
    if parquet:
        left_out = found.left_out + by_suffix(images)
        return _Parquet(by_split(parquet, folder, str(folder)), str(folder), left_out)
    if images:
        return _ImageFolder(folder, images, found.left_out)
    others = f": it has {counted(found.left_out)}" if found.left_out else ""
    raise FileNotFoundError(f"The folder {folder} has neither parquet files nor images ({_FORMATS}) in it{others}.")


def by_split(files: Sequence[Path], below: Path, path: str) -> dict[str, list[Path]]:
    """Sort Parquet files by the split in their names, or else in those of their folders."""

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
        raise ValueError(f"Some files of {path} are named after a split, but {nameless} is not: rename or remove it.")
    return _with_train({s: [f for f in files if splits[f] == s] for s in SPLITS if s in splits.values()}, path)


def _with_train(splits: dict[str, Any], path: str) -> dict[str, Any]:
    if "train" not in splits:
        raise ValueError(f"{path} has no training split: it has {', '.join(splits)} only.")
    return splits


def _stamps(files: Sequence[Path]) -> list[Any]:
    """Name, size and modification time of each file."""
    stats = [(file, os.stat(file)) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


@dataclass(frozen=True)
class _Parquet:
    files: Mapping[str, Sequence[Path]]
    path: str
    left_out: Counter[str] = field(default_factory=Counter)

    def fingerprint(self) -> dict[str, Any]:
        return {split: _stamps([file.resolve() for file in files]) for split, files in self.files.items()}

    def summary(self) -> list[str]:
        n = sum(map(len, self.files.values()))
        files = "1 Parquet file" if n == 1 else f"{n:,} Parquet files"
        return [f"files: {files} of {self.path}", *left_out_line(self.left_out, "Parquet files")]

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        from datasets import load_dataset

        counts = {split: sum(map(_length, files)) for split, files in self.files.items()}
        self._require_one_layout()
        # Always streamed: otherwise the library would first copy everything to its own cache.
        tables = load_dataset(
            "parquet",
            data_files={split: [glob.escape(str(f.resolve())) for f in files] for split, files in self.files.items()},
            streaming=True,
            batch_size=_ROWS_AT_ONCE,
        )
        return {
            split: rows_of(tables[split], column, label_column, counts[split], f"the {split} split of {self.path}")
            for split in self.files
        }

    def _require_one_layout(self) -> None:
        """Raise a ValueError if the files have different columns, as for several data sets."""
        import pyarrow.parquet

        files = [file for several in self.files.values() for file in several]
        columns = [sorted(pyarrow.parquet.read_schema(file).names) for file in files]
        for file, other in zip(files, columns, strict=True):
            if other != columns[0]:
                raise ValueError(
                    f"The files of {self.path} have different columns: {files[0].name} has {', '.join(columns[0])}, "
                    f"but {file.name} has {', '.join(other)}; give the files of one data set."
                )


def _length(file: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    require_moderate(file)
    try:
        return pyarrow.parquet.read_metadata(file).num_rows
    except pyarrow.ArrowException:
        raise ValueError(f"{file} cannot be read as a parquet file: it may be truncated or damaged.") from None


@dataclass(frozen=True)
class _ImageFolder:
    """Folders of image files: top-level folders named after splits are splits, and folders in them are classes."""

    folder: Path
    files: Sequence[Path]
    left_out: Counter[str] = field(default_factory=Counter)

    def fingerprint(self) -> dict[str, Any]:
        return {"folder": str(self.folder.resolve()), "files": _stamps(self.files)}

    def summary(self) -> list[str]:
        formats = Counter(IMAGE_SUFFIXES[file.suffix.lower()] for file in self.files)
        files = f"files: {len(self.files):,} images in {self.folder} ({counted(formats)})"
        return [files, *left_out_line(self.left_out, "images"), *self._why_no_classes()]

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
            found[split] = rows_of(table, column, label_column, len(files), f"the {split} split of {self.folder}")
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
        """Names of the folders that contain the files, if all files have this layout; else there are no classes."""
        depth = 3 if self._has_split_folders() else 2
        if any(len(file.relative_to(self.folder).parts) != depth for file in self.files):
            return []
        classes = sorted({file.parent.name for file in self.files})
        return classes if len(classes) > 1 else []

    def _why_no_classes(self) -> list[str]:
        """A line about folders that look like classes but are not."""
        depth = 3 if self._has_split_folders() else 2
        parts = [(len(file.relative_to(self.folder).parts), file) for file in self.files]
        other = next((file for n, file in parts if n != depth), None)
        if other is None or all(n < depth for n, _ in parts):
            return []
        return [f"no classes: the images are in folders of different depths, such as {other}"]

    def _has_split_folders(self) -> bool:
        return any(self._top(file) for file in self.files)

    def _top(self, file: Path) -> str | None:
        """The split named by the outermost folder of a file, if any."""
        return _NAMES.get(file.relative_to(self.folder).parts[0].lower())


@dataclass(frozen=True)
class _Hub:
    name: str
    subset: str | None
    revision: str | None

    def fingerprint(self) -> dict[str, Any]:
        return {"hub": self.name, "subset": self.subset, "revision": self.revision}

    def summary(self) -> list[str]:
        given = [f"{k} {v}" for k, v in {"subset": self.subset, "revision": self.revision}.items() if v is not None]
        return [f"files: the data set {self.name} of the Hugging Face hub{''.join(', ' + g for g in given)}"]

    def load(self, streaming: bool, column: str | None, label_column: str | None) -> dict[str, Rows]:
        tables = self._tables(streaming)
        splits = {_NAMES.get(name.lower(), name): name for name in tables}
        if len(splits) == 1:
            splits = {"train": next(iter(tables))}  # under any name, since it is the only split
        found = {}
        for split in SPLITS:
            if split in _with_train(splits, self.name):
                table = tables[splits[split]]
                count = _announced(table) if streaming else len(table)
                where = f"the {splits[split]} split of {self.name}"
                found[split] = rows_of(table, column, label_column, count, where)
        return found

    def _tables(self, streaming: bool) -> Any:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        try:
            return load_dataset(self.name, self.subset, revision=self.revision, streaming=streaming)
        except DatasetNotFoundError as error:
            raise FileNotFoundError(
                f"{self.name} is neither a local file or folder nor a data set of the hub to which you have access "
                f"({first_line(error)})."
            ) from None
        except ConnectionError as error:
            raise ConnectionError(
                f"{self.name} is not a local file or folder, and the hub cannot be reached ({first_line(error)}): "
                "check the path, or the network."
            ) from None
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"The hub's data set {self.name} cannot be read: {first_line(error)} (subset selects one of several "
                "configurations, revision a version.)"
            ) from None


def _announced(table: Any) -> int | None:
    """The number of rows of a split according to the hub, if given."""
    splits = table.info.splits or {}
    return splits[table.split].num_examples or None if table.split in splits else None
