"""Data of a run before measurements: folder, model, and examples."""

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
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.model import NDM
from ndm.report.blocks import with_error
from ndm.storage.texts import LARGEST_YAML, parse_yaml, read_json, read_text
from ndm.training.run import Run

__all__ = ["Curve", "DataReader", "Subject", "named_data", "subjects"]

#: Function from the path of config.yaml to the data set.
DataReader = Callable[[Path], Data]


@dataclass(frozen=True)
class Curve:
    """A logged quantity: values, training steps, and seconds of training."""

    steps: list[float]
    seconds: list[float]
    values: list[float]


@dataclass(eq=False)
class Subject:
    """A run in a report.

    Attributes:
        index: index among the runs of the report, which determines the colour.
        name: unique short name.
        run: the run folder.
        model: the model on the device in use, in evaluation mode.
        shape: shape of an example.
        levels: K of a K-level decoder, else None; determines units and pictures.
        columns: column names of a table, if any.
        config: the configuration; empty if the folder has none.
        text: the configuration file as text.
        data: the data set; None if unavailable.
        examples: some test examples in the data's units, (N, \\*shape); None if unavailable.
        labels: their class labels, (N,), if the model uses classes.
        lacking: reason why there are no examples, as a sentence.
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
        """Kind of display: ``image``, ``plane`` (two coordinates), ``columns``, or ``table`` (columns of any kind)."""
        if (own := self.encoding) is not None and (own.discrete or isinstance(self.model.denoiser, MixedDenoiser)):
            return "table"
        if len(self.shape) == 3 and self.shape[0] in (1, 3):
            return "image"
        return "plane" if math.prod(self.shape) == 2 else "columns"

    @property
    def encoding(self) -> TableEncoding | None:
        """The encoding of a table's rows, if the model has one."""
        return own if isinstance(own := self.model.standardize, TableEncoding) else None

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
        """Number of classes of the denoiser's network; 0 if it uses none."""
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
        """Suffix for captions on the model's units."""
        return "" if self.model.standardize is None else ", standardised"

    def column_names(self) -> list[str]:
        return list(self.columns or [f"x{i + 1}" for i in range(self.dimensions)])

    def levels_of_noise(self, points: int) -> Tensor:
        """Evenly spaced noise levels from gamma_0 to gamma_1, float64 (points,)."""
        return torch.linspace(*self.model.schedule.end_points(), points, dtype=torch.float64)

    def sample_labels(self, n: int) -> Tensor | None:
        """Return the classes of n samples, cycling through all classes."""
        return torch.arange(n) % self.classes if self.classes else None

    def parameters(self, part: str | None = None) -> int:
        """Number of parameters of the model, or of one of its parts."""
        module = self.model if part is None else getattr(self.model, part)
        return sum(p.numel() for p in module.parameters())

    def take_examples(self, n: int, read: DataReader, seed: int = 0) -> None:
        """Load the data and n random test examples, in their order, or set ``lacking``."""
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
                raise ValueError("The model needs class labels, but the data have none.")
            self.model.to_model(examples)  # also checks them
        except (ValueError, OSError, ImportError) as error:
            self.lacking = " ".join(str(error).split())
        else:
            self.examples = examples
            self.labels = labels[rows].to(self.device) if self.classes and labels is not None else None

    # ---- files of the training and the evaluation

    @cached_property
    def logged(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, without empty cells.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.run.metrics.is_file():
            return []
        try:
            file = io.StringIO(read_text(self.run.metrics), newline="")
            rows = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]
        except (TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{self.run.metrics} is damaged ({error}): remove it to create the report without it."
            ) from None
        return [row for row in rows if math.isfinite(row.get("step", math.nan))]

    @cached_property
    def clock(self) -> list[tuple[float, float]]:
        """Seconds of training steps at the logged steps, without validations."""
        found, step, seconds = [(0.0, 0.0)], 0.0, 0.0
        for row in self.logged:
            if "train/ms_per_step" in row:
                seconds += max(row["step"] - step, 0) * row["train/ms_per_step"] / 1000
                step = row["step"]
                found.append((step, seconds))
        return found

    def seconds_at(self, step: float) -> float:
        """Seconds of training at a step, by linear interpolation."""
        points = self.clock
        for (a, before), (b, after) in pairwise(points):
            if step <= b:
                return before + (after - before) * (step - a) / max(b - a, 1)
        return points[-1][1]

    def curve(self, name: str) -> Curve | None:
        """Return the logged curve with a name; None if there is none."""
        rows = [row for row in self.logged if math.isfinite(row.get(name, math.nan))]
        if not rows:
            return None
        steps = [row["step"] for row in rows]
        return Curve(steps, [self.seconds_at(s) for s in steps], [row[name] for row in rows])

    def errors(self, curve: Curve) -> list[float] | None:
        """Return the standard errors of the validation curve, NaN if unknown; None if none was logged."""
        known = {row["step"]: row["val/total_stderr"] for row in self.logged if "val/total_stderr" in row}
        return [known.get(step, math.nan) for step in curve.steps] if known else None

    @property
    def last_validation(self) -> str:
        """The last validation bound with its standard error; empty if none was logged."""
        curve = self.curve("val/total")
        if curve is None:
            return ""
        errors = self.errors(curve)
        return with_error(curve.values[-1], errors[-1] if errors else None)

    @property
    def steps(self) -> int:
        """Number of logged training steps."""
        return int(max((row["step"] for row in self.logged), default=0))

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """The results of ``ndm evaluate``; None if it was not run.

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
        """The per-example results of ``ndm evaluate``, (N,), by :func:`ndm.evaluation.row_name`.

        Empty if there are none. Values with a different mean belong to another evaluation, and are ignored.

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
        """The indices of these examples in the split, int64 (N,); empty if they were not saved.

        Raises:
            ValueError: the file is damaged.
        """
        return read_places(self.run.per_example) if self.per_example else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The training environment; empty if it was not recorded.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.run.environment
        try:
            return dict(read_json(path)) if path.is_file() else {}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it to create the report without it.") from None

    def training_steps_of_bound(self) -> int | None:
        """Return T of the training bound; None for continuous time, or if unknown."""
        section = self.config.get("training")
        steps = section.get("steps") if isinstance(section, Mapping) else None
        return steps if isinstance(steps, int) else None


