"""``ndm score``: the bound and the log-likelihood of every row of a table, or of every image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, say, show
from ndm.cli.options import add_allow, add_divergence, add_workers, find_allowed, load_model, require_run
from ndm.cli.parsing import Parser, natural, positive, seed, share, tolerance, without_data
from ndm.cli.process import spare_pandas

if TYPE_CHECKING:
    from ndm.model import NDM
    from ndm.scoring import Rows
    from ndm.training import Run

__all__ = ["run"]

#: Column of the labels of a table, as `ndm sample` writes it.
LABEL = "label"

#: Advice after a stop of a command that cannot be resumed.
NO_SCORES = "no scores were written; run the same command again."


def _parser() -> Parser:
    parser = Parser(
        prog="ndm score",
        description="Write the bound and the log-likelihood of every row of a table, or of every image.",
        epilog="A command that was stopped or killed is resumed by giving it again, except with the options of "
        "conditional scores. Several processes share the work by --workers, or by torchrun --nproc_per_node 8 -m ndm "
        "score RUN DATA ...",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a CSV or Parquet file; for a model of images, a folder or whatever --data.path takes",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="output file, ending in .parquet or .csv")
    parser.add_argument("--no-likelihood", action="store_true", help="compute the bound only, which is faster")
    parser.add_argument(
        "--times", type=positive, metavar="N",
        help="noise levels per row for the bound, an even number (default: 20, or 64 for conditional scores)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="NATS",
        help="tolerance of the likelihood's ODE solver, in nats (default: 0.01 per dimension)",
    )
    parser.add_argument(
        "--probes", type=positive, default=4,
        help="number of probes for a divergence that is not exact (default: %(default)s)",
    )  # fmt: skip
    add_divergence(parser)
    parser.add_argument(
        "--samples",
        type=positive,
        default=4,
        help="samples of z_0 per example, for K-level data (default: %(default)s)",
    )
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), help="split to score, for images with several splits"
    )
    parser.add_argument(
        "--label", type=natural, metavar="K",
        help="class of all rows, for a class-conditional model (default: the labels of the images, or the column "
        f"`{LABEL}` of the table)",
    )  # fmt: skip
    parser.add_argument("--max-rows", type=positive, metavar="N", help="score the first N rows only")
    parser.add_argument("--seed", type=seed, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="batch size (default: by the size of a row)")
    parser.add_argument(
        "--precision", choices=("32", "bf16", "64"), default="32",
        help="floating-point precision; bf16 is for the networks only (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    add_workers(parser)
    add_allow(parser)
    _add_fast(parser)
    _add_conditional(parser)
    return parser


def _add_fast(parser: Parser) -> None:
    group = parser.add_argument_group(
        "fast scores",
        "For a run with a network from `ndm distill`. The file has the columns `log_prob`, in nats, `error_median` and "
        "`error_95`, below which half and 95%% of the errors of such rows lie, and `exact`. Rows farther from the "
        "training data than those on which errors were measured are scored exactly.",
    )
    group.add_argument("--fast", action="store_true", help="compute log_prob by the network of `ndm distill`")
    group.add_argument(
        "--exact-below", type=share, metavar="P",
        help="with --fast: score exactly the rows whose fast score is below this quantile of those of the validation "
        "rows, such as 0.01",
    )  # fmt: skip


def _add_conditional(parser: Parser) -> None:
    group = parser.add_argument_group(
        "conditional scores",
        "For a model of a table with columns of several kinds. Each of these options writes the columns `log_prob`, "
        "log p(wanted | given) in nats, `log_prob_stderr` and `kind`. They are computed in memory on the CPU. "
        "Conditionals other than that of the training need a model trained with --training.conditionals any.",
    )
    group.add_argument("--given", nargs="+", metavar="NAME", help="columns that the score is conditional on")
    group.add_argument(
        "--wanted", nargs="+", metavar="NAME", help="columns whose probability is computed (default: all not given)"
    )
    group.add_argument(
        "--missing", choices=("value", "left-out"),
        help="meaning of a missing cell: a value of its column, or left out, so that the score is that of the observed "
        "cells (default: value)",
    )  # fmt: skip
    group.add_argument(
        "--explain", action="store_true",
        help="add a column `explain:NAME` for each column: log p of its cell given all others, or without "
        "--training.conditionals any its share of the bound; lower for an unlikely cell",
    )  # fmt: skip
    group.add_argument(
        "--percentile", action="store_true",
        help="add the column `percentile`: the conformal p-value of the score among the scores of the run's validation "
        "split; low for an abnormal row",
    )  # fmt: skip
    group.add_argument("--data.path", metavar="PATH", help="for --percentile: path of the training data, if moved")


def _is_conditional(options: argparse.Namespace) -> bool:
    named = (options.given, options.wanted, options.missing)
    return options.explain or options.percentile or any(value is not None for value in named)


def _score_conditional(run: Run, overrides: Sequence[str], options: argparse.Namespace) -> None:
    from ndm.cli.conditional import score_conditional
    from ndm.cli.tables import require_columns, single_process

    if (options.workers or 1) > 1:
        raise ValueError("Conditional scores are computed in one process: leave --workers out.")
    options.missing = (options.missing or "value").replace("-", " ")
    out = Path(options.out)
    for option in ("given", "wanted"):
        require_columns(getattr(options, option) or [], run.read_columns() or (), f"--{option}")
    with single_process("ndm score"):
        score_conditional(run, out, overrides, options)


def _score_fast(run: Run, options: argparse.Namespace) -> None:
    import torch

    from ndm.cli.fast import load_distilled, score_fast
    from ndm.cli.tables import single_process

    out = Path(options.out)
    with single_process("ndm score --fast"):
        model = load_model(run.path, torch.device("cpu"), options.allow)
        distilled = load_distilled(run.distilled, model)
        score_fast(model, distilled, _rows(run, model, options), out, options)


def run(arguments: list[str]) -> None:
    arguments, overrides = without_data(arguments)
    options = _parser().parse_args(arguments)
    if overrides and not options.percentile:
        raise ValueError(f"{overrides[0]} is for --percentile: leave it out.")
    find_allowed(options.allow)
    run = require_run(options.run)
    _check(run, options)
    otherwise = NO_SCORES if options.fast or _is_conditional(options) else STOPPED["score"]
    set_stop_message_of(Path(options.out), f"the scores are in {options.out}.", otherwise)
    if options.fast:
        _score_fast(run, options)
        return
    if _is_conditional(options):
        _score_conditional(run, overrides, options)
        return
    from ndm._internal.distributed import is_first, process_group  # with PyTorch
    from ndm._internal.workers import one_thread
    from ndm.scoring import score

    with one_thread(options.workers is not None), process_group(options.device) as device:
        model = load_model(run.path, device, options.allow)
        scores = score(
            model,
            _rows(run, model, options),
            options.out,
            likelihood=not options.no_likelihood,
            times=options.times or 20,
            tolerance=options.tolerance,
            samples=options.samples,
            probes=options.probes,
            divergence=options.divergence,
            precision=options.precision,
            batch_size=options.batch_size,
            max_rows=options.max_rows,
            seed=options.seed,
            labels=options.label,
            workers=options.workers or 1,
        )
        first = is_first()
    if first:
        show(scores.text())
        say(f"the scores are in {scores.path}")
    scores.require_finite()


def _check(run: Run, options: argparse.Namespace) -> None:
    """Check the options and the files before PyTorch is imported."""
    from ndm.cli.fast import check_fast
    from ndm.data.tablefile import require_table
    from ndm.scoring.checks import check_options, check_out

    if options.exact_below is not None and not options.fast:
        raise ValueError("--exact-below is for --fast: give both, or leave it out.")
    conditional = _is_conditional(options)
    if options.fast:
        check_fast(options, conditional)
    check_out(Path(options.out))
    check_options(
        options.times or (64 if conditional else 20), options.tolerance, options.samples, options.probes,
        options.precision, options.batch_size, options.max_rows, options.seed,
    )  # fmt: skip
    if conditional or not _is_of_images(run):
        if options.split is not None:
            raise ValueError("--split is for images only: a table is scored as a whole.")
        require_table(options.data)
        spare_pandas()


def _is_of_images(run: Run) -> bool:
    shape, levels = run.read_data()
    return len(shape) == 3 and levels == 256


def _rows(run: Run, model: NDM, options: argparse.Namespace) -> Rows:
    """Open a path as table rows or images, depending on the model of a run."""
    from ndm.method.encoding import TableEncoding
    from ndm.scoring import ImageRows, MixedRows, TableRows

    path, split = options.data, options.split
    shape, levels = run.read_data()
    if _is_of_images(run):
        from ndm.configs.configuration import read_data

        data = read_data(run.config, allow=options.allow)  # defines how the images are resized
        background = getattr(data, "background", "white")
        return ImageRows(path, shape, getattr(data, "size", None), getattr(data, "channels", None), split, background)
    if isinstance(model.standardize, TableEncoding):
        rows = MixedRows(path, model.standardize)
        for note in rows.notes:
            say(f"warning: {note}")
        return rows
    label = LABEL if model.num_classes and options.label is None else None
    return TableRows(path, shape, run.read_columns(), levels, label)
