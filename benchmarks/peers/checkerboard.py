"""AlexanderNekrasov/NDM on its checkerboard: the same network sizes, batches, T and seconds.

What the peer's loss is. ``train_epoch`` adds up T KL_i, the diffusion term with the posterior's variance, and its
coefficients are right. With a fixed schedule, its script's choice, that is all: the prior's and the reconstruction's
terms are neither trained nor reported. As F(x, 0) = x in it, the reconstruction is a constant that depends on the
decoder; the prior depends on F(x, 1), and nothing in the loss keeps F(x, 1) near zero. So the reported loss is no bound
on -log p. The bound here has both terms, with our decoder N(z_0 / alpha_0, e^{gamma_0} I). With a learned schedule the
peer trains all three, with a decoder N(z_0, 1e-8 I) though sigma_0^2 is at least 1e-4: a valid bound, but ten thousand
nats above -log p; and what it reports is still the diffusion term alone.

The peer's script asks for 312,000 steps, many hours of one core. Here all have seconds ("configured": the script's
network, batch, optimiser and rate, its rate's course over those seconds), and so a second, narrower size, its class's
default, in which the seconds are enough to learn something; there the peer has AdamW, its script's other optimiser, at
our rate.

Data are the peer's own: a 4 x 4 board, shifted and divided by one number; everything here is in its units, in which the
entropy is log 8 - 2 log(standard deviation).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bench import mean_and_error, parameters
from torch import Tensor, nn

import ndm
from ndm.data import Checkerboard
from ndm.evaluation import bound_per_example
from ndm.method.transforms.curve import Curve
from ndm.networks import ResidualMLP
from peers.racing import Contestant, Ours, distances, epochs, load, over_seeds, race, widest

URL = "AlexanderNekrasov/NDM"
#: The peer's main_ndm.py: T, the schedule, batch, rate, momentum, decay, steps of warm-up and of all.
T = 30
SCHEDULE: dict[str, Any] = {"type": "cosine", "min_alpha": 0.0001, "max_alpha": 0.9999, "learnable": False}
TRAINED, BATCH, SGD_RATE, MOMENTUM, DECAY = 80_000, 256, 1e-4, 0.9, 1e-4
WARM_UP, ALL_STEPS = 1_000, 312_000
#: The learning rate of AdamW, which the peer's script offers too, and of ours. Nothing was tuned.
RATES = {"configured": 1e-3, "default": 2e-3}
#: Width and blocks of the peer's two networks: what its script sets, and what its class has by itself.
SIZES = {"configured": (512, 5, 128), "default": (128, 3, 128)}
#: Width of F's network in ours.
SMALL = {"configured": 64, "default": 32}
MODELS = {
    "configured": ("peer, SGD", "peer, AdamW", "Separable"),
    "default": ("peer, AdamW", "Neural, its schedule", "Neural", "Separable", "Identity"),
}
#: Seconds of training, and how many examples are measured, calibrated with and drawn: large networks take long.
SECONDS = {"configured": 40.0, "default": 40.0}
EXAMPLES = {"configured": 200, "default": 1_000}
CALIBRATED = {"configured": 200, "default": 500}
SAMPLES = {"configured": 1_000, "default": 2_000}
FRESH = 2_000
#: Batches of the peer's own loss.
LOSSES = {"configured": 10, "default": 40}


@dataclass(frozen=True)
class Board:
    """The peer's units: x = (raw - mean) / scale, with raw uniform on the dark squares of [0, 4] x [0, 4]."""

    mean: float
    scale: float

    @classmethod
    def of(cls, x: Tensor) -> Board:
        """From so many examples that the least and the largest number are the board's edges, nearly."""
        low, high = x.min().item(), x.max().item()
        return cls(-low * 4 / (high - low), 4 / (high - low))

    @property
    def entropy(self) -> float:
        return math.log(8) - 2 * math.log(self.scale)

    def fresh(self, n: int, seed: int) -> Tensor:
        """New examples, (n, 2)."""
        return (Checkerboard().sample(n, torch.Generator().manual_seed(seed)) + 2 - self.mean) / self.scale

    def off(self, x: Tensor) -> float:
        """The part of the examples that no dark square holds."""
        return Checkerboard().log_prob(x * self.scale + self.mean - 2).isinf().double().mean().item()


# ---- the peer as parts of ours


class Table(ndm.Schedule):
    """The noise levels of the peer's T + 1 times, looked up; nothing between them."""

    squares: Tensor

    def __init__(self, alpha_squared: Tensor) -> None:
        super().__init__()
        self.register_buffer("squares", alpha_squared.detach().double())

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        squares = self.squares[(t * (len(self.squares) - 1)).round().long()]
        return (torch.log1p(-squares) - squares.log()).to(t.dtype), torch.full_like(t, math.nan)

    def index(self, gamma: Tensor) -> Tensor:
        """The time, 0..T, of a noise level, of gamma's shape."""
        levels = torch.log1p(-self.squares) - self.squares.log()
        return (gamma[..., None] - levels).abs().argmin(-1)


