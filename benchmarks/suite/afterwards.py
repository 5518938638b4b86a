"""What is measured of the weights that a row's run has left in the work folder, at the end of the equal times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ndm
from ndm.data import Data
from suite import jobs
from suite.classifier import digest
from suite.jobs import Job, Trained
from suite.settings import Row


@dataclass(frozen=True)
class Afterwards(Job):
    """A measurement of one model of a row, with one seed.

    Attributes:
        how: the settings of the measurement, the digest of the weights among them.
    """

    how: Mapping[str, Any]

    #: Of the measurement: the name of its results' folder, and of its settings.
    kind: ClassVar[str]

    @property
    def file(self) -> Path:
        return super().file.parent / self.kind / super().file.name

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {self.kind: dict(self.how)}

    def refuse_other_settings(self) -> None:
        """
        Raises:
            ValueError: there is a result of other settings.
        """
        if self.state == "other settings":
            raise ValueError(
                f"{self.file.name} was made with other settings: {'; '.join(self.differences())}. --redo makes it "
                "again."
            )

    def model(self, data: Data, trained: Trained) -> ndm.NDM:
        """The model with its weights."""
        model = jobs.rebuilt(self, data, trained.facts[self.entry.name]["widths"])
        jobs.load(model, trained.of(self.entry, "time"))
        return model.eval()


def weights_of(row: Row, seed: int, results: Path, work: Path, say: Callable[[str], None]) -> Trained | None:
    """What a row's run has left with this seed; None, and a sentence, if nothing or of other settings."""
    folder = work / f"{row.name}--{seed}"
    trained = jobs.kept(folder, [job.settings for job in jobs.jobs_of(row, seed, results)])
    if trained is None:
        say(
            f"{row.name}, seed {seed}: left out. No weights of these settings are in {folder.name} of the work folder: "
            "run the row."
        )
    return trained


def each(
    kind: type[Afterwards], row: Row, seed: int, results: Path, trained: Trained, how: Mapping[str, Any]
) -> Iterator[Afterwards]:
    """The measurements of a row's models, the reference's first."""
    for entry in row.models:
        yield kind(row, entry, seed, results, {**how, "weights": digest(trained.of(entry, "time"))})
