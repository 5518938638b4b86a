"""The folder that a training writes.

What is where:

    RUN/config.yaml       the full configuration, with which `ndm train` does the same again
    RUN/data.json         the shape of an example, the number of levels, and the columns' names of a table
    RUN/log.txt           what was said
    RUN/metrics.csv       the curves
    RUN/pictures/         samples and the learned transformation as training went on, where they are asked for
    RUN/tensorboard/      the curves for TensorBoard, if it is installed
    RUN/checkpoints/      last.ckpt and best.ckpt, to go on from
    RUN/model/            the model, for NDM.from_pretrained
    RUN/environment.json  where it was trained, and by which command: see Run.write_environment
    RUN/evaluation.json   what `ndm evaluate` has found
    RUN/evaluation.npz    the same for every example: see ndm.evaluation.read_per_example
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ndm.evaluation import written_whole

__all__ = ["Run"]


#: Where Lightning, torchrun and SLURM tell a process its number.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class Run:
    """A run's folder and the files in it.

    Args:
        path: the folder, which need not exist yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def per_example(self) -> Path:
        return self.evaluation.with_suffix(".npz")

    def require_new(self) -> None:
        """Raise FileExistsError if there is anything at the path."""
        if any(int(os.environ.get(name) or 0) > 0 for name in _RANKS):
            return  # this process was started for one more device, and the first one may have made the folder
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} exists; nothing was written: choose another --out, or --resume it.")

    def require_checkpoint(self) -> None:
        """Raise FileNotFoundError if there is nothing to resume."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"There is no run at {self.path} to resume.")
        if not self.last.is_file():
            raise FileNotFoundError(
                f"There is no checkpoint in {self.path} to resume from (it would be {self.last}); "
                "the run ended before its first validation."
            )

    def require_model(self) -> None:
        """Raise FileNotFoundError if there is no trained model."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"There is no run at {self.path}.")
        if not self.model.is_dir():
            raise FileNotFoundError(
                f"There is no trained model in {self.path} (it would be {self.model}); "
                f"if its training was interrupted, go on with it by `ndm train --resume --out {self.path}`."
            )

    def write_data(self, shape: tuple[int, ...], levels: int | None, columns: tuple[str, ...] | None = None) -> None:
        """Write down what an example looks like."""
        facts: dict[str, Any] = {"shape": list(shape), "levels": levels}
        if columns is not None:
            facts["columns"] = list(columns)
        self.data.write_text(json.dumps(facts) + "\n")

    def write_environment(self, facts: Mapping[str, Any], resumed: bool = False) -> None:
        """Write down where the training runs, as one flat JSON object, whole or not at all.

        :func:`ndm.training.fit` tells the versions of ``ndm``, ``python`` and ``torch``, the ``platform``, the
        ``device`` by its name, the number of ``devices`` and of ``threads`` of a process, the ``precision``, when it
        was ``started`` (UTC, ISO 8601), and the ``command``, if it was one. Of a run that went on later, ``resumed`` is
        the list of the times, and everything else is of its beginning.

        Args:
            facts: what is to be told, ``started`` among it.
            resumed: the run goes on, at the time ``started``.
        """
        if resumed:
            before = self._environment_before()
            times = [*before.get("resumed", []), facts["started"]]
            facts = (before or {k: v for k, v in facts.items() if k != "started"}) | {"resumed": times}
        with written_whole(self.environment) as file:
            file.write((json.dumps(facts, indent=2) + "\n").encode())

    def _environment_before(self) -> dict[str, Any]:
        """What an earlier session has written down; empty if it has not, or if that cannot be read."""
        try:
            return dict(json.loads(self.environment.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def read_evaluation(self) -> dict[str, Any]:
        """What the last evaluation has found.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            return dict(json.loads(self.evaluation.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self.evaluation} is missing or damaged ({error}); evaluate the run again.") from None

    def read_columns(self) -> tuple[str, ...] | None:
        """The names of a table's columns; None if the data were no table.

        Raises:
            ValueError: the file is missing or damaged.
        """
        shape, _ = self.read_data()
        columns = json.loads(self.data.read_text()).get("columns")
        if columns is not None and (not isinstance(columns, list) or (len(columns),) != shape):
            raise ValueError(f"{self.data} is damaged: its columns are not those of examples of shape {shape}.")
        return None if columns is None else tuple(map(str, columns))

    def read_data(self) -> tuple[tuple[int, ...], int | None]:
        """The shape of an example and the number of levels.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            data = json.loads(self.data.read_text())
            return tuple(data["shape"]), data["levels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.data} is missing or damaged ({error}).") from None


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of Lightning's without executing anything in it.

    Raises:
        ValueError: the file is damaged, or holds something other than tensors and plain data.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["global_step"], checkpoint["state_dict"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        raise ValueError(f"{path} is damaged, or not a checkpoint that ndm has written; it was not loaded.") from None
    return checkpoint
