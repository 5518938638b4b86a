"""What the command says: its sentences on stderr, and what is left of a command that was stopped."""

from __future__ import annotations

import contextlib
import sys

from ndm.storage.texts import printable

__all__ = ["LESS_MEMORY", "STOPPED", "one_line", "say"]

#: What may be done where there is not enough memory.
LESS_MEMORY = "take a smaller batch, a smaller network or fewer columns, or another computer"

#: What is left of a command that was stopped, and what to do; `ndm train` says it itself.
STOPPED = {
    "evaluate": "no figures were written; the same command starts again.",
    "sample": "no samples were written; the same command starts again.",
    "score": "the same command goes on where it was.",
    "report": "no page was written; the same command starts again.",
    "push": "what had been sent may be there; the same command sends all of it.",
    "demo": "the same command starts again, in a folder of its own.",
}


def one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, UnicodeEncodeError):
        return f"The text {ascii(error.object)[:200]} is not valid Unicode: rename what is called so."
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # whoever has closed it does not want to read it
        print(f"ndm: {printable(sentence)}", file=sys.stderr)
