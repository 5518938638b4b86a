"""Controlled comparisons: models with the same number of parameters, trained for the same time on the same data.

    python benchmarks/suite.py                        every row of suite.yaml, as far as it is not done
    python benchmarks/suite.py digits digits-share    these rows
    python benchmarks/suite.py --only data=digits     the rows on these data
    python benchmarks/suite.py --list                 what there is, what is done, how long the rest takes
    python benchmarks/suite.py --tune digits          tune a row anew (done by itself when a row is first run)
    python benchmarks/suite.py --plots                draw the plots of what is done
    python benchmarks/suite.py --samples digits       draw samples of a row's models, and tell how good they are
    python benchmarks/suite.py --grids digits         bounds of a row's models at few steps, even ones and the best ones
    python benchmarks/suite.py --again NEW table      run a row again, as it was tuned, and tell what has come out again

Rows on MNIST and CIFAR-10 need --data FOLDER, which holds mnist-*.parquet and cifar10-*.parquet. Results are files in
results/suite, one for each row, model and seed. The command may be killed at any time and given again: it loses the
training, or the measurement, at hand. What is equal in a comparison, and how that is ensured, is in suite/__init__.py.
Samples and grids are of the weights that the rows have left in --work, and their results are in results/suite/samples
and results/suite/grids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from bench import table
from suite import figures, gridding, jobs, quality, repeating, sampling
from suite.datasets import dataset, missing
from suite.settings import SUITE, Row, Suite, chosen, read, with_budget

from ndm.data import Data


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        suite = read(options.suite)
        rows = [
            with_budget(row, options.seconds, options.steps, options.seeds)
            for row in chosen(suite.rows.values(), _named(options, suite), options.only)
        ]
        if options.list:
            print(listed(suite, rows, options.results))
        elif options.plots:
            made = figures.plots(suite, options.results) + quality.plots(options.results)
            print("\n".join(map(str, made)) or "There are no results to draw.")
        elif options.again:
            run_again(rows, options)
        elif options.samples:
            draw_samples(suite, rows, options)
        elif options.grids:
            measure_grids(rows, options)
        else:
            run(rows, options)
    except (ValueError, OSError) as error:
        print(f"suite.py: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of the suite (default: all)")
    parser.add_argument("--only", action="append", default=[], metavar="FIELD=VALUE", help="only rows with this value")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the rows' own")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, help="the budget of each model, in place of the rows' own")
    budget.add_argument("--steps", type=int, help="the same in steps, which gives the same figures every time")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where MNIST and CIFAR-10 are")
    parser.add_argument("--redo", action="store_true", help="make results of other settings again")
    parser.add_argument("--results", type=Path, default=figures.FOLDER, help="where the results go")
    parser.add_argument("--work", type=Path, default=Path("runs/suite"), help="what is between (default: %(default)s)")
    parser.add_argument("--suite", type=Path, default=SUITE, help="another file of rows")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the rows, and do nothing")
    what.add_argument("--tune", action="store_true", help="tune the rows anew, and do nothing else")
    what.add_argument(
        "--samples", action="store_true", help="judge samples (default: of the rows that suite.yaml says)"
    )
    what.add_argument("--plots", action="store_true", help="draw the plots, and do nothing else")
    what.add_argument("--grids", action="store_true", help="measure few steps, even ones and the best ones")
    what.add_argument(
        "--again", type=Path, metavar="FOLDER", help="run rows again, with results and work there, and compare them"
    )
    return parser


def _named(options: argparse.Namespace, suite: Suite) -> Sequence[str]:
    """The rows that are asked for; nothing stands for all of them."""
    return suite.samples.rows if options.samples and not options.rows else options.rows


def run(rows: list[Row], options: argparse.Namespace) -> None:
    """Tune the rows that ask for it and are not tuned, and do the jobs that are not done."""
    rows = [row for row in rows if _has_data(row, options.data)]
    if not options.redo and not options.tune:  # before hours are spent
        settled = [jobs.tuned(row, options.results) for row in rows]
        jobs.refuse_conflicts([row for row in settled if row is not None], options.results)
    for row in rows:
        data = dataset(row.data, options.data)
        if options.tune:
            print(jobs.tune(row, data, options.results, _say), flush=True)
            continue
        settled_row = jobs.tuned(row, options.results)
        if settled_row is None:
            jobs.tune(row, data, options.results, _say)
            settled_row = jobs.tuned(row, options.results)
            assert settled_row is not None
        for seed in settled_row.seeds:
            jobs.run(settled_row, seed, data, options.results, options.work, _say)
        done = figures.results(options.results).get(row.name)
        if done:
            print("\n" + figures.markdown(row.name, done), flush=True)


def run_again(rows: list[Row], options: argparse.Namespace) -> None:
    """Run rows with another folder for the results and the work, and hold them against the results of before."""
    before, now = options.results, options.again
    if before.resolve() == now.resolve():
        raise ValueError("--again needs a folder of its own: the one that was given holds the results of before.")
    rows = [row for row in rows if _has_data(row, options.data)]
    for row in rows:
        repeating.refuse_new(row, before)
    for row in rows:
        jobs.adopt_tuning(row, before, now)
    # Weights that the first run has left must not be taken for those of the second.
    run(rows, argparse.Namespace(**{**vars(options), "results": now, "work": now / "work"}))
    print(repeating.told(before, now, rows))


def draw_samples(suite: Suite, rows: list[Row], options: argparse.Namespace) -> None:
    """Draw and judge the samples that are not done, of the rows that were run."""
    for row, data in _tuned(rows, options):
        for seed in row.seeds:
            sampling.run(row, seed, data, suite.samples, options.results, options.work, options.redo, _say)
        if done := quality.results(options.results).get(row.name):
            print("\n" + quality.markdown(row.name, done), flush=True)


def measure_grids(rows: list[Row], options: argparse.Namespace) -> None:
    """Measure the bounds at few steps that are not done, of the rows that were run."""
    for row, data in _tuned(rows, options):
        for seed in row.seeds:
            gridding.run(row, seed, data, options.results, options.work, options.redo, _say)
        if done := gridding.results(options.results).get(row.name):
            print("\n" + gridding.markdown(row.name, done), flush=True)


def _tuned(rows: list[Row], options: argparse.Namespace) -> Iterator[tuple[Row, Data]]:
    """Rows that may have been run, as they were tuned, and their data."""
    for row in (row for row in rows if _has_data(row, options.data)):
        settled = jobs.tuned(row, options.results)
        if settled is None:
            _say(f"{row.name}: left out. It is not tuned, and so was not run.")
        else:
            yield settled, dataset(row.data, options.data)


def _has_data(row: Row, folder: Path | None) -> bool:
    lacking = missing(row.data, folder)
    if lacking is not None:
        _say(f"{row.name}: left out. {lacking}")
    return lacking is None


def _say(line: str) -> None:
    print(line, flush=True)


def listed(suite: Suite, rows: list[Row], results: Path) -> str:
    """The rows, how many of their jobs are done, and about how long the rows and what is left of them take."""
    lines, total, rest = [], 0.0, 0.0
    for row in rows:
        everything, left = jobs.seconds_of(row, suite.measuring.get(row.data, 0.0), results)
        total, rest = total + everything, rest + left
        lines.append(
            [
                row.name,
                row.data,
                len(row.models),
                len(row.seeds),
                jobs.state(row, results),
                _hours(everything),
                _hours(left),
            ]
        )
    lines.append(["all", "", "", "", "", _hours(total), _hours(rest)])
    header = ["row", "data", "models", "seeds", "state", "hours of one core", "of them left"]
    return table(lines, header)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}"


if __name__ == "__main__":
    sys.exit(main())
