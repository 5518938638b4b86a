"""``ndm sample --given``: samples of the other columns for each row of a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ndm.cli.messages import say
from ndm.cli.options import check_guidance, precision, sampling_options
from ndm.cli.tables import load_table_model, warn_of

if TYPE_CHECKING:
    import torch

    from ndm.method.encoding import TableEncoding
    from ndm.model import NDM
    from ndm.tabular.files import FileRows

__all__ = ["draw_given"]

#: Number of samples that are drawn and written at a time.
AT_ONCE = 1 << 15


def draw_given(path: Path, out: Path, options: argparse.Namespace) -> None:
    """Draw the columns that a file does not have, for each of its rows, and write them block by block.

    Raises:
        ValueError: the file or the model does not fit, or a sample is not finite.
    """
    import torch

    from ndm.samples import formula_warning, sample_file
    from ndm.training import Run

    if options.label is not None:
        raise ValueError("--label needs a class-conditional model, and --given a model of a table: leave one out.")
    check_guidance(Run(path), options.guidance)
    model, encoding = load_table_model(path, options.allow)
    file = _known(options.given, encoding)
    n = len(file.rows) * options.n
    with (
        precision(options.precision, torch.device("cpu")) if options.precision == "bf16" else nullcontext(),
        sample_file(
            out, n, encoding.shape, columns=encoding.names, replace=options.overwrite, encoding=encoding
        ) as written,
    ):
        for x in _blocks(model, file, options):
            _require_finite(x, encoding, file.columns, written.done)
            written.write(x)
    others = [name for name in encoding.names if name not in file.columns]
    say(f"{n:,} samples of {', '.join(others)} are in {out}, {options.n:,} for each row of {options.given}")
    if warning := formula_warning(out, encoding.names):
        say(f"warning: {warning}")


def _known(path: str, encoding: TableEncoding) -> FileRows:
    """The rows of the given columns, with warnings of columns without a use and of cells that are left out."""
    import numpy as np

    from ndm.data.columns import some
    from ndm.tabular.files import read_rows

    file = read_rows(path, encoding, needed=(), optional=encoding.names)
    if not file.columns:
        raise ValueError(f"{path} has no column of the model, whose columns are {some(encoding.names)}.")
    if len(file.columns) == len(encoding.names):
        raise ValueError(
            f"{path} has all columns of the model, so there is nothing to sample: remove the columns to be sampled."
        )
    warn_of(file.notes)
    unknown = [name for name in file.cells if name not in encoding.names]
    if unknown:
        say(f"warning: {path} has columns that are not in the model and are not used: {some(unknown)}")
    for i, column in enumerate(encoding.table):
        holes = int(np.isnan(file.rows[:, i]).sum()) if column.name in file.columns else 0
        if holes and not column.missing:
            say(
                f"warning: the column {column.name!r} has {holes:,} missing cells, and had none in the training: the "
                "samples of these rows are not conditional on it"
            )
    return file


def _blocks(model: NDM, file: FileRows, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Samples in the order of the rows, float64 (B, C)."""
    from tqdm import tqdm

    from ndm._internal.random import seed_of
    from ndm.tabular import sample_given

    size = max(1, AT_ONCE // options.n)
    with tqdm(total=len(file.rows), desc="sampling", unit="row", disable=None) as bar:
        for start in range(0, len(file.rows), size):
            some = file.rows[start : start + size]
            yield sample_given(
                model, some, file.columns, n=options.n, steps=options.steps, seed=seed_of(options.seed, start),
                **sampling_options(options),
            )  # fmt: skip
            bar.update(len(some))


def _require_finite(x: torch.Tensor, encoding: TableEncoding, given: tuple[str, ...], first: int) -> None:
    from ndm.samples import not_finite

    drawn = [i for i, name in enumerate(encoding.names) if name not in given]
    if wrong := not_finite(x[:, drawn], encoding.restricted(drawn)):
        raise ValueError(
            f"{wrong} of the samples {first} to {first + len(x) - 1} contain NaN or infinite values; no file was "
            "written. Use more --steps, or another --method or --eta."
        )
