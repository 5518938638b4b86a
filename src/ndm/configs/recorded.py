"""Information recorded in a run folder: the training data, checked for changes, and the label dropout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ndm.configs.configuration import read_data
from ndm.data.base import Data
from ndm.storage.texts import read_yaml
from ndm.training.run import Run

__all__ = ["label_dropout", "looked_for", "read_run_data"]


def read_run_data(
    run: Run,
    overrides: Sequence[str] = (),
    other: bool = False,
    allow: Iterable[str] = (),
    otherwise: str = "or give --other-data to evaluate on these data",
) -> Data:
    """Read the training data of a run, and check that they have not changed.

    Args:
        run: the run folder.
        overrides: new location of the data, if moved: ``--data.path PATH``, as on the command line.
        other: accept changed data.
        allow: additional modules whose classes the configuration may use.
        otherwise: alternative advice if the data have changed, as the end of a sentence.

    Raises:
        FileNotFoundError: the data do not exist.
        ValueError: the data have changed, the configuration is damaged, or an override is invalid.
    """
    data = read_data(run.config, overrides, allow)
    with looked_for(run, overrides):
        if other:
            len(data.examples("train"))  # raises errors in the data here
        else:
            run.require_same_data(data, otherwise)
    return data


@contextmanager
def looked_for(run: Run, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Add the origin of the path, and how to change it, to a missing-data error."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        if any(option.partition("=")[0] in ("--data.path", "--data.init_args.path") for option in overrides):
            raise
        path = (_section(run, "data").get("init_args") or {}).get("path")
        if path is None:
            raise
        where = "" if Path(path).is_absolute() else f" and is relative to {Path.cwd()}"
        raise type(error)(
            f"{error} The path comes from {run.config}{where}: give the new path with --data.path."
        ) from None


def label_dropout(run: Run) -> float | None:
    """Return the label dropout of a run's training; None if its configuration does not contain it."""
    share = _section(run, "training").get("label_dropout")
    return None if share is None else float(share)


def _section(run: Run, name: str) -> dict[str, Any]:
    """Return a section of a run's configuration; empty if it cannot be read."""
    try:
        section = read_yaml(run.config).get(name)
    except (OSError, ValueError, AttributeError):
        return {}
    return section if isinstance(section, dict) else {}
