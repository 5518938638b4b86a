"""What is known of a run before anything is measured: its folder, its model, some examples of its data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ndm.data
from ndm.data import Data
from ndm.data.choosing import part_of
from ndm.evaluation import read_per_example, read_places, row_name
from ndm.model import NDM
from ndm.report.blocks import with_error
from ndm.storage.texts import LARGEST_YAML, parse_yaml, read_json, read_text
from ndm.training.run import Run

__all__ = ["Curve", "DataReader", "Subject", "named_data", "subjects"]

#: From a run's config.yaml to the data set that it names.
DataReader = Callable[[Path], Data]


@dataclass(frozen=True)
class Curve:
    """A quantity that was logged in training: values at steps, and at seconds of training."""

    steps: list[float]
    seconds: list[float]
    values: list[float]


@dataclass(eq=False)
class Subject:
    """A run that a report is about.

    Attributes:
        index: its place among the runs of the report, which gives it its colour.
        name: a short name that no other run of the report has.
        run: its folder.
        model: on the device that is worked on, in evaluation mode.
        shape: of one example.
        levels: K of a decoder of K levels, else None: what the unit of the figures and the pictures follow.
        columns: the names of a table's columns, if it is one.
        config: the configuration; empty if the folder has none.
        text: the same as it was written.
        data: the data set; None if it cannot be had.
        examples: some test examples in the data's units, (N, \\*shape); None if they cannot be had.
        labels: their classes, (N,), if the model takes classes.
        lacking: why there are no examples, a sentence.
    """

    index: int
    name: str
    run: Run
    model: NDM
    shape: tuple[int, ...]
    levels: int | None
    columns: tuple[str, ...] | None
    config: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    data: Data | None = None
    examples: Tensor | None = None
    labels: Tensor | None = None
    lacking: str = ""

    @property
    def kind(self) -> str:
        """How its examples are drawn: ``image``, ``plane`` (points of two numbers) or ``columns``."""
        if len(self.shape) == 3 and self.shape[0] in (1, 3):
            return "image"
        return "plane" if math.prod(self.shape) == 2 else "columns"

    @property
    def dimensions(self) -> int:
        return math.prod(self.shape)

    @property
    def unit(self) -> str:
        return "nats" if self.levels is None else "bits/dim"

    @property
    def nat(self) -> float:
        """One nat in the run's unit."""
        return 1.0 if self.levels is None else 1 / (self.dimensions * math.log(2))

    @property
    def classes(self) -> int:
        """How many classes the denoiser's network knows; 0 if it takes none."""
        return self.model.num_classes

    @property
    def x(self) -> Tensor | None:
        """The examples in the model's units."""
        return None if self.examples is None else self.model.to_model(self.examples, check=False)

    @property
    def device(self) -> torch.device:
        return next(iter(self.model.parameters()), torch.empty(0)).device

    @property
    def standardised(self) -> str:
        """What to say after "the model's" units."""
        return "" if self.model.standardize is None else ", standardised"

    def column_names(self) -> list[str]:
        return list(self.columns or [f"x{i + 1}" for i in range(self.dimensions)])

    def levels_of_noise(self, points: int) -> Tensor:
        """Evenly spaced noise levels from gamma_0 to gamma_1, float64 (points,)."""
        return torch.linspace(*self.model.schedule.end_points(), points, dtype=torch.float64)

    def sample_labels(self, n: int) -> Tensor | None:
        """The classes of n samples, each class in turn."""
        return torch.arange(n) % self.classes if self.classes else None

    def parameters(self, part: str | None = None) -> int:
        """How many parameters the model has, or one of its parts."""
        module = self.model if part is None else getattr(self.model, part)
        return sum(p.numel() for p in module.parameters())

    def take_examples(self, n: int, read: DataReader, seed: int = 0) -> None:
        """Set the data and n random test examples, in their order, or say why they cannot be had."""
        try:
            self.data = read(self.run.config)
            split = self.data.examples("test")
            if len(split) == 0:
                raise ValueError("The test split has no examples.")
            rows = part_of(len(split), n, seed)
            examples = split[rows].to(self.device)
            if tuple(examples.shape[1:]) != self.shape:
                raise ValueError(f"The examples have shape {tuple(examples.shape[1:])}, the model's {self.shape}.")
            labels = self.data.labels("test")
            if self.classes and labels is None:
                raise ValueError("The model takes classes, and the data have none.")
            self.model.to_model(examples)  # which checks them
        except (ValueError, OSError, ImportError) as error:
            self.lacking = " ".join(str(error).split())
        else:
            self.examples = examples
            self.labels = labels[rows].to(self.device) if self.classes and labels is not None else None

    # ---- what was written during and after the training

    @cached_property
    def logged(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, without what is empty.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.run.metrics.is_file():
            return []
        try:
            file = io.StringIO(read_text(self.run.metrics), newline="")
            rows = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]
        except (TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{self.run.metrics} is damaged ({error}); take it away to do without.") from None
        return [row for row in rows if math.isfinite(row.get("step", math.nan))]

    @cached_property
    def clock(self) -> list[tuple[float, float]]:
        """Seconds that the training steps had taken, at the logged steps: validations are not in them."""
        found, step, seconds = [(0.0, 0.0)], 0.0, 0.0
        for row in self.logged:
            if "train/ms_per_step" in row:
                seconds += max(row["step"] - step, 0) * row["train/ms_per_step"] / 1000
                step = row["step"]
                found.append((step, seconds))
        return found

    def seconds_at(self, step: float) -> float:
        """Seconds of training at a step, linear between those that are known."""
        points = self.clock
        for (a, before), (b, after) in pairwise(points):
            if step <= b:
                return before + (after - before) * (step - a) / max(b - a, 1)
        return points[-1][1]

    def curve(self, name: str) -> Curve | None:
        """What was logged under a name; None if nothing was."""
        rows = [row for row in self.logged if math.isfinite(row.get(name, math.nan))]
        if not rows:
            return None
        steps = [row["step"] for row in rows]
        return Curve(steps, [self.seconds_at(s) for s in steps], [row[name] for row in rows])

    def errors(self, curve: Curve) -> list[float] | None:
        """The standard errors of the validation bound along its curve, NaN where unknown; None if none was logged."""
        known = {row["step"]: row["val/total_stderr"] for row in self.logged if "val/total_stderr" in row}
        return [known.get(step, math.nan) for step in curve.steps] if known else None

    @property
    def last_validation(self) -> str:
        """The last validation bound with its standard error; nothing if none was logged."""
        curve = self.curve("val/total")
        if curve is None:
            return ""
        errors = self.errors(curve)
        return with_error(curve.values[-1], errors[-1] if errors else None)

    @property
    def steps(self) -> int:
        """Training steps, as far as they were logged."""
        return int(max((row["step"] for row in self.logged), default=0))

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """What ``ndm evaluate`` has found; None if it has not been asked.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.run.evaluation.is_file():
            return None
        found = self.run.read_evaluation()
        rows, about = found.get("rows"), found.get("about", {})
        if not (isinstance(rows, list) and isinstance(about, dict) and all(map(_has_value, rows))):
            raise ValueError(f"{self.run.evaluation} is damaged: it has no rows with values; evaluate the run again.")
        return found

    @cached_property
    def per_example(self) -> dict[str, Tensor]:
        """The values of single examples of what ``ndm evaluate`` has found, (N,), by :func:`ndm.evaluation.row_name`.

        Empty if there are none. A figure whose mean is another belongs to another evaluation, and is left out.

        Raises:
            ValueError: the file is damaged.
        """
        if self.evaluation is None or not self.run.per_example.is_file():
            return {}
        found, kept = read_per_example(self.run.per_example), {}
        for row in self.evaluation["rows"]:
            values = found.get(row_name(row))
            if values is None or len(values) != row.get("examples") or row["value"] is None:
                continue
            mean = values[values.isfinite()].double().mean().item()
            if math.isclose(mean, row["value"], rel_tol=1e-5, abs_tol=1e-6):
                kept[row_name(row)] = values
        return kept

    @cached_property
    def places(self) -> dict[str, Tensor]:
        """The places of these examples in the split, int64 (N,); empty where the evaluation did not tell them.

        Raises:
            ValueError: the file is damaged.
        """
        return read_places(self.run.per_example) if self.per_example else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the training has written down about where it ran; empty if it has not.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.run.environment
        try:
            return dict(read_json(path)) if path.is_file() else {}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); take it away to do without.") from None

    def training_steps_of_bound(self) -> int | None:
        """T of the bound that it was trained on; None for continuous time, or if that is not known."""
        section = self.config.get("training")
        steps = section.get("steps") if isinstance(section, Mapping) else None
        return steps if isinstance(steps, int) else None


def subjects(paths: Sequence[Path], device: torch.device, allow: Iterable[type[nn.Module] | str] = ()) -> list[Subject]:
    """Read the folders of runs, without their data.

    Args:
        paths: the folders.
        device: where the models are put.
        allow: as :meth:`ndm.NDM.from_pretrained` takes it.

    Raises:
        ValueError: there is no run, one is given twice, or a file in one is damaged.
        FileNotFoundError: a folder is not a run's, or has no trained model.
    """
    if not paths:
        raise ValueError("A report needs at least one run.")
    for path in paths:
        Run(path).require_model()  # of all of them, before the first model is read
    found, allow = [], tuple(allow)
    for index, (path, name) in enumerate(zip(paths, _names(paths), strict=True)):
        run = Run(path)
        shape, _ = run.read_data()
        model = NDM.from_pretrained(run.model, allow).to(device).eval()
        subject = Subject(index, name, run, model, shape, model.decoder.levels, run.read_columns())
        if run.config.is_file():
            subject.text, subject.config = _parsed(run.config)
        # Damaged files are found before work.
        subject.logged, subject.per_example, subject.places, subject.environment  # noqa: B018
        found.append(subject)
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """As many of the last parts of the paths as tell them apart."""
    whole = [path.resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError("A run is given twice; give each run once.")
    length = 1
    while len({parts[-length:] for parts in whole}) < len(whole):
        length += 1
    return ["/".join(parts[-length:]) for parts in whole]


#: What a row of an evaluation holds, besides what is not there.
_FIELDS: dict[str, tuple[type, ...]] = {
    "quantity": (str,),
    "steps": (int,),
    "variance": (str,),
    "value": (int, float),
    "stderr": (int, float),
    "unit": (str,),
    "reconstruction": (int, float),
    "prior": (int, float),
    "examples": (int,),
    "kind": (str,),
    "not_finite": (int,),
    "not_finite_examples": (list,),
    "missed_tolerance": (int,),
    "solver_error": (int, float),
}


def _has_value(row: Any) -> bool:
    if not (isinstance(row, dict) and {"quantity", "steps", "variance", "value", "stderr", "unit"} <= row.keys()):
        return False
    known = {name: row[name] for name in _FIELDS if row.get(name) is not None}
    right = (isinstance(v, _FIELDS[name]) and not isinstance(v, bool) for name, v in known.items())
    return all(right) and isinstance(row["quantity"], str) and isinstance(row["unit"], str)


def _parsed(path: Path) -> tuple[str, dict[str, Any]]:
    """A configuration as it is written, and what it says."""
    try:
        text = read_text(path, LARGEST_YAML)
        tree = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, and not a configuration: {error}; take it away to do without.") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is damaged: it is not a configuration in YAML; take it away to do without.")
    return text, tree


def named_data(config: Path) -> Data:
    """The data set of :mod:`ndm.data` that a configuration names.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: it names no data set, or another one.
    """
    if not config.is_file():
        raise FileNotFoundError(f"There is no {config.name} in the run's folder, which would say what the data are.")
    section = _parsed(config)[1].get("data")
    description: Any = {"class_path": section} if isinstance(section, str) else section
    if not isinstance(description, Mapping) or not isinstance(description.get("class_path"), str):
        raise ValueError(f"The {config.name} does not say what data the run was trained on.")
    module, _, name = description["class_path"].rpartition(".")
    cls = getattr(ndm.data, name, None) if module in ("", "ndm") or module.startswith("ndm.data") else None
    if not (isinstance(cls, type) and issubclass(cls, Data)):
        raise ValueError(
            f"The data set {description['class_path']} is not one of ndm.data: pass data=, which reads it."
        )
    try:
        return cls(**dict(description.get("init_args") or {}))
    except TypeError as error:
        raise ValueError(f"The arguments in {config.name} do not fit the data set: {error}.") from None
