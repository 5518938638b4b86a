"""``ndm push``: upload the model of a run to the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from ndm._internal.signals import set_stop_message
from ndm.cli.messages import say
from ndm.cli.options import add_allow, find_allowed, load_model, require_run
from ndm.cli.parsing import Parser

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    parser = Parser(prog="ndm push", description="Upload the model of a run to the Hugging Face hub, with its results.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("name", metavar="NAME", help="name of the repository: user/model")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--branch", help="branch to upload to (default: main)")
    parser.add_argument("--pull-request", action="store_true", help="open a pull request")
    add_allow(parser)
    options = parser.parse_args(arguments)
    find_allowed(options.allow)

    run = require_run(options.run)
    import torch

    model = load_model(run.path, torch.device("cpu"), options.allow)
    card: dict[str, Any] = {"shape": list(run.read_data()[0])}
    if run.evaluation.is_file():
        card["evaluation"] = run.read_evaluation()
    address = model.push_to_hub(
        options.name,
        card=card,
        private=options.private or None,
        branch=options.branch,
        create_pr=options.pull_request,
    )
    set_stop_message(f"the model is at {address}.")
    say(f"the model is at {address}")
