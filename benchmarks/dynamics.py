"""A penalty on the curvature of the reverse ODE: the straightness of its paths, its samples, and the bound.

    python benchmarks/dynamics.py [--seconds 90] [--work FOLDER]

The data are mixtures of two Gaussians on a line and eight Gaussians in the plane. The models of a row, three seeds and
on the line three mixtures, are trained in one batch, each with weights of its own (see Side), and each row for the same
CPU seconds. A row that is in FOLDER is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import save
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

import ndm
from ndm.data import EightGaussians

SEEDS, BATCH, RATE, CLIP = (0, 1, 2), 128, 2e-3, 1.0  # the batch is that of each model
HIDDEN, OCTAVES, TERMS, GAMMA = 48, 3, 4, (-8.0, 5.0)
FINE, FEW = 100, (1, 2, 5, 10, 100)  # midpoint steps, for the paths themselves, and Euler steps
POINTS = 500  # paths of a model
PRESERVING = partial(ndm.LinearSchedule, *GAMMA)
POOL, EXAMPLES, TIMES = 20_000, 5_000, 8  # training and test data, and times of each example for the bound


@dataclass(frozen=True)
class Recipe:
    """A row: how the models of it are made and trained."""

    name: str
    weight: float
    schedule: Callable[[], ndm.Schedule] = PRESERVING


RECIPES = (
    Recipe("Identity", 0.0), Recipe("Identity", 0.1),
    Recipe("Identity, OTSchedule", 0.0, partial(ndm.OTSchedule, -9.0, 9.0)),
    Recipe("NDM", 0.0), Recipe("NDM", 0.01), Recipe("NDM", 0.1),
)  # fmt: skip


class Mixture:
    """Two Gaussians on a line, with their weights, means and standard deviations."""

    shape = (1,)

    def __init__(self, weights: Sequence[float], means: Sequence[float], deviations: Sequence[float]) -> None:
        self.weights, self.means, self.deviations = torch.tensor([weights, means, deviations], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        return (self.means[which] + self.deviations[which] * noise)[:, None].float()

    def cdf(self, x: Tensor) -> Tensor:
        return torch.special.ndtr((x[:, None] - self.means) / self.deviations) @ self.weights

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function by bisection, (B,) -> (B,)."""
        low, high = torch.full_like(u, -20.0), torch.full_like(u, 20.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    @property
    def entropy(self) -> float:
        """In nats, by the trapezoidal rule."""
        reach = 10 * self.deviations.max().item()
        low, high = self.means.min().item() - reach, self.means.max().item() + reach
        x = torch.linspace(low, high, 20_001, dtype=torch.float64)
        log_p = torch.distributions.Normal(self.means, self.deviations).log_prob(x[:, None])
        log_p = torch.logsumexp(log_p + self.weights.log(), 1)
        return torch.trapezoid(-log_p.exp() * log_p, x).item()


LINE = {
    "apart": Mixture([0.5, 0.5], [-1.5, 1.5], [0.3, 0.3]),
    "uneven": Mixture([0.3, 0.7], [-2.0, 1.0], [0.5, 0.25]),
    "touching": Mixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5]),
}
PLANE = {"eight Gaussians": EightGaussians()}
FAMILIES: dict[str, dict[str, Any]] = {"line": LINE, "plane": PLANE}


class Lines(nn.Module):
    """R linear layers side by side, (R, B, before) -> (R, B, after)."""

    def __init__(self, replicas: int, before: int, after: int, zero: bool = False) -> None:
        super().__init__()
        scale = 0.0 if zero else 1 / math.sqrt(before)
        self.weight = nn.Parameter(scale * (2 * torch.rand(replicas, before, after) - 1))
        self.bias = nn.Parameter(scale * (2 * torch.rand(replicas, 1, after) - 1))

    def forward(self, h: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, h, self.weight)


