"""Samples as files: a picture, a table, arrays; and which classes they are drawn from."""

from __future__ import annotations

import csv
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm.files import atomic_path
from ndm.model import NDM

__all__ = ["FORMATS", "classes_in_turn", "require_place", "save_samples", "write_samples"]

#: What a file of samples may end in.
FORMATS = (".png", ".csv", ".npz", ".parquet")


def require_place(out: Path, overwrite: bool = False) -> None:
    """See that samples can be written, before they are drawn.

    Args:
        out: the file.
        overwrite: it may exist.

    Raises:
        ValueError: its name does not end in one of :data:`FORMATS`.
        OSError: it exists, or nothing can be written beside it.
        ImportError: what writes such files is not installed.
    """
    if out.suffix not in FORMATS:
        raise ValueError(f"{out} should end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, which says what to write.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out, or --overwrite it.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in.")
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"The folder {out.parent} may not be written to, and {out.name} is to be in it.")
    if out.suffix == ".parquet":
        for package in ("pandas", "pyarrow"):
            try:
                importlib.import_module(package)
            except ModuleNotFoundError:
                raise ImportError(f"Parquet files need {package}: pip install pandas pyarrow.") from None


def classes_in_turn(model: NDM, n: int, label: int | None = None, counts: Sequence[int] | None = None) -> Tensor | None:
    """The classes to draw n samples from: int64 (n,); None for a model without classes.

    Args:
        model: the model.
        n: how many samples.
        label: the class of all; None for each class in turn that there were examples of.
        counts: how many examples of each class the model was trained on; None if that is not known.

    Raises:
        ValueError: the model has no such class, or was never shown an example of it.
    """
    classes = getattr(getattr(model.denoiser, "net", None), "classes", 0)
    if not classes:
        if label is not None:
            raise ValueError(f"--label {label} is for a model of several classes, and this one was trained without.")
        return None
    known = [k for k in range(classes) if counts is None or (k < len(counts) and counts[k] > 0)] or list(range(classes))
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"--label must be 0 ... {classes - 1}, one of the model's classes, not {label}.")
    if label is not None and label not in known:
        raise ValueError(f"--label {label} has had no training example; there are {', '.join(map(str, known))}.")
    chosen = known if label is None else [label]
    return torch.tensor(chosen)[torch.arange(n) % len(chosen)]


def save_samples(
    x: Tensor,
    out: Path,
    levels: int | None = None,
    numbered: int | None = None,
    columns: Sequence[str] | None = None,
    labels: Tensor | None = None,
) -> None:
    """:func:`write_samples` to a file that takes its name when all is written; elsewhere if that cannot be.

    Raises:
        OSError: it cannot be written; the sentence says where the samples are.
    """
    try:
        with atomic_path(out) as fresh:
            write_samples(x, fresh, levels, numbered, columns, labels)
    except OSError as error:
        rescued = Path(tempfile.mkdtemp(prefix="ndm-samples-")) / f"{out.stem}.npz"
        write_samples(x, rescued, levels, numbered, columns, labels)
        raise OSError(
            f"{out} could not be written ({error.strerror or error}); the samples are in {rescued}."
        ) from None


def write_samples(
    x: Tensor,
    out: Path,
    levels: int | None = None,
    numbered: int | None = None,
    columns: Sequence[str] | None = None,
    labels: Tensor | None = None,
) -> None:
    """Write samples in the format that the file's name asks for; those of a table as it was, with its names.

    Labels are the last column of a table, ``label``, and the array ``labels`` of a .npz file.

    Args:
        x: the samples, (N, \\*shape).
        out: the file.
        levels: K of a decoder of K levels, whose samples are of these levels.
        numbered: K of data that were read as level numbers.
        columns: the names of a table's columns.
        labels: the classes that they were drawn from, (N,), of a model that has them.
    """
    flat = x.flatten(1).numpy()
    names = [f"x{i}" for i in range(flat.shape[1])] if columns is None else list(columns)
    if columns is not None and numbered is not None:  # the inverse of from_levels
        flat = (flat + 1) * (numbered / 2) - 0.5
        flat = flat if levels is None else np.rint(flat).astype(int)
    beside = {} if labels is None else {_free("label", names): labels.numpy()}
    if out.suffix == ".png":
        importlib.import_module("ndm.plotting").save_grid(x, out, levels)
    elif out.suffix == ".npz":
        arrays: dict[str, Any] = {"x": x.numpy()} if labels is None else {"x": x.numpy(), "labels": labels.numpy()}
        np.savez_compressed(out, **arrays)
    elif out.suffix == ".csv":
        with out.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([*names, *beside])
            formats = ["%.9g"] * len(names) + ["%d"] * len(beside)
            np.savetxt(file, np.column_stack([flat, *beside.values()]), delimiter=",", fmt=formats)
    else:
        importlib.import_module("pandas").DataFrame(flat, columns=names).assign(**beside).to_parquet(out)


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
