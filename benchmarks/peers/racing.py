"""Training in turns, for equal seconds and on the same batches; widths of equal parameters; figures of samples."""

from __future__ import annotations

import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from bench import mean_and_error, parameters
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import ndm
from ndm._internal.random import seed_of

#: Seconds of the processor that a model trains before the next one's turn.
TURN = 1.0


def load(folder: Path, name: str, url: str) -> ModuleType:
    """A file of a checkout as a module of another name: a peer's may have the name of a package that is installed.

    Raises:
        FileNotFoundError: the file is not there.
    """
    path = folder / f"{name}.py"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in {folder}: give --peer a checkout of {url}.")
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- batches


def epochs(data: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of a data set for ever: shuffled anew each time through, what does not fill a batch left out."""
    generator = torch.Generator().manual_seed(seed_of(seed, 0))
    while True:
        order = torch.randperm(len(data), generator=generator)
        yield from (data[some] for some in order.split(batch_size)[: len(data) // batch_size])


def draws(sample: Callable[[int], Tensor], batch_size: int, seed: int) -> Iterator[Tensor]:
    """New examples for ever, from a function that draws on PyTorch's own random numbers, which it finds unchanged."""
    for number in itertools.count():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, number))
            batch = sample(batch_size)
        yield batch


# ---- training


class Training(Protocol):
    """A model, and what a step of its training is."""

    model: nn.Module

    def step(self, batch: Tensor, spent: float) -> None:
        """One step; ``spent`` is the part of the budget that is behind it, from 0 to 1."""


class Ours:
    """Adam with a warm-up of 100 steps, a cosine over the budget, clipping, and averaged weights, as bench.train has.

    Args:
        model: any module.
        loss: batch (B, \\*shape) -> the mean loss.
        rate: the highest learning rate.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], rate: float) -> None:
        self.trained, self.loss, self.rate = model, loss, rate
        self.average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.995), use_buffers=False)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        self.steps = 0

    @property
    def model(self) -> nn.Module:
        return self.average.module

    def step(self, batch: Tensor, spent: float) -> None:
        self.steps += 1
        rate = self.rate * min(1.0, self.steps / 100) * (1 + math.cos(math.pi * spent)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.loss(self.trained, batch).backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.trained)


class Contestant:
    """A training, its batches, and random numbers of its own.

    Attributes:
        seconds: of the process, spent on its steps, and on drawing their batches.
        steps: done.
    """

    def __init__(self, name: str, start: Callable[[], Training], batches: Iterable[Tensor], seed: int) -> None:
        self.name, self.batches = name, iter(batches)
        self.seconds, self.steps = 0.0, 0
        torch.manual_seed(seed)
        self.training = start()
        self.state = torch.get_rng_state()

    def turn(self, until: float, budget: float) -> None:
        """Train until so many seconds are spent."""
        torch.set_rng_state(self.state)
        while self.seconds < until:
            began = time.process_time()
            self.training.step(next(self.batches), self.seconds / budget)
            self.seconds += time.process_time() - began
            self.steps += 1
        self.state = torch.get_rng_state()


def race(contestants: list[Contestant], seconds: float) -> None:
    """Train them all for so many seconds each, in turns; the models are in eval mode afterwards."""
    while any(one.seconds < seconds for one in contestants):
        for one in contestants:
            one.turn(min(one.seconds + TURN, seconds), seconds)
    for one in contestants:
        one.training.model.eval()


# ---- equal parameters


def widest(build: Callable[[int], nn.Module], budget: int) -> int:
    """The width whose model has nearest to so many parameters, by bisection; at least 8.

    Args:
        build: width -> a model, that grows with the width.
        budget: the number of parameters.
    """

    def count(width: int) -> int:
        return parameters(build(width))

    low, high = 8, 16
    while count(high) < budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < budget else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - budget))


# ---- figures


def distances(fresh: Tensor, samples: Tensor) -> dict[str, float]:
    """Sliced Wasserstein distance and MMD^2 of samples, (N, d), from fresh data, (M, d); NaN for hardly any samples."""
    if len(samples) < 10:
        return {"sliced_wasserstein": math.nan, "mmd": math.nan}
    directions = torch.Generator().manual_seed(0)
    return {
        "sliced_wasserstein": ndm.sliced_wasserstein(fresh, samples, permutations=0, generator=directions).value,
        "mmd": ndm.mmd(fresh, samples, permutations=0).value,
    }


def over_seeds(found: list[dict[str, Any]], which: dict[str, Any], key: str) -> str:
    """A figure's mean over the rows that have these values, and its standard error; empty if they lack it."""
    values = [row[key] for row in found if all(row[k] == v for k, v in which.items()) and key in row]
    if not values:
        return ""
    mean, error = mean_and_error(values)
    if not 0 < error < math.inf:
        return f"{mean:,.0f}" if isinstance(values[0], int) else f"{mean:.3g}"
    # Two digits of the error, unless the mean has four before.
    digits = max(0, 1 - math.floor(math.log10(max(error, abs(mean) / 1000))))
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}"
