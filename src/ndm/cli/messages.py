"""Messages of the command on stderr, and advice after an interrupted command."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from importlib import metadata

from ndm.storage.texts import printable

__all__ = ["LESS_MEMORY", "STOPPED", "missing_package", "one_line", "say", "show"]

#: Advice for out-of-memory errors.
LESS_MEMORY = "use a smaller batch, a smaller network, fewer columns, or a computer with more memory"

#: Advice after an interrupted command; `ndm train` prints its own.
STOPPED = {
    "import": "no run was written; run the same command again.",
    "evaluate": "no results were written; run the same command again.",
    "audit": "no file was written; run the same command again.",
    "sample": "no samples were written; run the same command again.",
    "score": "run the same command again to resume it.",
    "distill": "no fast score was written; run the same command again.",
    "impute": "no table was written; run the same command again.",
    "predict": "no predictions were written; run the same command again.",
    "report": "no report was written; run the same command again.",
    "push": "parts of the upload may be there; run the same command again.",
    "demo": "run the same command again, in another folder.",
}


#: Modules whose package has a different name.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def missing_package(module: str) -> str:
    """Return the message for a missing module, with the command that installs its extra.

    Args:
        module: module name, possibly dotted.
    """
    name = _PACKAGES.get(module.partition(".")[0], module.partition(".")[0])
    try:
        wanted = [requirement.split(";") for requirement in metadata.requires("ndm") or []]
    except metadata.PackageNotFoundError:  # ndm is not installed
        wanted = []
    extras = [(rest[0].strip(), requirement.strip()) for requirement, *rest in wanted if rest]
    own = next((extra for extra, one in extras if re.match(rf"{re.escape(name)}\b", one)), None)
    group = [one for extra, one in extras if extra == own] if own else [name]
    return f"This needs the package {name}, which is not installed: pip install {shlex.join(group)}"


def one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, UnicodeEncodeError):
        return f"The name {ascii(error.object)[:200]} is not valid Unicode: rename the file, folder or column."
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # a closed stream is ignored
        sys.stderr.write(f"ndm: {printable(sentence)}\n")
        sys.stderr.flush()


def show(text: str) -> None:
    """Print a text in one piece, so that a command that is stopped leaves no part of a line.

    Raises:
        OSError: the standard output cannot be written.
    """
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
