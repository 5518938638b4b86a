"""The configurations shipped with the package. Each is identified by its file name without extension."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find", "names"]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the shipped configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: str) -> Path | None:
    """Return the file for a path or the name of a shipped configuration; None if there is no such file."""
    if Path(config).is_file():
        return Path(config)
    return FOLDER / f"{config}.yaml" if config in names() else None
