"""Densities of mixed tables: ``ndm train table`` with and without F and conditionals, and three other models.

Every figure is a log-likelihood of the test split in nats per row: counting measure on categories, whole numbers,
recurring values and missing cells, Lebesgue measure elsewhere. DATA holds the tables as files, SET.csv or SET.parquet;
the columns and their kinds are those that ``ndm`` finds in the training rows, for all models. All seeds have the same
division of the rows. A cell is a set, a method and a seed; a finished one is kept in --scratch, and skipped afterwards.

    python benchmarks/mixed.py fit --data DATA --scratch ROWS --methods ndm identity any product mixture nsf
    python benchmarks/mixed.py summary --scratch ROWS                            writes results/mixed.jsonl

ndm, identity, any: the configurations ``table`` and ``table-identity``, and ``table`` with
``--training.conditionals any``, for the seconds of SETS; whole: ``table`` without a limit of time. The figure is minus
the bound in continuous time, with 50 noise levels a row. product and mixture: :mod:`density.mixtures`. nsf: zuko's
neural spline flow on dequantised codes, for the same seconds, with early stopping; a lower bound on log p, averaged
over 10 draws of the noise. Needs: pip install zuko.

Seconds are CPU seconds of one thread. The error of a difference is over test rows and seeds, as in tables.py.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from bench import RESULTS, environment, write
from density.cells import Cells, Facts, Rows, over_rows
from density.mixtures import mixture, product
from density.others import train_flow
from density.summary import paired

from ndm.configs.configuration import Configuration
from ndm.data import Table
from ndm.evaluation.per_example import bound_per_example
from ndm.training import fit

#: The sets whose densities are compared, and the seconds of training for each set.
SETS = {"titanic": 45, "housing": 180, "diamonds": 180}

OPTIONS = {"ndm": (), "identity": ("--model.transform", "Identity"), "any": ("--training.conditionals", "any")}
OPTIONS |= {"whole": ("--trainer.max_time", "null")}
TIMES, DRAWS, SEEDS = 50, 10, (0, 1, 2)


def path_of(folder: Path, name: str) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.stem == name)


def by_ndm(options: Sequence[str], table: Path, seconds: float, seed: int, keep: Path) -> tuple[Facts, Rows]:
    """Train, keep the model, and bound the test rows."""
    overrides = ["--data.path", str(table), "--trainer.max_time", str(seconds), "--seed", str(seed)]
    built = Configuration.read("table", [*overrides, *options]).build()
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = Path(folder) / "run"
        parts = built.model, built.data, run, built.training, built.trainer
        model = fit(*parts, seed=seed, progress=False, verbose=False)
        spent = time.process_time() - began
        steps = [line.split()[3] for line in (run / "log.txt").read_text().splitlines() if "  step  " in line]
        shutil.copytree(run / "model", keep, dirs_exist_ok=True)
    found = bound_per_example(model, built.data.examples("test"), None, times=TIMES, seed=seed)
    return {"seconds": spent, "steps": steps[-1]}, {"test": -found["total"].numpy()}


class Dequantised:
    """Rows as real vectors with noise, whose density bounds log p: :meth:`draw` gives x, (n, D), and what to add."""

    def __init__(self, table: Table, split: str, generator: torch.Generator) -> None:
        encoding, rows = table.encoding, table.split(split)
        assert encoding is not None
        self.columns, self.rows, self.generator = encoding.table, rows, generator
        x = encoding(rows)
        self.atoms = [encoding.index(x, i) for i in range(len(self.columns))]

    def draw(self, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pieces, more, n = [], torch.zeros(len(where), dtype=torch.float64), len(where)
        for column, atom, cells in zip(self.columns, self.atoms, self.rows.T, strict=True):
            k, index, values = len(column.counts), atom[where], cells[where]
            if k > 1:
                codes = index[:, None].double() if column.on_a_line else torch.nn.functional.one_hot(index, k).double()
                scale = k / 4 if column.on_a_line else 1.0
                pieces.append((codes + torch.rand(codes.shape, generator=self.generator, dtype=torch.float64)) / scale)
                more -= codes.shape[1] * math.log(scale)
            if column.rest is not None:
                own = index == column.atoms
                width = column.step if column.rest == "grid" else 0.0
                u = torch.rand(n, generator=self.generator, dtype=torch.float64) - 0.5
                v = column.map.forward(torch.where(own, values, torch.zeros_like(values)).nan_to_num() + width * u)
                noise = torch.randn(n, generator=self.generator, dtype=torch.float64)
                gain = column.map.log_slope(v) + (math.log(width) if width else 0.0)
                more += torch.where(own, gain, (noise**2 + math.log(2 * math.pi)) / 2)
                pieces.append(torch.where(own, v, noise)[:, None])
        return torch.cat(pieces, 1).float(), more


def nsf(table: Table, seconds: float, seed: int) -> tuple[Facts, Rows]:
    """One fit with early stopping, and the bound of the test rows."""
    import zuko

    began, generator = time.process_time(), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    train, validation, test = (Dequantised(table, s, generator) for s in ("train", "validation", "test"))
    n = len(train.rows)
    flow = zuko.flows.NSF(train.draw(torch.arange(2))[0].shape[1], transforms=3, hidden_features=(128, 128))
    batch = min(512, max(64, n // 20))

    def value(data: Dequantised, draws: int) -> np.ndarray:
        every = torch.arange(len(data.rows))
        found = []
        with torch.no_grad():
            for part in every.split(1024):
                some = [(lambda x, more: flow().log_prob(x).double() + more)(*data.draw(part)) for _ in range(draws)]
                found.append(torch.stack(some).mean(0))
        return torch.cat(found).numpy()

    def losses() -> Iterator[torch.Tensor]:
        for _ in range(max(25, n // batch)):
            x, _ = train.draw(torch.randint(n, (batch,), generator=generator))
            yield -flow().log_prob(x).mean()

    decay = 1e-2 if n > 5000 else 1.0
    step, *_ = train_flow(flow, losses, lambda: float(np.nanmean(value(validation, 2))), decay, began, seconds, 15)
    return {"seconds": time.process_time() - began, "steps": step}, {"test": value(test, DRAWS)}


def fit_all(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # so that trainer.max_time counts CPU seconds, as the other methods' limits do
    for seed in options.seeds:
        for name in options.sets:
            for method in options.methods:
                cells, key = Cells(options.scratch, method), f"{name}-{seed}"
                if cells.has(key):
                    continue
                path = path_of(options.data, name)
                if method in OPTIONS:
                    facts, rows = by_ndm(OPTIONS[method], path, SETS[name], seed, cells.folder / key)
                else:
                    table = Table(str(path), kinds="auto")
                    if method == "nsf":
                        facts, rows = nsf(table, SETS[name], seed)
                    else:
                        assert table.encoding is not None
                        model: Callable = {"product": product, "mixture": mixture}[method]
                        splits = (table.split(s) for s in ("train", "validation", "test"))
                        values, facts = model(table.encoding, *splits, seed=seed)
                        rows = {"test": values}
                cells.write(key, facts | {"commit": environment()["commit"]}, **rows)
                print(name, method, seed, *over_rows(rows["test"]), facts, flush=True)


def summarise(options: argparse.Namespace) -> None:
    """A line for each set and method: the mean, its error, and the difference to ``ndm`` paired by row and seed."""
    lines: list[Facts] = [{"environment": environment(), "settings": {"seconds": SETS, "times": TIMES, "draws": DRAWS}}]
    for name in SETS:
        every: dict[str, dict[int, tuple[Facts, Rows]]] = {}
        for method in (*OPTIONS, "product", "mixture", "nsf"):
            cells = Cells(options.scratch, method)
            found = {s: cells.read(f"{name}-{s}") for s in SEEDS if cells.has(f"{name}-{s}")}
            every |= {method: found} if found else {}
        for method, found in every.items():
            values = np.stack([rows["test"] for _, rows in found.values()])
            mean, error = over_rows(values.mean(0))
            spread = values.mean(1).var(ddof=1) / len(values) if len(values) > 1 else 0.0
            shared = sorted(found.keys() & every["ndm"].keys())
            gap, gap_error = paired(np.stack([found[s][1]["test"] - every["ndm"][s][1]["test"] for s in shared]))
            lines.append({
                "set": name, "method": method, "rows": values.shape[1], "seeds": len(values), "log_p": mean,
                "stderr": math.sqrt(error**2 + spread), "minus_ndm": gap, "minus_ndm_stderr": gap_error,
                "seconds": float(np.mean([facts["seconds"] for facts, _ in found.values()])),
                "commits": sorted({facts["commit"] for facts, _ in found.values() if "commit" in facts}),
            })  # fmt: skip
            print(lines[-1])
    write(RESULTS / "mixed.jsonl", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "summary"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=[*OPTIONS, "product", "mixture", "nsf"])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args()
    {"fit": fit_all, "summary": summarise}[options.what](options)


if __name__ == "__main__":
    main()
