"""Safe reading of data.json of a run, which may be damaged or untrusted. It needs no PyTorch."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ndm.storage.memory import require
from ndm.storage.texts import read_json

__all__ = ["digest_of_facts", "is_count", "read_facts"]

#: Estimated memory for activations, per byte of an example.
_WORK = 64


def read_facts(path: Path) -> dict[str, Any]:
    """Read data.json of a run: see :meth:`ndm.training.run.Run.write_data`.

    Raises:
        ValueError: the file is missing or damaged, or an example of its shape does not fit into the memory.
    """
    try:
        facts = read_json(path)
        wrong = _wrong(facts)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}).") from None
    if wrong:
        raise ValueError(f"{path} is missing or damaged ({wrong}).")
    shape = tuple(facts["shape"])
    require(
        4 * _WORK * math.prod(shape),
        f"An example of shape {'x'.join(map(str, shape))} in {path}",
        "the file is damaged, or the run needs a larger computer",
    )
    return dict(facts)


def digest_of_facts(path: Path) -> str:
    """Return a checksum of data.json, which identifies the data of a run, including columns and levels.

    It is stored in the model and the checkpoints, to distinguish them from those of other runs.

    Raises:
        ValueError: the file is missing or damaged.
    """
    return hashlib.sha256(json.dumps(read_facts(path), sort_keys=True).encode()).hexdigest()[:16]


def _wrong(facts: Any) -> str:
    """Return a description of the first error, or an empty string."""
    if not isinstance(facts, dict):
        return "it is no JSON object"
    shape, levels = facts.get("shape"), facts.get("levels", 0)
    if not (isinstance(shape, list) and 1 <= len(shape) <= 8 and all(is_count(side, 1) for side in shape)):
        return f"the shape of an example cannot be {shape!r:.60}"
    if not (levels is None or is_count(levels, 2)):
        return f"the number of levels cannot be {levels!r:.60}"
    columns, splits = facts.get("columns"), facts.get("splits")
    if isinstance(columns, list) and len(set(map(str, columns))) < len(columns):
        return "two of its columns have the same name"
    if columns is not None and not (
        isinstance(columns, list) and [len(columns)] == shape and all(isinstance(name, str) for name in columns)
    ):
        return f"its columns are not those of examples of shape {tuple(shape)}"
    if splits is not None and not (isinstance(splits, dict) and all(is_count(n, 0) for n in splits.values())):
        return "its splits are not numbers of examples"
    return ""


def is_count(value: Any, least: int) -> bool:
    """Whether a value is a whole number, and at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
