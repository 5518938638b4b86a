"""The CPU time of a step of ``ndm train table``, ``digits`` and ``images`` over that of a loop written by hand.

Both train the same model on the same data, with the same batches and random numbers, fused AdamW with a warm-up and a
cosine rate, clipping with the test for a gradient that is not finite, and the average of the weights, on one thread.
Ours is ``ndm.training.fit`` with the options of the configuration: Lightning, its callbacks, a line in the log every 50
steps. The loop written by hand draws the same numbers, and does nothing else. The table has ten columns of numbers and
5,000 rows, the images are noise of 32 x 32 pixels.

The two take turns, some steps at a time, in one process, so that both meet the same machine: the loop by hand has its
turn at the start of one of our steps. All the time between two of its turns counts as ours. The figure is the median
over rounds of the ratio of the two times. The averaged weights are compared at the end: the work must be the same.

    python benchmarks/loop.py [--rounds 20] [--only table]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import parameters, save
from torch import Tensor, nn

from ndm import training
from ndm._internal.random import Share, seed_of
from ndm.configs.configuration import Built, Configuration
from ndm.data.base import Data, from_levels
from ndm.training import batches, fit

#: The configurations, and the steps of a turn.
TURNS = {"table": 40, "digits": 20, "images": 2}


class Noise(Data):
    """Images of noise."""

    shape, levels = (3, 32, 32), 256

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        random = torch.Generator().manual_seed(len(name))
        return from_levels(torch.randint(256, (256, *self.shape), generator=random), 256), None


def build(name: str, folder: Path) -> Built:
    overrides = ["--trainer.accelerator", "cpu", "--trainer.pictures_every", "0"]
    if name == "table":
        rows = np.random.default_rng(0).normal(size=(5000, 10)) @ np.random.default_rng(1).normal(size=(10, 10))
        np.savetxt(folder / "x.csv", rows, delimiter=",", header=",".join("abcdefghij"), comments="")
        overrides += ["--data.path", str(folder / "x.csv")]
    overrides += ["--data.path", str(folder)] if name == "images" else []
    return Configuration.read(name, overrides).build(Noise() if name == "images" else None)


def by_hand(built: Built, average: list[Tensor], steps: int) -> Iterator[None]:
    """A training, a step for each ``next``."""
    model, options, seed, weights = built.model, built.training, built.seed, list(built.model.parameters())
    limits = dataclasses.replace(built.trainer, max_steps=steps)
    made = training.NDMModule(model, options, limits).configure_optimizers()  # fused AdamW, with groups for the decay
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    x, order = built.data.train, torch.zeros(0)
    size = min(options.batch_size, len(x))
    for step in range(steps):
        place = step % (len(x) // size)
        if place == 0:
            numbers = torch.Generator().manual_seed(seed_of(seed, batches.ORDER, step // (len(x) // size)))
            order = torch.randperm(len(x), generator=numbers)
        torch.default_generator.manual_seed(seed_of(seed, batches.DROPOUT, step, 0))
        numbers = torch.Generator().manual_seed(seed_of(seed, batches.NOISE, step))
        share = Share(numbers, slice(0, size), size)
        terms = model.bound(x[order[place * size :][:size]], options.steps, generator=share, check=False)
        loss = (terms.total + terms.auxiliary).mean() / (terms.dimensions * math.log(2))
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(nn.utils.clip_grad_norm_(weights, built.trainer.gradient_clip_val or math.inf))
        optimizer.step()
        schedule.step()
        now = [p.detach() for p in weights]
        average += [] if average else [p.clone() for p in now]
        torch._foreach_lerp_(average, now, 1 - min(options.ema, (1 + step) / (10 + step)))
        yield


def ours(built: Built, steps: int, turn: int, other: Iterator[None], folder: Path) -> dict[str, list[float]]:
    """Train by ``fit``, with a turn of the other loop before each of ours; the seconds of all turns."""
    taken: dict[str, list[float]] = {"ndm": [], "by hand": []}

    class Turns(training.NDMModule):
        """Gives the other loop its turns."""

        since = time.process_time()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step % turn == 0:
                if self.global_step:
                    taken["ndm"].append(time.process_time() - self.since)
                started = time.process_time()
                for _ in range(turn):
                    next(other)
                taken["by hand"].append(time.process_time() - started)
                self.since = time.process_time()
            super().on_train_batch_start(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx)
            if self.global_step == steps:
                taken["ndm"].append(time.process_time() - self.since)

    vars(sys.modules["ndm.training.fitting"])["NDMModule"] = Turns
    limits = dataclasses.replace(built.trainer, max_steps=steps, val_check_interval=10 * steps, patience=None)
    fit(built.model, built.data, folder / "run", built.training, limits, seed=built.seed, progress=False, verbose=False)
    return taken


def measure(name: str, rounds: int, turn: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        built = build(name, Path(folder))
        same = dataclasses.replace(built, model=copy.deepcopy(built.model))
        if built.training.steps is not None:
            same.model.schedule.train_in_steps()
        steps = (rounds + 1) * turn  # the first round warms up
        average: list[Tensor] = []
        taken = ours(built, steps, turn, by_hand(same, average, steps), Path(folder))
    ms = {who: [1000 * t / turn for t in times[1:]] for who, times in taken.items()}
    ratios = sorted(a / b for a, b in zip(ms["ndm"], ms["by hand"], strict=True))
    gap = max((a - p).abs().max().item() for a, p in zip(average, built.model.parameters(), strict=True))
    return {
        "configuration": name, "parameters": parameters(same.model), "batch_size": built.training.batch_size,
        "ms_ndm": statistics.median(ms["ndm"]), "ms_by_hand": statistics.median(ms["by hand"]),
        "ratio": statistics.median(ratios), "largest_difference_of_weights": gap,
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=TURNS, default=list(TURNS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that other work on the machine does not stop both
    rows = []
    for name in options.only:
        rows.append(measure(name, options.rounds, TURNS[name]))
        print(rows[-1], flush=True)
    if set(options.only) == set(TURNS):
        print(save("loop", rows, {"rounds": options.rounds, "steps_of_a_turn": TURNS, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
