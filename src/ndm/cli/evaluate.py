"""``ndm evaluate``: the bound, the likelihood and the quality of samples of a run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm._internal.signals import set_stop_message_of, uninterrupted
from ndm.cli.messages import STOPPED, one_line, say, show
from ndm.cli.options import (
    add_common,
    add_divergence,
    add_sampling,
    add_workers,
    check_guidance,
    find_allowed,
    load_model,
    precision,
    require_run,
    sampling_options,
)
from ndm.cli.parsing import Parser, positive, steps, tolerance, without_data

if TYPE_CHECKING:
    from ndm.evaluation import Evaluation

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="ndm evaluate",
        description="The bound per number of steps, the ODE likelihood, and the quality of samples.",
        epilog="Several processes share the work by --workers, or by torchrun --nproc_per_node 8 -m ndm evaluate RUN",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    splits = ("train", "validation", "test")
    parser.add_argument("--split", choices=splits, default="test", help="split to evaluate (default: %(default)s)")
    parser.add_argument(
        "--steps", nargs="+", type=steps, default=[10, 50, 1000, None], metavar="T",
        help="numbers of steps of the bound, or `continuous` (default: 10 50 1000 continuous)",
    )  # fmt: skip
    parser.add_argument(
        "--variances", nargs="+", default=["posterior", "own", "auto"], metavar="W",
        help="reverse variances: posterior, own (the model's), isotropic, diagonal, frequency (for images), full, auto "
        "(the last five calibrated on training data; auto is the better of diagonal and frequency for images, and "
        "isotropic for other data; default: posterior own auto)",
    )  # fmt: skip
    parser.add_argument(
        "--spacing", choices=("time", "gamma", "optimal"), default="time",
        help="spacing of the steps of bounds with calibrated variances: even in time, even in gamma (the log "
        "noise-to-signal ratio), or optimal, found on training data for up to 100 steps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--times", type=positive, default=100, metavar="N",
        help="noise levels per example for a bound with more steps than that or in continuous time; fewer levels are "
        "faster and give larger standard errors (default: %(default)s)",
    )  # fmt: skip
    _add_likelihood_and_quality(parser)
    parser.add_argument(
        "--data.path", metavar="PATH", help="path of the data, if they were moved; any --data.x of `ndm train`"
    )
    parser.add_argument(
        "--other-data", action="store_true",
        help="allow data other than those of the training; results are written to RUN/evaluation-other-data.json",
    )  # fmt: skip
    add_sampling(parser, steps=250, prefix="--sampling-")
    add_common(parser, seeded="random seed, also of the choice of examples")
    add_workers(parser)
    return parser


def _add_likelihood_and_quality(parser: Parser) -> None:
    parser.add_argument("--no-likelihood", action="store_true", help="skip the ODE likelihood, which takes longest")
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="NATS",
        help="tolerance of the likelihood's ODE solver, in nats (default: 0.01 per dimension)",
    )
    parser.add_argument(
        "--probes",
        type=positive,
        default=4,
        help="number of probes for a divergence that is not exact (default: %(default)s)",
    )
    add_divergence(parser)
    parser.add_argument(
        "--samples",
        type=positive,
        default=4,
        help="samples of z_0 per example, for K-level data (default: %(default)s)",
    )
    parser.add_argument("--max-examples", type=positive, metavar="N", help="evaluate N random examples only")
    parser.add_argument(
        "--likelihood-examples", type=positive, metavar="N", help="compute the ODE likelihood on N random examples only"
    )
    parser.add_argument(
        "--fid", type=positive, metavar="N", help="compare N samples with N random real images by FID and KID"
    )
    parser.add_argument(
        "--features", default="inception", metavar="NET",
        help="feature network of FID and KID: inception, or a folder with a network saved by ndm "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--inception-weights",
        metavar="FILE",
        help="file with the weights of Inception, for a computer without internet access",
    )
    parser.add_argument(
        "--no-mixture", action="store_true",
        help="skip the comparison with a mixture (tables only)",
    )  # fmt: skip


def run(arguments: list[str]) -> None:
    given = arguments
    arguments, overrides = without_data(arguments)
    options = _parser().parse_args(arguments)
    find_allowed(options.allow)

    run = require_run(options.run)
    from ndm._internal.companions import companions  # with PyTorch
    from ndm._internal.distributed import is_first, process_group
    from ndm._internal.workers import check_workers, one_thread
    from ndm.configs.recorded import read_run_data
    from ndm.evaluation import evaluate

    file = run.path / "evaluation-other-data.json" if options.other_data else run.evaluation
    set_stop_message_of(file, f"the results are in {file}.", STOPPED["evaluate"])
    workers = options.workers or 1
    if workers > 1:
        with process_group(options.device) as device:
            check_workers(device, workers)
    together, single = companions(workers, _accompany, given), one_thread(options.workers is not None)
    with single, together, process_group(options.device) as device, precision(options.precision, device):
        features: Any = options.features
        if options.fid and options.inception_weights:
            features = importlib.import_module("ndm.evaluation.quality").feature_network(
                features, options.inception_weights
            )
        model = load_model(run.path, device, options.allow)
        check_guidance(run, options.guidance)
        evaluation = evaluate(
            model,
            read_run_data(run, overrides, options.other_data, options.allow),
            split=options.split,
            steps=tuple(options.steps),
            variances=tuple(options.variances),
            likelihood=not options.no_likelihood,
            max_examples=options.max_examples,
            likelihood_examples=options.likelihood_examples,
            seed=options.seed,
            progress=sys.stderr.isatty(),
            batch_size=options.batch_size,
            times=options.times,
            spacing=options.spacing,
            quality=options.fid,
            features=features,
            sampling=sampling_options(options) | {"steps": options.sampling_steps},
            mixture=not options.no_mixture,
            probes=options.probes,
            divergence=options.divergence,
            samples=options.samples,
            tolerance=options.tolerance,
        )
        if is_first():
            if options.other_data:
                evaluation.about["other_data"] = " ".join(overrides) or f"what {run.config} names"
            _show(evaluation, file)
            if options.other_data:
                show("These results are for other data than the training data; the run's own results are unchanged.")


def _accompany(ready: Callable[[], None], arguments: list[str]) -> None:
    """Run the command as one of several processes, after the slow imports."""
    importlib.import_module("ndm.configs.recorded")
    importlib.import_module("ndm.evaluation.evaluator")
    ready()
    run([*arguments, "--workers", "1"])


def _show(evaluation: Evaluation, file: Path) -> None:
    """Save the results, and print them even if saving fails.

    Raises:
        OSError: the results cannot be saved.
        ValueError: a metric is not finite for any example.
    """
    try:
        with uninterrupted():
            path = evaluation.save(file)
    except OSError as error:
        show(evaluation.text())
        raise OSError(f"The results could not be saved in {file} ({one_line(error)}).") from None
    show(evaluation.text())
    say(f"the results are in {path}")
    nothing = [row["kind"] for row in evaluation.rows if row["value"] is None]
    if nothing:
        raise ValueError(
            f"No example has a finite value of: {'; '.join(nothing)}. Check the data for values far from the training "
            "data; if there are none, train the model again with a lower learning rate."
        )
