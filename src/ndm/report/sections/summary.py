"""Section with a summary: runs, main results, configuration differences, and paired differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ndm.evaluation import mean_and_error
from ndm.evaluation.results import MIXTURE
from ndm.method.columns import KINDS
from ndm.report.blocks import Section, Table, Text, minus, with_error
from ndm.report.findings import TERMS, Findings
from ndm.report.grouping import groups
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    lines = [(name, [describe(f) for f in findings]) for name, describe in _FACTS.items()]
    lines = [line for line in lines if any(line[1])]
    table = Table(
        "Runs and main results",
        ["", *(s.name for s in subjects)],
        [[name, *(cell or "–" for cell in cells)] for name, cells in lines],
        "Bounds are on −log p: lower is better. ± is the standard error over the examples.",
        [None, *(s.index for s in subjects)],
        words=True,
    )
    blocks: list[Any] = [table]
    if len(subjects) > 1:
        blocks.append(_differences(subjects))
    for group in groups(subjects):
        blocks += _paired([f for f in findings if f.subject in group])
    if len(groups(subjects)) > 1:
        blocks.append(Text("The runs do not all use the same data, so not all of their results can be compared."))
    return Section("summary", "Summary", blocks)


def _data(f: Findings) -> str:
    s = f.subject
    shape = " × ".join(map(str, s.shape))
    values = "continuous" if s.levels is None else f"{s.levels} levels"
    if s.encoding is not None:
        kinds = Counter(column.kind for column in s.encoding.table)
        values = "columns: " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    section = s.config.get("data")
    name = section.get("class_path") if isinstance(section, Mapping) else section
    known = str(name).rpartition(".")[2] if name else type(s.data).__name__ if s.data is not None else ""
    return f"{known + ': ' if known else ''}{shape}{' ' if s.encoding else ', '}{values}"


def _schedule(f: Findings) -> str:
    schedule = f.subject.model.schedule
    low, high = schedule.end_points()
    learned = ", learned" if getattr(schedule, "learn_endpoints", False) else ""
    return f"{type(schedule).__name__}, γ from {minus(f'{low:.2f}')} to {minus(f'{high:.2f}')}{learned}"


def _part(part: nn.Module, **shown: str) -> str:
    """Format a part: its class, the class of its network, and some arguments."""
    net = getattr(part, "net", None)
    about = [type(net).__name__] if isinstance(net, nn.Module) else []
    about += [f"{name} {getattr(part, key)}" for key, name in shown.items() if getattr(part, key, None) is not None]
    return type(part).__name__ + (f" ({', '.join(about)})" if about else "")


def _variance(f: Findings) -> str:
    model = f.subject.model
    own = type(model.reverse_variance).__name__.removesuffix("Variance").lower()
    calibrated = ", ".join(f"{v.covariance} for T = {k}" for k, v in model.calibrations.items())
    return own + (f"; calibrated: {calibrated}" if calibrated else "")


def _volatility(f: Findings) -> str:
    volatility = f.subject.model.volatility
    eta = getattr(volatility, "eta", None)
    return f"η = {eta:g}" if isinstance(eta, (int, float)) else type(volatility).__name__


def _trained(f: Findings) -> str:
    s = f.subject
    if not s.steps:
        return ""
    seconds = s.clock[-1][1]
    return f"{s.steps:,} steps" + (f", {_duration(seconds)}" if seconds else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _validation(f: Findings) -> str:
    found, steps = f.subject.last_validation, f.subject.training_steps_of_bound()
    return f"{found} {f.subject.unit}" + (f", T = {steps}" if steps else "") if found else ""


def _measured(f: Findings) -> str:
    if f.profile is None:
        return ""
    value, error = mean_and_error(f.profile.total * f.subject.nat)
    return f"{with_error(value, error)} {f.subject.unit}"


def _evaluated(quantity: str) -> Callable[[Findings], str]:
    """Return a function that formats the first evaluated value of this kind; for bounds, in continuous time."""

    def figure(f: Findings) -> str:
        rows = [r for r in (f.subject.evaluation or {}).get("rows", []) if r.get("quantity") == quantity]
        rows = [r for r in rows if quantity != "bound" or r.get("steps") is None]
        return (
            f"{with_error(rows[0]['value'], rows[0].get('stderr'))} {rows[0].get('unit', '')}".strip() if rows else ""
        )

    return figure


#: Rows of the summary; an empty string if not available.
_FACTS: dict[str, Callable[[Findings], str]] = {
    "data": _data,
    "transformation F": lambda f: _part(f.subject.model.transform, terms="terms", gate="gate"),
    "learned noise": lambda f: (
        _part(f.subject.model.noise, terms="terms", limit="limit") if f.subject.model.noise else ""
    ),
    "latent": lambda f: _part(f.subject.model.latent, size="size") if f.subject.model.latent else "",
    "schedule": _schedule,
    "denoiser": lambda f: _part(f.subject.model.denoiser, parameterization="predicts"),
    "decoder": lambda f: type(f.subject.model.decoder).__name__,
    "reverse variance": _variance,
    "volatility": _volatility,
    "classes": lambda f: str(f.subject.classes or ""),
    "parameters": lambda f: f"{f.subject.parameters():,}",
    "of which in F": lambda f: f"{f.subject.parameters('transform'):,}",
    "trained": _trained,
    "last validation bound": _validation,
    "bound in continuous time, measured for this page": _measured,
    "bound in continuous time, evaluated": _evaluated("bound"),
    "log-likelihood of the ODE, evaluated": _evaluated("log-likelihood"),
    "log-density of a Gaussian mixture, evaluated": _evaluated(MIXTURE),
    "FID": _evaluated("FID"),
}


def _differences(subjects: Sequence[Subject]) -> Table | Text:
    """Return the configuration fields that differ between runs."""
    known = [s for s in subjects if s.config]
    if len(known) < len(subjects):
        names = ", ".join(s.name for s in subjects if not s.config)
        return Text(f"There is no config.yaml in {names}, so the configurations cannot be compared.")
    rows = _unequal([s.config for s in subjects])
    if not rows:
        return Text("The configurations are the same.")
    return Table(
        "What differs in their configurations",
        ["field", *(s.name for s in subjects)],
        rows,
        "Fields are named as on the command line of ndm train. For parts of different classes, all fields are listed. "
        "A dash: the run has no such field. All other fields are the same.",
        [None, *(s.index for s in subjects)],
        words=True,
    )


def _unequal(values: Sequence[Any], path: str = "") -> list[list[str]]:
    """Return the fields with different values, by command-line name; parts of different classes as a whole."""
    if all(value == values[0] for value in values):
        return []
    trees = [value for value in values if isinstance(value, Mapping)]
    if len(trees) < len(values) or len({tree.get("class_path") for tree in trees}) > 1:
        return [[path, *map(_compact, values)]]
    rows = []
    for key in dict.fromkeys(key for tree in trees for key in tree):
        inner = path if key == "init_args" else f"{path}.{key}" if path else str(key)
        rows += _unequal([tree.get(key, _ABSENT) for tree in trees], inner)
    return rows


_ABSENT = object()


def _compact(value: Any) -> str:
    """Format a configuration value on one line."""
    if value is _ABSENT:
        return "–"
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if "class_path" not in value:
        return ", ".join(f"{key} {_compact(inner)}" for key, inner in value.items())
    arguments = value.get("init_args") or {}
    inside = ", ".join(f"{key} {_compact(inner)}" for key, inner in arguments.items())
    return str(value["class_path"]) + (f" ({inside})" if inside else "")


def _paired(findings: Sequence[Findings]) -> list[Table]:
    """Return the per-example differences from the first run with the same data."""
    measured = [f for f in findings if f.profile is not None]
    if len(measured) < 2:
        return []
    first, *others = measured
    assert first.profile is not None
    unit = first.subject.unit
    rows = []
    for term in TERMS:
        cells = []
        for f in others:
            change = (getattr(f.profile, term) - getattr(first.profile, term)) * first.subject.nat
            cells.append(with_error(*mean_and_error(change), signed=True))
        rows.append([TERMS[term], *cells])
    n = len(first.profile.total)
    return [
        Table(
            f"Difference from {first.subject.name}, paired, {unit}",
            ["", *(f.subject.name for f in others)],
            rows,
            f"Continuous time, with the same {n} test examples and random numbers for every run; the standard error is "
            f"that of the differences. Below zero: better than {first.subject.name}. A difference of less than two "
            "standard errors may be due to chance. The variation between training seeds is not included.",
            [None, *(f.subject.index for f in others)],
        )
    ]
