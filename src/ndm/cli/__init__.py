"""The ``ndm`` command: train, import, evaluate, audit, sample, score, distill, impute, predict, report, push, demo.

Heavy modules are imported only when they are needed, so that ``ndm --help`` is fast. A user error prints one sentence
on stderr and exits with code 2. A failed training exits with code 1, a command stopped by Ctrl-C or SIGTERM with code
130.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import keyword
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from ndm._internal.signals import stop_message, terminable
from ndm.cli.messages import LESS_MEMORY, STOPPED, missing_package, one_line, say
from ndm.cli.parsing import Parser
from ndm.cli.process import collect_garbage, output_failed, own, watch_output
from ndm.storage.texts import did_you_mean

__all__ = ["COMMANDS", "STOPPED", "main"]

FAILED, WRONG, INTERRUPTED = 1, 2, 130

#: Environment variable that enables tracebacks.
TRACEBACK = "NDM_TRACEBACK"

#: The commands and their help texts; `ndm train` is :func:`ndm.cli.train.run`.
COMMANDS = {
    "train": "train a model from a configuration, and write a run folder",
    "import": "make a run folder of a trained diffusers model, for the commands below",
    "evaluate": "compute the bound and the likelihood of a run, with standard errors",
    "audit": "show what the bound of a run is made of",
    "sample": "draw samples from the model of a run, as a picture or a table",
    "score": "compute the bound and the likelihood of each row of a table, with errors",
    "distill": "fit a small network to the log-density of a table's model, for `ndm score --fast`",
    "impute": "fill the missing cells of a table",
    "predict": "predict a column of a table given the others, with quantiles or probabilities",
    "report": "write an HTML report that compares runs: curves, bounds, samples",
    "push": "upload the model of a run to the Hugging Face hub",
    "demo": "train a small model and show what it does",
}

#: The commands that may end soon after their imports, and collect garbage when they have loaded a model.
SHORT = ("score", "sample")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: ``sys.argv[1:]``) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    if argv is None:
        own()
        watch_output()
        # Child processes must not import from the current folder either.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        with terminable(last=argv is None), _printing():
            return _dispatch(arguments)
    except KeyboardInterrupt:
        name = arguments[0] if arguments else ""
        left = stop_message() or STOPPED.get(name, "nothing was written; run the same command again.")
        say(f"stopped; {left}")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("ndm"):
            say(f"error: {missing_package(error.name)}")
            return WRONG
        if isinstance(error, (ValueError, OSError, ImportError)):
            say(f"error: {one_line(error)}")
            return WRONG
        if _is_lack_of_memory(error):
            say(f"error: there is not enough memory for this ({one_line(error)[:200]}): {LESS_MEMORY}.")
            return WRONG
        if type(error).__name__ == "NonFiniteLoss":  # by name: its module would import Lightning
            say(f"error: {one_line(error)}")
            return FAILED
        raise


def _prepare_streams() -> None:
    """Replace closed streams by ``os.devnull``, and escape characters that a stream cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the end)
        elif isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of a stream with a position that it cannot tell
                stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Raise a readable error if standard output cannot be written; ignore a closed pipe.

    Python would flush the remaining output at exit, which is too late to report an error. A reader such as ``head`` may
    close the pipe early.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or not _is_lost(sys.stdout):
            raise
        if not isinstance(error, BrokenPipeError):
            left = stop_message()
            end = f"; {left}" if left else "."
            raise OSError(f"The standard output cannot be written: {error.strerror}{end}") from None


def _is_lost(stream: TextIO) -> bool:
    """Whether a stream cannot be written; its pending output is then discarded."""
    lost = output_failed()
    try:
        stream.flush()
    except OSError:
        lost = True
    if lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return lost


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an error means out of memory, in Python, NumPy, Arrow or PyTorch (which has no class for it on CPUs)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def _dispatch(arguments: list[str]) -> int:
    parser = Parser(
        prog="ndm",
        description="Neural Diffusion Models: train, evaluate, sample, score.",
        epilog="`ndm COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", prog="ndm", parser_class=Parser)
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    if not arguments:
        parser.print_help()
        return WRONG
    name = arguments[0]
    if name in COMMANDS:
        if name not in SHORT:
            collect_garbage()
        module = f"{name}_" if keyword.iskeyword(name) else name
        return _run(importlib.import_module(f"ndm.cli.{module}").run, arguments[1:])
    if not name.startswith("-"):
        end = did_you_mean(name, COMMANDS, f"there are {', '.join(COMMANDS)}")
        raise ValueError(f"There is no command {name!r}{end}")
    return _run(lambda words: _print_version(parser.parse_args(words).version), arguments)


def _run(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a command, and return the exit code with which its ``--help`` ends it."""
    try:
        command(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ndm {importlib.import_module('ndm').__version__}")
