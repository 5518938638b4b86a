"""Data sets of images, from parquet files, folders or the hub, decoded once to files that are mapped into memory."""

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

_LAYOUT = 2  # of the cache's folders: to be counted up when what is in them changes its meaning

logger = logging.getLogger("ndm.data")


class Images(Data):
    """Images of 8 bits a channel and of one size, x = 2 (k + 1/2) / 256 - 1 for k = 0 ... 255, with their labels.

    They are decoded once, on first use, into a folder of the cache, from which they are mapped: memory is needed for
    the batches that are asked for, not for the data set. (``split``, ``train``, ``validation`` and ``test`` do make
    one float tensor of a split, for data small enough; see :meth:`Data.examples`.) The folder's name is made from the
    source's identity, of local files their paths, sizes and times of change, and from the arguments that matter to the
    pixels. A data set of the hub without ``revision`` stays as it was when it was decoded.

    **What is read** of a folder: PNG, JPEG, WEBP, BMP, GIF, TIFF and PPM files, by their endings, symbolic links
    followed. Other files and hidden ones are left out, which :meth:`summary` says. Images with an alpha channel that
    are not opaque are put on the ``background``. Of 16 bits a channel the upper eight are kept; of several frames the
    first; photographs are turned as their EXIF data say; metadata that are damaged are passed over.

    **Splits** are the source's own. What it lacks of validation and test is taken out of its training split: with p
    the permutation ``numpy.random.RandomState(0).permutation(N)`` of the N training rows, the missing splits take
    ``validation`` rows each from the beginning of p, validation first, and keep them in their order in the source. A
    split whose labels are all missing or negative has none.

    **Streaming** is for sources too large to be decoded beforehand. :meth:`training_batches` then reads, shuffles and
    decodes the training rows as it goes, and only the first ``held`` rows of each split are decoded into the cache:
    these are what ``examples`` has, for validation, tests, and what is fitted to training data. Missing splits take
    their rows from the beginning of the training rows, and the stream goes without them. (The files of a folder, which
    would come class by class, are first put into the order of a permutation as above.) The order in a pass is random
    as far as the buffer reaches, and in data of several files, the order of the files; the source should not be
    sorted. Beginning at a step in the middle of a pass means reading, though not decoding, what comes before it.

    Args:
        path: a parquet file; a pattern for parquet files, or a folder of them, whose names or folders' names contain
            train, test or validation (valid, val), or nothing of the kind if all are for training; a folder of image
            files, perhaps in folders named after splits, and in these in folders named after classes; or the
            name of a data set of the hub, as in ``ylecun/mnist``. What is here comes before what is on the hub.
        size: the shorter side is resized to this (Lanczos), and the middle size x size cropped; None to leave the
            images as they are, when all must be of one size.
        channels: 1 for grey, 3 for colour; None for grey if all images are, else colour. (Streamed ones are made what
            the first ones are.)
        column: the images' column; None to find it by its type.
        label_column: the labels' column; None to find it by its type and name.
        validation: number of examples of each split that is taken out of the training split; None for a tenth of it,
            but 5,000 at the most (``held``, if streaming).
        background: the colour that images are put on where they are transparent, by a name as "white" or "#8080ff";
            None to refuse images that are not opaque.
        flip: mirror half of the training examples, chosen anew every time.
        streaming: see above.
        held: number of examples of each split to be kept, if streaming.
        buffer: number of encoded images among which the next one is drawn, if streaming.
        revision: of a data set of the hub: branch, tag or commit.
        subset: of a data set of the hub: the name of its configuration, where it has several.
        cache: folder for decoded images; None for $NDM_CACHE, or else ``ndm`` in the user's folder for caches.

    Raises:
        ValueError: an argument is out of range. The source is looked at when it is first needed, and then: it cannot
            be read, has no such column, or has images that are damaged or unequal.
        FileNotFoundError: on first use: there is nothing of that path or name.
        ConnectionError: on first use: the hub cannot be reached.
        ImportError: on first use: the packages that read images are not installed.
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
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # a constant to others
        if self.size is not None and self.channels is not None:
            return self.channels, self.size, self.size  # without touching the source
        return self._splits["train"][0].shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the folders, or those that a source tells, (K,); None if it tells none."""
        return tuple(self._decoded[1]["classes"]) or None

    def summary(self) -> list[str]:
        """What was read, and what was done to it: see :meth:`Data.summary`."""
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
            ValueError: when the stream is read: an image is damaged or of another shape, or no batch can be filled.
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
            yield hashes  # of the pixels, made when they were decoded
            if labels is not None:
                yield labels

    def _hashes(self) -> dict[str, np.ndarray]:
        return {name: hashes for name, (_, _, hashes) in self._splits.items()}

    def __getstate__(self) -> dict[str, Any]:
        # Other processes map the files themselves.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_splits", "_source", "_decoded", "shape")
        }

    # ---- decoded beforehand

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
        """The rows of the missing splits, and those that are left to the training split."""
        count = self.taken or max(1, min(n // 10, 5_000))
        if count * len(missing) >= n:
            raise ValueError(
                f"{self.path} has {n} training examples, too few to take {count} of them for each of "
                f"{' and '.join(missing)}: lower validation."
            )
        order = np.random.RandomState(0).permutation(n)  # whose stream is frozen by numpy's policy
        parts = np.split(order, [count * (i + 1) for i in range(len(missing))])
        return {name: np.sort(part) for name, part in zip([*missing, "train"], parts, strict=True)}

    def _missing(self, found: dict[str, Any]) -> list[str]:
        """The splits that a source does not have."""
        missing = [name for name in SPLITS if name not in found]
        if self.taken and not missing:
            raise ValueError(
                f"{self.path} has validation and test splits of its own, so that none is taken out of the training "
                "split: leave validation out."
            )
        return missing

    @cached_property
    def _decoded(self) -> tuple[Path, dict[str, Any]]:
        """The folder of decoded images, which of its splits have labels, the classes' names, lines about the images."""
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
        """The rows of each split that are decoded beforehand, and those that are streamed for training."""
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
                if done == 0:  # of a whole pass
                    break
                if per_pass is not None and done < per_pass:
                    logger.warning(
                        "%s should have %d rows but has fewer: a resumed training will see another order.",
                        rows.where,
                        count,
                    )
                pass_, first = pass_ + 1, 0
        raise ValueError(f"No batch of {batch_size} can be filled from {rows.where}: lower the batch size.")


def _require_packages() -> None:
    for package in (
        "datasets",
        "filelock",
        "PIL",
        "platformdirs",
    ):  # looked for, not imported: what is decoded needs none of them
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Images need the package {package!r}, which is not installed: pip install datasets filelock pillow "
                "platformdirs."
            )
