"""What is run, what is done already, and the files of both.

A job is a row, a model and a seed, and its result one file. The models of a row and seed are trained together; then
their weights are put into the work folder, to stay there, and the models are measured one by one, the reference first.
A kill loses the training at hand, or the measurement at hand. Files appear in one go, or not at all.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import environment, parameters
from safetensors.torch import load_file, save_file
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data
from suite.building import Widths, build, matched
from suite.datasets import entropy
from suite.measuring import compared, measure, unit, validate
from suite.racing import Contestant, common_step, race, weights_at
from suite.settings import Entry, Row, slug

#: Seed of the trainings of the tuning: none of the reported ones.
TUNING_SEED = 1000


@dataclass(frozen=True)
class Job:
    """One model of a row, with one seed.

    Attributes:
        row: the row, with the values that tuning has chosen in its models.
        entry: the model.
        seed: of the training.
        results: the folder of the results.
    """

    row: Row
    entry: Entry
    seed: int
    results: Path

    @property
    def file(self) -> Path:
        return self.results / f"{self.row.name}--{slug(self.entry.name)}--{self.seed}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on; the names of those that shared the machine are among it."""
        beside = [entry.name for entry in self.row.models]
        return {"row": self.row.common(), "model": asdict(self.entry), "beside": beside, "seed": self.seed}

    @property
    def state(self) -> str:
        """``done``, ``missing``, or ``other settings`` if there is a result of other ones."""
        if not self.file.exists():
            return "missing"
        return "done" if not self.differences() else "other settings"

    def differences(self) -> list[str]:
        """What today's settings have different from those of the file, in words."""
        return _differences(json.loads(self.file.read_text())["settings"], self.settings)


