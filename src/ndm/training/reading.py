"""Safe reading of checkpoints, which may be damaged or untrusted."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ndm.storage.memory import require_unpacked
from ndm.training.facts import is_count

__all__ = ["read_checkpoint", "require_fitting"]

#: Keys that Lightning requires in a checkpoint.
_PARTS = ("epoch", "loops", "callbacks", "optimizer_states", "lr_schedulers")


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
    if not (isinstance(checkpoint, dict) and is_count(checkpoint.get("global_step"), 0)):
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