class Side(nn.Module):
    """Residual perceptrons side by side, each with its own weights: example i of a batch belongs to number i mod R.

    ndm treats every example by itself, so that R models with one batch cost little more than one at this size. A model
    sees nothing of the others. The perceptron is that of ``ResidualMLP`` with one block.
    """

    def __init__(self, replicas: int, features: int, heads: int = 1, level: bool = True) -> None:
        super().__init__()
        self.replicas = replicas
        self.embed = Lines(replicas, 1 + 2 * OCTAVES, HIDDEN) if level else None
        self.modulate = Lines(replicas, HIDDEN, 2 * HIDDEN) if level else None
        self.input = Lines(replicas, features, HIDDEN)
        self.first, self.second = (Lines(replicas, HIDDEN, HIDDEN) for _ in range(2))
        self.output = Lines(replicas, HIDDEN, heads * features, zero=True)

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        h = self.input(self._apart(z))
        inner = _normalized(h)
        if u is not None and self.embed is not None and self.modulate is not None:
            condition = nn.functional.silu(self.embed(self._apart(_features(u))))
            scale, shift = self.modulate(condition).chunk(2, dim=2)
            inner = (1 + scale) * inner + shift
        h = h + self.second(nn.functional.silu(self.first(inner)))
        output = self.output(nn.functional.silu(_normalized(h)))
        return output.transpose(0, 1).reshape(z.shape[0], -1)

    def _apart(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.replicas, x.shape[1]).transpose(0, 1)


def _normalized(h: Tensor) -> Tensor:
    """Layer normalisation in elementary operations, which have derivatives of every order."""
    centred = h - h.mean(2, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(2, keepdim=True) + 1e-5)


def _features(u: Tensor) -> Tensor:
    """(2 u - 1, sin(pi 2^k u), cos(pi 2^k u)), (B,) -> (B, 1 + 2 OCTAVES)."""
    angles = math.pi * u[:, None] * 2.0 ** torch.arange(OCTAVES)
    return torch.cat([2 * u[:, None] - 1, angles.sin(), angles.cos()], 1)


def build(recipe: Recipe, replicas: int, features: int) -> ndm.NDM:
    transform: ndm.Transform = ndm.Identity()
    if recipe.name == "NDM":
        net = Side(replicas, features, heads=TERMS, level=False)
        transform = ndm.Separable(net, terms=TERMS, basis="legendre", gate="free")
    return ndm.NDM(recipe.schedule(), transform, ndm.Denoiser(Side(replicas, features)))


def interleaved(each: Sequence[Tensor]) -> Tensor:
    """R batches (B, d) as one, (B R, d), in the order in which :class:`Side` takes them."""
    return torch.stack(list(each), 1).flatten(0, 1)


def train(model: ndm.NDM, data: Tensor, weight: float, seconds: float, most: int | None = None) -> int:
    """Adam on bound + weight x curvature for so many CPU seconds, on data (N, R, d); the number of steps."""
    replicas = data.shape[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    started, step = time.process_time(), 0
    while (done := (time.process_time() - started) / seconds) < 1 and step != most:
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * done)) / 2
        x = data[torch.randint(len(data), (BATCH,))].flatten(0, 1)
        loss = model.bound(x, check=False).total
        if weight:
            loss = loss + weight * ndm.curvature(model, x, check=False)
        optimizer.zero_grad()
        (loss.sum() / BATCH).backward()  # the sum over models of their means: the gradient of each is its own
        _clip(model, replicas)
        optimizer.step()
        step += 1
    return step


