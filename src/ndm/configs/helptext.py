"""Write the text of `ndm train --help`, which is stored because making it imports every class.

python -m ndm.configs.helptext
"""

from __future__ import annotations

import contextlib
import io
import os

from ndm.configs.configuration import Configuration
from ndm.configs.early import HELP

__all__ = ["text"]


def text() -> str:
    """The help, for a terminal of 80 columns."""
    before, found = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit):
            Configuration.help(["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return found.getvalue()


if __name__ == "__main__":
    HELP.write_text(text(), encoding="utf-8")
