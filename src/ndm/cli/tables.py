"""What the commands for models of tables share: the model, warnings, and checks of the columns' names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, say
from ndm.cli.options import add_allow, find_allowed, load_model, require_run
from ndm.cli.parsing import Parser, positive, seed
from ndm.cli.process import spare_pandas
from ndm.storage.texts import did_you_mean

if TYPE_CHECKING:
    from ndm.method.encoding import TableEncoding
    from ndm.model import NDM

__all__ = [
    "add_drawing",
    "load_table_model",
    "others_in_words",
    "require_columns",
    "run_alone",
    "single_process",
    "warn_of",
]


def load_table_model(run: Path, allow: Sequence[str] = ()) -> tuple[NDM, TableEncoding]:
    """Load the model of a run onto the CPU, and its columns.

    Raises:
        ValueError: there is no run, or its model is not of a table with columns of several kinds.
    """
    import torch

    from ndm.samples import table_of

    model = load_model(run, torch.device("cpu"), allow)
    encoding = table_of(model)
    if encoding is None:
        raise ValueError(
            f"The model of {run} is not of a table with columns of several kinds: train one by `ndm train table`."
        )
    return model, encoding


def require_columns(names: Sequence[str], known: Sequence[str], option: str) -> None:
    """Check that the model has columns of some names, each named once.

    Args:
        names: the names.
        known: the names of the model's columns; nothing is checked if there are none.
        option: the option that names them.

    Raises:
        ValueError: a name is unknown, or named twice.
    """
    from ndm.data.columns import some, twice_in

    for name in names if known else ():
        if name not in known:
            end = did_you_mean(name, known, f"its columns are {some(known)}")
            raise ValueError(f"{option}: the model has no column {name!r}{end}")
    if (twice := twice_in(names)) is not None:
        raise ValueError(f"{option} has {twice!r} twice.")


@contextmanager
def single_process(command: str) -> Iterator[None]:
    """Run on the CPU in one process.

    Raises:
        ValueError: a launcher started several.
    """
    from ndm._internal.distributed import process_group, world_size

    with process_group("cpu"):
        if world_size() > 1:
            raise ValueError(f"{command} runs in one process: start it without torchrun.")
        yield


def add_drawing(parser: Parser) -> None:
    """Add the options of a command that draws samples: steps, seed and allowed modules."""
    parser.add_argument(
        "--steps", type=positive, metavar="T", help="number of steps of the solver dpm++2m for the ODE (default: 32)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="random seed (default: %(default)s)")
    add_allow(parser)


def run_alone(
    name: str, options: argparse.Namespace, what: str, work: Callable[[Path, argparse.Namespace], None]
) -> None:
    """Run a command that writes one table, in one process; its files are checked before PyTorch is imported.

    Args:
        name: the command, such as ``impute``.
        options: its options, with ``run``, ``data``, ``out``, ``overwrite`` and ``allow``.
        what: what the file holds, for messages, such as "the filled table is".
        work: the function to call with the file and the options.

    Raises:
        ValueError: the file cannot be a table, or a launcher started several processes.
        OSError: the file exists, or its folder is not writable.
    """
    from ndm.data.tablefile import require_table
    from ndm.samples import require_table_place

    find_allowed(options.allow)
    out = Path(options.out)
    require_table_place(out, options.overwrite)
    run = require_run(options.run)
    if column := getattr(options, "column", None):
        require_columns([column], run.read_columns() or (), "--column")
    require_table(options.data)
    spare_pandas()
    set_stop_message_of(out, f"{what} in {out}.", STOPPED[name])
    with single_process(f"ndm {name}"):
        work(out, options)


def warn_of(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"warning: {note}")


def others_in_words(names: Sequence[str], most: int = 6) -> str:
    """The names of columns in a condition, or their number if there are many.

    Example:
        >>> others_in_words(["a", "b"]), others_in_words([str(i) for i in range(9)])
        ('a, b', '9 columns')
    """
    return ", ".join(names) if len(names) <= most else f"{len(names)} columns"
