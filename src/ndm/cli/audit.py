"""``ndm audit``: what the likelihood of a run's model is made of, what to quote, and what would lower it."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, one_line, say, show
from ndm.cli.options import (
    add_common,
    add_divergence,
    add_workers,
    find_allowed,
    load_model,
    precision,
    require_run,
)
from ndm.cli.parsing import Parser, natural, positive, tolerance, without_data
from ndm.storage.texts import require_free

if TYPE_CHECKING:
    from ndm.evaluation import Audit

__all__ = ["run"]

SUFFIXES = (".html", ".htm", ".json")


def _parser() -> Parser:
    parser = Parser(
        prog="ndm audit",
        description="What the likelihood of a model is made of, what to quote, and what would lower it.",
        epilog="Several processes share the work by --workers, or by torchrun --nproc_per_node 8 -m ndm audit RUN",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--out", metavar="FILE", help="also write a page, FILE ending in .html, or the numbers, FILE ending in .json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    splits = ("train", "validation", "test")
    parser.add_argument("--split", choices=splits, default="test", help="split to look at (default: %(default)s)")
    parser.add_argument(
        "--steps", nargs="+", type=positive, metavar="T",
        help="numbers of steps of the bound, besides continuous time (default: 10 50 1000, and N - 1 for a schedule of "
        "N noise levels)",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=positive, metavar="N",
        help="number of random examples (default: 1000, or fewer for a large network)",
    )  # fmt: skip
    parser.add_argument(
        "--times", type=positive, metavar="N",
        help="noise levels per example for a bound with more steps than that, in continuous time and by noise level "
        "(default: 100, or fewer for a large network)",
    )  # fmt: skip
    _add_likelihood(parser)
    parser.add_argument(
        "--lowest-gamma", type=_number, metavar="GAMMA",
        help="the lowest noise level on which the networks were trained, if it is below the schedule's: the audit then "
        "also looks at lower ends of the schedule",
    )  # fmt: skip
    parser.add_argument(
        "--data.path", metavar="PATH", help="path of the data, if they were moved; any --data.x of `ndm train`"
    )
    parser.add_argument("--other-data", action="store_true", help="allow data other than those of the training")
    add_common(parser, seeded="random seed, also of the choice of examples")
    add_workers(parser)
    return parser


def _add_likelihood(parser: Parser) -> None:
    parser.add_argument(
        "--ode", type=natural, metavar="N",
        help="number of these examples for the ODE likelihood, 0 for none (default: 16, or fewer for a large network)",
    )  # fmt: skip
    parser.add_argument("--samples", type=positive, default=4, help="samples of z_0 per example (default: %(default)s)")
    parser.add_argument(
        "--probes", type=positive, default=4, help="probes for a divergence that is not exact (default: %(default)s)"
    )
    add_divergence(parser)
    parser.add_argument(
        "--tolerance", type=tolerance, metavar="NATS",
        help="tolerance of the likelihood's ODE solver, in nats (default: 0.01 per dimension)",
    )  # fmt: skip
    parser.add_argument("--no-grid", action="store_true", help="do not integrate the density of points")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}")
    return value


def run(arguments: list[str]) -> None:
    given = arguments
    arguments, overrides = without_data(arguments)
    options = _parser().parse_args(arguments)
    find_allowed(options.allow)
    run = require_run(options.run)
    out = None if options.out is None else Path(options.out)
    if out is not None:
        _check_out(out, options.overwrite)
        set_stop_message_of(out, f"the audit is in {out}.", STOPPED["audit"])
    if options.examples == 1:
        raise ValueError("ndm audit: argument --examples: a standard error needs at least 2 examples.")

    from ndm._internal.companions import companions  # with PyTorch
    from ndm._internal.distributed import is_first, process_group
    from ndm._internal.workers import check_workers, one_thread
    from ndm.configs.recorded import read_run_data
    from ndm.evaluation import audit

    workers = options.workers or 1
    if workers > 1:
        with process_group(options.device) as device:
            check_workers(device, workers)
    together, single = companions(workers, _accompany, given), one_thread(options.workers is not None)
    with single, together, process_group(options.device) as device, precision(options.precision, device):
        model = load_model(run.path, device, options.allow)
        found = audit(
            model,
            read_run_data(run, overrides, options.other_data, options.allow),
            split=options.split,
            steps=None if options.steps is None else tuple(options.steps),
            examples=options.examples,
            times=options.times,
            ode=options.ode,
            samples=options.samples,
            probes=options.probes,
            divergence=options.divergence,
            tolerance=options.tolerance,
            grid=not options.no_grid,
            lowest_gamma=options.lowest_gamma,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=sys.stderr.isatty(),
        )
        if is_first():
            _show(found, out, run.path.resolve().name)
    row = found.find(None)
    if row is not None and row.not_finite == len(row.per_example):
        raise ValueError("No example has a finite bound: train the model again with a lower learning rate.")


def _check_out(out: Path, overwrite: bool) -> None:
    """Check the file before anything is computed."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The name of the file, {out}, must end in .html or .json.")
    require_free(out, overwrite)


def _show(found: Audit, out: Path | None, name: str) -> None:
    """Print the text, then write the file.

    Raises:
        OSError: the file cannot be written.
    """
    show(found.text())
    if out is None:
        return
    try:
        if out.suffix.lower() == ".json":
            found.save(out)
        else:
            from ndm.report.audit_page import audit_page

            audit_page(found, out, name=name)
    except OSError as error:
        raise OSError(f"The audit could not be saved in {out} ({one_line(error)}).") from None
    say(f"the audit is in {out}")


def _accompany(ready: Callable[[], None], arguments: list[str]) -> None:
    """Run the command as one of several processes, after the slow imports."""
    importlib.import_module("ndm.configs.recorded")
    importlib.import_module("ndm.evaluation.auditing.auditor")
    ready()
    run([*arguments, "--workers", "1"])
