"""The configurations shipped with the package, each named by its file's bare name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find", "names"]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The bare names of the shipped configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: str) -> Path | None:
    """The file that a configuration's path or bare name stands for; None if there is no such file."""
    if Path(config).is_file():
        return Path(config)
    return FOLDER / f"{config}.yaml" if config in names() else None
