"""``ndm score`` with --given, --wanted, --missing, --explain or --percentile: conditional scores of a table's rows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm.cli.messages import say, show
from ndm.cli.options import precision
from ndm.cli.tables import load_table_model, others_in_words, require_columns, warn_of

if TYPE_CHECKING:
    import numpy as np

    from ndm.method.encoding import TableEncoding
    from ndm.model import NDM
    from ndm.tabular.densities import LogProb
    from ndm.training import Run

__all__ = ["score_conditional"]

#: Default of --times.
TIMES = 64

_MISSING = {
    "value": "a missing cell is a value of its column",
    "left out": "missing cells are left out",
}


def score_conditional(run: Run, out: Path, overrides: Sequence[str], options: argparse.Namespace) -> None:
    """Compute log p(wanted | given) of each row, and what else was asked for, and write a file and a summary.

    Raises:
        ValueError: the model, the columns or the data do not fit.
        FileNotFoundError: a file does not exist.
    """
    import numpy as np
    import torch

    from ndm.tabular.files import read_rows, write_table

    model, encoding = load_table_model(run.path, options.allow)
    a, b = _roles(model, encoding, options)
    wanted, given = ([encoding.names[i] for i in part] for part in (a, b))
    file = read_rows(options.data, encoding, None if options.explain else [*wanted, *given])
    warn_of(file.notes)
    rows = file.rows[: options.max_rows]
    what = f"log p({others_in_words(wanted)}" + (f" | {others_in_words(given)})" if given else ")")
    found: dict[str, Any] = {"row": np.arange(len(rows))}
    if options.precision == "64":
        model = model.double()
    with precision(options.precision, torch.device("cpu")):
        reference = _validation(run, encoding, overrides, options) if options.percentile else None
        scores = _log_prob(model, rows, wanted, given, options)
        lines = _lines(scores, rows[:, a], what, options)
        found |= {"log_prob": scores.values.numpy(), "log_prob_stderr": scores.stderr.numpy()}
        if options.explain:
            lines += _explain(model, encoding, rows, found, options)
        if reference is not None:
            lines += _percentiles(model, reference, wanted, given, found, options)
    found["kind"] = [f"{what}: {_kind(scores.kind, options)}"] * len(rows)
    write_table(list(found), list(found.values()), out, digits=9)
    show("\n".join(lines))
    say(f"the scores are in {out}")
    if not np.isfinite(found["log_prob"]).any():
        raise ValueError(
            f"No row has a finite log-probability; the file {out} was written. Check the rows for values far from the "
            "training data."
        )


def _roles(model: NDM, encoding: TableEncoding, options: argparse.Namespace) -> tuple[list[int], list[int]]:
    """The numbers of the wanted and of the given columns.

    Raises:
        ValueError: a column is unknown, named twice or in both, or nothing is wanted.
    """
    from ndm.tabular.densities import roles

    for option in ("given", "wanted"):
        require_columns(getattr(options, option) or [], encoding.names, f"--{option}")
    both = set(options.given or []) & set(options.wanted or [])
    if both:
        raise ValueError(f"The column {min(both)!r} is in --given and in --wanted: name it in one of them.")
    wanted, given = roles(model, encoding, options.wanted, options.given)
    if not wanted:
        raise ValueError("--given has all columns of the model, so there is nothing to score: leave one out.")
    return wanted, given


def _log_prob(
    model: NDM, rows: np.ndarray, wanted: Sequence[str], given: Sequence[str], options: argparse.Namespace
) -> LogProb:
    from ndm.tabular import log_prob

    return log_prob(model, rows, wanted, given, **_settings(options))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options of ndm.tabular.log_prob."""
    found: dict[str, Any] = {"missing": options.missing, "times": options.times or TIMES, "seed": options.seed}
    if options.no_likelihood:
        return found | {"method": "bound"}
    return found | {"tolerance": options.tolerance, "samples": options.samples, "probes": options.probes}


