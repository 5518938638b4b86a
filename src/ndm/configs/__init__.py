"""The configurations shipped with the package. Each is identified by its file name without extension."""

from __future__ import annotations

from pathlib import Path

from ndm.storage.texts import did_you_mean, require_regular

__all__ = ["find", "names", "require"]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the shipped configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: str) -> Path | None:
    """Return the file for a path or the name of a shipped configuration; None if there is no such file."""
    if Path(config).is_file():
        return Path(config)
    return FOLDER / f"{config}.yaml" if config in names() else None


def require(config: str) -> Path:
    """Return the file for a path or the name of a shipped configuration.

    Raises:
        ValueError: there is no such file, or it is not a regular file.
    """
    path = find(config)
    if path is None:
        if Path(config).exists():
            require_regular(config)
        raise ValueError(
            f"There is no configuration {config!r}: it is neither a file nor shipped with ndm"
            + did_you_mean(config, names(), f"there are {', '.join(names())}")
        )
    return path