def _differences(then: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys([*then, *now])
            for line in _differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if (
        isinstance(then, list)
        and isinstance(now, list)
        and len(then) == len(now)
        and any(isinstance(x, dict) for x in now)
    ):
        pairs = zip(then, now, strict=True)
        return [line for i, (a, b) in enumerate(pairs) for line in _differences(a, b, f"{path}[{i}]")]
    return [] if then == now else [f"{path} {then}, now {now}"]


def jobs_of(row: Row, seed: int, results: Path) -> list[Job]:
    """The jobs of a row and seed."""
    return [Job(row, entry, seed, results) for entry in row.models]


def refuse_conflicts(rows: Sequence[Row], results: Path) -> None:
    """
    Raises:
        ValueError: there are results of other settings.
    """
    found = [job for row in rows for seed in row.seeds for job in jobs_of(row, seed, results)]
    conflicts = [job for job in found if job.state == "other settings"]
    if conflicts:
        first = conflicts[0]
        raise ValueError(
            f"{len(conflicts)} result(s) were made with other settings, the first {first.file.name}: "
            f"{'; '.join(first.differences())}. --redo makes them again; --results FOLDER leaves them as they are."
        )


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Have a file written beside its place and put there in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, what: Mapping[str, Any]) -> None:
    """JSON with a line for every entry of a list, so that it is short and yet can be read."""
    parts = []
    for key, value in what.items():
        if isinstance(value, list) and value:
            lines = ",\n  ".join(json.dumps(line) for line in value)
            parts.append(f" {json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    write(path, lambda beside: beside.write_text(text) and None)


# ---- training and measuring


@dataclass(frozen=True)
class Trained:
    """What is left of a training: the averaged weights at the end of the budget and at the common step, and facts."""

    weights: dict[str, Tensor]
    facts: dict[str, Any]

    def of(self, entry: Entry, when: str) -> dict[str, Tensor]:
        prefix = f"{slug(entry.name)}/{when}/"
        return {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}


def run(row: Row, seed: int, data: Data, results: Path, work: Path, say: Callable[[str], None] = print) -> None:
    """Do the jobs of a row and seed that are not done.

    Args:
        row: the row.
        seed: of the training.
        data: the row's data.
        results: where the results go.
        work: where what is between is kept.
        say: what is told of the progress.

    Raises:
        ValueError: a model cannot be made as large as the reference, or its training diverged.
    """
    jobs = jobs_of(row, seed, results)
    if all(job.state == "done" for job in jobs):
        say(f"{row.name}, seed {seed}: done before")
        return
    folder, together = work / f"{row.name}--{seed}", [job.settings for job in jobs]
    trained = kept(folder, together)
    if trained is None:
        shutil.rmtree(folder, ignore_errors=True)
        trained = train(row, seed, data, say)
        _keep(folder, trained, together)
    for job in jobs:
        # The values in the work folder are those of this training. A result without them may be of an earlier one.
        if job.state != "done" or not _values_file(folder, job).exists():
            _measure(job, data, trained, folder)
            say(f"{row.name}, seed {seed}, {job.entry.name}: {job.file.name}")
    for job in jobs:  # the weights stay: samples are drawn from them
        _values_file(folder, job).unlink()


def train(row: Row, seed: int, data: Data, say: Callable[[str], None] = print) -> Trained:
    """Train the models of a row side by side."""
    widths = matched(row, data)
    contestants = []
    for entry in row.models:
        torch.manual_seed(seed)
        model = build(entry, row, data, widths[entry.name])
        contestants.append(Contestant(entry.name, model, entry, row, data.examples("train"), seed))
    budget = f"{row.steps} steps" if row.steps is not None else f"{row.seconds:g} seconds"
    say(f"{row.name}, seed {seed}: training {len(contestants)} models side by side, {budget} each")

    def look(model: ndm.NDM, entry: Entry) -> tuple[float, float]:
        return validate(model, row, data, entry.bound_steps, row.curve_examples, row.curve_times)

    race(contestants, look)
    for c in contestants:
        if c.diverged is not None:
            raise ValueError(
                f"Row {row.name}, seed {seed}: {c.name} diverged at step {c.diverged}. Lower its learning_rate, or its "
                "endpoint_rate."
            )
    common = common_step(contestants)
    tensors, facts = {}, {}
    for c in contestants:
        for when, step in (("time", c.steps), ("steps", common)):
            tensors |= {f"{slug(c.name)}/{when}/{k}": v for k, v in weights_at(c, step).items()}
        facts[c.name] = {
            "parameters": parameters(c.model),
            "parameters_in_f": parameters(c.model.transform),
            "widths": widths[c.name].to_dict(),
            "steps": c.steps,
            "common_step": common,
            "seconds": round(c.seconds, 3),
            "end_points": list(c.average.module.schedule.end_points()),
            "curve": [[round(v, 5) for v in point] for point in c.curve],
        }
    return Trained(tensors, facts)


def _keep(folder: Path, trained: Trained, together: list[dict[str, Any]]) -> None:
    write(folder / "weights.safetensors", lambda path: save_file(trained.weights, path))
    write_json(folder / "trained.json", {"settings": together, "facts": trained.facts})  # last: it says all is there


def kept(folder: Path, together: list[dict[str, Any]]) -> Trained | None:
    """The weights and facts of these settings that a folder holds; None if it has none, or of others."""
    file = folder / "trained.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    if found["settings"] != json.loads(json.dumps(together)):
        return None
    return Trained(load_file(folder / "weights.safetensors"), found["facts"])


def _values_file(folder: Path, job: Job) -> Path:
    return folder / f"{slug(job.entry.name)}.npz"


def _measure(job: Job, data: Data, trained: Trained, folder: Path) -> None:
    """Measure a job's model at both times, compare it with the reference's values, and write the result."""
    began, facts = time.process_time(), dict(trained.facts[job.entry.name])
    curve, widths = facts.pop("curve"), facts["widths"]
    model = rebuilt(job, data, widths)
    values, found = {}, {}
    for when, at in (("time", facts["steps"]), ("steps", facts["common_step"])):
        if when == "steps" and at == facts["steps"]:
            found[when] = found["time"]
        else:
            load(model, trained.of(job.entry, when))
            found[when] = measure(model, job.row, data)
        values |= {f"{when}/{k}": v.numpy() for k, v in found[when].items()}
    reference = found
    if job.entry is not job.row.reference:
        reference = _values(_values_file(folder, replace(job, entry=job.row.reference)))
    compare = {when: compared(here, reference[when]) for when, here in found.items()}
    facts |= {"unit": unit(data), "entropy": entropy(data), "measuring_seconds": round(time.process_time() - began, 1)}
    result = {"environment": environment(), "settings": job.settings, "facts": facts, "curve": curve}
    job.file.unlink(missing_ok=True)  # so that a result is never of another training than the values beside it
    write(_values_file(folder, job), lambda path: _save_values(path, values))
    write_json(job.file, result | {"at_equal_time": compare["time"], "at_equal_steps": compare["steps"]})


def _values(file: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    with np.load(file) as stored:
        for name in stored.files:
            when, _, key = name.partition("/")
            found.setdefault(when, {})[key] = torch.from_numpy(stored[name])
    return found


def _save_values(path: Path, values: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # a path without the ending would be given one
        np.savez_compressed(file, **values)


def rebuilt(job: Job, data: Data, widths: Mapping[str, Any]) -> ndm.NDM:
    """A job's model with the widths that its training recorded, and weights that are to be loaded."""
    found = Widths(**{k: tuple(v) if isinstance(v, list) else v for k, v in widths.items()})
    return build(job.entry, job.row, data, found)


def load(model: ndm.NDM, weights: Mapping[str, Tensor]) -> None:
    """Put these weights into a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


# ---- tuning


def tuned(row: Row, results: Path) -> Row | None:
    """The row with the values that its tuning chose; the row itself if it asks for none, None if that is not done.

    Raises:
        ValueError: the tuning was done with other settings.
    """
    if not row.tune:
        return row
    file = _tuning_file(row, results)
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    differences = _differences(found["settings"], json.loads(json.dumps(_tuning_settings(row))))
    if differences:
        raise ValueError(
            f"{file.name} was made with other settings: {'; '.join(differences)}. --tune {row.name} tunes it again."
        )
    return replace(row, models=tuple(replace(e, **found["chosen"][e.name]) for e in row.models))


def adopt_tuning(row: Row, before: Path, now: Path) -> None:
    """Have a row's tuning in one folder of results hold in another one too."""
    if row.tune:
        text = _tuning_file(row, before).read_text()
        write(_tuning_file(row, now), lambda beside: beside.write_text(text) and None)


def tune(row: Row, data: Data, results: Path, say: Callable[[str], None] = print) -> Path:
    """Train every model of the row with every value of the grid, all side by side, and choose by validation data.

    Every model gets the same grid and the same budget. Judged is the bound that is trained on, of the averaged weights
    at the end of the budget, on all validation examples up to the number of the test's.

    Raises:
        ValueError: the row has no grid, or a model diverged with all of it.
    """
    if not row.tune:
        raise ValueError(f"Row {row.name} has no grid to tune on: give it tune.")
    short = replace(row, seconds=row.tune_seconds, steps=row.tune_steps)
    widths, contestants, points = matched(row, data), [], []
    for entry in row.models:
        for point in _grid_points(row):
            torch.manual_seed(TUNING_SEED)
            here = replace(entry, **point)
            model = build(here, short, data, widths[entry.name])
            contestants.append(Contestant(entry.name, model, here, short, data.examples("train"), seed_of(TUNING_SEED)))
            points.append(point)
    say(f"{row.name}: tuning, {len(contestants)} trainings side by side")
    race(contestants)
    trials = []
    for c, point in zip(contestants, points, strict=True):
        bound = math.inf
        if c.diverged is None:
            count = row.examples or len(data.examples("validation"))
            bound, _ = validate(c.average.module, row, data, c.entry.bound_steps, count, row.times)
        trials.append({"model": c.name, **point, "bound": bound if math.isfinite(bound) else None, "steps": c.steps})
    chosen = {entry.name: _best(row, entry, trials, points[: len(points) // len(row.models)]) for entry in row.models}
    path = _tuning_file(row, results)
    write_json(
        path,
        {
            "environment": environment(),
            "settings": _tuning_settings(row),
            "unit": unit(data),
            "chosen": chosen,
            "trials": trials,
        },
    )
    return path


def _best(row: Row, entry: Entry, trials: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ours = [t for t in trials if t["model"] == entry.name]
    bounds = [math.inf if t["bound"] is None else t["bound"] for t in ours]
    if math.isinf(min(bounds)):
        raise ValueError(f"Row {row.name}: {entry.name} diverged with every value of the grid. Lower the grid's rates.")
    return dict(points[bounds.index(min(bounds))])


def _grid_points(row: Row) -> Iterator[dict[str, Any]]:
    assert row.tune
    for values in product(*row.tune.values()):
        yield dict(zip(row.tune, values, strict=True))


def _tuning_settings(row: Row) -> dict[str, Any]:
    return {
        "row": row.common() | {"seconds": row.tune_seconds, "steps": row.tune_steps},
        "tune": dict(row.tune or {}),
        "models": [{k: v for k, v in asdict(e).items() if k not in (row.tune or {})} for e in row.models],
    }


def _tuning_file(row: Row, results: Path) -> Path:
    return results / f"tuning--{row.name}.json"


# ---- what is done, and estimates


def state(row: Row, results: Path) -> str:
    """How many jobs are done, in words."""
    try:
        settled = tuned(row, results)
    except ValueError:
        return "tuned with other settings"
    if settled is None:
        return "not tuned"
    states = [job.state for seed in settled.seeds for job in jobs_of(settled, seed, results)]
    other = f", {n} of other settings" if (n := states.count("other settings")) else ""
    return f"{states.count('done')} of {len(states)} done{other}"


def seconds_of(row: Row, measuring: float, results: Path) -> tuple[float, float]:
    """About how long the row takes with its tuning, in seconds of the process: all of it, and what is left of it.

    Rows with a budget in steps count as nothing but their measuring: what a step takes is not known.
    """
    each = (row.seconds or 0.0) + measuring
    grid = len(list(_grid_points(row))) if row.tune else 0
    for_tuning = grid * len(row.models) * (row.tune_seconds or 0.0)
    try:
        settled = tuned(row, results)
    except ValueError:
        settled = None
    everything = for_tuning + each * len(row.models) * len(row.seeds)
    if settled is None:
        return everything, everything
    left = [job for seed in row.seeds for job in jobs_of(settled, seed, results) if job.state != "done"]
    return everything, each * len(left)