def _kind(kind: str, options: argparse.Namespace) -> str:
    parts = [kind.removesuffix(", of the observed cells"), _MISSING[options.missing]]
    return "; ".join(part for part in parts if part)


def _lines(scores: LogProb, wanted: np.ndarray, what: str, options: argparse.Namespace) -> list[str]:
    """The summary of the scores of rows with these cells in the wanted columns, (n, W)."""
    import numpy as np

    values, errors = scores.values.numpy(), scores.stderr.numpy()
    finite = np.isfinite(values)
    there, n = values[finite], int(finite.sum())
    mean = f"{there.mean():.5f}" if n else "-"
    spread = f"{there.std(ddof=1) / math.sqrt(n):.5f}" if n > 1 else "-"
    own = errors[finite & np.isfinite(errors)]
    error = f", a row's own error {own.mean():.2g}" if len(own) and own.any() else ""
    lines = [f"{what} {mean} ± {spread} nats, {len(values):,} rows{error}", f"    {_kind(scores.kind, options)}"]
    empty = int(np.isnan(wanted).all(1).sum()) if options.missing == "left out" else 0
    if empty:
        lines.append(f"    {empty:,} rows have no observed cell in the wanted columns: their score is 0")
    if n < len(values):
        lines.append(f"    not finite (inf or nan) for {len(values) - n:,} rows, which are excluded")
    return lines


def _explain(
    model: NDM, encoding: TableEncoding, rows: np.ndarray, found: dict[str, Any], options: argparse.Namespace
) -> list[str]:
    """Add how likely each cell is, and describe it."""
    import numpy as np

    from ndm.tabular import explain

    each, kind = explain(model, rows, **_settings(options))
    values = each.numpy().copy()
    if denoiser_given := getattr(model.denoiser, "given", None):
        values[:, list(denoiser_given)] = np.nan  # the model has no probability of these
    if options.missing == "left out":
        values = np.where(np.isnan(rows), np.nan, values)
    found |= {f"explain:{name}": values[:, i] for i, name in enumerate(encoding.names)}
    lines = [f"explain: how likely each cell is, {kind}, in nats; lower for an unlikely cell. Means:"]
    for i, name in enumerate(encoding.names):
        there = values[np.isfinite(values[:, i]), i]
        lines.append(f"    {name} {there.mean():.5f}" if len(there) else f"    {name} -")
    return lines


def _validation(run: Run, encoding: TableEncoding, overrides: Sequence[str], options: argparse.Namespace) -> np.ndarray:
    """The validation rows of a run, (m, C).

    Raises:
        ValueError: the data differ from those of the training.
    """
    from ndm.configs.recorded import read_run_data
    from ndm.method.encoding import TableEncoding

    data = read_run_data(run, overrides, allow=options.allow, otherwise="or leave --percentile out")
    own = getattr(data, "encoding", None)
    if not isinstance(own, TableEncoding) or own.table != encoding.table:
        raise ValueError(f"The model of {run.path} has other columns than its data: train it again.")
    return data.split("validation").numpy()


def _percentiles(
    model: NDM, reference: np.ndarray, wanted: Sequence[str], given: Sequence[str], found: dict[str, Any],
    options: argparse.Namespace,
) -> list[str]:  # fmt: skip
    """Add the conformal p-value of each row, and describe it."""
    from ndm.tabular import percentiles

    scores = _log_prob(model, reference, wanted, given, options).values.numpy()
    found["percentile"] = p = percentiles(found["log_prob"], scores)
    low = int((p <= 0.05).sum())
    what = f"the conformal p-value among the scores of {len(scores):,} validation rows; low for an abnormal row"
    expected = "at most 5% is expected of rows like those of the training"
    return [
        f"percentile: {what}",
        f"    at most 0.05 for {low:,} of {len(p):,} rows ({low / len(p):.1%}; {expected})",
    ]
