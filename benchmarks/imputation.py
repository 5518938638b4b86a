"""Missing cells of mixed tables, filled by the models of mixed.py and by other methods.

    python benchmarks/imputation.py --data DATA --scratch ROWS

A fifth of the cells of test rows is removed at random. ``median`` and most frequent value of the training rows;
``iterative``, scikit-learn's IterativeImputer on the values and one-hot codes; ``ndm``, the model of mixed.py trained
with ``--training.conditionals any``, by the median or most frequent of 20 draws. Errors: the mean absolute error over
the column's standard deviation for numbers, the share of wrong categories for the others; and log p of the removed
cells given the observed ones, per cell. Errors are standard errors over cells or rows. Lines of
results/imputation.jsonl.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import RESULTS, environment, write
from conditionals import TARGETS
from density.cells import over_rows
from mixed import path_of
from torch import Tensor

import ndm
from ndm.data import Table
from ndm.data.choosing import part_of
from ndm.tabular import impute

ROWS = 1000


def imputations(options: argparse.Namespace) -> None:
    lines: list[dict[str, Any]] = [{"environment": environment(), "settings": {"rows": ROWS, "removed": 0.2}}]
    for name in options.sets:
        table = Table(str(path_of(options.data, name)), kinds="auto")
        assert table.encoding is not None
        train, rows = table.train, table.test[part_of(len(table.test), ROWS, 0)]
        gone = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < 0.2
        gone &= ~rows.isnan()
        holes = torch.where(gone, math.nan, rows)
        for seed in options.seeds:
            model = ndm.NDM.from_pretrained(options.scratch / "any" / f"{name}-{seed}")
            draws = impute(model, holes, n=20, seed=seed).reshape(len(rows), 20, -1)
            ways = {"median": simple(train, table), "iterative": iterative(train, holes, table, seed)}
            ways["ndm"] = torch.stack([_middle(draws[..., i], c.kind) for i, c in enumerate(table.encoding.table)], 1)
            for method, filled in ways.items():
                line: dict[str, Any] = {"set": name, "method": method, "seed": seed}
                line |= errors(filled.expand_as(rows), rows, gone, table, train)
                if method == "ndm":
                    line["log_p"], line["log_p_stderr"] = of_true_cells(model, rows, holes, gone)
                lines.append(line)
                print(line, flush=True)
    write(RESULTS / "imputation.jsonl", lines)


def _middle(draws: Tensor, kind: str) -> Tensor:
    return draws.mode(1).values if kind == "categorical" else draws.median(1).values


def simple(train: Tensor, table: Table) -> Tensor:
    """The median, or the most frequent category, of each column."""
    assert table.encoding is not None
    found = []
    for column, values in zip(table.encoding.table, train.T, strict=True):
        known, often = values[~values.isnan()], column.kind == "categorical"
        found.append(Counter(known.tolist()).most_common(1)[0][0] if often else known.median().item())
    return torch.tensor([found], dtype=torch.float64)


def iterative(train: Tensor, holes: Tensor, table: Table, seed: int) -> Tensor:
    """IterativeImputer on numbers and one-hot codes; a category is that of the largest code."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    assert table.encoding is not None
    columns = table.encoding.table
    imputer = IterativeImputer(random_state=seed, max_iter=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imputer.fit(_one_hot(train, columns))
        found = torch.from_numpy(imputer.transform(_one_hot(holes, columns)))
    result, at = [], 0
    for column in columns:
        k = len(column.levels) + column.other if column.kind == "categorical" else 1
        part = found[:, at : at + k]
        result.append(part.argmax(1).double() if column.kind == "categorical" else part[:, 0])
        at += k
    return torch.stack(result, 1)


def _one_hot(rows: Tensor, columns: Any) -> np.ndarray:
    pieces = []
    for column, values in zip(columns, rows.T, strict=True):
        values = values[:, None]
        if column.kind == "categorical":
            hot = (values == torch.arange(len(column.levels) + column.other)).double()
            values = torch.where(values.isnan(), math.nan, hot)
        pieces.append(values)
    return torch.cat(pieces, 1).numpy()


def errors(filled: Tensor, rows: Tensor, gone: Tensor, table: Table, train: Tensor) -> dict[str, float]:
    """The mean absolute error of numbers in standard deviations, and the share of wrong categories."""
    assert table.encoding is not None
    numbers, wrong = [], []
    for i, column in enumerate(table.encoding.table):
        own = gone[:, i]
        if column.kind == "categorical":
            wrong.append((filled[own, i] != rows[own, i]).double())
        else:
            known = train[~train[:, i].isnan(), i]
            numbers.append((filled[own, i] - rows[own, i]).abs() / known.std())
    (mae, mae_error), (share, share_error) = (over_rows(torch.cat(each).numpy()) for each in (numbers, wrong))
    return {"mae": mae, "mae_stderr": mae_error, "wrong": share, "wrong_stderr": share_error}


def of_true_cells(model: ndm.NDM, rows: Tensor, holes: Tensor, gone: Tensor) -> tuple[float, float]:
    """The mean bound of log p(removed cells | observed cells) per removed cell, over rows."""
    from ndm.method.bounds import bound
    from ndm.method.conditionals import GIVEN, WANTED

    some = gone.any(1)
    states = torch.where(gone[some], WANTED, GIVEN)
    total, times = torch.zeros(int(some.sum()), dtype=torch.float64), 64
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i in range(times):
            u = (i + torch.rand(len(total), generator=generator, dtype=torch.float64)) / times
            total -= bound(model, rows[some], times=u, generator=generator, states=states).total.double() / times
    return over_rows((total / gone[some].sum(1)).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    torch.set_num_threads(1)
    imputations(parser.parse_args())


if __name__ == "__main__":
    main()
