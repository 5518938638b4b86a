"""Models trained side by side in one process: equal seconds, and a grid of steps that is the same for all."""

from __future__ import annotations

import bisect
import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import ndm
from ndm._internal.random import seed_of
from ndm.data import Examples
from suite.settings import Entry, Row

#: Ratio of neighbouring steps of the grid, and so how much of the slowest model's steps a comparison at equal steps may
#: lose.
RATIO = 1.03


#: Model, entry -> the mean and the standard error of its bound on validation data.
Look = Callable[[ndm.NDM, Entry], tuple[float, float]]


def _grid(last: int) -> list[int]:
    steps = [1]
    while steps[-1] < last:
        steps.append(max(steps[-1] + 1, math.ceil(RATIO * steps[-1])))
    return steps


GRID = _grid(10**8)


def on_grid(step: int) -> int:
    """The last step of the grid that is not after this one; 0 if there is none."""
    return GRID[place - 1] if (place := bisect.bisect_right(GRID, step)) else 0


class Contestant:
    """A model in training, with an optimiser, random numbers and averaged weights of its own.

    AdamW with a warm-up, a cosine over the *budget* (the part of the seconds, or of the steps, that is spent), and
    clipping. The random numbers of a step depend on the seed and the step alone.

    Args:
        name: of the model.
        model: the model.
        entry, row: how it is trained.
        examples: the training split.
        seed: of the batches, times and noise.

    Attributes:
        seconds: of the process, spent on its steps.
        steps: done.
        snapshots: averaged weights by step, on the grid.
        curve: seconds, steps, mean and standard error of the bound on validation data, at even parts of the budget.
        diverged: the step at which the loss was no longer finite, or None.
    """

    def __init__(self, name: str, model: ndm.NDM, entry: Entry, row: Row, examples: Examples, seed: int) -> None:
        self.name, self.model, self.entry, self.row, self.examples = name, model, entry, row, examples
        self.average = AveragedModel(model, multi_avg_fn=_averaging(row.ema), use_buffers=False)
        self.optimizer = torch.optim.AdamW(_groups(model, entry), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = torch.Generator().manual_seed(seed_of(seed))
        self.seconds, self.steps = 0.0, 0
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.curve: list[list[float]] = []
        self.diverged: int | None = None

    @property
    def progress(self) -> float:
        """The part of the budget that is spent."""
        if self.row.steps is not None:
            return self.steps / self.row.steps
        assert self.row.seconds is not None
        return self.seconds / self.row.seconds

    @property
    def finished(self) -> bool:
        """Whether the budget is spent: of seconds, to within half a step."""
        half_a_step = 0.0
        if self.row.seconds is not None and self.steps:
            half_a_step = self.seconds / self.steps / 2 / self.row.seconds
        return self.progress + half_a_step >= 1 or self.diverged is not None

    def warm_up(self) -> None:
        """A step of a copy, for what only the first one costs."""
        model, generator = copy.deepcopy(self.model), torch.Generator().manual_seed(0)
        model.bound(self._batch(generator), self.entry.bound_steps, generator=generator).total.mean().backward()

    def turn(self, look: Look | None = None) -> None:
        """Train until the turn or the budget is over. Looking takes nothing of either."""
        spent = self.seconds
        while not self.finished and self.seconds - spent < self.row.turn:
            began = time.process_time()
            self.step()
            self.seconds += time.process_time() - began
            if look is not None and self.diverged is None:
                self._look(look)

    def _look(self, look: Look) -> None:
        if on_grid(self.steps) == self.steps:
            self.snapshots[self.steps] = weights(self.average.module)
        if self.finished or self.progress >= (len(self.curve) + 1) / self.row.curve_points:
            self.curve.append([self.seconds, self.steps, *look(self.average.module.eval(), self.entry)])

    def step(self) -> None:
        factor = min(1.0, (self.steps + 1) / max(self.row.warmup, 1)) * (1 + math.cos(math.pi * self.progress)) / 2
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self._choose()
        batch = self._batch(self.generator)
        terms = self.model.bound(batch, self.entry.bound_steps, generator=self.generator, check=False)
        loss = (terms.total + terms.auxiliary).mean() / (terms.dimensions * math.log(2))
        if not math.isfinite(loss.item()):
            self.diverged = self.steps
            return
        self.optimizer.zero_grad()  # to None: who has no gradient in this step is left as it is
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.row.clip)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.steps += 1

    def _choose(self) -> None:
        """Whose turn it is in alternating training: F's in the odd steps, everything else's in the even ones."""
        if self.entry.updates == "alternating" and self.entry.learned:
            in_f = {id(p) for p in self.model.transform.parameters()}
            for p in self.model.parameters():
                p.requires_grad_((id(p) in in_f) is (self.steps % 2 == 1))

    def _batch(self, generator: torch.Generator) -> Tensor:
        return self.examples[torch.randint(len(self.examples), (self.row.batch_size,), generator=generator)]


def _averaging(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """A running average that at first is over fewer steps, lest the start weigh on a short training."""

    def average(so_far: list[Tensor], now: list[Tensor], n: Tensor | int) -> None:
        torch._foreach_lerp_(so_far, now, 1 - min(decay, (1 + int(n)) / (10 + int(n))))

    return average


def _groups(model: ndm.NDM, entry: Entry) -> list[dict]:
    """Matrices with decay, the rest without; F, and the schedule's end points, with rates of their own."""
    rates = dict.fromkeys(model.transform.parameters(), entry.f_rate)
    rates |= dict.fromkeys(model.schedule.endpoint_parameters(), entry.endpoint_rate)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        groups.setdefault((rates.get(p, 1.0), entry.weight_decay if p.ndim >= 2 else 0.0), []).append(p)
    return [
        {"params": params, "lr": entry.learning_rate * rate, "weight_decay": decay}
        for (rate, decay), params in groups.items()
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def race(contestants: Sequence[Contestant], look: Look | None = None) -> None:
    """Train all of them to the end of their budgets, in turns.

    Args:
        contestants: of one row.
        look: measures a model on validation data, for the curve; None for no curve and no snapshots.
    """
    for contestant in contestants:
        contestant.warm_up()
    while not all(c.finished for c in contestants):
        for contestant in contestants:
            contestant.turn(look)
            if look is not None and contestant.diverged is not None:
                return  # there is nothing to compare any more
        passed = on_grid(min(c.steps for c in contestants))  # nothing before it will be asked for
        for contestant in contestants:
            contestant.snapshots = {k: v for k, v in contestant.snapshots.items() if k >= passed}


def common_step(contestants: Sequence[Contestant]) -> int:
    """The last step at which there are weights of every one."""
    steps = {c.steps for c in contestants}
    return min(steps) if len(steps) == 1 else on_grid(min(steps))


def weights_at(contestant: Contestant, step: int) -> dict[str, Tensor]:
    """The averaged weights after this step."""
    return weights(contestant.average.module) if step == contestant.steps else contestant.snapshots[step]
