"""Tables and plots of the suite's results, averaged over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import RESULTS, table

from suite.measuring import over_seeds
from suite.settings import Suite

FOLDER = RESULTS / "suite"

#: Bounds that the tables show; None stands for continuous time.
SHOWN = ((10, "posterior"), (10, "diagonal"), (1000, "diagonal"), (None, "-"))

#: Those of them whose differences from the reference the tables show.
COMPARED = ((10, "diagonal"), (None, "-"))

#: The variance of the plot against T.
PLOTTED = "diagonal"

Result = dict[str, Any]

#: Results by row and model, of all seeds.
Rows = dict[str, dict[str, list[Result]]]


def results(folder: Path = FOLDER) -> Rows:
    """Results by row and model, in the order of the row, of all seeds."""
    found: Rows = {}
    for file in sorted(folder.glob("*--*--*.json")):
        result = json.loads(file.read_text())
        settings = result["settings"]
        # The models in the row's own order, whatever their files are called.
        row = found.setdefault(settings["row"]["name"], {name: [] for name in settings["beside"]})
        row.setdefault(settings["model"]["name"], []).append(result)
    return {row: {m: r for m, r in models.items() if r} for row, models in found.items()}


def figure(
    of: Sequence[Result], steps: int | None, variance: str, key: str = "value", when: str = "at_equal_time"
) -> tuple[float, float] | None:
    """A bound, or its difference from the reference's, averaged over seeds, with its error; None if not measured."""
    error = {"value": "stderr", "difference": "difference_stderr"}[key]
    found = [r for one in of for r in one[when] if (r["steps"], r["variance"]) == (steps, variance)]
    return over_seeds([(r[key], r[error]) for r in found]) if found else None


def markdown(row: str, models: dict[str, list[Result]]) -> str:
    """The table of a row: bounds at equal time, and differences from the reference at equal time and equal steps."""
    first = next(iter(models.values()))[0]
    unit, settings = first["facts"]["unit"], first["settings"]["row"]
    here = {(r["steps"], r["variance"]) for r in first["at_equal_time"]}
    shown = [s for s in SHOWN if s in here]
    trained = any(of[0]["settings"]["model"]["variance"] != "posterior" for of in models.values())
    columns = [("at_equal_time", s) for s in COMPARED if s in here] + [("at_equal_steps", s) for s in COMPARED[-1:]]
    lines = []
    for name, of in models.items():
        facts = of[0]["facts"]
        share = facts["parameters_in_f"] / facts["parameters"]
        steps = "/".join(f"{one['facts']['steps']:,}" for one in of)
        line = [name, f"{facts['parameters']:,}", f"{share:.1%}", steps, *(told(figure(of, *s)) for s in shown)]
        if trained:
            line.append(told(figure(of, 10, of[0]["settings"]["model"]["variance"])))
        reference = name == first["settings"]["beside"][0]
        line += ["" if reference else told(figure(of, *s, "difference", when), "+") for when, s in columns]
        lines.append(line)
    header = ["model", "parameters", "in F", "steps", *(label(*s) for s in shown)]
    header += ["T = 10, its own"] if trained else []
    header += [f"{label(*s)}: difference" + ", equal steps" * (when == "at_equal_steps") for when, s in columns]
    seeds = len(next(iter(models.values())))
    budget = f"{settings['steps']:,} steps" if settings["steps"] is not None else f"{settings['seconds']:g} seconds"
    known = first["facts"]["entropy"]
    floor = f" The data's entropy is {known:.3f}." if known is not None else ""
    return (
        f"### {row}\n\n{settings['data']}, {unit}, {budget} each, {seeds} seed{'s' if seeds > 1 else ''}.{floor}\n\n"
        f"{table(lines, header)}\n"
    )


def headline(rows: Sequence[str], model: str, folder: Path = FOLDER) -> str:
    """One line for each of these rows that has results of the model: its margin over the reference.

    Differences are at equal time and at equal steps, in the row's unit; the last column says how many standard errors
    the smaller of the two margins at equal time is.
    """
    found, lines = results(folder), []
    for row in (row for row in rows if model in found.get(row, {})):
        of = found[row][model]
        reference = found[row][of[0]["settings"]["beside"][0]]
        settings, seeds = of[0]["settings"]["row"], len(of)
        budget = f"{settings['steps']:,} steps" if settings["steps"] is not None else f"{settings['seconds']:g} s"
        line = [row, of[0]["facts"]["unit"], f"{of[0]['facts']['parameters']:,}", budget, seeds]
        worst = []
        for steps, variance in COMPARED:
            line += [told(figure(one, steps, variance)) for one in (reference, of)]
            margin = figure(of, steps, variance, "difference")
            assert margin is not None
            worst.append(-margin[0] / margin[1])
            line += [told(margin, "+"), told(figure(of, steps, variance, "difference", "at_equal_steps"), "+")]
        lines.append([*line, f"{min(worst):+.1f}"])
    header = ["row", "unit", "parameters", "each", "seeds"]
    for which in COMPARED:
        header += [f"{label(*which)}: reference", model, "difference", "equal steps"]
    return table(lines, [*header, "errors"])


