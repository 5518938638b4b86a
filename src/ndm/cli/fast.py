"""``ndm score --fast``: log p by the network of ``ndm distill``, and exactly where that is asked for or needed."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ndm.cli.messages import say, show

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ndm.inference.flow import SolverCalibration
    from ndm.model import NDM
    from ndm.scoring import Rows
    from ndm.scoring.distilled import DistilledScore

__all__ = ["COLUMNS", "check_fast", "load_distilled", "score_fast"]

#: The columns of the file.
COLUMNS = ("row", "log_prob", "error_median", "error_95", "exact")

#: Rows scored at a time.
BLOCK = 8192


def check_fast(options: argparse.Namespace, conditional: bool) -> None:
    """Raise a ValueError for options that do not go with ``--fast``."""
    if conditional:
        raise ValueError("--fast cannot be used for conditional scores: leave it out.")
    clashing = {
        "--no-likelihood": options.no_likelihood,
        "--times": options.times is not None,
        "--split": options.split is not None,
        "--label": options.label is not None,
        "--workers": (options.workers or 1) > 1,
        "--precision": options.precision != "32",
    }
    for name, is_given in clashing.items():
        if is_given:
            raise ValueError(f"{name} cannot be used with --fast: leave one of them out.")


def load_distilled(folder: Path, model: NDM) -> DistilledScore:
    """Load the network of a run.

    Raises:
        ValueError: there is none, or it is of another model.
    """
    from ndm.scoring.checks import fingerprint
    from ndm.scoring.distilled import DistilledScore
    from ndm.storage.checkpoints import load_part

    command = f"ndm distill {folder.parent}"
    if not folder.exists():
        raise ValueError(f"{folder.parent} has no fast score: run `{command}` first, or leave --fast out.")
    distilled = load_part(folder, DistilledScore).eval()
    if distilled.model != fingerprint(model):
        raise ValueError(f"The fast score in {folder} is of another model: run `{command}` again.")
    return distilled


def score_fast(model: NDM, distilled: DistilledScore, rows: Rows, out: Path, options: argparse.Namespace) -> None:
    """Score the rows, write the file and print a summary."""
    import numpy as np

    from ndm.tabular.files import write_table

    began = time.monotonic()
    found = np.concatenate(list(_blocks(model, distilled, rows, options)))
    scores, exact = found[:, 0], found[:, 3].astype(bool)
    if not np.isfinite(scores).any():
        raise ValueError("No row has a finite log-likelihood, and no file was written: check the rows.")
    columns = [np.arange(len(found)), scores, found[:, 1], found[:, 2], exact.astype(np.int8)]
    write_table(COLUMNS, columns, out, digits=9)
    fast = found[~exact]
    show(f"log p            {np.nanmean(scores):.5f} nats on average, of {len(found):,} rows")
    if len(fast):
        half, most = np.median(fast[:, 1]), np.median(fast[:, 2])
        show(
            f"{'':<16} by the network for {len(fast):,} rows; at the median row half of the errors are below "
            f"{half:.2g} nats and 95% below {most:.2g}"
        )
    show(f"{'':<16} exact for {int(exact.sum()):,} rows")
    show(f"{len(found):,} rows in {time.monotonic() - began:.1f} s")
    say(f"the scores are in {out}")


def _blocks(model: NDM, distilled: DistilledScore, rows: Rows, options: argparse.Namespace) -> Iterator[np.ndarray]:
    """log p, its two errors and whether it is exact, of the rows in blocks, (n, 4)."""
    from tqdm import tqdm

    count = rows.count if options.max_rows is None else min(rows.count, options.max_rows)
    below = None if options.exact_below is None else distilled.level(options.exact_below)
    exactly = _Exactly(model, options)
    with tqdm(total=count, desc="scoring", unit="row", disable=None) as bar:
        done = 0
        for x in rows.blocks(options.batch_size or BLOCK, 0):
            x = x[: count - done]
            yield _block(distilled, exactly, x, below)
            done += len(x)
            bar.update(len(x))
            if done >= count:
                return


def _block(distilled: DistilledScore, exactly: _Exactly, x: Tensor, below: float | None) -> np.ndarray:
    import torch

    rows = exactly.as_rows(x)
    scores = distilled(exactly.model.to_model(rows))
    found = torch.stack([scores.log_prob, *scores.errors.T, torch.zeros_like(scores.log_prob)], 1).double()
    chosen = ~scores.errors[:, -1].isfinite()
    if below is not None:
        chosen |= scores.log_prob < below
    if chosen.any():
        found[chosen] = exactly(rows[chosen])
    return found.numpy()


class _Exactly:
    """The exact log-likelihood of rows, with the calibration of its solver, which is made where it is first needed."""

    def __init__(self, model: NDM, options: argparse.Namespace) -> None:
        self.model = model
        self.settings = {"divergence": options.divergence, "tolerance": options.tolerance}
        self.calibration: SolverCalibration | None = None
        self.ready = False

    def as_rows(self, x: Tensor) -> Tensor:
        """The rows in the precision of the model; those of a table with an encoding in float64, as they are in it."""
        import torch

        from ndm.method.encoding import TableEncoding

        return x.to(torch.float64 if isinstance(self.model.standardize, TableEncoding) else torch.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """log p, the solver's error twice, and one, (n, 4)."""
        import torch

        from ndm.inference.likelihood import calibrate_solver, log_likelihood

        if not self.ready:
            self.calibration, self.ready = calibrate_solver(self.model, x[:1], **self.settings), True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a row without a finite path is nan in the file
            results = [
                log_likelihood(self.model, part, calibration=self.calibration, **self.settings)
                for part in x.split(1024)
            ]
        log_prob, error = (torch.cat([getattr(r, name) for r in results]) for name in ("log_prob", "solver_error"))
        return torch.stack([log_prob, error, error, torch.ones_like(error)], 1).double()
