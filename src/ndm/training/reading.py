"""Safe reading of run files that may be damaged or untrusted: data.json and the checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ndm.storage.memory import require, require_unpacked
from ndm.storage.texts import read_json

__all__ = ["digest_of_facts", "read_checkpoint", "read_facts", "require_fitting"]

#: Estimated memory for activations, per byte of an example.
_WORK = 64

#: Keys that Lightning requires in a checkpoint.
_PARTS = ("epoch", "loops", "callbacks", "optimizer_states", "lr_schedulers")


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
    if not (isinstance(shape, list) and 1 <= len(shape) <= 8 and all(_is_count(side, 1) for side in shape)):
        return f"the shape of an example cannot be {shape!r:.60}"
    if not (levels is None or _is_count(levels, 2)):
        return f"the number of levels cannot be {levels!r:.60}"
    columns, splits = facts.get("columns"), facts.get("splits")
    if isinstance(columns, list) and len(set(map(str, columns))) < len(columns):
        return "two of its columns have the same name"
    if columns is not None and not (
        isinstance(columns, list) and [len(columns)] == shape and all(isinstance(name, str) for name in columns)
    ):
        return f"its columns are not those of examples of shape {tuple(shape)}"
    if splits is not None and not (isinstance(splits, dict) and all(_is_count(n, 0) for n in splits.values())):
        return "its splits are not numbers of examples"
    return ""


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lightning checkpoint without executing code from it.

    Raises:
        ValueError: the file is damaged, or contains objects other than tensors and plain data.
    """
    refusal = ValueError(f"{path} is damaged, or not a checkpoint written by ndm; it was not loaded.")
    try:
        require_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # checks the CRCs, unlike torch.load
        if damaged is not None:
            raise refusal
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many exception types
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise MemoryError(f"for {path}") from None
        raise refusal from None
    if not (isinstance(checkpoint, dict) and _is_count(checkpoint.get("global_step"), 0)):
        raise refusal
    weights = checkpoint.get("state_dict")
    if not (isinstance(weights, Mapping) and all(isinstance(value, Tensor) for value in weights.values())):
        raise refusal
    return checkpoint


def require_fitting(checkpoint: Mapping[str, Any], model: nn.Module, path: Path) -> None:
    """Check that a checkpoint is complete and belongs to the model.

    Raises:
        ValueError: it is incomplete or belongs to another model.
    """
    lacking = [name for name in _PARTS if name not in checkpoint]
    if lacking:
        raise ValueError(
            f"{path} cannot be resumed: it does not contain {', '.join(lacking)}. Train again with another --out."
        )
    if not checkpoint["optimizer_states"]:
        raise ValueError(f"{path} cannot be resumed: it has no state of the optimizer. Train again with another --out.")
    wanted = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    for part in ("state_dict", "current_model_state"):
        weights = checkpoint.get(part, checkpoint["state_dict"])
        found = {name: getattr(value, "shape", None) for name, value in dict(weights).items()}
        other = next((name for name in {**wanted, **found} if wanted.get(name) != found.get(name)), None)
        if other is not None:
            raise ValueError(
                f"{path} belongs to another model: {other.removeprefix('model.')} has the shape "
                f"{_shape(found.get(other))} in the file and {_shape(wanted.get(other))} in this model."
            )


def _shape(shape: Any) -> str:
    return "no place" if shape is None else str(tuple(shape))
