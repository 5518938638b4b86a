"""``ndm distill``: fit a small network to the log-density of a model of a table, for ``ndm score --fast``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, say, show
from ndm.cli.options import add_allow, find_allowed, load_model, require_run
from ndm.cli.parsing import Parser, at_least, seed, without_data

if TYPE_CHECKING:
    from ndm.data import Data
    from ndm.model import NDM
    from ndm.scoring.distilled import DistilledScore

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="ndm distill",
        description="Fit a small network to the log-density of a model of a table of real numbers, and store it in "
        "RUN/distilled for `ndm score --fast`. Its errors are measured on other rows and printed.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, of a model of a table")
    parser.add_argument(
        "--rows", type=lambda text: at_least(2000, text), default=60_000, metavar="N",
        help="rows whose exact density is computed: training rows, samples, and rows around them (default: "
        "%(default)s); the error falls with more",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=lambda text: at_least(1, text), default=12_000, metavar="N",
        help="training steps of the network (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--data.path", metavar="PATH", help="path of the training data, if moved")
    add_allow(parser)
    return parser


def run(arguments: list[str]) -> None:
    arguments, overrides = without_data(arguments)
    options = _parser().parse_args(arguments)
    find_allowed(options.allow)

    run = require_run(options.run)
    from ndm.cli.tables import single_process  # with PyTorch
    from ndm.configs.recorded import read_run_data
    from ndm.scoring.distilling import check_distillable

    set_stop_message_of(run.distilled, f"the fast score is in {run.distilled}.", STOPPED["distill"])
    with single_process("ndm distill"):
        import torch

        model = load_model(run.path, torch.device("cpu"), options.allow)
        data = read_run_data(run, overrides, allow=options.allow, otherwise="or train again")
        check_distillable(model, bool(getattr(data, "given", None)))
        distilled = _distill(model, data, options)
        distilled.save_to(run.distilled)
    show("\n".join(_table(distilled)))
    say(f"the fast score is in {run.distilled}")
    say(f"next: ndm score {options.run} DATA --fast --out scores.csv")


def _distill(model: NDM, data: Data, options: argparse.Namespace) -> DistilledScore:
    from tqdm import tqdm

    from ndm.scoring.distilling import distill

    say(f"the densities of {options.rows:,} rows are computed, and {options.steps:,} training steps follow")
    bars: dict[str, tqdm[None]] = {}

    def report(stage: str, done: int, end: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=end, desc=stage, disable=None)
        bars[stage].update(done - bars[stage].n)
        if done == end:
            bars[stage].close()

    return distill(model, data, options.rows, options.steps, options.seed, report)


def _table(distilled: DistilledScore) -> list[str]:
    """The errors by distance."""
    lines = ["distance from the training data   error, median   95% of the errors below, nats"]
    for edge, (half, most) in zip(distilled.edges.tolist(), distilled.quantiles.tolist(), strict=True):
        lines.append(f"up to {edge:8.3g} standard deviations {half:15.3f} {most:19.3f}")
    return lines
