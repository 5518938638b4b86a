"""What a run's folder says it was trained on and how: its data, found again and recognised, and its labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ndm.configs.configuration import read_data
from ndm.data import Data
from ndm.storage.texts import read_yaml
from ndm.training import Run

__all__ = ["label_dropout", "looked_for", "read_run_data"]


def read_run_data(run: Run, overrides: Sequence[str] = (), other: bool = False, allow: Iterable[str] = ()) -> Data:
    """The data that a run was trained on, which are refused if they have changed since.

    Args:
        run: the run.
        overrides: where the data are, if they have been moved: ``--data.path PATH``, as on the command line.
        other: take whatever data are there.
        allow: modules whose classes the configuration may name besides those of ndm.

    Raises:
        FileNotFoundError: there are no data.
        ValueError: they are not those of the training; the configuration is damaged, or an override is wrong.
    """
    data = read_data(run.config, overrides, allow)
    with looked_for(run, overrides):
        if other:
            len(data.examples("train"))  # so that what is wrong with them is told here
        else:
            run.require_same_data(data, "or evaluate on these on purpose by --other-data")
    return data


@contextmanager
def looked_for(run: Run, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Where data are not found, say where the path comes from, and how to give another."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        if any(option.partition("=")[0] in ("--data.path", "--data.init_args.path") for option in overrides):
            raise
        path = (_section(run, "data").get("init_args") or {}).get("path")
        if path is None:
            raise
        where = "" if Path(path).is_absolute() else f", is relative, and was looked for in {Path.cwd()}"
        raise type(error)(
            f"{error} The path comes from {run.config}{where}: give --data.path where the data are."
        ) from None


def label_dropout(run: Run) -> float | None:
    """The share of labels that were left out in a run's training; None if its configuration does not say."""
    share = _section(run, "training").get("label_dropout")
    return None if share is None else float(share)


def _section(run: Run, name: str) -> dict[str, Any]:
    """A section of a run's configuration; empty if there is none that can be read."""
    try:
        section = read_yaml(run.config).get(name)
    except (OSError, ValueError, AttributeError):
        return {}
    return section if isinstance(section, dict) else {}
