"""Descriptions of data sets: fingerprints, duplicates, and counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from ndm.data.labels import MISSING

__all__ = [
    "AT_ONCE",
    "COMPARED",
    "SMALL",
    "class_line",
    "digest",
    "duplicate_lines",
    "one_sided_lines",
    "row_hashes",
    "sizes_line",
]

AT_ONCE = 4_096  # examples processed together
_NAMED = 12  # the largest number of classes listed with their counts
_ENOUGH = 20  # examples per class for which a random split contains every class
COMPARED = 2**26  # the largest number of values in a data set that is checked for duplicates
SMALL = 16  # values: smaller examples take as long as one of this size


def digest(parts: Iterable[bytes | str | Tensor | np.ndarray]) -> str:
    """The SHA-256 of a sequence of parts in hexadecimal.

    The dtype and shape of arrays are included, so that the boundaries between parts matter.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().numpy()
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).data)
        else:
            data = part.encode() if isinstance(part, str) else part
            found.update(f"bytes{len(data)}".encode() + data)
    return found.hexdigest()


def row_hashes(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """A hash of each row, uint64 (N,), 64 bits of BLAKE2: different rows almost surely have different hashes."""
    found = []
    for block in blocks:
        rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
        found += [hashlib.blake2b(row.data, digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(found), np.uint64)


def duplicate_lines(hashes: Mapping[str, np.ndarray]) -> list[str]:
    """Lines about duplicate examples within a split and between splits.

    Args:
        hashes: hashes of the examples by split: see :func:`row_hashes`.
    """
    lines = []
    within = {split: len(h) - len(np.unique(h)) for split, h in hashes.items()}
    if any(within.values()):
        counts = ", ".join(f"{n:,} of {len(hashes[split]):,} in {split}" for split, n in within.items() if n)
        lines.append(f"duplicates: {counts} are exact copies of others in the same split")
    names = list(hashes)
    for i, split in enumerate(names):
        for before in names[:i]:
            n = int(np.isin(hashes[split], hashes[before]).sum())
            if n:
                lines.append(
                    f"warning: {n:,} of the {len(hashes[split]):,} {split} examples are exact copies of {before} "
                    "examples: results on them are not on unseen data"
                )
    return lines


def sizes_line(sizes: Mapping[str, int]) -> str:
    """A line with the sizes of the splits."""
    return "splits: " + ", ".join(f"{split} {n:,}" for split, n in sizes.items())


def class_line(labels: Iterable[Tensor], classes: int, names: Sequence[str] | None) -> str:
    """A line with the number of classes and their counts over all splits."""
    together = np.concatenate([label.numpy() for label in labels])
    counts = np.bincount(together[together >= 0], minlength=classes)
    known = [f"{names[k] if names else k} ({counts[k]:,})" for k in range(min(classes, _NAMED))]
    more = f", ... ({classes - _NAMED:,} more)" if classes > _NAMED else ""
    missing = int((together == MISSING).sum())
    without = f"; {missing:,} of {len(together):,} examples without a label" if missing else ""
    return f"classes: {classes:,}: {', '.join(known)}{more}{without}"


def one_sided_lines(labels: Mapping[str, Tensor], classes: int) -> list[str]:
    """Lines about splits that lack classes of other splits, as happens with sorted data.

    Args:
        labels: labels by split, int64 (N,).
        classes: the number of classes, K.
    """
    present = {split: set(y[y >= 0].unique().tolist()) for split, y in labels.items()}
    every = set().union(*present.values())
    return [
        f"warning: the {split} split has only {len(there):,} of {len(every):,} classes, as if it were cut out of "
        "sorted data: shuffle the data, or use other splits"
        for split, there in present.items()
        if there < every and len(labels[split]) >= _ENOUGH * classes
    ]