def label(steps: int | None, variance: str) -> str:
    """What a bound is called in a table."""
    return "continuous" if steps is None else f"T = {steps}, {variance}"


def told(figure: tuple[float, float] | None, sign: str = "") -> str:
    """A figure and its error, as tables have them."""
    return "" if figure is None else f"{figure[0]:{sign}.3f} ± {figure[1]:.3f}"


def plots(suite: Suite, folder: Path = FOLDER) -> list[Path]:
    """The three plots, each with a panel for every row that it is to show and that has results."""
    found, made = results(folder), []
    for name, draw in (("steps", _by_steps), ("seconds", _by_seconds), ("share", _by_share)):
        rows = [row for row in suite.plots.get(name, ()) if row in found]
        if rows:
            made.append(_panels({row: found[row] for row in rows}, draw, folder / f"bound-by-{name}.png"))
    return made


def _panels(rows: dict[str, dict[str, list[Result]]], draw: Any, path: Path) -> Path:
    from matplotlib import pyplot

    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.remove()
    for axis, (row, models) in zip(axes.flat, rows.items(), strict=False):
        draw(axis, models)
        axis.set_title(row)
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _by_steps(axis: Any, models: dict[str, list[Result]]) -> None:
    """The bound with the diagonal calibrated variance against T; the dotted line is continuous time."""
    for name, of in models.items():
        steps = [r["steps"] for r in of[0]["at_equal_time"] if r["variance"] == PLOTTED]
        points = [found for t in steps if (found := figure(of, t, PLOTTED)) is not None]
        values, errors = [p[0] for p in points], [p[1] for p in points]
        line = axis.errorbar(steps, values, errors, marker=".", label=name)
        if (limit := figure(of, None, "-")) is not None:
            axis.axhline(limit[0], color=line.lines[0].get_color(), linestyle=":")
    axis.set_xscale("log")
    axis.set_xlabel("T")
    axis.set_ylabel(f"bound, {_unit(models)}")


def _by_seconds(axis: Any, models: dict[str, list[Result]]) -> None:
    """The validation curves, a line for every seed."""
    lowest, start = [], []
    for name, of in models.items():
        colour = None
        for i, one in enumerate(of):
            seconds, values = [p[0] for p in one["curve"]], [p[2] for p in one["curve"]]
            (line,) = axis.plot(seconds, values, color=colour, label=name if i == 0 else None, linewidth=1)
            colour = line.get_color()
            lowest.append(min(values))
            start.append(values[len(values) // 4])
    room = max(max(start) - min(lowest), 1e-3)
    axis.set_ylim(min(lowest) - room / 10, max(start))  # without the first part of the training, which falls from above
    axis.set_xlabel("seconds of training")
    axis.set_ylabel(f"validation bound, {_unit(models)}")


def _by_share(axis: Any, models: dict[str, list[Result]]) -> None:
    """The difference from the reference against F's share of the parameters, a line for every bound that is shown.

    Solid at equal time, dotted at equal steps: a larger F leaves a smaller and faster denoiser.
    """
    shares = {name: of[0]["facts"]["parameters_in_f"] / of[0]["facts"]["parameters"] for name, of in models.items()}
    order = sorted(shares, key=lambda name: shares[name])
    for steps, variance in SHOWN[1:]:
        colour = None
        for when, line in (("at_equal_time", "-"), ("at_equal_steps", ":")):
            each = [(shares[n], figure(models[n], steps, variance, "difference", when)) for n in order]
            points = [(share, *found) for share, found in each if found is not None]
            if points:
                name = label(steps, variance) + (", equal steps" if line == ":" else "")
                drawn = axis.errorbar(*zip(*points, strict=True), marker=".", label=name, linestyle=line, color=colour)
                colour = drawn.lines[0].get_color()
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_xlabel("F's share of the parameters")
    axis.set_ylabel(f"bound minus the reference's, {_unit(models)}")


def _unit(models: dict[str, list[Result]]) -> str:
    return next(iter(models.values()))[0]["facts"]["unit"]
