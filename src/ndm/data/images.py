"""Image data sets from Parquet files, folders or the hub, decoded once to memory-mapped files."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm._internal.random import seed_of
from ndm.data.base import SPLITS, Data
from ndm.data.cache import cache_folder, key_of, made_once
from ndm.data.pixels import Pixels, from_pixels
from ndm.data.rows import Rows
from ndm.data.sources import Source, find_source

__all__ = ["Images"]

_LAYOUT = 2  # version of the cache format; to be increased when it changes

logger = logging.getLogger("ndm.data")


class Images(Data):
    """Images of one size with 8 bits per channel, x = 2 (k + 1/2) / 256 - 1 for k = 0 ... 255, with labels.

    Images are decoded once, on first use, to a cache folder, and memory-mapped from it: only the requested batches are
    in memory. (``split``, ``train``, ``validation`` and ``test`` create one float tensor of a split, for small data;
    see :meth:`Data.examples`.) The folder's name is derived from the identity of the source (for local files their
    paths, sizes and modification times) and from the arguments that affect the pixels. A data set of the hub without
    ``revision`` is not updated after it has been decoded.

    **Files.** PNG, JPEG, WEBP, BMP, GIF, TIFF and PPM files are read, by their suffixes; symbolic links are followed.
    Other files and hidden ones are left out, as reported by :meth:`summary`. Images that are not opaque are composed
    with the ``background``. Of 16 bits per channel the upper eight are kept, and of several frames the first one;
    photographs are rotated according to their EXIF data; damaged metadata are ignored.

    **Splits** are those of the source. Missing validation and test splits are taken from its training split: with p the
    permutation ``numpy.random.RandomState(0).permutation(N)`` of the N training rows, each missing split gets
    ``validation`` rows from the beginning of p, validation first, in their order in the source. A split whose labels
    are all missing or negative has no labels.

    **Streaming** is for sources too large to be decoded in advance. :meth:`training_batches` then reads, shuffles and
    decodes training rows on the fly, and only the first ``held`` rows of each split are decoded to the cache: these are
    returned by ``examples``, for validation, testing, and fitting to training data. Missing splits get their rows from
    the beginning of the training rows, which are then not streamed. (The files of a folder, which are ordered by class,
    are first permuted as above.) The order of a pass is random within the buffer and, for several files, in the order
    of the files; the source should not be sorted. Starting in the middle of a pass requires reading, but not decoding,
    the preceding rows.

    Args:
        path: a Parquet file; a pattern for Parquet files, or a folder of them, whose names or folders' names contain
            train, test or validation (valid, val), or none of these if all are for training; a folder of image files,
            optionally in folders named after splits, and within these in folders named after classes; or the name of a
            data set of the hub, such as ``ylecun/mnist``. Local paths have priority over the hub.
        size: the shorter side is resized to this (Lanczos), and the central size x size cropped; None for no resizing,
            if all images have the same size.
        channels: 1 for grey, 3 for colour; None for grey if all images are grey, else colour. (Streamed images are
            converted to the channels of the first ones.)
        column: the column of the images; None to find it by its type.
        label_column: the column of the labels; None to find it by its type and name.
        validation: number of examples of each split taken from the training split; None for a tenth of it, at most
            5,000 (``held``, if streaming).
        background: the background colour of transparent images, such as "white" or "#8080ff"; None to reject images
            that are not opaque.
        flip: mirror a random half of the training examples.
        streaming: see above.
        held: number of decoded examples of each split, if streaming.
        buffer: size of the shuffle buffer in encoded images, if streaming.
        revision: branch, tag or commit of a data set of the hub.
        subset: name of the configuration of a data set of the hub with several.
        cache: folder for decoded images; None for $NDM_CACHE, or else ``ndm`` in the user's cache folder.

    Raises:
        ValueError: an argument is out of range. On first use: the source cannot be read, a column does not exist, or
            images are damaged or of unequal sizes.
        FileNotFoundError: on first use: the path or name does not exist.
        ConnectionError: on first use: the hub cannot be reached.
        ImportError: on first use: the packages for reading images are not installed.
    """

    levels = 256

    def __init__(
        self,
        path: str,
        size: int | None = None,
        channels: int | None = None,
        column: str | None = None,
        label_column: str | None = None,
        validation: int | None = None,
        flip: bool = False,
        streaming: bool = False,
        held: int = 5_000,
        buffer: int = 4_096,
        revision: str | None = None,
        subset: str | None = None,
        cache: str | None = None,
        background: str | None = "white",
    ) -> None:
        for name, value in {"size": size, "validation": validation, "held": held, "buffer": buffer}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}.")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {channels}.")
        if background is not None and importlib.util.find_spec("PIL"):
            from ndm.data.decoding import check_background

            check_background(background)
        self.path, self.revision, self.subset = str(path), revision, subset
        self.size, self.channels, self.background = size, channels, background
        self.column, self.label_column = column, label_column
        self.taken = validation
        self.flip = flip
        self.streaming, self.held, self.buffer = streaming, held, buffer
        self.cache = cache

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # constant for users
        if self.size is not None and self.channels is not None:
            return self.channels, self.size, self.size  # without reading the source
        return self._splits["train"][0].shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the folders, or those given by the source, (K,); None if unknown."""
        return tuple(self._decoded[1]["classes"]) or None

    def summary(self) -> list[str]:
        """What was read and how it was converted: see :meth:`Data.summary`."""
        c, h, w = self.shape
        streamed = "; they are streamed, and what follows is of those that are held" if self.streaming else ""
        lines = [f"data: {'coloured' if c == 3 else 'grey'} images of {w} x {h} pixels{streamed}"]
        return lines + self._source.summary() + self._decoded[1]["lines"] + self._split_lines()

    def augment(self, x: Tensor, u: Tensor) -> Tensor:
        """With ``flip``, mirror the images with u < 1/2. x: (B, C, H, W), u: (B,) -> (B, C, H, W)."""
        return torch.where((u < 0.5)[:, None, None, None], x.flip(-1), x) if self.flip else x

    def training_batches(
        self, batch_size: int, seed: int, first_step: int
    ) -> Iterator[tuple[Tensor, Tensor | None]] | None:
        """The training batches if streaming, else None: see :meth:`Data.training_batches`.

        Raises:
            ValueError: during iteration: an image is damaged or has another shape, or there are too few rows for one
                batch.
        """
        return self._stream(batch_size, seed, first_step) if self.streaming else None

    def _split(self, name: str) -> tuple[Pixels, Tensor | None]:
        return self._splits[name][:2]

    def _count_classes(self) -> int | None:
        found = super()._count_classes()
        return None if found is None else max(found, len(self.class_names or ()))

    def _contents(self) -> Iterator[str | Tensor | np.ndarray]:
        for name, (images, labels, hashes) in self._splits.items():
            yield f"{name} {len(images)} of {self.shape}, {'no ' if labels is None else ''}labels"
            yield hashes  # of the pixels, computed during decoding
            if labels is not None:
                yield labels

    def _hashes(self) -> dict[str, np.ndarray]:
        return {name: hashes for name, (_, _, hashes) in self._splits.items()}

    def __getstate__(self) -> dict[str, Any]:
        # Other processes memory-map the files themselves.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_splits", "_source", "_decoded", "shape")
        }

    # ---- decoded in advance

    @cached_property
    def _splits(self) -> dict[str, tuple[Pixels, Tensor | None, np.ndarray]]:
        """Images, labels and hashes of the images, by split."""
        folder, facts = self._decoded
        found = {}
        for name, labelled in facts["labelled"].items():
            images, hashes = (np.load(folder / f"{name}{end}.npy", mmap_mode="r") for end in ("", "-hashes"))
            labels = torch.from_numpy(np.load(folder / f"{name}-labels.npy")) if labelled else None
            found[name] = Pixels(images), labels, np.array(hashes)
        missing = [] if self.streaming else self._missing(found)
        if missing:
            whole, labels, hashes = found["train"]
            for name, rows in self._taken_from_train(len(whole), missing).items():
                theirs = None if labels is None else labels[torch.from_numpy(rows)]
                found[name] = Pixels(whole.array, rows), theirs, hashes[rows]
        return {name: found[name] for name in SPLITS}

    def _taken_from_train(self, n: int, missing: list[str]) -> dict[str, np.ndarray]:
        """The rows of the missing splits, and the remaining training rows."""
        count = self.taken or max(1, min(n // 10, 5_000))
        if count * len(missing) >= n:
            raise ValueError(
                f"{self.path} has {n} training examples, too few to take {count} for each of {' and '.join(missing)}: "
                "reduce --data.validation (validation=)."
            )
        order = np.random.RandomState(0).permutation(n)  # its stream is frozen by NumPy's policy
        parts = np.split(order, [count * (i + 1) for i in range(len(missing))])
        return {name: np.sort(part) for name, part in zip([*missing, "train"], parts, strict=True)}

    def _missing(self, found: dict[str, Any]) -> list[str]:
        """The splits missing in the source."""
        missing = [name for name in SPLITS if name not in found]
        if self.taken and not missing:
            raise ValueError(
                f"{self.path} already has validation and test splits, so none is taken from the training split: leave "
                "validation out."
            )
        return missing

    @cached_property
    def _decoded(self) -> tuple[Path, dict[str, Any]]:
        """The folder of decoded images, and its recorded facts: labelled splits, class names, summary lines."""
        _require_packages()
        description = {
            "layout": _LAYOUT,
            "source": self._source.fingerprint(),
            "size": self.size,
            "channels": self.channels,
            "background": self.background,
            "columns": [self.column, self.label_column],
            "streaming": [self.held, self.taken] if self.streaming else None,
        }
        name = "".join(c if c.isalnum() else "-" for c in self.path).strip("-")[-40:]
        folder = cache_folder(self.cache) / f"{name}-{key_of(description)}"
        return folder, made_once(folder, self._build)

    def _build(self, folder: Path) -> dict[str, Any]:
        from ndm.data.building import build

        splits = self._held_and_streamed()[0] if self.streaming else self._source_splits()
        logger.info("decoding %s once, to %s", self.path, folder.parent)
        facts = build(splits, folder, self.path, self.size, self.channels, self.background, self.streaming)
        return {"path": self.path} | facts

    def _source_splits(self) -> dict[str, Rows]:
        return self._source.load(self.streaming, self.column, self.label_column)

    @cached_property
    def _source(self) -> Source:
        return find_source(self.path, self.subset, self.revision)

    # ---- streamed

    def _held_and_streamed(self) -> tuple[dict[str, Rows], Rows]:
        """The rows of each split that are decoded in advance, and those that are streamed for training."""
        splits = self._source_splits()
        train = splits["train"].spread()
        held = {}
        for name in SPLITS[1:]:
            if name in splits:
                held[name] = splits[name].spread().take(self.held)
        for name in self._missing(splits):
            held[name] = train.take(self.taken or self.held)
            train = train.skip(self.taken or self.held)
        return {"train": train.take(self.held)} | held, train

    def _stream(self, batch_size: int, seed: int, first_step: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        from ndm.data.building import Decoder, name_of

        labelled = self.labels("train") is not None
        rows = self._held_and_streamed()[1]
        count = rows.count
        if count is None and first_step > 0:
            count = sum(len(labels) for _, labels in rows.pieces(4_096))
        per_pass = None if count is None else count // batch_size
        pass_, first = divmod(first_step, per_pass) if per_pass else (0, 0)
        with Decoder(self.size, self.channels, self.shape, self.background) as decoder:
            while True:
                row = iter(rows.shuffled(seed_of(seed, pass_), self.buffer).skip(first * batch_size))
                steps = itertools.count(first) if per_pass is None else range(first, per_pass)
                done = first
                for step in steps:
                    batch = list(itertools.islice(row, batch_size))
                    if len(batch) < batch_size:
                        break
                    names = [name_of(cell, f"in batch {step} of a pass", rows) for cell, _ in batch]
                    images = torch.from_numpy(decoder([cell for cell, _ in batch], names))
                    labels = torch.tensor([label for _, label in batch]) if labelled else None
                    yield from_pixels(images), labels
                    done += 1
                if done == 0:  # in a complete pass
                    break
                if per_pass is not None and done < per_pass:
                    logger.warning(
                        "%s should have %d rows but has fewer: a resumed training will use another order.",
                        rows.where,
                        count,
                    )
                pass_, first = pass_ + 1, 0
        raise ValueError(f"{rows.where} has too few examples for a batch of {batch_size}: reduce the batch size.")


def _require_packages() -> None:
    for package in (
        "datasets",
        "filelock",
        "PIL",
        "platformdirs",
    ):  # found but not imported, since decoded data do not need them
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Images need the package {package!r}, which is not installed: pip install datasets filelock pillow "
                "platformdirs."
            )
