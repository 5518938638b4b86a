"""``ndm demo``: train a small model and show what it does."""

from __future__ import annotations

import importlib

from ndm._internal.signals import set_stop_message
from ndm.cli.parsing import Parser

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    parser = Parser(prog="ndm demo", description="Train a small model and show what it does.")
    parser.add_argument("--out", default="demo", help="the folder to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    folder = importlib.import_module("ndm.demo").run(out=options.out)
    set_stop_message(f"the demo is in {folder}.")
