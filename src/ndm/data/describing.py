"""What can be said about any data set: what identifies it, which examples occur twice, and how many there are."""

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

AT_ONCE = 4_096  # examples looked at together
_NAMED = 12  # classes that a line names with their counts
_ENOUGH = 20  # examples per class, of which a split that is drawn at random has every class
COMPARED = 2**26  # numbers of a data set, up to which its examples are compared with each other
SMALL = 16  # numbers: smaller examples take as long as one of so many


def digest(parts: Iterable[bytes | str | Tensor | np.ndarray]) -> str:
    """The SHA-256 of these parts in their order, in hexadecimal: equal parts, equal digest.

    Of an array its type and shape count too, so that parts cannot run into each other.
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
    """A hash of every row, uint64 (N,): equal rows have equal hashes, others almost surely not (64 bits of BLAKE2)."""
    found = []
    for block in blocks:
        rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
        found += [hashlib.blake2b(row.data, digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(found), np.uint64)


def duplicate_lines(hashes: Mapping[str, np.ndarray]) -> list[str]:
    """What to say of examples that occur more than once, within a split and in several.

    Args:
        hashes: of the examples, by split: see :func:`row_hashes`.
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
                    "examples: what is measured on them is not of unseen data"
                )
    return lines


def sizes_line(sizes: Mapping[str, int]) -> str:
    """How many examples the splits have."""
    return "splits: " + ", ".join(f"{split} {n:,}" for split, n in sizes.items())


def class_line(labels: Iterable[Tensor], classes: int, names: Sequence[str] | None) -> str:
    """How many classes there are, and how often each one is, over all splits together."""
    together = np.concatenate([label.numpy() for label in labels])
    counts = np.bincount(together[together >= 0], minlength=classes)
    known = [f"{names[k] if names else k} ({counts[k]:,})" for k in range(min(classes, _NAMED))]
    more = f", ... ({classes - _NAMED:,} more)" if classes > _NAMED else ""
    missing = int((together == MISSING).sum())
    without = f"; {missing:,} of {len(together):,} examples without a label" if missing else ""
    return f"classes: {classes:,}: {', '.join(known)}{more}{without}"


def one_sided_lines(labels: Mapping[str, Tensor], classes: int) -> list[str]:
    """What to say of splits that lack classes which others have, as those of sorted data do.

    Args:
        labels: by split, int64 (N,).
        classes: the number of classes, K.
    """
    present = {split: set(y[y >= 0].unique().tolist()) for split, y in labels.items()}
    every = set().union(*present.values())
    return [
        f"warning: the {split} split has {len(there):,} of {len(every):,} classes only, as if it were cut out of "
        "sorted data: shuffle the data, or have other splits"
        for split, there in present.items()
        if there < every and len(labels[split]) >= _ENOUGH * classes
    ]
