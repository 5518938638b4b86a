"""Scoring of every row of a data set, and the summary."""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ndm._internal.distributed import from_first, is_first
from ndm._internal.inputs import Values
from ndm._internal.workers import check_workers
from ndm.data.base import Examples
from ndm.evaluation.per_example import device_of
from ndm.inference.likelihood import TOLERANCE
from ndm.model import NDM
from ndm.scoring.blocks import Blocks, measured
from ndm.scoring.checks import check_model, check_options, check_out, fingerprint
from ndm.scoring.labels import labels_of
from ndm.scoring.partial import PartialScores
from ndm.scoring.rows import ExampleRows, Rows
from ndm.scoring.scorer import Scorer
from ndm.scoring.writing import summary, write

__all__ = ["Scores", "score"]

logger = logging.getLogger("ndm.scoring")

#: Maximum number of rows and of values in a block.
ROWS, NUMBERS = 1024, 2**18

#: Number of values in the rows whose likelihood is recomputed to estimate the error of the solver.
CHECKED = 128

#: Version of the partial folder: increase it when the format changes.
_LAYOUT = 3


@dataclass(frozen=True)
class Scores:
    """Summary of the written scores.

    Attributes:
        path: the file.
        about: ``rows``; for each of ``nelbo`` and ``log_prob`` the ``mean``, its ``stderr`` over the rows, and
            ``row_stderr``, the mean standard error per row (nats), all over the finite rows; ``not_finite``, the number
            of other rows (inf or nan), and ``not_finite_rows``, the first 20 of them, if any. For ``log_prob`` also
            ``kind`` (a description), ``unsolved`` (as ``not_finite``), ``missed_tolerance``, the number of rows with a
            solver error above the tolerance, ``solver_error``, its mean over the rows, and ``checked_error``, the mean
            difference for some random rows with a hundredth of the tolerance and double precision; and ``seconds``, the
            time of this session for ``scored`` rows. Undefined values, such as the standard error of one row, are None.
    """

    path: Path
    about: dict[str, Any]

    def text(self) -> str:
        """Return the summary as text."""
        about, lines = self.about, []
        for name, what in (("nelbo", "bound on -log p"), ("log_prob", "log p")):
            if name in about:
                lines += _mean_lines(what, about[name], about["rows"])
        if "log_prob" in about:
            part = about["log_prob"]
            lines.append(f"{'':<16} {part['kind']}")
            if part["solver_error"] is not None:
                lines.append(f"{'':<16} solver's error of a row: below {part['solver_error']:.1g} nats on average")
            if part["missed_tolerance"]:
                lines.append(
                    f"{'':<16} not solved to the tolerance: {part['missed_tolerance']:,} of {about['rows']:,} rows, "
                    "see solver_error"
                )
            if part["checked_error"] is not None:
                many = "many more steps in double precision change some random rows by"
                lines.append(f"{'':<16} {many} {part['checked_error']:.1g}")
        if about["scored"]:
            lines.append(f"{about['scored']:,} rows in {about['seconds']:.1f} s")
        return "\n".join(lines)

    def require_finite(self) -> None:
        """Raise a ValueError if no row has a finite bound, or no row has a finite log-likelihood."""
        for name, what in (("nelbo", "bound"), ("log_prob", "log-likelihood")):
            if name in self.about and self.about[name]["mean"] is None:
                raise ValueError(
                    f"No row has a finite {what}; the file {self.path} was written. Check the rows for values far from "
                    "the training data."
                )


def _mean_lines(what: str, part: dict[str, Any], rows: int) -> list[str]:
    """Format the mean of a score, and the rows without a finite value."""
    lines = []
    if part["mean"] is None:
        lines.append(f"{what:<16} {'-':>12}")
    else:
        own = part["row_stderr"]
        error = "" if own is None else ", no random part" if own == 0 else f", a row's own error {own:.2g}"
        spread = "± -" if part["stderr"] is None else f"± {part['stderr']:.5f}"
        lines.append(f"{what:<16} {part['mean']:>12.5f} {spread} nats{error}")
    if part["not_finite"]:
        n, named = part["not_finite"], part["not_finite_rows"]
        names = ", ".join(map(str, named)) + (", ..." if n > len(named) else "")
        lines.append(
            f"{'':<16} not finite (inf or nan) for {n:,} of {rows:,} rows, which are excluded: row{'s' * (n > 1)} "
            f"{names}"
        )
    return lines


