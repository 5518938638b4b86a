"""``ndm train``: train a model from a configuration, and write a run folder."""

from __future__ import annotations

import argparse
import errno
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ndm import configs
from ndm._internal.signals import set_stop_message
from ndm.cli.messages import one_line, say
from ndm.cli.options import add_allow, find_allowed
from ndm.cli.parsing import Parser

if TYPE_CHECKING:
    from ndm.training import Run

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    command = ["ndm", "train", *arguments]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    options, overrides = _own_options().parse_known_args(arguments)
    run = _check(name, options, overrides, command)
    if run is None:  # the help was printed
        return
    from ndm import training  # with PyTorch, after the checks that need none
    from ndm.configs.configuration import Configuration
    from ndm.configs.recorded import looked_for
    from ndm.training.options import is_later_process

    find_allowed(options.allow)
    if _wants_help(overrides):
        Configuration.help(overrides, options.allow)
    name = str(run.config) if name is None else name
    configuration = Configuration.read(name, overrides, options.tiny, options.allow)
    if options.print_config:
        print(configuration.text, end="")
        return
    resume = options.resume and not run.is_unborn
    later = is_later_process(*configuration.devices)
    if resume:
        run.require_checkpoint()
    else:
        run.require_new(_without_out(command), later)  # checked before the model is built
    if run.is_unborn and not later:
        say(f"{run.path} has no checkpoint, because its training ended before the first one; it starts again.")
    set_stop_message(lambda: _after_stop(run, command, options.allow))
    try:
        with looked_for(run, overrides) if resume else nullcontext():
            built = configuration.build()
        training.fit(
            built.model,
            built.data,
            run.path,
            built.training,
            built.trainer,
            seed=built.seed,
            resume=resume,
            config=configuration.text,
            command=shlex.join(command),
            notes=built.notes,
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(f"{one_line(error)}: free some disk space; {_after_stop(run, command, options.allow)}") from None


def _own_options() -> Parser:
    own = Parser(prog="ndm train", add_help=False)
    own.add_argument("--out")
    own.add_argument("--resume", action="store_true")
    own.add_argument("--tiny", action="store_true")
    own.add_argument("--print_config", action="store_true")
    add_allow(own)
    return own


def _check(
    name: str | None, options: argparse.Namespace, overrides: Sequence[str], command: Sequence[str]
) -> Run | None:
    """Check what needs no PyTorch, and return the run folder; None if the help was asked for, and printed."""
    from ndm.configs.early import HELP, check_overrides
    from ndm.training import Run
    from ndm.training.options import may_be_later_process

    if name is not None:
        configs.require(name)
    if not options.allow and overrides and set(overrides) <= {"-h", "--help"}:
        print(HELP.read_text(encoding="utf-8"), end="")
        return None
    run = Run(Path(options.out)) if options.out else Run(Path("runs") / Path(name or "").stem)
    if _wants_help(overrides):
        return run
    if name is None and options.resume and options.out:
        if not run.is_unborn:
            run.require_checkpoint()
    elif name is None:
        raise ValueError(
            "ndm train needs a configuration: give a file or the name of a shipped one, as in `ndm train digits`."
        )
    check_overrides(overrides, bool(options.allow))
    if not options.print_config and not may_be_later_process():
        if options.resume and not run.is_unborn:
            run.require_checkpoint()
        else:
            run.require_new(_without_out(command))
    return run


def _wants_help(overrides: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(overrides)) or any(o.partition("=")[0].endswith(".help") for o in overrides)


def _without_out(command: Sequence[str]) -> str:
    """Return the training command without the output folder and --resume."""
    skipped = {i + k for i, word in enumerate(command) if word == "--out" for k in (0, 1)}
    kept = [word for i, word in enumerate(command) if i not in skipped and word != "--resume"]
    return shlex.join(word for word in kept if not word.startswith("--out="))


def _after_stop(run: Run, command: Sequence[str], allow: Sequence[str]) -> str:
    """Message after an interrupted training, with the command that resumes it."""
    if run.last.is_file():
        allowed = "".join(f" --allow {name}" for name in allow)
        return f"its last checkpoint is kept; resume with: {run.resume}{allowed}"
    return f"there was no checkpoint yet; start again with: {shlex.join(command)}"
