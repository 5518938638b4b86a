"""Small tables with and without a mixture as the start of the denoiser.

    python benchmarks/start.py --data DATA --scratch ROWS

``ndm train table`` with ``--training.base mixture``, of as many components as the validation split chooses, and
``none``, for 60 CPU seconds at most: on stock and titanic, and on random rows of housing and diamonds, with the given
number for training and 1,000 for the test. Figures are minus the bound of the test rows, differences are paired, and
cells are kept in --scratch, as in mixed.py. Lines of results/start.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas
import torch
from bench import RESULTS, environment, write
from density.cells import Cells, Facts, Rows, over_rows
from density.summary import paired
from mixed import SEEDS, by_ndm, path_of

import ndm

#: Of the random parts the numbers of training rows.
PARTS = {f"{name}-{rows}": rows for name in ("housing", "diamonds") for rows in (240, 720)}
SETS = {"stock": None, "titanic": None} | PARTS
TEST, SECONDS = 1000, 60


def measure(data: Path, name: str, base: str, seed: int, keep: Path) -> tuple[Facts, Rows]:
    path, rows, options = path_of(data, name.split("-")[0]), SETS[name], ["--training.base", base]
    with tempfile.TemporaryDirectory() as folder:
        if rows is not None:
            every = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
            every.sample(rows + rows // 4 + TEST, random_state=seed).to_parquet(path := Path(folder) / "part.parquet")
            options += ["--data.validation", str(rows // 4), "--data.test", str(TEST)]
        facts, found = by_ndm(options, path, SECONDS, seed, keep)
    own = getattr(ndm.NDM.from_pretrained(keep).denoiser, "base", None)
    return facts | {"components": None if own is None else own.components, "commit": environment()["commit"]}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, metavar="ROWS", help="the folder of finished cells")
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # as in mixed.py
    lines: list[Facts] = [{"environment": environment(), "settings": {"test": TEST, "seconds": SECONDS}}]
    for name in SETS:
        rows: dict[str, list[np.ndarray]] = {"none": [], "mixture": []}
        every: list[Facts] = []
        for seed in SEEDS:
            for base, found in rows.items():
                cells, key = Cells(options.scratch, f"start-{base}"), f"{name}-{seed}"
                if not cells.has(key):
                    facts, own = measure(options.data, name, base, seed, cells.folder / key)
                    cells.write(key, facts, **own)
                facts, own = cells.read(key)
                every.append(facts)
                found.append(own["test"])
        gain, error = paired(apart := np.stack(rows["mixture"]) - np.stack(rows["none"]))
        line = {"set": name, "gain": gain, "gain_stderr": error, "median": float(np.median(apart))}
        line |= {base: over_rows(np.mean(found, 0)) for base, found in rows.items()}
        line["components"] = [facts["components"] for facts in every if facts["components"] is not None]
        lines.append(line | {"commits": sorted({facts["commit"] for facts in every})})
        print(lines[-1], flush=True)
    write(RESULTS / "start.jsonl", lines)


if __name__ == "__main__":
    main()
