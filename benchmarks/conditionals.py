"""Conditionals of mixed tables, by the models of mixed.py and by other methods.

    python benchmarks/conditionals.py --data DATA --scratch ROWS

The targets are the price in diamonds and median_house_value in housing, given all other columns. ``any`` is the model
of mixed.py (``--training.conditionals any``); ``fixed`` is trained here for as many seconds with the other columns
given (``--data.given``). The others: ``flow``, zuko's neural spline flow of the target, on the same scale, with the
encoding of the other columns as its context, with early stopping, for as many CPU seconds; ``linear``, least squares
on the same scale with normal errors; ``boosting``, scikit-learn's HistGradientBoostingRegressor with its defaults,
once for each of 19 quantiles. log p is in nats, of the target's value (counting measure); CRPS is in the target's
unit, from 100 samples or 19 quantiles; coverage is that of the interval between the 5% and the 95% quantile. Errors
are standard errors over test rows. Lines of results/conditionals.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import RESULTS, environment, write
from density.cells import over_rows
from density.others import train_flow
from mixed import SETS, path_of
from torch import Tensor

import ndm
from ndm.configs.configuration import Configuration
from ndm.data import Table
from ndm.data.choosing import part_of
from ndm.tabular import log_prob, sample_given
from ndm.tabular.calibration import crps, interval
from ndm.training import fit

TARGETS = {"housing": "median_house_value", "diamonds": "price"}
ROWS, DRAWS = 500, 100
LEVELS = np.linspace(0.05, 0.95, 19)


def pinball(quantiles: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The CRPS by twice the mean pinball loss of 19 quantiles, (n, 19)."""
    gap = y[:, None] - quantiles
    return 2 * np.maximum(LEVELS * gap, (LEVELS - 1) * gap).mean(1)


def by_ndm(model: ndm.NDM, rows: Tensor, place: int, others: list[int]) -> dict[str, np.ndarray]:
    found = log_prob(model, rows, [place], others)
    draws = sample_given(model, rows, others, [place], n=DRAWS, present=True)[:, place].reshape(len(rows), DRAWS)
    return {"log_p": found.values.numpy(), "draws": draws.numpy()}


def fixed(path: Path, target: str, seconds: float, seed: int) -> ndm.NDM:
    table = Table(str(path), kinds="auto")
    given = [name for name in table.columns if name != target]
    options = ["--data.path", str(path), "--data.given", str(given), "--trainer.max_time", str(seconds)]
    built = Configuration.read("table", [*options, "--seed", str(seed)]).build()
    with tempfile.TemporaryDirectory() as folder:
        parts = built.model, built.data, Path(folder) / "run", built.training, built.trainer
        return fit(*parts, seed=seed, progress=False, verbose=False)


class Regression:
    """The target on the scale of its column's map, and the encoding of all other columns, as (n, d)."""

    def __init__(self, table: Table, split: str, place: int, rows: Tensor | None = None) -> None:
        encoding = table.encoding
        assert encoding is not None
        rows = table.split(split) if rows is None else rows
        self.column = encoding.table[place]
        self.r = rows[:, place]
        self.y = self.column.map.forward(self.r)
        x = encoding(rows)
        self.x = x[:, encoding.coordinates([i for i in range(len(encoding.table)) if i != place])]
        self.log_width = self.column.map.log_slope(self.y) + math.log(self.column.step)


