"""The command line reference: what every command says to ``--help``, asked when the site is built."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ndm.cli import COMMANDS

#: Characters in a line.
WIDTH = "100"


def help_of(command: str | None) -> str:
    """What ``ndm COMMAND --help`` says, or ``ndm --help``."""
    # In a process of its own: `ndm train --help` lists the classes that are known, and this one has imported more.
    words = [sys.executable, "-m", "ndm", *([command] if command else []), "--help"]
    environment = os.environ | {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`ndm {command} --help` ended with exit code {done.returncode}.")
    return done.stdout


class Commands(SphinxDirective):
    """A section for ``ndm`` and for each of its commands, with its help."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for command in (None, *COMMANDS):
            title = f"ndm {command}" if command else "ndm"
            lines += [f"## {title}", "", "````text", help_of(command).rstrip(), "````", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
