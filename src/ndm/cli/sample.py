"""``ndm sample``: draw examples from the model of a run, as a picture or a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, say
from ndm.cli.options import (
    add_common,
    add_sampling,
    add_workers,
    check_guidance,
    find_allowed,
    load_model,
    precision,
    require_run,
    sampler_of,
)
from ndm.cli.parsing import Parser, natural, positive
from ndm.cli.process import spare_pandas

if TYPE_CHECKING:
    import torch

    from ndm.method.encoding import TableEncoding
    from ndm.model import NDM

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    parser = Parser(
        prog="ndm sample",
        description="Draw examples from a trained model.",
        epilog="Several processes share the work by --workers, or by torchrun --nproc_per_node 8 -m ndm sample RUN",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "-n", type=positive, metavar="N",
        help="number of samples (default: 64), or with --given for each row (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="output file, ending in .png, .csv, .npz or .parquet"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--given", metavar="DATA",
        help="a CSV or Parquet file with some columns of a table: for each of its rows, sample the other columns given "
        "these, on the CPU; needs a model trained with --training.conditionals any, or with these columns as "
        "--data.given",
    )  # fmt: skip
    add_sampling(parser, steps=None)
    parser.add_argument(
        "--label", type=natural, metavar="K",
        help="class to sample, for a class-conditional model (default: all classes in turn)",
    )  # fmt: skip
    add_common(parser)
    add_workers(parser)
    options = parser.parse_args(arguments)
    find_allowed(options.allow)
    out = Path(options.out)
    if options.given is not None:
        _run_given(out, options)
        return
    options.n = options.n or 64

    from ndm.samples import require_place

    require_place(out, options.overwrite)
    if require_run(options.run).read_columns() is not None:
        spare_pandas()
    from ndm._internal.distributed import process_group  # with PyTorch
    from ndm._internal.workers import check_workers, one_thread

    set_stop_message_of(out, f"{options.n} samples are in {out}.", STOPPED["sample"])
    single = one_thread(options.workers is not None)
    with single, process_group(options.device) as device, precision(options.precision, device):
        check_workers(device, options.workers or 1)
        _draw(Path(options.run), out, device, options)


def _run_given(out: Path, options: argparse.Namespace) -> None:
    from ndm.cli.given import draw_given
    from ndm.cli.tables import single_process
    from ndm.data.tablefile import require_table
    from ndm.samples import require_table_place

    if (options.workers or 1) > 1:
        raise ValueError("ndm sample --given runs in one process: leave --workers out.")
    options.n = options.n or 1
    require_table_place(out, options.overwrite)
    require_run(options.run)
    require_table(options.given)
    spare_pandas()
    set_stop_message_of(out, f"the samples are in {out}.", STOPPED["sample"])
    with single_process("ndm sample --given"):
        draw_given(Path(options.run), out, options)


def _draw(path: Path, out: Path, device: torch.device, options: argparse.Namespace) -> None:
    """Draw samples of a run, and write them block by block."""
    from ndm._internal.distributed import is_first
    from ndm._internal.inputs import state_like
    from ndm.samples import class_turns, formula_warning, sample_file, table_of
    from ndm.training import Run

    run, model = Run(path), load_model(path, device, options.allow)
    (shape, levels), columns = run.read_data(), run.read_columns()
    labels = class_turns(model, options.label, run.read_classes())
    check_guidance(run, options.guidance)
    like, encoding = state_like(model, 0, shape).cpu(), table_of(model)
    like = like if encoding is None else like.double()
    blocks = _blocks(model, shape, labels, like, options)
    if not is_first():
        for _ in blocks:  # this process computes a part of each block
            pass
        return
    file_of = sample_file(
        out, options.n, shape, model.decoder.levels, levels, columns, labels, options.overwrite, encoding
    )
    with closing(blocks), file_of as file:
        for x in blocks:
            _require_finite(x, encoding, file.done, options)
            file.write(x)
    say(f"{options.n} samples are in {out}")
    if warning := formula_warning(out, columns):
        say(f"warning: {warning}")


def _blocks(
    model: NDM,
    shape: Sequence[int],
    labels: Callable[[slice], torch.Tensor] | None,
    like: torch.Tensor,
    options: argparse.Namespace,
) -> Generator[torch.Tensor, None, None]:
    """The samples in blocks, on the CPU in the precision of ``like``, the same in every process of a launcher."""
    from ndm._internal.distributed import gather_in_order, rank, world_size
    from ndm.inference.sampling import sample_batches
    from ndm.samples.drawing import draw_by_workers

    n, sampler = options.n, sampler_of(model, options)
    every: Any = {"seed": options.seed, "batch_size": options.batch_size, "labels": labels}
    if (options.workers or 1) > 1 and n > options.batch_size:
        every["half"] = options.precision == "bf16"
        for x in draw_by_workers(options.workers, model, n, shape, sampler, **every):
            yield x.to(like.dtype)
        return
    drawn = sample_batches(model, n, shape, sampler, rank=rank(), world_size=world_size(), **every)
    yield from gather_in_order((x.to("cpu", like.dtype) for _, x in drawn), options.batch_size, n, like)


def _require_finite(x: torch.Tensor, encoding: TableEncoding | None, first: int, options: argparse.Namespace) -> None:
    from ndm.samples import not_finite

    wrong = not_finite(x, encoding)
    if wrong:
        other = "another --method" if options.eta is None else "another --method or --eta"
        raise ValueError(
            f"{wrong} of the samples {first} to {first + len(x) - 1} contain NaN or infinite values; no file was "
            f"written. Use more --steps, or {other}."
        )