def cosine() -> Tensor:
    """alpha^2 at the T + 1 times of SCHEDULE: between min_alpha and max_alpha as cos^2 of a quarter turn."""
    low, high = SCHEDULE["min_alpha"], SCHEDULE["max_alpha"]
    quarter = math.pi / 2 * torch.arange(T + 1, dtype=torch.float64) / T
    return low + (high - low) * quarter.cos().square()


class PeerTransform(ndm.Transform):
    """F(x, t) of the peer, as a curve over noise levels."""

    def __init__(self, peer: nn.Module, schedule: Table) -> None:
        super().__init__()
        self.peer, self.times = peer, schedule

    def forward(self, x: Tensor) -> Curve:
        return _PeerCurve(x, self)


class _PeerCurve(Curve):
    def __init__(self, x: Tensor, transform: PeerTransform) -> None:
        super().__init__(x)
        self.transform = transform

    def displacement(self, gamma: Tensor) -> Tensor:
        # (P B, *shape), the points outermost, as gamma is.
        points = gamma.numel() // len(self.x)
        x = self.x.repeat(points, 1)
        f = self.transform.peer.F(x, self.transform.times.index(gamma.reshape(-1)))
        return (f - x).reshape(*gamma.shape, *self.x.shape[1:])

    def displacement_with_derivative(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("The peer's F has no derivative: its times are whole numbers.")


class PeerNet(nn.Module):
    """The peer's network of the noise, called with ours' noise level in [0, 1]."""

    def __init__(self, peer: nn.Module, schedule: Table) -> None:
        super().__init__()
        self.peer, self.times = peer, schedule

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        low, high = self.times.end_points()
        return self.peer.model(z, self.times.index(low + (high - low) * u))


def as_ours(peer: nn.Module) -> ndm.NDM:
    """The peer's model as one of ours, that its bound can be evaluated and its variance calibrated by our code."""
    schedule = Table(peer.alphas_cumprod)
    return ndm.NDM(schedule, PeerTransform(peer, schedule), ndm.Denoiser(PeerNet(peer, schedule), "eps")).eval()


# ---- training


class Peers:
    """The peer's training: its ``train_epoch``, a batch at a time, its rate's course over the budget."""

    def __init__(self, code: dict[str, ModuleType], size: str, optimizer: str, rate: float) -> None:
        width, blocks, embedding = SIZES[size]
        net, f = (code["network"].MLP(hidden_size=width, hidden_layers=blocks, emb_size=embedding) for _ in range(2))
        self.code = code["ndm"]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its schedule
            self.model = self.code.NDM(model=net, model_F=f, schedule_config=SCHEDULE, num_timesteps=T)
        weights = [*net.parameters(), *f.parameters()]
        self.optimizer: torch.optim.Optimizer
        if optimizer == "SGD":
            self.optimizer = torch.optim.SGD(weights, lr=SGD_RATE, momentum=MOMENTUM, weight_decay=DECAY)
        else:
            self.optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=DECAY)
        self.spent = 0.0
        warm_up = WARM_UP / ALL_STEPS
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda _: min(self.spent / warm_up, (1 - self.spent) / (1 - warm_up))
        )

    def step(self, batch: Tensor, spent: float) -> None:
        self.spent = spent
        self.code.train_epoch(self.model, [[batch]], self.optimizer, self.scheduler, 0, None)

    def loss(self, data: Tensor) -> tuple[float, float]:
        """What its ``train_epoch`` would report for these data, batch by batch: mean and standard error."""
        frozen = copy.deepcopy(self.model)
        still = torch.optim.SGD(frozen.parameters(), lr=0.0)
        constant = torch.optim.lr_scheduler.LambdaLR(still, lambda _: 1.0)
        batches = [[batch] for batch in data.split(BATCH) if len(batch) == BATCH]
        return mean_and_error(self.code.train_epoch(frozen, batches, still, constant, 0, None)[1])


def ours(name: str, size: str, budget: int) -> ndm.NDM:
    """A model with so many parameters in all, and a schedule whose end points are learned, or the peer's."""
    kind, *fixed = name.split(", ")

    def build(hidden: int) -> ndm.NDM:
        small: dict[str, Any] = {"hidden": SMALL[size], "depth": 2}
        transform: ndm.Transform = {
            "Identity": ndm.Identity,
            "Neural": lambda: ndm.Neural(ResidualMLP(2, **small)),
            "Separable": lambda: ndm.Separable(ResidualMLP(2, heads=4, level=False, **small), terms=4),
        }[kind]()
        schedule: ndm.Schedule = ndm.LearnedSchedule(gamma_min=-8.0, learn_endpoints=True)
        if fixed:
            schedule = Table(cosine())
        return ndm.NDM(schedule, transform, ndm.Denoiser(ResidualMLP(2, hidden=hidden)), ndm.GaussianDecoder())

    return build(widest(build, budget))


