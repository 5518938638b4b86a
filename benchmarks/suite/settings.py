"""What the rows of the suite are: suite.yaml read, completed and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

SUITE = Path(__file__).parents[1] / "suite.yaml"

CHOICES = {
    "direct": (False, True, "ode"),
    "transform": ("identity", "blur", "separable", "neural"),
    "schedule": ("learned", "linear", "cosine", "ddpm", "ot"),
    "endpoints": ("fixed", "learned"),
    "m": (None, "variance"),
    "variance": ("posterior", "learned", "predicted"),
    "updates": ("joint", "alternating"),
    "decoder": ("plain", "weighted"),
    "network": ("mlp", "unet"),
    "f_network": ("mlp", "conv", "pointwise", "table", "table+mlp", "table+conv"),
}


@dataclass(frozen=True)
class Entry:
    """One model of a row.

    Attributes:
        name: in tables.
        transform: ``identity``, ``blur``, ``separable`` or ``neural``.
        blur: of ``blur``: the largest blur's standard deviation, in pixels.
        direct: whether the denoiser estimates what the reverse process needs, and not x; ``ode`` if so, and F as well,
            as the ODE needs it.
        share: the part of all parameters that F is to have; for a transformation without parameters it counts for
            nothing.
        size: the number of parameters over that of the row's reference; 1 but where a row asks what a larger model
            would do.
        gate, basis, terms: of ``separable`` and ``neural``, as their classes take them.
        f_network, f_depth, f_patch, f_embedding: the kind of F's network (``mlp``, ``conv``, ``pointwise``: one
            perceptron for every pixel; ``table``: a number for every level, or that and another network, as in
            ``table+conv``), its depth, the side of the blocks of pixels that convolutions work on, and the width in
            which it is told the noise level. Its width is found; a table has none, and then nothing is.
        schedule: ``learned``, ``linear``, ``cosine``, ``ddpm`` or ``ot``.
        endpoints: of ``learned``: whether gamma_0 and gamma_1 are trained.
        m: of ``learned``: what trains it between its end points in continuous time: ``variance``, or None for the bound
            itself, which does not depend on it.
        gamma_min, gamma_max: the schedule's end points, or where they start.
        volatility: eta, or ``learned``.
        variance: of the reverse process in training: ``posterior``, ``learned`` or ``predicted``.
        bound_steps: T of the bound that is trained on; None for continuous time.
        updates: ``joint``, or ``alternating``: F in every second step, all the rest in the others.
        decoder: of K-level data: ``plain``, or ``weighted`` by a learned weight of every level.
        learning_rate: of AdamW.
        f_rate: the learning rate of F's network over that of the others.
        endpoint_rate: the learning rate of the schedule's end points over that of the networks.
        weight_decay: of AdamW, for matrices only.
    """

    name: str
    transform: str
    blur: float
    direct: bool | str
    share: float
    size: float
    gate: str
    basis: str
    terms: int
    f_network: str
    f_depth: int
    f_patch: int
    f_embedding: int
    schedule: str
    endpoints: str
    m: str | None
    gamma_min: float
    gamma_max: float
    volatility: float | str
    variance: str
    bound_steps: int | None
    updates: str
    decoder: str
    learning_rate: float
    f_rate: float
    endpoint_rate: float
    weight_decay: float

    @property
    def learned(self) -> bool:
        """Whether F has a network."""
        return self.transform in ("separable", "neural")


@dataclass(frozen=True)
class Row:
    """One comparison: a data set, and models that are trained side by side on it. The first is the reference.

    Attributes:
        name: of the row, and of its files.
        data: the data set's name; see :mod:`suite.datasets`.
        models: the entries.
        seeds: of the trainings.
        seconds: the budget of each model, in seconds of the process; None where ``steps`` is given.
        steps: the budget in steps of the optimiser, which gives the same figures every time; None for ``seconds``.
        turn: how many seconds a model trains before it is the next one's turn.
        batch_size, warmup, ema, clip: of the training; ``warmup`` counts steps.
        network: the denoiser's kind: ``mlp`` or ``unet``.
        width: the reference's, a number per resolution; the other models' are found from it.
        depth: of the denoiser's network: blocks of a perceptron, or per resolution of a U-Net.
        bounds: the numbers of steps T to measure at, None standing for continuous time.
        times: of an example, for a bound with more steps than that.
        examples: the first so many test examples are measured, which of all data sets here are in random order; None
            for all.
        calibration: examples times steps that a calibration sees.
        curve_points, curve_examples, curve_times: of the validation curve: how often, and on what, it is measured.
        tune: field -> values: the grid that every model is tuned on; None for no tuning.
        tune_seconds, tune_steps: the budget of each training of the tuning, one of the two.
    """

    name: str
    data: str
    models: tuple[Entry, ...]
    seeds: tuple[int, ...]
    seconds: float | None
    steps: int | None
    turn: float
    batch_size: int
    warmup: int
    ema: float
    clip: float
    network: str
    width: tuple[int, ...]
    depth: int
    bounds: tuple[int | None, ...]
    times: int
    examples: int | None
    calibration: int
    curve_points: int
    curve_examples: int
    curve_times: int
    tune: Mapping[str, Sequence[Any]] | None
    tune_seconds: float | None
    tune_steps: int | None

    @property
    def reference(self) -> Entry:
        return self.models[0]

    def common(self) -> dict[str, Any]:
        """Everything but the models, the seeds and the tuning, in JSON's types."""
        left_out = ("models", "seeds", "tune", "tune_seconds", "tune_steps")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in left_out}


