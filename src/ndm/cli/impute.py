"""``ndm impute``: fill the missing cells of a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ndm.cli.messages import say, show
from ndm.cli.parsing import Parser, positive
from ndm.cli.tables import add_drawing, run_alone

if TYPE_CHECKING:
    import numpy as np

    from ndm.method.encoding import TableEncoding

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="ndm impute",
        description="Fill the missing cells of a table by samples given the observed cells of each row.",
        epilog="The model must be trained with --training.conditionals any. Cells are missing if they are empty, NA, "
        "NaN or null. All columns of DATA are written; those that are not in the model are copied.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, of a model of a table")
    parser.add_argument("data", metavar="DATA", help="a CSV or Parquet file with all columns of the model")
    parser.add_argument("--out", required=True, metavar="FILE", help="output file, ending in .csv or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "-n", type=positive, default=1, metavar="N",
        help="copies of each row, each filled by another sample; with more than one the column `row` is the number of "
        "the row in DATA, from 0 (default: %(default)s)",
    )  # fmt: skip
    add_drawing(parser)
    return parser


def run(arguments: list[str]) -> None:
    run_alone("impute", _parser().parse_args(arguments), "the filled table is", _fill)


def _fill(out: Path, options: argparse.Namespace) -> None:
    import numpy as np

    from ndm.cli.tables import load_table_model, warn_of
    from ndm.tabular import impute
    from ndm.tabular.files import read_rows
    from ndm.tabular.filling import write_filled

    model, encoding = load_table_model(Path(options.run), options.allow)
    file = read_rows(options.data, encoding)
    warn_of(file.notes)
    holes = np.isnan(file.rows)
    filled = impute(model, file.rows, n=options.n, steps=options.steps, seed=options.seed).numpy()
    wrong = int((~np.isfinite(filled)).any(1).sum())
    if wrong:
        raise ValueError(f"{wrong} of the filled rows are not finite, and no file was written: use more --steps.")
    write_filled(file, encoding.table, filled, out, options.overwrite)
    if holes.any():
        show("\n".join(_summary(encoding, holes, filled, options.n)))
    else:
        show("no missing cells in the columns of the model: the rows were copied unchanged")
    say(f"the filled table is in {out}")


def _summary(encoding: TableEncoding, holes: np.ndarray, filled: np.ndarray, n: int) -> list[str]:
    """What was filled: cells by column, and those filled by rare categories, which have no name."""
    counts = {name: int(k) for name, k in zip(encoding.names, holes.sum(0), strict=True) if k}
    copies = "" if n == 1 else f", each in {n:,} copies"
    cells = ", ".join(f"{name} {k:,}" for name, k in counts.items())
    lines = [f"filled {sum(counts.values()):,} missing cells of {int(holes.any(1).sum()):,} rows{copies}: {cells}"]
    own = holes.repeat(n, 0)
    for i, column in enumerate(encoding.table):
        if column.other and (k := int((own[:, i] & (filled[:, i] == len(column.levels))).sum())):
            lines.append(f'{column.name}: {k:,} cells are "(other)", a category that is rare in the training rows')
    return lines