def bound_at_t(model: nn.Module, batch: Tensor) -> Tensor:
    assert isinstance(model, ndm.NDM)
    return model.bound(batch, T, check=False).total.mean()


def contestants(code: dict[str, ModuleType], data: Tensor, size: str, seed: int, rate: float) -> Iterator[Contestant]:
    """The models of a size, at their first step."""
    width, blocks, embedding = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        budget = 2 * parameters(code["network"].MLP(width, blocks, embedding))
    for name in MODELS[size]:
        start: Callable[[], Any]
        if name.startswith("peer, "):
            start = lambda name=name: Peers(code, size, name.split(", ")[1], rate)  # noqa: E731
        else:
            start = lambda name=name: Ours(ours(name, size, budget), bound_at_t, rate)  # noqa: E731
        yield Contestant(name, start, epochs(data, BATCH, seed), seed)


# ---- measuring


def samples_of(one: Contestant, n: int) -> Tensor:
    """Examples drawn by each one's own sampler, ancestral, in T steps."""
    if isinstance(one.training, Peers):
        return one.training.model.sample(n)
    return ndm.sample(one.training.model, n, (2,), method="ancestral", steps=T)


def measure(one: Contestant, board: Board, size: str, seed: int) -> dict[str, Any]:
    """The figures of a trained model."""
    torch.manual_seed(seed)
    peer = isinstance(one.training, Peers)
    model = as_ours(one.training.model) if peer else one.training.model
    assert isinstance(model, ndm.NDM)
    row: dict[str, Any] = {"size": size, "model": one.name, "seed": seed}
    row |= {"parameters": parameters(one.training.model), "training_steps": one.steps}
    row |= {"ms_per_step": 1e3 * one.seconds / one.steps, "entropy": board.entropy}
    test = board.fresh(EXAMPLES[size], 1)
    if peer:
        row["own_loss"], row["own_loss_error"] = one.training.loss(board.fresh(LOSSES[size] * BATCH, 2))
    for variance in ("posterior", "calibrated"):
        if variance == "calibrated":
            model.calibrate(board.fresh(CALIBRATED[size], 3), T, generator=torch.Generator().manual_seed(0))
        found = bound_per_example(model, test, T, seed=0)
        for term, values in found.items():
            row[f"{variance} {term}"], row[f"{variance} {term} error"] = mean_and_error(values)
    model.uncalibrate()
    began = time.process_time()
    samples = samples_of(one, SAMPLES[size])
    row["sampling_seconds"] = time.process_time() - began
    return row | quality(samples, board)


def quality(samples: Tensor, board: Board) -> dict[str, Any]:
    """How far samples are from fresh data, and how many are off the board."""
    fresh, finite = board.fresh(FRESH, 4), samples[samples.isfinite().all(1)]
    return distances(fresh, finite) | {
        "off_board": board.off(samples),
        "not_finite": 1 - len(finite) / len(samples),
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of each size and seed, as they come."""
    folder: Path = options.peer
    code = {name: load(folder, name, URL) for name in ("ndm", "network", "datasets")}
    code["ndm"].tqdm = lambda it, **_: it
    for size in options.sizes:
        for seed in options.seeds:
            torch.manual_seed(seed)
            (data,) = code["datasets"].checkerboard_dataset(TRAINED).tensors
            board = Board.of(data)
            rate = RATES[size] if options.rate is None else options.rate
            models = list(contestants(code, data, size, seed, rate))
            race(models, SECONDS[size] if options.seconds is None else options.seconds)
            for one in models:
                yield measure(one, board, size, seed)
            yield {"size": size, "model": "data", "seed": seed} | quality(
                board.fresh(SAMPLES[size], 1000 + seed), board
            )


def options(parser: argparse.ArgumentParser) -> None:
    """What the command can be told about this part."""
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="of the peer's networks")
    parser.add_argument("--seconds", type=float, help="of training, in place of each size's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, help="of AdamW and of ours, in place of their own")


#: Column: a row's field.
COLUMNS = {
    "parameters": "parameters", "steps": "training_steps", "ms a step": "ms_per_step", "its own loss": "own_loss",
    "diffusion": "posterior diffusion", "prior": "posterior prior", "bound": "posterior total",
    "bound, calibrated": "calibrated total", "sliced W": "sliced_wasserstein", "MMD^2": "mmd",
    "off the board": "off_board", "s of sampling": "sampling_seconds",
}  # fmt: skip


def shown(found: list[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Means over the seeds, and their standard errors: the lines of a table, and its header."""
    lines = [
        [size, model, *(over_seeds(found, {"size": size, "model": model}, key) for key in COLUMNS.values())]
        for size, model in dict.fromkeys((row["size"], row["model"]) for row in found)
    ]
    return lines, ["size", "model", *COLUMNS]
