"""``ndm predict``: a column of a table given all others, with quantiles or probabilities."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm.cli.messages import say, show
from ndm.cli.parsing import Parser, at_least, share
from ndm.cli.tables import add_drawing, run_alone

if TYPE_CHECKING:
    import numpy as np

    from ndm.method.columns import Column
    from ndm.method.encoding import TableEncoding
    from ndm.model import NDM
    from ndm.tabular.files import FileRows

__all__ = ["run"]

#: Number of rows times samples that are drawn at a time.
AT_ONCE = 1 << 17

#: Probability of the central interval whose coverage is computed.
LEVEL = 0.9


def _parser() -> Parser:
    parser = Parser(
        prog="ndm predict",
        description="Predict a column of a table given all other columns of the model.",
        epilog="The model must be trained with --training.conditionals any, or with all other columns as --data.given. "
        "If DATA has the column, a summary of the accuracy and the calibration is printed, over the rows in which it "
        "is observed.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, of a model of a table")
    parser.add_argument("data", metavar="DATA", help="a CSV or Parquet file with all other columns of the model")
    parser.add_argument("--column", required=True, metavar="NAME", help="the column to predict")
    parser.add_argument(
        "--out", required=True, metavar="FILE",
        help="output file, ending in .csv or .parquet: the column `row`, and `mean` and quantiles `q0.05`, ..., or for "
        "a categorical column `prediction`, the most likely category, and probabilities `p(CATEGORY)`",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--quantiles", type=share, nargs="+", metavar="P",
        help="quantiles of a column of numbers, each between 0 and 1 (default: 0.05 0.5 0.95)",
    )  # fmt: skip
    parser.add_argument(
        "-n", type=lambda text: at_least(2, text), default=200, metavar="N",
        help="samples per row, from which means and quantiles are computed (default: %(default)s)",
    )  # fmt: skip
    add_drawing(parser)
    return parser


def run(arguments: list[str]) -> None:
    run_alone("predict", _parser().parse_args(arguments), "the predictions are", _predict)


def _predict(out: Path, options: argparse.Namespace) -> None:
    import numpy as np

    from ndm.cli.tables import load_table_model, require_columns, warn_of
    from ndm.tabular.files import read_rows, write_table

    model, encoding = load_table_model(Path(options.run), options.allow)
    require_columns([options.column], encoding.names, "--column")
    column = encoding.table[encoding.names.index(options.column)]
    if column.kind == "categorical" and options.quantiles:
        raise ValueError(f"The column {column.name!r} has categories, which have no quantiles: leave --quantiles out.")
    others = [name for name in encoding.names if name != column.name]
    file = read_rows(options.data, encoding, others, [column.name])
    warn_of(file.notes)
    find = _categories if column.kind == "categorical" else _numbers
    found, lines = find(model, encoding, column, file, options)
    write_table(["row", *found], [np.arange(len(file.rows)), *found.values()], out, options.overwrite, digits=9)
    if lines:
        show("\n".join(lines))
    say(f"the predictions are in {out}")


def _numbers(
    model: NDM, encoding: TableEncoding, column: Column, file: FileRows, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """The mean and the quantiles of a column of numbers, and the summary."""
    import numpy as np

    from ndm.tabular.calibration import quantiles

    levels = list(dict.fromkeys(options.quantiles or [0.05, 0.5, 0.95]))
    drawn = _draws(model, encoding, column, file.rows, options)
    if not np.isfinite(drawn).all():
        raise ValueError("Some of the samples are not finite, and no file was written: use more --steps.")
    found = {"mean": _in_units(column, drawn.mean(1))}
    for level, values in zip(levels, quantiles(drawn, levels).T, strict=True):
        found[f"q{level:g}"] = _in_units(column, values)
    y = file.rows[:, encoding.names.index(column.name)]
    seen = ~np.isnan(y)
    if not seen.any():
        return found, []
    return found, _summary_of_numbers(model, encoding, column, file.rows[seen], drawn[seen], options)


def _draws(
    model: NDM, encoding: TableEncoding, column: Column, rows: np.ndarray, options: argparse.Namespace
) -> np.ndarray:
    """Samples of a column given the others, (m, n)."""
    import numpy as np
    from tqdm import tqdm

    from ndm._internal.random import seed_of
    from ndm.tabular import sample_given

    place, n = encoding.names.index(column.name), options.n
    others = [name for name in encoding.names if name != column.name]
    size, blocks = max(1, AT_ONCE // n), []
    with tqdm(total=len(rows), desc="predicting", unit="row", disable=None) as bar:
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            drawn = sample_given(
                model, some, others, [column.name], n=n, steps=options.steps, seed=seed_of(options.seed, start),
                present=True,
            )  # fmt: skip
            blocks.append(drawn[:, place].reshape(len(some), n).numpy())
            bar.update(len(some))
    return np.concatenate(blocks)


def _in_units(column: Column, values: np.ndarray) -> Any:
    """Values as dates and times, if the column has these."""
    import numpy as np

    if column.storage == "date":
        return np.rint(values).astype("datetime64[D]")
    return np.rint(values).astype("datetime64[s]") if column.storage == "datetime" else values


def _summary_of_numbers(
    model: NDM,
    encoding: TableEncoding,
    column: Column,
    rows: np.ndarray,
    drawn: np.ndarray,
    options: argparse.Namespace,
) -> list[str]:
    from ndm.cli.tables import others_in_words
    from ndm.tabular import log_prob
    from ndm.tabular.calibration import coverage, crps, pit, pit_histogram

    others = [name for name in encoding.names if name != column.name]
    y = rows[:, encoding.names.index(column.name)]
    found = log_prob(model, rows, [column.name], others, seed=options.seed)
    score, (covered, error) = crps(drawn, y), coverage(drawn, y, LEVEL)
    counts = pit_histogram(pit(drawn, y, options.seed))
    observed = "; with the probability that the cell is not missing" if column.missing else ""
    unit = {"date": " days", "datetime": " seconds"}.get(column.storage, "")
    more = "" if column.kind == "real" else f"; at least {LEVEL:.0%} is expected of whole numbers"
    if (most := (options.n - 1) / (options.n + 1)) < LEVEL:  # the interval ends at the extreme samples
        more = f"; at most {most:.0%} is expected with {options.n} samples, draw more with -n"
    return [
        f"{column.name} given {others_in_words(others)}: {len(y):,} rows in which it is observed",
        f"{'log p(y|x)':<14} {_mean(found.values.numpy())} nats, {found.kind}{observed}",
        f"{'CRPS':<14} {_mean(score)}{unit}, from {options.n:,} samples per row",
        f"{'coverage':<14} {covered:>12.5f} ± {error:.5f} of the central {LEVEL:.0%} interval{more}",
        f"{'PIT histogram':<14} {' '.join(map(str, counts))}, {len(y) / len(counts):g} expected in each of 10 bins",
    ]


def _mean(values: np.ndarray) -> str:
    """The mean of the finite values and its standard error; the number of others."""
    import numpy as np

    there = values[np.isfinite(values)]
    if len(there) == 0:
        return f"{'-':>12}"
    error = f"{there.std(ddof=1) / math.sqrt(len(there)):.5f}" if len(there) > 1 else "-"
    left_out = len(values) - len(there)
    return f"{there.mean():>12.5f} ± {error}" + (f" (without {left_out:,} rows, not finite)" if left_out else "")


def _categories(
    model: NDM, encoding: TableEncoding, column: Column, file: FileRows, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """The most likely category and the probabilities, and the summary."""
    import numpy as np

    from ndm.data.frames import from_numbers
    from ndm.tabular import class_probabilities
    from ndm.tabular.files import unused

    p = class_probabilities(model, file.rows, column.name, seed=options.seed).numpy()
    if not np.isfinite(p).all():
        raise ValueError("Some of the probabilities are not finite, and no file was written: train the model again.")
    levels = from_numbers([column], np.arange(p.shape[1], dtype=float)[:, None]).column(0)
    found: dict[str, Any] = {"prediction": levels.take(_indices(p.argmax(1)))}
    for i, level in enumerate(levels.to_pylist()):
        found[unused(f"p({level})", found)] = p[:, i]
    y = file.rows[:, encoding.names.index(column.name)]
    seen = ~np.isnan(y)
    if not seen.any():
        return found, []
    others = [name for name in encoding.names if name != column.name]
    return found, _summary_of_categories(column, others, p[seen], y[seen].astype(int))


def _indices(places: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(places, pa.int64())


def _summary_of_categories(column: Column, others: list[str], p: np.ndarray, y: np.ndarray) -> list[str]:
    import numpy as np

    from ndm.cli.tables import others_in_words
    from ndm.tabular.calibration import calibration_error

    with np.errstate(divide="ignore"):
        score = np.log(p[np.arange(len(y)), y])
    right = float((p.argmax(1) == y).mean())
    most = np.bincount(y, minlength=p.shape[1]).max() / len(y)
    error = math.sqrt(right * (1 - right) / len(y))
    return [
        f"{column.name} given {others_in_words(others)}: {len(y):,} rows in which it is observed",
        f"{'log score':<18} {_mean(score)} nats, log p of the observed category",
        f"{'accuracy':<18} {right:>12.5f} ± {error:.5f}, of the most frequent category {most:.5f}",
        f"{'calibration error':<18} {calibration_error(p, y):>12.5f}, expected calibration error in 10 bins",
    ]
