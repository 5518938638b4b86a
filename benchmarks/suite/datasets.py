"""The data sets of the suite by name, and its files. Images and real tables are read from a folder of the user."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from score import TRAINED, Mixture
from torch import Tensor

from ndm.data import Checkerboard, Data, Digits, Images, Pinwheel, Table

#: Validation examples that are taken out of MNIST's and CIFAR-10's training splits.
TAKEN = 1000

IMAGES = {"mnist": ("mnist", 1), "cifar10": ("cifar10", 3)}

#: Tables of real columns, each a folder of the user's folder with the splits as files.
TABLES = {"magic": "tables/magic"}


class Mixtures(Data):
    """The table of benchmarks/score.py: rows of eight columns from six Gaussians, whose density is known."""

    shape, levels = (8,), None

    def _split(self, name: str) -> tuple[Tensor, None]:
        return self._splits[name], None

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        sample, seeds = Mixture().sample, {"train": (1, TRAINED), "test": (2, 2000), "validation": (4, 2000)}
        return {name: torch.from_numpy(sample(n, seed)).float() for name, (seed, n) in seeds.items()}


def dataset(name: str, folder: Path | None = None) -> Data:
    """The data set called pinwheel, checkerboard, table, magic, digits, mnist or cifar10."""
    if (lacking := missing(name, folder)) is not None:
        raise FileNotFoundError(lacking)
    if name in TABLES:
        return Table(f"{folder}/{TABLES[name]}")
    if name in IMAGES:
        prefix, channels = IMAGES[name]
        return Images(f"{folder}/{prefix}-*.parquet", channels=channels, validation=TAKEN)
    return {"pinwheel": Pinwheel, "checkerboard": Checkerboard, "table": Mixtures, "digits": Digits}[name]()


def missing(name: str, folder: Path | None) -> str | None:
    """What to say if the data are not there; None if they are."""
    if name in TABLES:
        if folder is None:
            return f"{name} needs a table: --data FOLDER, with the table's files in {TABLES[name]} of it."
        return None if (folder / TABLES[name]).is_dir() else f"There is no {TABLES[name]} in {folder}."
    if name not in IMAGES:
        return None
    prefix = IMAGES[name][0]
    if folder is None:
        return f"{name} needs images: --data FOLDER, with {prefix}-train.parquet and {prefix}-test.parquet in it."
    # A pattern names CIFAR-10 as JPEG has it, too: cifar10-jpeg-train.parquet.
    return None if list(folder.glob(f"{prefix}-*.parquet")) else f"There is no {prefix}-*.parquet in {folder}."


def entropy(data: Data) -> float | None:
    """What no bound on the test split's mean can go far below, in nats; None where the density is not known."""
    if isinstance(data, Mixtures):
        return float(-Mixture().log_prob(data.test.double().numpy()).mean())
    return getattr(data, "entropy", None)


def slug(name: str) -> str:
    """A name as a part of a path."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
