"""The quality of samples of tables by the number of steps, for the models of mixed.py.

    python benchmarks/steps.py --data DATA --scratch ROWS [--sets housing diamonds protein]

The model is that of ``ndm``, seed 0 (of protein: ``mixed.py fit --sets protein --methods ndm --seeds 0``). 2,000
samples by ancestral steps that are even in time or in gamma, by DDIM and by Heun's method (half as many steps of two
evaluations) are compared with the test rows by the sliced Wasserstein distance of the encoded rows, each coordinate
divided by its standard deviation in the training rows, or by 0.2 if larger. ``rows`` is the distance of as many
training rows. Errors are standard deviations over 5 draws. Lines of results/steps.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bench import RESULTS, environment, write
from mixed import path_of

import ndm
from ndm.data import Table

COUNT, REPEATS, STEPS = 2000, 5, (20, 50, 100, 400)
WAYS: dict[str, dict[str, Any]] = {
    "ancestral, time": {"method": "ancestral", "spacing": "time"},
    "ancestral, gamma": {"method": "ancestral", "spacing": "gamma"},
    "ddim, gamma": {"method": "ddim", "spacing": "gamma"},
    "ode, heun": {"method": "ode", "solver": "heun", "spacing": "gamma"},
}


def distance(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, seed: int) -> float:
    n = min(len(x), len(y))
    return ndm.sliced_wasserstein(
        x[:n] / scale, y[:n] / scale, permutations=1, generator=torch.Generator().manual_seed(seed)
    ).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["housing", "diamonds", "protein"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = [{"environment": environment(), "settings": {"samples": COUNT}}]
    for name in options.sets:
        table = Table(str(path_of(options.data, name)), kinds="auto")
        model, encoding = ndm.NDM.from_pretrained(options.scratch / "ndm" / f"{name}-0"), table.encoding
        assert encoding is not None
        train, test = encoding(table.train), encoding(table.test)
        scale = train.std(0).clamp_min(0.2)  # the coordinates of rare categories would count for too much
        order = [torch.randperm(len(train), generator=torch.Generator().manual_seed(s)) for s in range(REPEATS)]
        floor = [distance(train[rows[:COUNT]], test, scale, s) for s, rows in enumerate(order)]
        lines.append({"set": name, "method": "rows", "distance": statistics.mean(floor), "sd": statistics.stdev(floor)})
        print(lines[-1], flush=True)
        for way, how in WAYS.items():
            for steps in STEPS:
                if how["method"] != "ancestral" and steps > 100:
                    continue
                began, found = time.process_time(), []
                for seed in range(REPEATS):
                    x = model.sample(
                        COUNT, steps=steps // 2 if how["method"] == "ode" else steps, progress=False,
                        generator=torch.Generator().manual_seed(seed), **how,
                    )  # fmt: skip
                    found.append(distance(encoding(x), test, scale, seed))
                line = {"set": name, "method": way, "steps": steps, "distance": statistics.mean(found)}
                lines.append(line | {"sd": statistics.stdev(found), "seconds": time.process_time() - began})
                print(lines[-1], flush=True)
    write(RESULTS / "steps.jsonl", lines)


if __name__ == "__main__":
    main()