def score(
    model: NDM,
    data: Rows | Examples,
    out: str | os.PathLike[str],
    *,
    likelihood: bool = True,
    times: int = 20,
    tolerance: float | None = None,
    samples: int = 4,
    probes: int = 4,
    divergence: str = "auto",
    precision: str = "32",
    batch_size: int | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    labels: int | Values | None = None,
    workers: int = 1,
    progress: bool | None = None,
) -> Scores:
    r"""Score the rows of the data, and write a file with a line per row, in order.

    The columns are ``row``, from 0; ``nelbo`` and ``nelbo_stderr``, the bound on -log p in continuous time, with the
    squared noise as control variate; ``log_prob`` and ``log_prob_stderr``, the log-likelihood under the reverse ODE,
    described by ``kind``; ``solver_error``, a bound on the solver's error; all in nats. The standard errors measure the
    randomness of each row's estimate. (That of the bound is estimated from ``times`` / 2 differences: with 20 times,
    the mean is within two standard errors for nine of ten rows.) K-level data also have ``bits_per_dim`` of the
    log-likelihood, or of the bound if there is none.

    The bound of a row depends only on the row and the seed, not on other rows, its index or the block size, so that
    equal rows have equal bounds. The random numbers of a log-likelihood, if any, depend on the index of the row. If the
    bound is not finite, the row is too far from the data to be solved, and log_prob is nan.

    If the process is killed, the same call resumes from OUT.partial and gives the same file, also with another number
    of processes. Processes started by torchrun share the blocks, and all return the same summary.

    Args:
        model: the model, on the device to use; not modified.
        data: the rows.
        out: output file, .parquet or .csv.
        likelihood: also compute the log-likelihood, which takes the most time.
        times: number of noise levels per row for the bound, even: two in each of ``times`` / 2 strata.
        tolerance: tolerance of the ODE solver in nats: see :func:`ndm.log_likelihood`.
        samples: number of samples of z_0, for K-level data.
        probes: number of probes for a divergence that is not exact.
        divergence: ``exact``, ``hutchinson``, or ``auto``: see :func:`ndm.log_likelihood`.
        precision: ``32``, ``bf16`` (networks only) or ``64``.
        batch_size: rows per block. The random numbers of log-likelihoods, if any, depend on it.
        max_rows: maximum number of rows, from the first.
        seed: seed of all random numbers.
        labels: for a class-conditional model the class of all rows, or of each of them, (N,); by default those of the
            rows.
        workers: number of worker processes on this computer, each with one thread and a copy of the model, which is on
            the CPU. With one the rows are scored in this process. A script that starts workers needs the usual
            ``if __name__ == "__main__":``.
        progress: show a progress bar; by default on a terminal.

    Raises:
        ValueError: an argument is out of range, the data do not fit the model, or OUT.partial has other settings.
        FileExistsError: OUT exists.
        FileNotFoundError: the output folder does not exist.
        ImportError: pyarrow is not installed, for a .parquet file.
        ChildProcessError: a worker process was killed; the completed blocks are kept.
    """
    out = Path(out)
    check_out(out)
    check_options(times, tolerance, samples, probes, precision, batch_size, max_rows, seed)
    check_model(model, likelihood)
    check_workers(device_of(model), workers)
    rows = data if isinstance(data, Rows) else ExampleRows(data)
    count = rows.count if max_rows is None else min(rows.count, max_rows)
    first = next(rows.blocks(1, 0), None)
    if first is None:
        raise ValueError("There are no rows to score.")
    # A power of two, which the scorer does not split.
    size = batch_size or 2 ** (max(1, min(ROWS, NUMBERS // first.numel())).bit_length() - 1)
    if tolerance is None:
        tolerance = TOLERANCE * first.numel()
    blocks = Blocks(rows, labels_of(model, rows, labels), count, size)
    options = {"divergence": divergence, "tolerance": tolerance, "samples": samples, "probes": probes}
    scorer = Scorer(model, likelihood, times, options, precision, seed)
    settings = {
        "layout": _LAYOUT, "model": fingerprint(model), "data": rows.identity(), "rows": count, "batch_size": size,
        "likelihood": likelihood, "times": times, "tolerance": tolerance, "samples": samples, "probes": probes,
        "divergence": divergence, "precision": precision, "seed": seed,
    }  # fmt: skip
    if blocks.labels is not None:
        settings["labels"] = zlib.crc32(blocks.labels.numpy().tobytes())
    about: dict[str, Any] = {}
    with scorer.at_work():
        scorer.prepare(next(rows.blocks(size, 0)))  # also checks that the data fit the model
        scorer.slopes, scorer.options = from_first((scorer.slopes, scorer.options))
        if is_first():
            about = _score_and_write(out, scorer, blocks, settings, first.numel(), workers, progress)
        else:
            for _ in measured(scorer, blocks, from_first(0), workers):  # this process computes a part of the blocks
                pass
    return Scores(out, from_first(about))


def _score_and_write(
    out: Path, scorer: Scorer, blocks: Blocks, settings: dict[str, Any], dimensions: int, workers: int,
    progress: bool | None,
) -> dict[str, Any]:  # fmt: skip
    """Score the remaining blocks, write the file, and return :attr:`Scores.about`."""
    rows, count = blocks.rows, blocks.count
    with PartialScores(out.with_name(out.name + ".partial"), settings) as partial:
        began, done = time.monotonic(), partial.rows
        if done:
            logger.info("resuming after %d of %d rows", done, count)
        _append_all(scorer, blocks, partial, workers, progress)
        if rows.identity() != settings["data"]:
            partial.remove()
            raise ValueError("The data changed during scoring, and no file was written: score them again.")
        seconds = time.monotonic() - began
        kind, checked = None, None
        if scorer.likelihood:
            some = blocks.some_solved(partial, max(1, CHECKED // dimensions), scorer.seed)
            kind, checked = (scorer.kind, None) if some is None else scorer.check(*some)
        about = summary(partial, kind, settings["tolerance"], checked)
        bits = None if scorer.model.decoder.levels is None else 1 / (dimensions * math.log(2))
        write(out, partial, about | {"settings": settings}, bits)
    return about | {"scored": count - done, "seconds": seconds}  # not in the file, which they would make different


def _append_all(scorer: Scorer, blocks: Blocks, partial: PartialScores, workers: int, progress: bool | None) -> None:
    """Score the remaining rows in blocks.

    Raises:
        ValueError: the number of rows has decreased.
    """
    done, count, hidden = partial.rows, blocks.count, None if progress is None else not progress
    found = measured(scorer, blocks, from_first(partial.blocks), workers)
    with tqdm(total=count, initial=done, desc="scoring", unit="row", disable=hidden) as bar, closing(found):
        for values in found:
            partial.append(values[: count - partial.rows])
            bar.update(min(len(values), count - bar.n))
    if partial.rows < count:
        raise ValueError(
            f"The data have {partial.rows} rows, but had {count} when scoring began: restore them, or choose another "
            "--out."
        )