ENTRY_FIELDS = tuple(f.name for f in fields(Entry))
ROW_FIELDS = tuple(f.name for f in fields(Row))


@dataclass(frozen=True)
class Samples:
    """What samples are drawn of trained models; see :mod:`suite.sampling`.

    Attributes:
        rows: whose models they are drawn from, where none are named.
        steps: by data set: the numbers of steps T, each at least 2.
        examples: by data set: how many samples.
        gamma: the data sets of which samples are also drawn in steps that are even in gamma.
    """

    rows: Sequence[str] = ()
    steps: Mapping[str, Sequence[int]] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    gamma: Sequence[str] = ()

    def of(self, data: str) -> tuple[Sequence[int], int]:
        """The numbers of steps, and how many samples, of a data set.

        Raises:
            ValueError: they are not said.
        """
        if data not in self.steps or data not in self.examples:
            raise ValueError(f"samples does not say with what steps, and how many examples, {data} is to be drawn.")
        return self.steps[data], self.examples[data]


@dataclass(frozen=True)
class Suite:
    """All rows, and what goes with them.

    Attributes:
        rows: by name.
        measuring: by data set: the seconds that measuring one model takes, about; for estimates only.
        plots: which rows each plot shows.
        samples: what samples are drawn.
    """

    rows: Mapping[str, Row]
    measuring: Mapping[str, float]
    plots: Mapping[str, Sequence[str]]
    samples: Samples = Samples()


def read(path: Path = SUITE) -> Suite:
    """The suite of a file: ``defaults``, completed by ``data: {NAME: ...}``, by the row and, for a model, by the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is not known or not given, or has a value that it cannot have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no suite {path}.")
    text = yaml.safe_load(path.read_text())
    unknown = set(text) - {"defaults", "data", "rows", "measuring", "plots", "samples"}
    if unknown:
        raise ValueError(f"{path.name} has sections that mean nothing: {', '.join(sorted(unknown))}.")
    rows = {}
    for name, given in text["rows"].items():
        known = text["data"]
        if given.get("data") not in known:
            raise ValueError(f"Row {name}: data must be one of {', '.join(known)}, not {given.get('data')}.")
        rows[name] = row_from(name, {**text["defaults"], **(known[given["data"]] or {}), **given})
    plots = text.get("plots", {})
    for missing in {row for shown in plots.values() for row in shown} - set(rows):
        raise ValueError(f"plots names the row {missing}, which is not there.")
    return Suite(rows, text.get("measuring", {}), plots, _samples(text.get("samples", {}), rows))


def _samples(given: Mapping[str, Any], rows: Mapping[str, Row]) -> Samples:
    if unknown := set(given) - {f.name for f in fields(Samples)}:
        raise ValueError(f"samples has fields that are not known: {', '.join(sorted(unknown))}.")
    samples = Samples(**given)
    for missing in set(samples.rows) - set(rows):
        raise ValueError(f"samples names the row {missing}, which is not there.")
    for data in {rows[name].data for name in samples.rows} | set(samples.gamma):
        samples.of(data)
    numbers = [n for of in (*samples.steps.values(), samples.examples.values()) for n in of]
    if any(n < 2 for n in numbers):
        raise ValueError("samples: steps and examples must be at least 2.")
    return samples


def row_from(name: str, given: Mapping[str, Any]) -> Row:
    """A row of fields that may be the row's own or those of all its models."""
    if unknown := set(given) - set(ENTRY_FIELDS) - set(ROW_FIELDS):
        raise ValueError(f"Row {name} has fields that are not known: {', '.join(sorted(unknown))}.")
    shared = {k: v for k, v in given.items() if k in ENTRY_FIELDS}
    entries = tuple(_entry(name, model, {**shared, **(own or {})}) for model, own in given["models"].items())
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in ROW_FIELDS}
    _complete(f"Row {name}", own, set(ROW_FIELDS) - {"name", "models"})
    row = Row(**{**own, "name": name, "models": entries})
    _check(row)
    return row