def linear(train: Regression, test: Regression, seed: int) -> dict[str, np.ndarray]:
    a = torch.cat([train.x, torch.ones(len(train.x), 1)], 1)
    weights = torch.linalg.lstsq(a, train.y[:, None], driver="gelsd").solution
    deviation = (train.y - (a @ weights)[:, 0]).std()
    mean = (torch.cat([test.x, torch.ones(len(test.x), 1)], 1) @ weights)[:, 0]
    log_p = torch.distributions.Normal(mean, deviation).log_prob(test.y) + test.log_width
    noise = torch.randn(len(mean), DRAWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draws = test.column.map.inverse(mean[:, None] + deviation * noise)
    return {"log_p": log_p.numpy(), "draws": draws.numpy()}


def flow(train: Regression, held: Regression, test: Regression, seconds: float, seed: int) -> dict[str, np.ndarray]:
    import zuko

    began, _ = time.process_time(), torch.manual_seed(seed)
    model = zuko.flows.NSF(1, train.x.shape[1], transforms=3, hidden_features=(128, 128))
    x, y = train.x.float(), train.y.float()[:, None]

    @torch.no_grad()
    def value() -> float:
        return model(held.x.float()).log_prob(held.y.float()[:, None]).mean().item()

    def losses() -> Iterator[Tensor]:
        return (-model(x[rows]).log_prob(y[rows]).mean() for rows in torch.randperm(len(x)).split(512))

    train_flow(model, losses, value, 1e-2, began, seconds, patience=10)
    with torch.no_grad():
        log_p = model(test.x.float()).log_prob(test.y.float()[:, None]).double() + test.log_width
        draws = torch.cat([model(part).sample((DRAWS,))[..., 0].T for part in test.x.float().split(100)])
    return {"log_p": log_p.numpy(), "draws": test.column.map.inverse(draws).numpy()}


def boosting(train: Regression, test: Regression, seed: int) -> dict[str, np.ndarray]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    each = (HistGradientBoostingRegressor(loss="quantile", quantile=q, random_state=seed) for q in LEVELS)
    return {"quantiles": np.stack([one.fit(train.x, train.r).predict(test.x.numpy()) for one in each], 1)}


def measured(found: dict[str, np.ndarray], y: np.ndarray) -> dict[str, Any]:
    if "quantiles" in found:
        low, high, score = found["quantiles"][:, 0], found["quantiles"][:, -1], pinball(found["quantiles"], y)
    else:
        (low, high), score = interval(found["draws"]).T, crps(found["draws"], y)
    line: dict[str, Any] = {}
    log_p = {"log_p": found["log_p"]} if "log_p" in found else {}
    for name, values in {**log_p, "crps": score, "coverage": ((low <= y) & (y <= high)).astype(float)}.items():
        line[name], line[f"{name}_stderr"] = over_rows(values)
    return line | {"width": float((high - low).mean())}


def one_target(options: argparse.Namespace, name: str, seed: int) -> list[dict[str, Any]]:
    """The lines of all methods for one table and seed."""
    target, path = TARGETS[name], path_of(options.data, name)
    table = Table(str(path), kinds="auto")
    place = table.columns.index(target)
    others = [i for i in range(len(table.columns)) if i != place]
    rows = table.test[part_of(len(table.test), ROWS, 0)]
    train, held = (Regression(table, split, place) for split in ("train", "validation"))
    test, lines = Regression(table, "test", place, rows), []
    model = ndm.NDM.from_pretrained(options.scratch / "any" / f"{name}-{seed}")
    ways = {
        "any": lambda: by_ndm(model, rows, place, others),
        "fixed": lambda: by_ndm(fixed(path, target, SETS[name], seed), rows, place, others),
        "flow": lambda: flow(train, held, test, SETS[name], seed),
        "linear": lambda: linear(train, test, seed), "boosting": lambda: boosting(train, test, seed),
    }  # fmt: skip
    for method, way in ways.items():
        began = time.process_time()
        line = {"set": name, "target": target, "method": method, "seed": seed}
        lines.append(line | measured(way(), rows[:, place].numpy()) | {"seconds": time.process_time() - began})
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # so that trainer.max_time counts CPU seconds
    lines: list[dict[str, Any]] = [{"environment": environment(), "settings": {"rows": ROWS, "draws": DRAWS}}]
    for seed, name in itertools.product(options.seeds, options.sets):
        lines += one_target(options, name, seed)
    write(RESULTS / "conditionals.jsonl", lines)


if __name__ == "__main__":
    main()
