"""The ``ndm`` command: train, evaluate, sample, score, report, push, demo.

Nothing heavy is imported before it is needed, so that ``ndm --help`` answers at once. Whatever the user got wrong is
answered by one sentence on stderr and exit code 2; a training that failed has exit code 1, a command that was stopped
by Ctrl-C or SIGTERM 130.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ndm.stopping import telling, terminable, uninterrupted

if TYPE_CHECKING:
    import torch

    from ndm.evaluation import Evaluation
    from ndm.model import NDM
    from ndm.scoring import Rows
    from ndm.training import Run

__all__ = ["main"]

FAILED, WRONG, INTERRUPTED = 1, 2, 130

#: Set to see where in the program an error comes from.
TRACEBACK = "NDM_TRACEBACK"

#: What may be done where there is not enough memory.
LESS_MEMORY = "take a smaller batch, a smaller network or fewer columns, or another computer"

#: What is left of a command that was stopped, and what to do; `ndm train` says it itself.
STOPPED = {
    "evaluate": "no figures were written; the same command starts again.",
    "sample": "no samples were written; the same command starts again.",
    "score": "the same command goes on where it was.",
    "report": "no page was written; the same command starts again.",
    "push": "what had been sent may be there; the same command sends all of it.",
    "demo": "the same command starts again, in a folder of its own.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default the process's own, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the processes that this one starts are not to look for modules in the current folder either
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        with terminable():
            return _dispatch(arguments)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as stopped:
        name = arguments[0] if arguments else ""
        _say(f"stopped; {str(stopped) or STOPPED.get(name, 'nothing was written; the same command starts again.')}")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, (ValueError, OSError, ImportError)):
            _say(f"error: {_one_line(error)}")
            return WRONG
        if _is_lack_of_memory(error):
            _say(f"error: there is not enough memory for this ({_one_line(error)[:200]}): {LESS_MEMORY}.")
            return WRONG
        if type(error).__name__ == "NonFiniteLoss":  # by name: its module would import Lightning
            _say(f"error: {_one_line(error)}")
            return FAILED
        raise


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy, Arrow or PyTorch, whose error of the processor has no class, was refused memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def _dispatch(arguments: list[str]) -> int:
    parser = _Parser(
        prog="ndm",
        description="Neural Diffusion Models: train, evaluate, sample and score.",
        epilog="`ndm COMMAND --help` says more about a command.",
    )
    parser.add_argument("--version", action="store_true", help="say which version this is")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", prog="ndm", parser_class=_Parser)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command[1], add_help=False)
    if not arguments:
        parser.print_help()
        return WRONG
    name = arguments[0]
    if name in COMMANDS:
        COMMANDS[name][0](arguments[1:])
        return 0
    if not name.startswith("-"):
        raise ValueError(f"There is no command {name!r}{_nearest(name, COMMANDS)}")
    if parser.parse_args(arguments).version:
        print(f"ndm {importlib.import_module('ndm').__version__}")
    return 0


# ---- ndm train


def _train(arguments: list[str]) -> None:
    from ndm import training
    from ndm.configs.configuration import Configuration
    from ndm.configs.recorded import looked_for

    command = ["ndm", "train", *arguments]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    own = _Parser(prog="ndm train", add_help=False)
    own.add_argument("--out")
    own.add_argument("--resume", action="store_true")
    own.add_argument("--tiny", action="store_true")
    own.add_argument("--print_config", action="store_true")
    _add_allow(own)
    options, overrides = own.parse_known_args(arguments)
    _find(options.allow)
    if {"-h", "--help"} & set(overrides) or any(o.partition("=")[0].endswith(".help") for o in overrides):
        Configuration.help(overrides, options.allow)
    run = training.Run(Path(options.out)) if options.out else None
    if name is None and options.resume and run is not None:
        if not run.is_unborn:
            run.require_checkpoint()
        name = str(run.config)
    if name is None:
        raise ValueError("Which configuration? Give a file or the name of a shipped one, as in `ndm train digits`.")
    configuration = Configuration.read(name, overrides, options.tiny, options.allow)
    if options.print_config:
        print(configuration.text, end="")
        return
    run = run or training.Run(Path("runs") / Path(name).stem)
    resume = options.resume and not run.is_unborn
    if resume:
        run.require_checkpoint()
    else:
        run.require_new(_without_out(command))  # before the time is spent on building anything
    if run.is_unborn and not run.is_shared:
        _say(f"{run.path} is of a training that ended before its first checkpoint; it begins again.")
    try:
        with looked_for(run, overrides) if resume else nullcontext():
            built = configuration.build()
        training.fit(
            built.model,
            built.data,
            run.path,
            built.training,
            built.trainer,
            seed=built.seed,
            resume=resume,
            config=configuration.text,
            command=shlex.join(command),
            notes=built.notes,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_after_stop(run, command, options.allow)) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(f"{_one_line(error)}: make room; {_after_stop(run, command, options.allow)}") from None


def _without_out(command: Sequence[str]) -> str:
    """The command of a training, without the name of its folder and without --resume."""
    skipped = {i + k for i, word in enumerate(command) if word == "--out" for k in (0, 1)}
    kept = [word for i, word in enumerate(command) if i not in skipped and word != "--resume"]
    return shlex.join(word for word in kept if not word.startswith("--out="))


def _after_stop(run: Run, command: Sequence[str], allow: Sequence[str]) -> str:
    """What is left of a training that was stopped, and what goes on with it."""
    if run.last.is_file():
        allowed = "".join(f" --allow {name}" for name in allow)
        return f"its last checkpoint is kept; go on with: {run.resume}{allowed}"
    return f"there was no checkpoint yet; start again with: {shlex.join(command)}"


# ---- ndm evaluate


def _evaluate(arguments: list[str]) -> None:
    parser = _Parser(
        prog="ndm evaluate",
        description="The bound per number of steps, the ODE likelihood, and the quality of samples.",
        epilog="Several processes share the work: torchrun --nproc_per_node 8 -m ndm evaluate RUN ...",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    splits = ("train", "validation", "test")
    parser.add_argument("--split", choices=splits, default="test", help="which examples (default: %(default)s)")
    parser.add_argument(
        "--steps", nargs="+", type=_steps, default=[10, 50, 1000, None], metavar="T",
        help="numbers of steps, and `continuous` (default: 10 50 1000 continuous)",
    )  # fmt: skip
    parser.add_argument(
        "--variances", nargs="+", default=["posterior", "own", "isotropic"], metavar="W",
        help="reverse variances: posterior, own (the model's), isotropic, diagonal, full (the last three calibrated on "
        "training data; default: posterior own isotropic)",
    )  # fmt: skip
    parser.add_argument(
        "--grid", choices=("even", "gamma", "optimal"), default="even",
        help="the steps of bounds with calibrated variances: even in time, even in gamma, the log noise-to-signal "
        "ratio, or the best ones, by training data, for up to 100 steps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--times", type=_positive, default=100, metavar="N",
        help="noise levels per example where not every step is looked at; fewer are faster and give larger standard "
        "errors (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-likelihood", action="store_true", help="leave the ODE likelihood out, which takes longest"
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="NATS",
        help="of the likelihood's ODE solver (default: 0.01 a dimension)",
    )
    parser.add_argument("--probes", type=_positive, default=4, help="for its divergence (default: %(default)s)")
    parser.add_argument("--samples", type=_positive, default=4, help="of its z_0, K-level data (default: %(default)s)")
    parser.add_argument("--max-examples", type=_positive, metavar="N", help="evaluate N random examples only")
    parser.add_argument(
        "--likelihood-examples", type=_positive, metavar="N", help="N random ones of them only, for the ODE likelihood"
    )
    parser.add_argument(
        "--fid", type=_positive, metavar="N", help="compare N samples with N random real images by FID and KID"
    )
    parser.add_argument(
        "--features", default="inception", metavar="NET",
        help="whose features FID and KID compare: inception, or a folder in which ndm has saved a network "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="Inception's weights, for a computer without a connection"
    )
    parser.add_argument(
        "--no-mixture", action="store_true",
        help="leave out the comparison with a Gaussian mixture, which is made for continuous tables",
    )  # fmt: skip
    parser.add_argument(
        "--data.path", metavar="PATH", help="where the data are, if they were moved; any --data.x of `ndm train`"
    )
    parser.add_argument(
        "--other-data", action="store_true",
        help="evaluate on data other than those of the training, on purpose: the figures are written to "
        "RUN/evaluation-other-data.json",
    )  # fmt: skip
    _add_sampling(parser, steps=250, flag="--sampling-steps")
    _add_common(parser, seeded="the same seed gives the same, and takes the same random examples")
    arguments, overrides = _without_data(arguments)
    options = parser.parse_args(arguments)
    _find(options.allow)

    from ndm.configs.recorded import read_run_data
    from ndm.distributed import is_first, together
    from ndm.evaluation import evaluate
    from ndm.training import Run

    run = Run(Path(options.run))
    file = run.path / "evaluation-other-data.json" if options.other_data else run.evaluation
    told = telling(file, f"the figures are in {file}.", STOPPED["evaluate"])
    with told, together(options.device) as device, _precision(options.precision, device):
        features: Any = options.features
        if options.fid and options.inception_weights:
            features = importlib.import_module("ndm.quality").feature_network(features, options.inception_weights)
        model = _load(run.path, device, options.allow)
        _check_guidance(run, options.guidance)
        evaluation = evaluate(
            model,
            read_run_data(run, overrides, options.other_data, options.allow),
            split=options.split,
            steps=tuple(options.steps),
            covariances=tuple(options.variances),
            likelihood=not options.no_likelihood,
            max_examples=options.max_examples,
            likelihood_examples=options.likelihood_examples,
            seed=options.seed,
            progress=sys.stderr.isatty(),
            batch_size=options.batch_size,
            times=options.times,
            grid=options.grid,
            quality=options.fid,
            features=features,
            sampling=_sampling(options) | {"steps": options.sampling_steps},
            mixture=not options.no_mixture,
            probes=options.probes,
            samples=options.samples,
            tolerance=options.tolerance,
        )
        if is_first():
            if options.other_data:
                evaluation.about["other_data"] = " ".join(overrides) or f"what {run.config} names"
            _show(evaluation, file)
            if options.other_data:
                print("These are figures of data other than those of the training: the run's own are not touched.")


def _show(evaluation: Evaluation, file: Path) -> None:
    """Save what was measured, and print it whether it can be saved or not.

    Raises:
        OSError: it cannot be saved.
        ValueError: a figure is finite for no example.
    """
    try:
        with uninterrupted():
            path = evaluation.save(file)
    except OSError as error:
        print(evaluation.text(), flush=True)
        raise OSError(f"These figures could not be saved in {file} ({_one_line(error)}).") from None
    print(evaluation.text(), flush=True)
    _say(f"the same numbers are in {path}")
    nothing = [row["kind"] for row in evaluation.rows if row["value"] is None]
    if nothing:
        raise ValueError(
            f"No example has a finite value of: {'; '.join(nothing)}. Look at the data for values far from those that "
            "were trained on; if there are none, the model is of no use: train it again with a lower learning rate."
        )


# ---- ndm sample


def _sample(arguments: list[str]) -> None:
    parser = _Parser(
        prog="ndm sample",
        description="Draw examples from a trained model.",
        epilog="Several processes share the work: torchrun --nproc_per_node 8 -m ndm sample RUN -n 50000 ...",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("-n", type=_positive, default=64, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="what to write: a file ending in .png, .csv, .npz or .parquet"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    _add_sampling(parser, steps=100, flag="--steps")
    parser.add_argument(
        "--label", type=_natural, metavar="K",
        help="the class to draw from, for a model of several (default: each in turn; a table of samples tells which)",
    )  # fmt: skip
    _add_common(parser)
    options = parser.parse_args(arguments)
    _find(options.allow)
    out = Path(options.out)

    from ndm.distributed import together
    from ndm.samples import require_place

    require_place(out, options.overwrite)
    told = telling(out, f"{options.n} samples are in {out}.", STOPPED["sample"])
    with told, together(options.device) as device, _precision(options.precision, device):
        _draw(Path(options.run), out, device, options)


def _draw(path: Path, out: Path, device: torch.device, options: argparse.Namespace) -> None:
    """Draw samples of the run there, and write each block as it comes."""
    from ndm.distributed import in_turn, is_first, rank, world_size
    from ndm.inputs import state_like
    from ndm.samples import class_turns, formula_warning, sample_file
    from ndm.sampling import sample_batches
    from ndm.training import Run

    run, model = Run(path), _load(path, device, options.allow)
    (shape, levels), columns = run.read_data(), run.read_columns()
    labels = class_turns(model, options.label, run.read_classes())
    _check_guidance(run, options.guidance)
    drawn = sample_batches(
        model,
        options.n,
        shape,
        seed=options.seed,
        batch_size=options.batch_size,
        labels=labels,
        rank=rank(),
        world_size=world_size(),
        steps=options.steps,
        **_sampling(options),
    )
    like = state_like(model, 0, shape).cpu()
    blocks = in_turn((x.to("cpu", like.dtype) for _, x in drawn), options.batch_size, options.n, like)
    if not is_first():
        for _ in blocks:  # in the making of which it has a part
            pass
        return
    with sample_file(out, options.n, shape, model.decoder.levels, levels, columns, labels) as file:
        for x in blocks:
            _require_finite(x, file.done, options)
            file.write(x)
    _say(f"{options.n} samples are in {out}")
    if warning := formula_warning(out, columns):
        _say(f"warning: {warning}")


def _require_finite(x: torch.Tensor, first: int, options: argparse.Namespace) -> None:
    wrong = int((~x.flatten(1).isfinite().all(1)).sum())
    if wrong:
        other = "another --method" if options.eta is None else "another --method or --eta"
        raise ValueError(
            f"{wrong} of the samples {first} to {first + len(x) - 1} hold NaN or infinite values, and no file was "
            f"written: take more --steps, or {other}."
        )


def _add_sampling(parser: argparse.ArgumentParser, steps: int, flag: str) -> None:
    parser.add_argument("--method", default="ancestral", help="ancestral, ddim, ode or sde (default: %(default)s)")
    parser.add_argument(
        flag, type=_positive, default=steps, metavar="T", help="number of sampling steps (default: %(default)s)"
    )
    parser.add_argument("--eta", type=float, help="volatility in place of the model's own")
    parser.add_argument(
        "--spacing", choices=("time", "gamma"),
        help="steps that are even in time, or in gamma, the log noise-to-signal ratio (default: gamma for a learned "
        "schedule that was trained in continuous time, else time)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="weight of classifier-free guidance, for a conditional model"
    )


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`_add_sampling` has asked for, as options of ndm.sample."""
    chosen = {
        "method": options.method,
        "eta": options.eta,
        "guidance": options.guidance,
        "spacing": options.spacing,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _add_common(parser: argparse.ArgumentParser, seeded: str = "the same seed gives the same") -> None:
    parser.add_argument("--seed", type=_natural, default=0, help=f"{seeded} (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=_positive, default=250, metavar="N", help="at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=("32", "bf16"), default="32", help="of the networks' arithmetic (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    _add_allow(parser)


def _add_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE",
        help="let configurations and models name classes of this module of yours, which runs its code; it is looked "
        "for where Python looks, and in the current folder",
    )  # fmt: skip


def _find(allow: Sequence[str]) -> None:
    """Let the modules that are allowed be found in the current folder too."""
    if allow:
        importlib.import_module("ndm.configs.allowing").find_here(allow)


def _precision(name: str, device: torch.device) -> AbstractContextManager:
    import torch

    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()


def _check_guidance(run: Run, guidance: float | None) -> None:
    """Refuse to guide a model that was never shown an example without its label."""
    from ndm.configs.recorded import label_dropout

    if guidance and label_dropout(run) == 0:
        raise ValueError(
            f"--guidance needs a model that was trained with label dropout, and {run.path} was trained without: train "
            "with --training.labels true --training.label_dropout 0.1, or leave --guidance out."
        )


# ---- ndm score


def _score(arguments: list[str]) -> None:
    parser = _Parser(
        prog="ndm score",
        description="The bound and the log-likelihood of every row of a table, or of every image, in a file.",
        epilog="A command that was stopped, or killed, goes on where it was when it is given again.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "data", metavar="DATA", help="a CSV or Parquet file; for a model of images what data.path takes: a folder, ..."
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="what to write: a file ending in .parquet or .csv")
    parser.add_argument("--no-likelihood", action="store_true", help="the bound only, which is faster")
    parser.add_argument(
        "--times", type=_positive, default=20, metavar="N",
        help="noise levels per row for the bound, an even number (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="NATS",
        help="of the likelihood's ODE solver (default: 0.01 a dimension)",
    )
    parser.add_argument(
        "--probes", type=_positive, default=4,
        help="for its divergence, which is exact up to 16 dimensions (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--samples", type=_positive, default=4, help="of its z_0, K-level data (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="of images that come in several")
    parser.add_argument("--max-rows", type=_positive, metavar="N", help="score the first N only")
    parser.add_argument("--seed", type=_natural, default=0, help="the same seed gives the same (default: %(default)s)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="at a time (default: by the row's size)")
    parser.add_argument(
        "--precision", choices=("32", "bf16", "64"), default="32",
        help="of the arithmetic; bf16: of the networks alone (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    _add_allow(parser)
    options = parser.parse_args(arguments)
    _find(options.allow)

    from ndm.distributed import together, world_size
    from ndm.scoring import score
    from ndm.training import Run

    run = Run(Path(options.run))
    told = telling(Path(options.out), f"the scores are in {options.out}.", STOPPED["score"])
    with told, together(options.device) as device:
        if world_size() > 1:
            raise ValueError("ndm score is for one process: cut the table into several to share the work.")
        model = _load(run.path, device, options.allow)
        scores = score(
            model,
            _rows(run, options.data, options.split, options.allow),
            options.out,
            likelihood=not options.no_likelihood,
            times=options.times,
            tolerance=options.tolerance,
            samples=options.samples,
            probes=options.probes,
            precision=options.precision,
            batch_size=options.batch_size,
            max_rows=options.max_rows,
            seed=options.seed,
        )
    print(scores.text(), flush=True)
    _say(f"the scores are in {scores.path}")
    scores.require_finite()


def _rows(run: Run, path: str, split: str | None, allow: Sequence[str]) -> Rows:
    """The rows of a path, of the kind that a run's model is for."""
    from ndm.scoring import ImageRows, TableRows

    shape, levels = run.read_data()
    if len(shape) == 3 and levels == 256:
        from ndm.configs.configuration import read_data

        data = read_data(run.config, allow=allow)  # says how the images were brought to their shape
        background = getattr(data, "background", "white")
        return ImageRows(path, shape, getattr(data, "size", None), getattr(data, "channels", None), split, background)
    if split is not None:
        raise ValueError("--split is for images: a table is scored as a whole.")
    return TableRows(path, shape, run.read_columns(), levels)


# ---- ndm report


def _report(arguments: list[str]) -> None:
    parser = _Parser(
        prog="ndm report",
        description="Write a page about runs, side by side: one HTML file that needs nothing but itself.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run")
    parser.add_argument("--out", required=True, metavar="FILE", help="what to write: a file ending in .html")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--examples", type=_positive, metavar="N",
        help="test examples to measure the bound by noise level on (default: 256, or fewer for a large model)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_natural, default=0, help="the same seed gives the same (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    _add_allow(parser)
    options = parser.parse_args(arguments)
    _find(options.allow)

    from ndm.configs.recorded import read_run_data
    from ndm.report import report
    from ndm.training import Run

    with telling(Path(options.out), f"the report is in {options.out}.", STOPPED["report"]):
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
    _say(f"the report is in {out}")


# ---- ndm push


def _push(arguments: list[str]) -> None:
    parser = _Parser(prog="ndm push", description="Put a run's model on the Hugging Face hub, with its figures.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("name", metavar="NAME", help="where to: user/model")
    parser.add_argument("--private", action="store_true", help="for your eyes only, if the place is new")
    parser.add_argument("--branch", help="another branch than the main one")
    parser.add_argument("--pull-request", action="store_true", help="propose it instead")
    _add_allow(parser)
    options = parser.parse_args(arguments)
    _find(options.allow)

    import torch

    from ndm.training import Run

    run = Run(Path(options.run))
    model = _load(run.path, torch.device("cpu"), options.allow)
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
    _say(f"the model is at {address}")


# ---- ndm demo


def _demo(arguments: list[str]) -> None:
    parser = _Parser(prog="ndm demo", description="Train a small model and show what it does.")
    parser.add_argument("--out", default="demo", help="the folder to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    importlib.import_module("ndm.demo").run(out=options.out)


#: Name: what runs it, and what it does.
COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (_train, "train a model by a configuration, and write a run's folder"),
    "evaluate": (_evaluate, "the bound and the likelihood of a run, with standard errors"),
    "sample": (_sample, "draw examples from a run's model, as a picture or a table"),
    "score": (_score, "the bound and the likelihood of every row of a table, with their errors"),
    "report": (_report, "write a page about runs, side by side: curves, bounds, samples, parts"),
    "push": (_push, "put a run's model on the Hugging Face hub"),
    "demo": (_demo, "train a small model and show what it does"),
}


# ---- what the commands share


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, with the nearest right option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = self.parse_known_args(args, namespace)
        for option in unknown:
            options = [o for action in self._actions for o in action.option_strings]
            raise ValueError(f"{self.prog} has no option {option.partition('=')[0]!r}{_nearest(option, options)}")
        return known

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see `{self.prog} --help`.")


def _without_data(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command but for --data.x, and those: argparse would take their values for its own."""
    left: list[str] = []
    data: list[str] = []
    for argument in arguments:
        follows = len(data) > 0 and len(data) % 2 == 1
        if follows:
            data.append(argument)
        elif argument.startswith("--data."):
            data += argument.split("=", 1)
        else:
            left.append(argument)
    if len(data) % 2:
        raise ValueError(f"{data[-1]} lacks its value.")
    return left, data


def _load(run: Path, device: torch.device, allow: Sequence[str] = ()) -> NDM:
    """The trained model of a run, on a device."""
    from ndm.model import NDM
    from ndm.training import Run

    Run(run).require_model()
    return NDM.from_pretrained(Run(run).model, allow).to(device).eval()


def _steps(text: str) -> int | None:
    return None if text == "continuous" else _positive(text)


def _positive(text: str) -> int:
    return _at_least(1, text)


def _natural(text: str) -> int:
    return _at_least(0, text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def _at_least(low: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}, got {text!r}")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: what may have been meant, or what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def _say(sentence: str) -> None:
    print(f"ndm: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
