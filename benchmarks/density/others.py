"""The other methods: a mixture of Gaussians by scikit-learn and a neural spline flow by zuko, chosen by validation."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from density.cells import Cells, Facts, Rows

#: Rows of training below which a table is small, and below which each seed chooses NSF's settings.
SMALL, FEW = 5_000, 1_000
#: Of GaussianMixture; of the second a large table has the first three.
COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 30, 40, 60, 90, 130, 200)
REGULARISATIONS = (1e-4, 1e-6, 1e-3, 1e-2, 3e-2, 1e-1)
#: Of NSF, below SMALL rows and above: transformations and the width of the two hidden layers; weight decays.
SHAPES = {True: ((1, 32), (3, 64), (3, 128), (5, 128)), False: ((3, 128), (5, 128))}
DECAYS = {True: (1e-2, 1.0), False: (1e-2,)}
RATE, PATIENCE, CLIP = 1e-3, 15, 5.0
#: The shares of the cap at which the rate falls, twice, and the training ends, where patience was not sooner.
LATEST = (0.7, 0.9, 1.0)


@dataclasses.dataclass
class Table:
    """The splits of a set, standardised by the training split; ``log_scale`` puts densities back into its units."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    log_scale: float

    @classmethod
    def read(cls, folder: Path) -> Table:
        splits = [
            pandas.read_parquet(folder / f"{s}.parquet").to_numpy(np.float64) for s in ("train", "validation", "test")
        ]
        mean, scale = splits[0].mean(0), splits[0].std(0)
        return cls(*((x - mean) / scale for x in splits), float(np.log(scale).sum()))

    @property
    def small(self) -> bool:
        return len(self.train) < SMALL


def gmm(data: Table, seed: int, chosen: Facts | None = None) -> tuple[Facts, Rows]:
    """The fit of the best number of components and reg_covar by validation, or as another seed has ``chosen``."""
    began = time.process_time()
    fits: dict[tuple[int, float], tuple[float, float, GaussianMixture]] = {}

    def validation_of(count: int, regularisation: float) -> float:
        fits[count, regularisation] = gmm_fit(data, count, regularisation, seed)
        return fits[count, regularisation][0]

    if chosen is not None:
        validation_of(chosen["settings"]["components"], chosen["settings"]["reg_covar"])
    else:
        for regularisation in REGULARISATIONS if data.small else REGULARISATIONS[:1]:
            best, since = -math.inf, 0
            for count in COMPONENTS:
                value = validation_of(count, regularisation)
                best, since = max(best, value), 0 if value > best else since + 1
                if since == 2:
                    break
        if not data.small:
            most = max(fits, key=lambda key: fits[key][0])[0]
            for regularisation in REGULARISATIONS[1:3]:
                validation_of(most, regularisation)
    (count, regularisation), (_, fit, mixture) = max(fits.items(), key=lambda item: item[1][0])
    rows = {name: mixture.score_samples(getattr(data, name)) - data.log_scale for name in ("test", "validation")}
    seconds = {"fit": fit, "all": time.process_time() - began}
    if chosen is not None:
        seconds["all"] += chosen["seconds"]["all"] - chosen["seconds"]["fit"]
    return {
        "settings": chosen["settings"] if chosen else
        {"components": count, "reg_covar": regularisation, "compared": len(fits), "chosen_by_seed": seed},
        "steps": int(mixture.n_iter_),
        "validation": float(rows["validation"].mean()),
        "seconds": seconds,
    }, rows  # fmt: skip


