"""Checks of an output file before anything is computed. They need no PyTorch."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from ndm.storage.texts import require_free

__all__ = ["FORMATS", "require_place", "require_table_place"]

#: Supported suffixes of sample files.
FORMATS = (".png", ".csv", ".npz", ".parquet")

#: Supported suffixes of files with the rows of a table.
TABLES = (".csv", ".parquet")


def require_place(out: Path, overwrite: bool = False) -> None:
    """Check that samples can be written, before they are drawn.

    Args:
        out: the file.
        overwrite: allow an existing file.

    Raises:
        ValueError: its suffix is not in :data:`FORMATS`, or it is not a regular file.
        OSError: it exists, or its folder is not writable.
        ImportError: a package for this format is not installed.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"The output file {out} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; nothing was written: choose another --out.")
    require_free(out, overwrite)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(
            f"There is no permission to write {out.name} in the folder {out.parent}: choose another --out."
        )
    if out.suffix.lower() == ".parquet":
        try:
            importlib.import_module("pyarrow")
        except ModuleNotFoundError:
            raise ImportError("Parquet files need pyarrow: pip install pyarrow.") from None


def require_table_place(out: Path, overwrite: bool = False) -> None:
    """Check that a table can be written, before it is computed.

    Args:
        out: the file, ending in .csv or .parquet.
        overwrite: allow an existing file.

    Raises:
        ValueError: the suffix is another one, or it is not a regular file.
        OSError: it exists, or its folder is not writable.
        ImportError: pyarrow is not installed.
    """
    if out.suffix.lower() not in TABLES:
        raise ValueError(f"The output file {out} must end in {' or '.join(TABLES)}.")
    require_place(out, overwrite)