def _entry(row: str, name: str, given: dict[str, Any]) -> Entry:
    where = f"Row {row}, model {name}"
    if unknown := set(given) - set(ENTRY_FIELDS):
        raise ValueError(f"{where} has fields that are not a model's: {', '.join(sorted(unknown))}.")
    _complete(where, given, set(ENTRY_FIELDS) - {"name"})
    entry = Entry(**{**given, "name": name})
    _choose(where, entry)
    if not 0 <= entry.share < 1:
        raise ValueError(f"{where}: share is a part of the parameters, at least 0 and below 1, not {entry.share}.")
    if entry.learned and entry.share == 0:
        raise ValueError(f"{where}: a {entry.transform} transformation needs a share of the parameters above 0.")
    return entry


def _complete(where: str, given: Mapping[str, Any], wanted: Iterable[str]) -> None:
    if missing := set(wanted) - set(given):
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}: say it there or in the defaults.")


def _choose(where: str, of: Entry | Row) -> None:
    for name, allowed in CHOICES.items():
        value = getattr(of, name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{where}: {name} must be one of {', '.join(map(str, allowed))}, not {value}.")


def _check(row: Row) -> None:
    where = f"Row {row.name}"
    _choose(where, row)
    if (row.seconds is None) == (row.steps is None):
        raise ValueError(f"{where}: the budget is either seconds or steps, and the other one null.")
    if row.tune and (row.tune_seconds is None) == (row.tune_steps is None):
        raise ValueError(f"{where}: the budget of tuning is either tune_seconds or tune_steps, and the other one null.")
    if unknown := set(row.tune or {}) - set(ENTRY_FIELDS):
        raise ValueError(f"{where}: tune names what is not a model's field: {', '.join(sorted(unknown))}.")
    if row.reference.learned or row.reference.size != 1:
        raise ValueError(f"{where}: the first model is the reference, without a network in F and of size 1.")
    slugs = [slug(entry.name) for entry in row.models]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"{where}: two models would have the same file names.")


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def chosen(rows: Iterable[Row], names: Sequence[str] = (), only: Sequence[str] = ()) -> list[Row]:
    """Some of the rows: those named, or all, and of these the ones with ``field=value``.

    Raises:
        ValueError: there is no such row or field.
    """
    by_name = {row.name: row for row in rows}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"There is no row {', '.join(unknown)}: the rows are {', '.join(by_name)}.")
    found = [by_name[name] for name in dict.fromkeys(names)] if names else list(by_name.values())
    for condition in only:
        field, equals, value = condition.partition("=")
        if not equals or field not in ROW_FIELDS:
            raise ValueError(f"--only takes FIELD=VALUE with a field of a row, as in data=digits, not {condition}.")
        found = [row for row in found if str(getattr(row, field)) == value]
    return found


def with_budget(row: Row, seconds: float | None, steps: int | None, seeds: Sequence[int] | None) -> Row:
    """The row with another budget or other seeds, where they are given."""
    if seconds is not None or steps is not None:
        row = replace(row, seconds=seconds, steps=steps)
        _check(row)
    return replace(row, seeds=tuple(seeds)) if seeds else row