def gmm_fit(data: Table, count: int, regularisation: float, seed: int) -> tuple[float, float, GaussianMixture]:
    """The log-likelihood of the validation split, the processor's seconds, and the mixture."""
    began = time.process_time()
    repeats = 3 if data.small else 1
    mixture = GaussianMixture(count, reg_covar=regularisation, max_iter=300, n_init=repeats, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one that has not converged is judged by validation all the same
        mixture.fit(data.train)
    return float(mixture.score(data.validation)), time.process_time() - began, mixture


def train_flow(
    flow: nn.Module, losses: Callable[[], Iterable[Tensor]], value: Callable[[], float], decay: float, began: float,
    seconds: float, patience: int,
) -> tuple[int, int, bool]:  # fmt: skip
    """Train with early stopping, a validation after each round of ``losses``, and keep the best weights.

    The rate falls, and at last the training ends, after ``patience`` validations without a gain, or at LATEST. Returned
    are the number of steps, the step of the kept weights, and whether LATEST was sooner.
    """
    optimizer = torch.optim.AdamW(flow.parameters(), lr=RATE, weight_decay=decay)
    best, kept, best_step, since, falls, step, capped = -math.inf, flow.state_dict(), 0, 0, 0, 0, False
    while falls < len(LATEST):
        for loss in losses():
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
            optimizer.step()
            step += 1
        found, since = value(), since + 1
        if found > best:
            best, kept, best_step, since = found, {k: v.clone() for k, v in flow.state_dict().items()}, step, 0
        if since >= patience or time.process_time() - began > LATEST[falls] * seconds:
            capped |= since < patience
            falls, since = falls + 1, 0
            flow.load_state_dict(kept)
            for group in optimizer.param_groups:
                group["lr"] *= 0.3
    flow.load_state_dict(kept)
    return step, best_step, capped


def nsf_fit(data: Table, shape: tuple[int, int], decay: float, seed: int, cap: float) -> tuple[Facts, Rows]:
    """One fit with early stopping."""
    import zuko

    began = time.process_time()
    torch.manual_seed(seed)
    train, validation, test = (torch.from_numpy(x.astype(np.float32)) for x in (data.train, data.validation, data.test))
    flow = zuko.flows.NSF(train.shape[1], transforms=shape[0], hidden_features=(shape[1],) * 2)
    batch = min(512, max(64, len(train) // 20))
    every = max(25, len(train) // batch)
    step, best_step, capped = train_flow(
        flow, lambda: (-flow().log_prob(x).mean() for x in batches(train, batch, every)),
        lambda: float(densities(flow, validation).mean()), decay, began, cap, PATIENCE,
    )  # fmt: skip
    rows = {"test": densities(flow, test) - data.log_scale, "validation": densities(flow, validation) - data.log_scale}
    settings = {"transforms": shape[0], "hidden": [shape[1]] * 2, "weight_decay": decay, "rate": RATE, "batch": batch}
    return {
        "settings": settings, "steps": step, "best_step": best_step, "validation": float(rows["validation"].mean()),
        "seconds": {"fit": time.process_time() - began}, "capped": capped,
    }, rows  # fmt: skip


def batches(x: Tensor, size: int, count: int) -> Iterator[Tensor]:
    """So many batches, by epochs in random order."""
    orders = (torch.randperm(len(x)) for _ in itertools.count())
    for index in itertools.islice(itertools.chain.from_iterable(o[: len(x) // size * size].split(size) for o in orders),
                                  count):  # fmt: skip
        yield x[index]


@torch.no_grad()
def densities(flow: Any, x: Tensor) -> np.ndarray:
    return torch.cat([flow().log_prob(part) for part in x.split(1024)]).double().numpy()


def nsf(data: Table, name: str, seed: int, first: int, fits: Cells, cap: float) -> tuple[Facts, Rows]:
    """The fit of the best settings by validation; ``first`` is the seed that chooses for all of FEW rows or more."""
    settings = list(itertools.product(SHAPES[data.small], DECAYS[data.small]))

    def fitted(choice: tuple[tuple[int, int], float], of: int) -> tuple[Facts, Rows]:
        (transforms, width), decay = choice
        key = f"{name}-{transforms}x{width}-{decay:g}-{of}"
        if not fits.has(key):
            facts, rows = nsf_fit(data, *choice, of, cap)
            fits.write(key, facts, **rows)
        return fits.read(key)

    chooser = seed if len(data.train) < FEW else first
    compared = {choice: fitted(choice, chooser)[0] for choice in settings}
    choice = max(compared, key=lambda c: compared[c]["validation"])
    facts, rows = fitted(choice, seed)
    other = sum(f["seconds"]["fit"] for c, f in compared.items() if c != choice)
    facts["seconds"]["all"] = facts["seconds"]["fit"] + other
    facts["settings"] |= {"compared": len(settings), "chosen_by_seed": chooser}
    return facts, rows
