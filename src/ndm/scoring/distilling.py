"""Distillation of the log-density of a model of a table into a small network.

The network is fitted to log-densities of training rows, of samples of the model, and of rows around them: training rows
with noise of several sizes, and with cells exchanged between rows. The errors are measured on validation rows, which
neither the model nor the network was fitted to, and on other samples and rows around them.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ndm._internal.random import seed_of
from ndm.data import Data
from ndm.data.choosing import part_of
from ndm.inference.likelihood import calibrate_solver, is_exact, log_likelihood
from ndm.inference.sampling import sample
from ndm.method.encoding import TableEncoding
from ndm.model import NDM
from ndm.networks import ResidualMLP
from ndm.scoring.checks import fingerprint
from ndm.scoring.distilled import DistilledScore

__all__ = ["check_distillable", "distill"]

logger = logging.getLogger(__name__)

#: Rows whose densities are computed at a time, and numbers of the first of them that are timed.
BLOCK = 1024

#: The tolerance of the densities in nats per dimension, well below the error of the network.
TOLERANCE = 0.03

#: Parts of the rows that are training rows and samples; the others lie around the training rows.
OF_TRAINING, OF_SAMPLES = 0.3, 0.4

#: The part of the samples and of the rows around that the network is not fitted to, and the most validation rows.
HELD_OUT, VALIDATION = 0.1, 4000

#: Standard deviations of the noise of rows around, smallest and largest, in those of their columns.
NOISE = (0.01, 1.6)

#: Shares of the cells that are exchanged.
EXCHANGED = (0.1, 0.5, 1.0)

#: The network and its training: batch size, highest learning rate, steps of its increase, decay of the averaged
#: weights, and the error in standard deviations up to which the loss is quadratic.
HIDDEN, DEPTH, BATCH, RATE, WARM, AVERAGE, QUADRATIC = 256, 3, 512, 1e-3, 200, 0.998, 0.05


def check_distillable(model: NDM, given: bool = False) -> None:
    """Raise a ValueError unless the log-likelihood of the model is the exact density of the rows of a table."""
    vectors = not isinstance(model.standardize, TableEncoding) or len(model.standardize.table) > 0
    if not model.has_ode or model.decoder.discrete or model.num_classes or model.latent or given or not vectors:
        raise ValueError(
            "Only a model of a table of real numbers, without labels, given columns and a latent, can be distilled: "
            "its log-likelihood must be an exact density. Score this one without --fast."
        )


def distill(
    model: NDM,
    data: Data,
    rows: int = 60_000,
    steps: int = 12_000,
    seed: int = 0,
    report: Callable[[str, int, int], None] | None = None,
) -> DistilledScore:
    """Fit a network to the log-density of a model.

    Args:
        model: the model of a table of real numbers, on the CPU.
        data: its training data.
        rows: the number of rows whose density is computed, besides validation rows.
        steps: training steps.
        seed: seed of the rows and of the training.
        report: called with the name of the stage, the progress and its end.

    Raises:
        ValueError: the density of the model is not exact, or fewer than 1,000 rows have a finite one.
    """
    check_distillable(model)
    model.eval()
    generator = torch.Generator().manual_seed(seed_of(seed, 0))
    report = report or (lambda stage, done, end: None)
    train = _in_memory(data, "train", rows)
    if train.ndim != 2 or not is_exact("auto", model.to_model(train[:1]).shape[1:]):
        raise ValueError("Only a model of a table of up to 64 columns can be distilled, whose divergence is exact.")
    parts = {
        "training": train[part_of(len(train), int(OF_TRAINING * rows), seed)],
        "samples": _samples(model, int(OF_SAMPLES * rows), train.shape[1:], generator).to(train),
        "around": _around(model, train, rows - int((OF_TRAINING + OF_SAMPLES) * rows), generator),
        "validation": _in_memory(data, "validation", VALIDATION),
    }
    found = _labelled(model, parts, report)
    fitted, held = [found["training"]], [found["validation"]]
    for name in ("samples", "around"):
        x, y = found[name]
        n = int(HELD_OUT * len(x))
        held.append((x[:n], y[:n]))
        fitted.append((x[n:], y[n:]))
    x, y = (torch.cat(part) for part in zip(*fitted, strict=True))
    if len(x) < 1000:
        raise ValueError(f"Only {len(x)} rows have a finite density: give more --rows, or train longer.")
    torch.manual_seed(seed_of(seed, 1))
    net = ResidualMLP(x.shape[1], hidden=HIDDEN, depth=DEPTH, level=False, outputs=1, zero_init=False)
    distilled = DistilledScore(net, fingerprint(model))
    _prepare(distilled, found["training"], y, generator)
    _fit(distilled, x, y, steps, generator, report)
    distilled.eval()
    distilled.set_errors(*(torch.cat(part) for part in zip(*held, strict=True)))
    scores = distilled(found["validation"][0]).log_prob.double()
    distilled.levels.copy_(scores.quantile(torch.linspace(0, 1, len(distilled.levels), dtype=torch.float64)))
    return distilled


def _in_memory(data: Data, split: str, most: int) -> Tensor:
    """Rows of a split, (n, \\*shape), at most so many of them."""
    examples = data.examples(split)
    return examples[part_of(len(examples), most, 0)]


def _samples(model: NDM, n: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
    x = sample(model, n, shape, method="ode", steps=16, generator=generator, progress=False)
    return x[x.isfinite().flatten(1).all(1)]


def _around(model: NDM, train: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Rows around the training rows, (n, columns).

    Noise would take the values of a table of several kinds off their grids, so that its rows have exchanged cells only.
    """
    x = train[torch.randint(len(train), (n,), generator=generator)].clone()
    noisy = 0 if isinstance(model.standardize, TableEncoding) else n // 2
    low, high = (math.log(size) for size in NOISE)
    size = torch.exp(low + (high - low) * torch.rand(noisy, 1, generator=generator))
    noise = torch.randn(noisy, x.shape[1], generator=generator)
    x[:noisy] += (size * noise).to(x) * train.std(0)
    shares = torch.tensor(EXCHANGED)[torch.randint(len(EXCHANGED), (n - noisy, 1), generator=generator)]
    exchanged = torch.rand(n - noisy, x.shape[1], generator=generator) < shares
    others = torch.randint(len(train), exchanged.shape, generator=generator)
    x[noisy:] = torch.where(exchanged, train[others, torch.arange(x.shape[1])], x[noisy:])
    return x


