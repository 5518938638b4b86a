"""Tables and a plot of how good the samples of the suite's models are, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import mean_and_error, table

from suite import figures
from suite.figures import Result
from suite.measuring import over_seeds

#: What a figure is multiplied by in a table.
FACTORS = {"MMD²": 1000.0}

#: Distances that may be below zero, which a logarithmic axis cannot show.
SIGNED = ("MMD²",)


def results(folder: Path = figures.FOLDER) -> dict[str, dict[str, list[Result]]]:
    """Results by row and model, in the order of the row, of all seeds."""
    return figures.results(folder / "samples")


def found(of: list[Result], method: str, steps: int, distance: str) -> dict[int, tuple[float, float] | None]:
    """A distance and its standard error by seed; None where samples were not finite."""
    return {
        one["settings"]["seed"]: None if one_way["distances"] is None else tuple(one_way["distances"][distance])
        for one in of
        for one_way in one["figures"]
        if (one_way["method"], one_way["steps"]) == (method, steps)
    }


def figure(of: list[Result], method: str, steps: int, distance: str) -> tuple[float, float] | None:
    """A distance averaged over seeds, and its error; None if the samples of a seed were not finite, or not drawn."""
    values = list(found(of, method, steps, distance).values())
    known = [value for value in values if value is not None]
    return over_seeds(known) if known and len(known) == len(values) else None


def difference(
    of: list[Result], reference: list[Result], method: str, steps: int, distance: str
) -> tuple[float, float] | None:
    """The distance minus the reference's, averaged over the seeds that both have, and its error.

    The seed decides the noise that samples start from, for all models; and all are compared with the same examples. So
    the error is that of a mean over seeds. Of one seed alone it is that of two independent distances, which is too
    large.
    """
    ours, theirs = (found(one, method, steps, distance) for one in (of, reference))
    both = [(a, b) for seed in ours if (a := ours[seed]) and (b := theirs.get(seed))]
    if not both:
        return None
    if len(both) == 1:
        (((value, error), (other, other_error)),) = both
        return value - other, math.hypot(error, other_error)
    return mean_and_error([a[0] - b[0] for a, b in both])


def markdown(row: str, models: dict[str, list[Result]]) -> str:
    """The tables of a row: each distance, and its difference from the reference's, by ways and numbers of steps."""
    first = next(iter(models.values()))[0]
    facts, settings = first["facts"], first["settings"]
    numbers, seeds = settings["samples"]["steps"], len(next(iter(models.values())))
    text = [
        f"### {row}: samples\n",
        f"{settings['samples']['examples']:,} samples against {facts['compared_with']:,} test examples, {seeds} "
        f"seed{'s' if seeds > 1 else ''}. " + " ".join(_floor(facts["floor"], name) for name in facts["floor"]),
    ]
    if features := settings["samples"]["features"]:
        text.append(
            f"\nFID is of the {features['settings']['features']} features of a classifier that was trained on the "
            f"training split and is right on {features['accuracy']:.1%} of the test split. It cannot be compared with "
            "FIDs of Inception's features."
        )
    for name in facts["floor"]:
        text += _tables(models, settings["beside"][0], name, numbers)
    for model, of in models.items():
        if left_out := of[0]["facts"]["left_out"]:
            text.append(
                f"\n{model} has no {' and no '.join(left_out)}: both need F(x_hat), which it does not estimate."
            )
    return "\n".join(text) + "\n"


def _tables(models: dict[str, list[Result]], reference: str, name: str, numbers: Sequence[int]) -> Iterator[str]:
    """The table of a distance, and that of its differences from the reference's. "-" is for samples not finite."""
    header = ["model", "way", *(f"T = {t}" for t in numbers)]
    lines = [
        [model, way, *(_told(figure(of, way, t, name), name) for t in numbers)]
        for model, of in models.items()
        for way in _ways(of)
    ]
    yield f"\n{_label(name)}:\n\n{table(lines, header)}"
    theirs = models.get(reference, [])
    lines = [
        [model, way, *(_told(difference(of, theirs, way, t, name), name, "+") for t in numbers)]
        for model, of in models.items()
        if model != reference
        for way in _ways(of)
    ]
    if lines:
        yield f"\n{_label(name)}, difference from {reference}:\n\n{table(lines, header)}"


def _ways(of: list[Result]) -> Iterator[str]:
    yield from dict.fromkeys(one_way["method"] for one_way in of[0]["figures"])


def _floor(floor: dict[str, list[float]], name: str) -> str:
    return f"Training examples in the samples' place: {_label(name)} {_told((floor[name][0], floor[name][1]), name)}."


def _label(name: str) -> str:
    return f"{FACTORS[name]:g} {name}" if name in FACTORS else name


def _told(figure: tuple[float, float] | None, name: str, sign: str = "") -> str:
    """A figure and its error, to the error's second digit."""
    if figure is None:
        return "-"
    value, error = (FACTORS.get(name, 1.0) * v for v in figure)
    digits = 3 if not error > 0 else min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"


def plots(folder: Path = figures.FOLDER) -> list[Path]:
    """One picture: a line of panels for every row that has results, a panel for every way, a line for every model."""
    from matplotlib import pyplot

    rows = results(folder)
    if not rows:
        return []
    ways = {
        row: list(dict.fromkeys(way for of in models.values() for way in _ways(of))) for row, models in rows.items()
    }
    columns = max(map(len, ways.values()))
    picture, axes = pyplot.subplots(
        len(rows), columns, figsize=(2.7 * columns, 2.6 * len(rows)), squeeze=False, sharey="row"
    )
    for line, (row, models) in zip(axes, rows.items(), strict=True):
        for axis, way in zip(line, ways[row], strict=False):
            _by_evaluations(axis, models, way)
            axis.set_title(f"{row}, {way}", fontsize="medium")
        for axis in line[len(ways[row]) :]:
            axis.remove()
        line[0].set_ylabel(_shown(models))
        line[0].legend(fontsize="x-small")
    picture.tight_layout()
    path = folder / "quality-by-steps.png"
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return [path]


def _shown(models: dict[str, list[Result]]) -> str:
    """The distance that the plot shows."""
    floor = next(iter(models.values()))[0]["facts"]["floor"]
    return next(name for name in floor if name not in SIGNED)


def _by_evaluations(axis: Any, models: dict[str, list[Result]], way: str) -> None:
    """The distance against the evaluations of the denoiser's network; the dotted line is the floor."""
    from matplotlib.ticker import LogLocator

    name, shown = _shown(models), set()
    for model, of in models.items():
        evaluations = {w["steps"]: w["evaluations"] for w in of[0]["figures"] if w["method"] == way}
        points = [(e, f) for t, e in evaluations.items() if (f := figure(of, way, t, name)) is not None]
        # A model that lacks this way draws nothing, and yet takes its colour.
        shown |= set(evaluations.values())
        x, y = [e for e, _ in points], [f for _, f in points]
        axis.errorbar(x, [f[0] for f in y], [f[1] for f in y], marker=".", linewidth=1, label=model)
    axis.axhline(next(iter(models.values()))[0]["facts"]["floor"][name][0], color="grey", linestyle=":", linewidth=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sorted(shown), sorted(shown), fontsize="small")
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("evaluations of the denoiser")
