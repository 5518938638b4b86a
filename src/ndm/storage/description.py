"""The configuration file of a saved part, read without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ndm.storage.texts import read_json

__all__ = ["CONFIG", "FORMAT", "data_of", "read_config"]

CONFIG, FORMAT = "config.json", 1


def data_of(path: str | os.PathLike[str]) -> str | None:
    """The identifier of the training data of a saved part; None if not recorded.

    Raises:
        ValueError: the configuration is damaged.
    """
    data = read_config(Path(path) / CONFIG).get("data")
    return data if isinstance(data, str) else None


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a saved part.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}).") from None
    version = config.get("ndm_format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version!r}; this version of ndm reads format {FORMAT}.")
    return config