def _labelled(
    model: NDM, parts: dict[str, Tensor], report: Callable[[str, int, int], None]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The model's coordinates of the rows, (n, d), and their densities, (n,), where these are found."""
    some = parts["training"][:1]
    tolerance = TOLERANCE * some[0].numel()
    calibration = calibrate_solver(model, some, tolerance=tolerance)
    done, end, found, began = 0, sum(map(len, parts.values())), {}, time.monotonic()
    for name, rows in parts.items():
        values = []
        for x in rows.split(BLOCK):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # rows that are not solved are left out
                result = log_likelihood(model, x, calibration=calibration, tolerance=tolerance)
            held = result.solved & result.log_prob.isfinite()
            values.append((model.to_model(x)[held].float(), result.log_prob[held].float()))
            done += len(x)
            report("densities", done, end)
        found[name] = (torch.cat([v for v, _ in values]), torch.cat([v for _, v in values]))
    logger.info("%d densities in %.0f s", end, time.monotonic() - began)
    return found


def _prepare(distilled: DistilledScore, training: tuple[Tensor, Tensor], y: Tensor, generator: torch.Generator) -> None:
    """Set the units of the network's input and output, and the rows to which distances are measured."""
    x = training[0]
    distilled.mean.copy_(x.mean(0))
    distilled.scale.copy_(x.std(0).clamp(min=1e-6))
    distilled.offset.copy_(y.mean())
    distilled.factor.copy_(y.std())
    places = torch.randint(len(x), (len(distilled.near),), generator=generator)
    distilled.near.copy_(distilled.standardized(x[places]))


def _fit(
    distilled: DistilledScore,
    x: Tensor,
    y: Tensor,
    steps: int,
    generator: torch.Generator,
    report: Callable[[str, int, int], None],
) -> None:
    """Train the network; its weights become the average over the last steps."""
    z, target = distilled.standardized(x), (y - distilled.offset) / distilled.factor
    weights: list[Tensor] = list(distilled.net.parameters())
    averages = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    distilled.train()
    for step in range(steps):
        some = torch.randint(len(z), (BATCH,), generator=generator)
        loss = nn.functional.smooth_l1_loss(distilled.net(z[some])[:, 0], target[some], beta=QUADRATIC)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - AVERAGE)
        report("training", step + 1, steps)
    with torch.no_grad():
        for weight, average in zip(weights, averages, strict=True):
            weight.copy_(average)