def _clip(model: ndm.NDM, replicas: int) -> None:
    """Clip the gradient of each model by its own norm."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = sum((g**2).flatten(1).sum(1) for g in gradients).sqrt()  # type: ignore[union-attr]
    factor = (CLIP / norm).clamp(max=1.0).reshape(replicas, 1, 1)
    for g in gradients:
        g.mul_(factor)


def measure(model: ndm.NDM, cases: Sequence[Any], seeds: Sequence[int], points: int, examples: int) -> list[dict]:
    """The figures of R models side by side, one row for each."""
    model.eval()
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    if cases[0].shape == (1,):  # evenly spread in probability, so that what is compared has no noise
        starts = torch.special.ndtri(u)[:, None].float()
    else:
        starts = torch.randn(points, *cases[0].shape, generator=torch.Generator().manual_seed(11))
    z = interleaved([starts] * len(cases))
    cost = ndm.path_cost(ndm.ode_paths(model, z, FINE, solver="midpoint"))
    alpha = model.schedule(z.new_zeros(1)).alpha  # the decoder's mean is z_0 / alpha_0
    few = {f"euler {n}": ndm.ode_paths(model, z, n, solver="euler")[-1] / alpha for n in FEW}
    streams = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    total = _bounds(model, [case.sample(examples, stream) for case, stream in zip(cases, streams, strict=True)])
    rows = []
    for r, case in enumerate(cases):
        mine = slice(r, None, len(cases))
        nelbo = total[:, mine].mean().item()
        row = {"transport": cost.transport[mine].mean().item(), "straightness": cost.straightness[mine].mean().item()}
        row["distance"] = {name: _distance(x[mine], case, u) for name, x in few.items()}
        rows.append(row | {"nelbo": nelbo, "gap": nelbo - case.entropy})
    return rows


def _bounds(model: ndm.NDM, test: Sequence[Tensor]) -> Tensor:
    """The bound of all models' examples, (TIMES, N R), at times that are evenly spread and the same for all."""
    totals, examples = [], len(test[0])
    for i in range(TIMES):
        times = interleaved([(torch.arange(examples)[:, None] + (i + 0.5) / TIMES) / examples] * len(test))
        options = {"times": times[:, 0].clamp(max=1 - 1e-6), "generator": torch.Generator().manual_seed(12 + i)}
        with torch.no_grad():
            totals.append(model.bound(interleaved([x.roll(i * 997, 0) for x in test]), **options).total)
    return torch.stack(totals).double()


def _distance(x: Tensor, case: Any, u: Tensor) -> float:
    """Of samples from data: W_1 on a line, against the quantiles; in the plane the sliced W_2."""
    if case.shape == (1,):
        return float(wasserstein_distance(x[:, 0].double().numpy(), case.quantile(u).numpy()))
    data, generator = case.sample(1000, torch.Generator().manual_seed(14)), torch.Generator().manual_seed(13)
    return ndm.sliced_wasserstein(x, data, projections=64, permutations=0, generator=generator).value


def run(family: str, recipe: Recipe, seconds: float, work: Path, most: int | None = None, points: int = POINTS) -> list:
    """Train and measure the models of a row, and keep the figures in the folder."""
    file = work / f"{family}--{recipe.name}--{recipe.weight:g}--{seconds:g}.json".replace(" ", "-").replace(",", "")
    if file.exists():
        return json.loads(file.read_text())
    pairs = [(name, case, seed) for name, case in FAMILIES[family].items() for seed in SEEDS]
    cases, seeds = [case for _, case, _ in pairs], [seed for *_, seed in pairs]
    torch.manual_seed(sum(family.encode()))
    model = build(recipe, len(pairs), cases[0].shape[0])
    data = torch.stack([c.sample(POOL, torch.Generator().manual_seed(s)) for c, s in zip(cases, seeds, strict=True)], 1)
    steps = train(model, data, recipe.weight, seconds, most)
    found = measure(model, cases, seeds, points, EXAMPLES)
    about = {"model": recipe.name, "weight": recipe.weight, "steps": steps, "seconds": seconds}
    rows = [{"case": n, "seed": s, **about, **row} for (n, _, s), row in zip(pairs, found, strict=True)]
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return rows


def floor(case: Any, draws: int = 10) -> float:
    """The distance of fresh data from data, which samples of a perfect model would have."""
    u = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    fresh = [case.sample(POINTS, torch.Generator().manual_seed(2000 + i)) for i in range(draws)]
    return sum(_distance(x, case, u) for x in fresh) / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0, help="CPU seconds of a row")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ndm-dynamics")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family, recipe in itertools.product(FAMILIES, RECIPES):
        rows += run(family, recipe, options.seconds, options.work)
        print(family, recipe.name, recipe.weight, flush=True)
    print(save("dynamics", rows, {
        "seeds": len(SEEDS), "seconds": options.seconds, "batch": BATCH, "rate": RATE, "hidden": HIDDEN, "terms": TERMS,
        "times": TIMES, "gamma": GAMMA, "points": POINTS, "examples": EXAMPLES, "fine_steps": FINE,
        "floor": {name: floor(case) for name, case in PLANE.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
