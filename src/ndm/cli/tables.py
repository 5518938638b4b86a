"""What the commands for models of tables share: the model, warnings, and checks of the columns' names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ndm.cli.messages import say
from ndm.cli.options import load_model
from ndm.storage.texts import did_you_mean

if TYPE_CHECKING:
    from ndm.method.encoding import TableEncoding
    from ndm.model import NDM

__all__ = ["load_table_model", "others_in_words", "require_columns", "single_process", "warn_of"]


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


def require_columns(names: Sequence[str], encoding: TableEncoding, option: str) -> None:
    """Check that the model has columns of some names, each named once.

    Args:
        names: the names.
        encoding: the columns of the model.
        option: the option that names them.

    Raises:
        ValueError: a name is unknown, or named twice.
    """
    from ndm.data.columns import some, twice_in

    for name in names:
        if name not in encoding.names:
            end = did_you_mean(name, encoding.names, f"its columns are {some(encoding.names)}")
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
