"""The run folder written by a training.

Layout:

    RUN/config.yaml       the full configuration, to repeat the training with `ndm train`
    RUN/config-1.yaml     configurations of earlier sessions, if a training was resumed with another one
    RUN/data.json         description of the data: see Run.write_data
    RUN/log.txt           log messages
    RUN/metrics.csv       the curves
    RUN/pictures/         samples and the learned transformation during training, if requested
    RUN/tensorboard/      the curves for TensorBoard, if it is installed
    RUN/checkpoints/      last.ckpt and best.ckpt, for resuming
    RUN/model/            the model, for NDM.from_pretrained
    RUN/environment.json  machine and command of the training: see Run.write_environment
    RUN/evaluation.json   results of `ndm evaluate`
    RUN/evaluation.npz    results per example: see ndm.evaluation.read_per_example
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm.storage.atomic import atomic_write
from ndm.storage.description import data_of
from ndm.storage.lock import FolderLock
from ndm.storage.texts import LARGEST_YAML, read_json, read_text, read_yaml, require_regular
from ndm.training.facts import digest_of_facts, read_facts

if TYPE_CHECKING:
    from ndm.data.base import Data

__all__ = ["Run"]


#: Files that a training writes before its first checkpoint, relative to the folder.
_EARLY = re.compile(
    r"(data\.json|config(-\d+)?\.yaml|log\.txt|metrics\.csv|environment\.json|\.lock|\.[^/]+\.[0-9a-f]{8}(\.\w+)?"
    r"|pictures/\d+-\w+\.png|tensorboard/(events\.out\.tfevents\..*|hparams\.yaml)|checkpoints/\.\w+\.[0-9a-f]{8}\.ckpt)"
)


@dataclass(frozen=True)
class Run:
    """A run folder and its files.

    Args:
        path: the folder, which may not exist yet.
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
    def distilled(self) -> Path:
        return self.path / "distilled"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def per_example(self) -> Path:
        return self.evaluation.with_suffix(".npz")

    @property
    def resume(self) -> str:
        """The command that resumes the training."""
        return f"ndm train --resume --out {shlex.quote(str(self.path))}"

    @property
    def is_unborn(self) -> bool:
        """Whether the folder only contains files of a training that stopped before its first checkpoint."""
        return self.data.is_file() and not self._files_of_others()

    def _files_of_others(self) -> list[str]:
        """Return the files other than those that a training writes before its first checkpoint."""
        files = (f for f in self.path.rglob("*") if not f.is_dir() or f.is_symlink())
        return sorted(f for f in (f.relative_to(self.path).as_posix() for f in files) if not _EARLY.fullmatch(f))

    def require_new(self, command: str | None = None, later: bool = False) -> None:
        """Raise FileExistsError unless the folder is missing, empty, or of a training without a checkpoint.

        Args:
            command: the command line without the folder, for the error message.
            later: whether this is not the first process of the training.
        """
        if later:
            return  # the first process may have created the folder
        if not self.path.exists() or (self.path.is_dir() and (not any(self.path.iterdir()) or self.is_unborn)):
            return
        if not (self.last.is_file() or self.model.is_dir()):
            raise FileExistsError(f"{self.path} exists; nothing was written: choose another --out.")
        another = next(
            p for i in itertools.count(2) if not (p := self.path.with_name(f"{self.path.name}-{i}")).exists()
        )
        advice = "choose another --out" if command is None else f"`{command} --out {shlex.quote(str(another))}`"
        raise FileExistsError(
            f"{self.path} exists; nothing was written: resume its training by `{self._longer()}`, or train again "
            f"by {advice}."
        )

    def _longer(self) -> str:
        """Return the command that resumes the training, with a higher limit if it is complete."""
        try:
            limit = read_yaml(self.config)["trainer"]["max_steps"]
            done = int(read_text(self.metrics).rstrip().rpartition("\n")[2].partition(",")[0])
            return f"{self.resume} --trainer.max_steps {2 * limit}" if done >= limit else self.resume
        except (OSError, ValueError, KeyError, TypeError):
            return self.resume

    def require_checkpoint(self) -> None:
        """Raise FileNotFoundError if there is nothing to resume."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"There is no run at {self.path} to resume: leave --resume out to start one.")
        if not self.last.is_file():
            why = "; it can begin again, without resume" if self.is_unborn else ""
            raise FileNotFoundError(
                f"There is no checkpoint in {self.path} to resume from (it would be {self.last}){why}."
            )

    def begin(self, config: str, data: Data, resumed: bool = False) -> FolderLock:
        """Create the folder, and write the configuration and the description of the data.

        Files of a training without a checkpoint are removed first.

        Args:
            config: the configuration, in YAML; not written if resumed.
            data: the data set.
            resumed: whether the run is resumed.

        Returns:
            A lock that excludes other trainings from the folder while it is referenced.

        Raises:
            FileExistsError: another process is training in the folder.
            ValueError: a file to append to is a link or not a regular file.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.path)
        for file in (self.log, self.metrics):
            _require_own(file)
        if not resumed and self.is_unborn:
            for name in (self.log, self.metrics, self.environment):
                name.unlink(missing_ok=True)
            left = [*self.pictures.glob("*.png"), *self.tensorboard.glob("*"), *self.checkpoints.glob(".*.ckpt")]
            for file in filter(Path.is_file, left):
                file.unlink()
        self.write_data(data)
        if not resumed:
            self.write_config(config)
        return lock

    def write_config(self, config: str) -> None:
        """Write the configuration; an existing different one is renamed and kept.

        In a resumed run this is called after the checkpoint was loaded, so an incompatible checkpoint does not change
        it.
        """
        if self.config.is_file() and read_text(self.config, LARGEST_YAML) != config:
            numbered = (self.path / f"config-{i}.yaml" for i in itertools.count(1))
            with atomic_write(next(path for path in numbered if not path.exists())) as file:
                file.write(self.config.read_bytes())
        with atomic_write(self.config) as file:
            file.write(config.encode())

    def require_model(self) -> None:
        """Check that the run has a trained model, which is not from another run.

        Raises:
            FileNotFoundError: there is no trained model.
            ValueError: it was trained on other data than the run.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"There is no run at {self.path}.")
        if not self.model.is_dir():
            raise FileNotFoundError(
                f"There is no trained model in {self.path} (it would be {self.model}); "
                f"if its training was interrupted, resume it by `ndm train --resume --out {self.path}`."
            )

        if data_of(self.model) not in (None, digest_of_facts(self.data)):
            raise ValueError(
                f"The model in {self.model} was not trained on the data described in {self.data}: one of the two "
                "belongs to another run or was modified. Restore the original file; in Python the model can be loaded "
                "alone."
            )

    def write_data(self, data: Data) -> None:
        """Write a description of the data as one JSON object, atomically.

        It contains the ``shape`` of an example, the number of ``levels``, the numbers of examples in the ``splits``,
        the ``fingerprint`` of all (see :meth:`ndm.data.Data.fingerprint`), the ``columns`` of a table, and, for data
        with labels, the number of training examples in each of the ``classes``.
        """
        facts: dict[str, Any] = {"shape": list(data.shape), "levels": data.levels}
        if data.columns is not None:
            facts["columns"] = list(data.columns)
        facts |= contents(data)
        labels = data.labels("train")
        if labels is not None and facts["fingerprint"] is not None and labels.min() >= 0:
            facts["classes"] = labels.bincount().tolist()
        with atomic_write(self.data) as file:
            file.write((json.dumps(facts) + "\n").encode())

    def require_same_data(self, data: Data, otherwise: str) -> None:
        """Check that data are those of the training: if a file has grown, test rows may be training rows.

        Any data are accepted if data.json does not identify them.

        Args:
            data: the data that were found.
            otherwise: alternative advice, as the end of a sentence.

        Raises:
            ValueError: the data are different.
        """
        now = contents(data)
        before = {key: value for key, value in read_facts(self.data).items() if key in _CONTENTS}
        if all(before[key] in (None, now[key]) for key in before):
            return
        rows = "rows" if data.columns is not None else "examples"
        then, here = (_counted(facts.get("splits") or {}, rows) for facts in (before, now))
        how = f"{then} in training, {here} given" if then != here else f"{here} in both, but not the same {rows}"
        raise ValueError(
            f"The data differ from the training data of {self.path}: {how}. Test {rows} may therefore be among the "
            f"training {rows}. Restore the original data, or give their path with --data.path; {otherwise}."
        )

    def write_environment(self, facts: Mapping[str, Any], resumed: bool = False) -> None:
        """Write a description of the machine as one flat JSON object, atomically.

        :func:`ndm.training.fit` provides the versions of ``ndm``, ``python`` and ``torch``, the ``platform``, the name
        of the ``device``, the number of ``devices`` and of ``threads`` per process, the ``precision``, the time when it
        was ``started`` (UTC, ISO 8601), and the ``command``, if any. In a resumed run, ``resumed`` is the list of
        resume times, and all other values are from its start.

        Args:
            facts: the values, including ``started``.
            resumed: whether the run is resumed, at the time ``started``.
        """
        if resumed:
            before = self._environment_before()
            earlier = before.get("resumed", [])
            times = [*(earlier if isinstance(earlier, list) else []), facts["started"]]
            facts = (before or {k: v for k, v in facts.items() if k != "started"}) | {"resumed": times}
        with atomic_write(self.environment) as file:
            file.write((json.dumps(facts, indent=2) + "\n").encode())

    def _environment_before(self) -> dict[str, Any]:
        """Read the values of an earlier session; empty if missing or unreadable."""
        try:
            return dict(read_json(self.environment))
        except (OSError, ValueError, TypeError):
            return {}

    def read_evaluation(self) -> dict[str, Any]:
        """Read the results of the last evaluation.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            return dict(read_json(self.evaluation))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self.evaluation} is missing or damaged ({error}); evaluate the run again.") from None

    def read_columns(self) -> tuple[str, ...] | None:
        """Return the column names of a table; None if the data are not a table.

        Raises:
            ValueError: the file is missing or damaged.
        """
        columns = read_facts(self.data).get("columns")
        return None if columns is None else tuple(columns)

    def read_classes(self) -> list[int] | None:
        """Return the number of training examples per class; None if there are no classes or it was not recorded."""
        try:
            counts = read_facts(self.data).get("classes")
            return None if counts is None else [int(n) for n in counts]
        except (ValueError, TypeError, OverflowError):
            return None

    def read_data(self) -> tuple[tuple[int, ...], int | None]:
        """Return the shape of an example and the number of levels.

        Raises:
            ValueError: the file is missing or damaged.
        """
        facts = read_facts(self.data)
        return tuple(facts["shape"]), facts["levels"]


def _require_own(file: Path) -> None:
    """Check that a file to append to is a regular file, not a link out of the folder."""
    if file.is_symlink():
        raise ValueError(f"{file} is a link, and a training only writes in its own folder: remove the link.")
    if file.exists():
        require_regular(file)


#: The entries of data.json that identify a data set.
_CONTENTS = ("fingerprint", "splits")


def contents(data: Data) -> dict[str, Any]:
    """Return the identity of a data set: its ``fingerprint``, and the number of examples in its ``splits``."""
    return {
        "splits": {split: len(data.examples(split)) for split in data._present},
        "fingerprint": data.fingerprint(),
    }


def _counted(splits: Mapping[str, int], rows: str) -> str:
    """Format numbers of examples: the sum, and each one.

    Example:
        >>> _counted({"train": 160, "test": 40}, "rows")
        '200 rows (160 train, 40 test)'
    """
    return f"{sum(splits.values()):,} {rows} ({', '.join(f'{n:,} {split}' for split, n in splits.items())})"