def subjects(paths: Sequence[Path], device: torch.device, allow: Iterable[type[nn.Module] | str] = ()) -> list[Subject]:
    """Read run folders, without their data.

    Args:
        paths: the folders.
        device: device of the models.
        allow: see :meth:`ndm.NDM.from_pretrained`.

    Raises:
        ValueError: there is no run, one is given twice, or a file of a run is damaged.
        FileNotFoundError: a folder is not a run, or has no trained model.
    """
    if not paths:
        raise ValueError("A report needs at least one run.")
    for path in paths:
        Run(path).require_model()  # check all runs before reading the first model
    found, allow = [], tuple(allow)
    for index, (path, name) in enumerate(zip(paths, _names(paths), strict=True)):
        run = Run(path)
        shape, _ = run.read_data()
        model = NDM.from_pretrained(run.model, allow).to(device).eval()
        subject = Subject(index, name, run, model, shape, model.decoder.levels, run.read_columns())
        if run.config.is_file():
            subject.text, subject.config = _parsed(run.config)
        # Detect damaged files early.
        subject.logged, subject.per_example, subject.places, subject.environment  # noqa: B018
        found.append(subject)
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes that are unique."""
    whole = [path.resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError("A run is given twice; give each run once.")
    length = 1
    while len({parts[-length:] for parts in whole}) < len(whole):
        length += 1
    return ["/".join(parts[-length:]) for parts in whole]


#: Types of the entries of an evaluation row, if present.
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
    """Return the text of a configuration and its parsed content."""
    try:
        text = read_text(path, LARGEST_YAML)
        tree = parse_yaml(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, and not a configuration ({error}): remove it to create the report without it."
        ) from None
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} is damaged: it is not a configuration in YAML. Remove it to create the report without it."
        )
    return text, tree


def named_data(config: Path) -> Data:
    """Build the data set of :mod:`ndm.data` specified by a configuration.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: it has no data set, or one that is not in ndm.data.
    """
    if not config.is_file():
        raise FileNotFoundError(f"The data set is unknown, because the run folder has no {config.name}.")
    section = _parsed(config)[1].get("data")
    description: Any = {"class_path": section} if isinstance(section, str) else section
    if not isinstance(description, Mapping) or not isinstance(description.get("class_path"), str):
        raise ValueError(f"{config.name} does not contain the data set of the run.")
    module, _, name = description["class_path"].rpartition(".")
    cls = getattr(ndm.data, name, None) if module in ("", "ndm") or module.startswith("ndm.data") else None
    if not (isinstance(cls, type) and issubclass(cls, Data)):
        raise ValueError(
            f"The data set {description['class_path']} is not one of ndm.data: pass data=, a function that builds it."
        )
    try:
        return cls(**dict(description.get("init_args") or {}))
    except TypeError as error:
        raise ValueError(f"The arguments in {config.name} do not fit the data set: {error}.") from None
