"""The time of a step of ``ndm.training.fit`` over that of a training loop written by hand.

Both train the same U-Net on the same random images in continuous time, with the same batches and random numbers,
AdamW with a warm-up and a cosine rate, clipping to norm 1 with the test for a gradient that is not finite, and the
average of the weights, on one thread. Ours is ``ndm.training.fit`` as a user calls it: Lightning, its callbacks, a line
in the log every 50 steps. The loop written by hand draws the same numbers, and does nothing else.

The two take turns, some steps at a time, in one process, so that both meet the same machine: the loop by hand has its
turn at the start of one of our steps. All the time between two of its turns counts as ours. The figure is the median
over rounds of the ratio of the two times. The averaged weights are compared at the end: the work must be the same.

    python benchmarks/loop.py [--rounds 20] [--turn 10]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from bench import parameters, save
from torch import Tensor, nn

import ndm
from ndm import training
from ndm._internal.random import Share, seed_of
from ndm.data.base import Data, from_levels
from ndm.networks import UNet
from ndm.training import batches, fit

WARMUP, RATE, DECAY, CLIP, SEED, LOGGED = 100, 1e-3, 0.999, 1.0, 0, 50
SIDE, CHANNELS, LEVELS, BATCH, WIDTH = 16, 3, 256, 32, 16


class Noise(Data):
    """Images of noise."""

    shape, levels = (CHANNELS, SIDE, SIDE), LEVELS

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        n = 1024 if name == "train" else BATCH
        random = torch.Generator().manual_seed(len(name))
        return from_levels(torch.randint(LEVELS, (n, *self.shape), generator=random), LEVELS), None


def build() -> ndm.NDM:
    torch.manual_seed(0)
    net = UNet(CHANNELS, WIDTH, multipliers=(1, 2), groups=8)
    return ndm.NDM(ndm.LearnedSchedule(), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(LEVELS))


def by_hand(model: ndm.NDM, average: list[Tensor], x: Tensor, steps: int) -> Iterator[None]:
    """A training, a step for each ``next``."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2]},
            {"params": [p for p in model.parameters() if p.ndim < 2]},
        ],
        lr=RATE, betas=(0.9, 0.999), weight_decay=0.0,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / WARMUP) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    weights = list(model.parameters())
    in_pass = len(x) // BATCH
    order = torch.zeros(0)
    for step in range(steps):
        if step % in_pass == 0:
            numbers = torch.Generator().manual_seed(seed_of(SEED, batches.ORDER, step // in_pass))
            order = torch.randperm(len(x), generator=numbers)
        batch = x[order[step % in_pass * BATCH :][:BATCH]]
        torch.manual_seed(seed_of(SEED, batches.DROPOUT, step, 0))
        numbers = torch.Generator().manual_seed(seed_of(SEED, batches.NOISE, step))
        loss = model.bound(batch, generator=Share(numbers, slice(0, BATCH), BATCH), check=False).bits_per_dim.mean()
        optimizer.zero_grad()
        loss.backward()
        if not torch.isfinite(nn.utils.clip_grad_norm_(weights, CLIP)):
            raise RuntimeError("The gradient is not finite.")
        optimizer.step()
        schedule.step()
        if step == 0:
            average += [p.detach().clone() for p in weights]
        else:
            now = [p.detach() for p in weights]
            torch._foreach_lerp_(average, now, 1 - min(DECAY, (1 + step) / (10 + step)))
        yield


def ours(model: ndm.NDM, data: Data, steps: int, turn: int, other: Iterator[None]) -> dict[str, list[float]]:
    """Train by ``fit``, with a turn of the other loop before each of ours; the seconds of all turns."""
    taken: dict[str, list[float]] = {"ndm": [], "by hand": []}

    class Turns(training.NDMModule):
        """Gives the other loop its turns."""

        since = time.perf_counter()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step % turn == 0:
                if self.global_step:
                    taken["ndm"].append(time.perf_counter() - self.since)
                started = time.perf_counter()
                for _ in range(turn):
                    next(other)
                taken["by hand"].append(time.perf_counter() - started)
                self.since = time.perf_counter()
            super().on_train_batch_start(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx)
            if self.global_step == steps:
                taken["ndm"].append(time.perf_counter() - self.since)

    vars(sys.modules["ndm.training.fitting"])["NDMModule"] = Turns
    options = training.TrainingOptions(learning_rate=RATE, warmup=WARMUP, ema=DECAY, batch_size=BATCH)
    limits = training.TrainerOptions(
        max_steps=steps, accelerator="cpu", gradient_clip_val=CLIP, log_every_n_steps=LOGGED,
        val_check_interval=10 * steps, patience=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, f"{folder}/run", options, limits, seed=SEED, progress=False)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turn", type=int, default=10, help="steps of a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that other work on the machine does not stop both
    data, model, same = Noise(), build(), build()
    steps = (options.rounds + 1) * options.turn  # the first round warms up
    average: list[Tensor] = []
    taken = ours(model, data, steps, options.turn, by_hand(same, average, data.train, steps))
    ms = {name: [1000 * t / options.turn for t in times[1:]] for name, times in taken.items()}
    ratios = sorted(a / b for a, b in zip(ms["ndm"], ms["by hand"], strict=True))
    gap = max((a - p).abs().max().item() for a, p in zip(average, model.parameters(), strict=True))
    row = {
        "ms_ndm": statistics.median(ms["ndm"]),
        "ms_by_hand": statistics.median(ms["by hand"]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "largest_difference_of_weights": gap,
    }
    print(row)
    settings = {"rounds": options.rounds, "steps_of_a_turn": options.turn, "shape": Noise.shape, "batch_size": BATCH}
    print(save("loop", [row], settings | {"parameters": parameters(same), "logged_every": LOGGED}))


if __name__ == "__main__":
    main()
