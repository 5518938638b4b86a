"""Reading the files of a run that may be damaged, or anybody's: data.json and the checkpoints."""

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

#: Bytes of memory for each byte of an example that is drawn or scored: what a network keeps of it on the way.
_WORK = 64

#: What Lightning asks of a checkpoint that a training goes on from.
_PARTS = ("epoch", "loops", "callbacks", "optimizer_states", "lr_schedulers")


def read_facts(path: Path) -> dict[str, Any]:
    """What a run's data.json says: see :meth:`ndm.training.run.Run.write_data`.

    Raises:
        ValueError: it is missing or damaged, or an example of its shape does not fit into the memory.
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
        f"An example of shape {'x'.join(map(str, shape))}, which {path} speaks of,",
        "the file is damaged, or the run needs a larger computer",
    )
    return dict(facts)


def digest_of_facts(path: Path) -> str:
    """What identifies the data of a run, its columns and levels among it: a checksum of what data.json says.

    It is written into the model and the checkpoints, which are then known from those of another run.

    Raises:
        ValueError: the file is missing or damaged.
    """
    return hashlib.sha256(json.dumps(read_facts(path), sort_keys=True).encode()).hexdigest()[:16]


def _wrong(facts: Any) -> str:
    """What is not as it should be, or nothing."""
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
    """Read a checkpoint of Lightning's without executing anything in it.

    Raises:
        ValueError: the file is damaged, or holds something other than tensors and plain data.
    """
    refusal = ValueError(f"{path} is damaged, or not a checkpoint that ndm has written; it was not loaded.")
    try:
        require_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the CRCs, which torch.load does not
        if damaged is not None:
            raise refusal
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file breaks the reader in many ways
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
    """Refuse to go on from a checkpoint that lacks a part, or is of another model.

    Raises:
        ValueError: it does.
    """
    lacking = [name for name in _PARTS if name not in checkpoint]
    if lacking:
        raise ValueError(f"{path} cannot be resumed: it lacks {', '.join(lacking)}. Train anew with another --out.")
    if not checkpoint["optimizer_states"]:
        raise ValueError(f"{path} cannot be resumed: it has no state of the optimizer. Train anew with another --out.")
    wanted = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    for part in ("state_dict", "current_model_state"):
        weights = checkpoint.get(part, checkpoint["state_dict"])
        found = {name: getattr(value, "shape", None) for name, value in dict(weights).items()}
        other = next((name for name in {**wanted, **found} if wanted.get(name) != found.get(name)), None)
        if other is not None:
            raise ValueError(
                f"{path} is of another model than this one: {other.removeprefix('model.')} has the shape "
                f"{_shape(found.get(other))} there and {_shape(wanted.get(other))} here."
            )


def _shape(shape: Any) -> str:
    return "no place" if shape is None else str(tuple(shape))
