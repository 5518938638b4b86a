"""``ndm report``: write an HTML page that compares runs."""

from __future__ import annotations

import sys
from pathlib import Path

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, say
from ndm.cli.options import add_allow, find_allowed, require_run
from ndm.cli.parsing import Parser, positive, seed

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    parser = Parser(
        prog="ndm report",
        description="Write a report on one or several runs, side by side, as one HTML file.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run")
    parser.add_argument("--out", required=True, metavar="FILE", help="output file, ending in .html")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--examples", type=positive, metavar="N",
        help="number of test examples for the bound by noise level (default: 256, or fewer for a large model)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    add_allow(parser)
    options = parser.parse_args(arguments)
    find_allowed(options.allow)

    for run in options.runs:
        require_run(run)
    from ndm.configs.recorded import read_run_data
    from ndm.report import report
    from ndm.training import Run

    set_stop_message_of(Path(options.out), f"the report is in {options.out}.", STOPPED["report"])
    out = report(
        options.runs,
        options.out,
        examples=options.examples,
        seed=options.seed,
        device=options.device,
        data=lambda config: read_run_data(Run(config.parent), allow=options.allow),
        allow=options.allow,
        overwrite=options.overwrite,
        progress=sys.stderr.isatty(),
    )
    say(f"the report is in {out}")
