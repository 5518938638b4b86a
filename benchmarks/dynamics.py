"""Does a penalty on the curvature of the reverse ODE make its paths straight, and what does it cost in the bound?

python benchmarks/dynamics.py [--seconds 90] [--work FOLDER]

Two-component mixtures on a line, where the optimal map to N(0, 1) is known by the quantiles, and eight Gaussians in the
plane. The models of a row, three seeds and on the line three mixtures, are trained in one batch, each with weights of
its own (see Side), and every row for the same processor seconds. A row that is in FOLDER is not trained again, so that
a run that was stopped goes on; with --assemble nothing is trained, and what FOLDER has is written down.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import RESULTS, mean_and_error, save, table
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

import ndm
from ndm.data import EightGaussians

SEEDS = (0, 1, 2)
BATCH = 128  # of each model
RATE = 2e-3
CLIP = 1.0
HIDDEN = 48
OCTAVES = 3
TERMS = 4
GAMMA = (-8.0, 5.0)
SPEND = 90.0  # processor seconds of a row
FINE = 100  # midpoint steps, for the paths themselves
FEW = (1, 2, 5, 10, 100)
SOLVERS = ("euler", "midpoint")
BY_KERNEL = ("euler 1", "euler 10", "euler 100")  # whose MMD is measured too
POINTS = 500  # paths of a model
EXAMPLES = 5_000  # of the test data
TIMES = 8  # of each example, for the bound
POOL = 20_000  # of the training data


@dataclass(frozen=True)
class Recipe:
    """A row: how the models of it are made and trained."""

    name: str
    schedule: Callable[[], ndm.Schedule]
    learned: bool
    weight: float


def preserving() -> ndm.Schedule:
    return ndm.LinearSchedule(*GAMMA)


def straight() -> ndm.Schedule:
    return ndm.OTSchedule(-9.0, 9.0)


RECIPES = (
    Recipe("Identity", preserving, learned=False, weight=0.0),
    Recipe("Identity", preserving, learned=False, weight=0.1),
    Recipe("Identity, OTSchedule", straight, learned=False, weight=0.0),
    Recipe("NDM", preserving, learned=True, weight=0.0),
    Recipe("NDM", preserving, learned=True, weight=0.01),
    Recipe("NDM", preserving, learned=True, weight=0.1),
)


# ---- data


class Mixture:
    """Two Gaussians on a line.

    Args:
        weights: of the two.
        means: of the two.
        deviations: standard deviations of the two.
    """

    features = 1

    def __init__(self, weights: Sequence[float], means: Sequence[float], deviations: Sequence[float]) -> None:
        self.weights, self.means, self.deviations = (
            torch.tensor(v, dtype=torch.float64) for v in (weights, means, deviations)
        )

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


class Plane(EightGaussians):
    features = 2


LINE: dict[str, Mixture] = {
    "apart": Mixture([0.5, 0.5], [-1.5, 1.5], [0.3, 0.3]),
    "uneven": Mixture([0.3, 0.7], [-2.0, 1.0], [0.5, 0.25]),
    "touching": Mixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5]),
}
PLANE: dict[str, Plane] = {"eight Gaussians": Plane()}
FAMILIES: dict[str, dict[str, Any]] = {"line": LINE, "plane": PLANE}


# ---- models side by side


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
    """Residual perceptrons side by side, each with weights of its own: example i of a batch belongs to number i mod R.

    All of ndm treats an example by itself, so that R models with one batch cost little more than one: at this size the
    time goes into the calls. A model sees nothing of the others, and Adam moves each number by itself. The perceptron
    is that of ``ResidualMLP`` with one block.

    Args:
        replicas: R.
        features: of an example.
        heads: outputs of an example's size.
        level: whether the noise level is an input.
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
    if recipe.learned:
        net = Side(replicas, features, heads=TERMS, level=False)
        transform: ndm.Transform = ndm.Separable(net, terms=TERMS, basis="legendre", gate="free")
    else:
        transform = ndm.Identity()
    return ndm.NDM(recipe.schedule(), transform, ndm.Denoiser(Side(replicas, features)))


def interleaved(each: Sequence[Tensor]) -> Tensor:
    """R batches (B, d) as one, (B R, d), in the order in which :class:`Side` takes them."""
    return torch.stack(list(each), 1).flatten(0, 1)


def train(model: ndm.NDM, data: Tensor, weight: float, seconds: float, most: int | None = None) -> int:
    """Adam on bound + weight x curvature; how many steps it took.

    Args:
        model: R models side by side.
        data: (N, R, d).
        weight: of the penalty.
        seconds: of processor time.
        most: steps after which to end anyway.
    """
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


# ---- measures


def measure(model: ndm.NDM, cases: Sequence[Any], seeds: Sequence[int], points: int, examples: int) -> list[dict]:
    """What is to be known of R models side by side: one row for each."""
    model.eval()
    features = cases[0].features
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    if features == 1:  # evenly spread in probability: no noise in what is compared
        starts = torch.special.ndtri(u)[:, None].float()
    else:
        starts = torch.randn(points, features, generator=torch.Generator().manual_seed(11))
    z = interleaved([starts] * len(cases))
    states = ndm.ode_paths(model, z, FINE, solver="midpoint")
    few = {
        f"{solver} {n}": _data(model, ndm.ode_paths(model, z, n, solver=solver)[-1]) for solver in SOLVERS for n in FEW
    }
    streams = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    test = [case.sample(examples, stream) for case, stream in zip(cases, streams, strict=True)]
    # The same times for all, evenly spread; each example at several of them, for the bound's error is of its times.
    totals, bends = [], []
    for i in range(TIMES):
        times = interleaved([(torch.arange(examples)[:, None] / examples + (i + 0.5) / examples / TIMES)] * len(cases))
        options = {"times": times[:, 0].clamp(max=1 - 1e-6), "generator": torch.Generator().manual_seed(12 + i)}
        with torch.no_grad():
            totals.append(model.bound(interleaved([x.roll(i * 997, 0) for x in test]), **options).total)
            bends.append(ndm.curvature(model, interleaved(test), **options) if i == 0 else bends[0])
    total, bend = torch.stack(totals).double(), torch.stack(bends)
    rows = []
    for r, case in enumerate(cases):
        mine = slice(r, None, len(cases))
        own = {name: x[mine] for name, x in few.items()}
        rows.append({
            **_paths(states[:, mine]),
            **(_on_a_line(_data(model, states[-1])[mine], case, u) if features == 1 else {}),
            "distance": {name: _distance(x, case, u) for name, x in own.items()},
            **({} if features == 1 else {"mmd": {name: _mmd(own[name], case) for name in BY_KERNEL}}),
            "nelbo": total[:, mine].mean().item(),
            "gap": total[:, mine].mean().item() - case.entropy,
            "curvature": bend[:, mine].mean().item(),
        })  # fmt: skip
    return rows


def _data(model: ndm.NDM, z: Tensor) -> Tensor:
    """The decoder's mean: z_0 / alpha_0."""
    return z / model.schedule(z.new_zeros(1)).alpha


def _paths(states: Tensor) -> dict[str, Any]:
    """Cost and straightness of paths (steps + 1, B, d), and the least cost of pairing the same ends otherwise."""
    cost = ndm.path_cost(states)
    transport = cost.transport.mean().item()
    halves = [_optimal(states[:, rows]) for rows in (slice(0, None, 2), slice(1, None, 2))]
    whole = _optimal(states)
    return {
        "action": cost.action.mean().item(),
        "transport": transport,
        "straightness": cost.straightness.mean().item(),
        "w2": whole,
        "excess": transport / whole - 1,
        # Fewer points can be re-paired less: how much the number of points matters.
        "excess_half": transport / (sum(halves) / 2) - 1,
    }


def _optimal(states: Tensor) -> float:
    """W_2^2 of the two ends, exactly, for these very points."""
    start, end = states[0].double(), states[-1].double()
    costs = (torch.cdist(start, end, compute_mode="donot_use_mm_for_euclid_dist") ** 2).numpy()
    return float(costs[linear_sum_assignment(costs)].mean())


def _on_a_line(x: Tensor, case: Mixture, u: Tensor) -> dict[str, float]:
    """The map against the exact one, which takes quantiles to quantiles."""
    exact = case.quantile(u)
    return {
        "map_error": ((x[:, 0].double() - exact) ** 2).mean().sqrt().item(),
        "exact_w2": ((exact - torch.special.ndtri(u)) ** 2).mean().item(),
    }


def _distance(x: Tensor, case: Any, u: Tensor) -> float:
    """Of samples from data: W_1 on a line, against the quantiles; in the plane the sliced W_2."""
    if case.features == 1:
        return float(wasserstein_distance(x[:, 0].double().numpy(), case.quantile(u).numpy()))
    generator = torch.Generator().manual_seed(13)
    return ndm.sliced_wasserstein(x, _reference(case), projections=64, permutations=0, generator=generator).value


def _mmd(x: Tensor, case: Any) -> float:
    """The square of it."""
    return ndm.mmd(x, _reference(case), permutations=0).value


def _reference(case: Any) -> Tensor:
    return case.sample(1000, torch.Generator().manual_seed(14))


# ---- a row, and all of them


def run(family: str, recipe: Recipe, seconds: float, work: Path, most: int | None = None, points: int = POINTS) -> dict:
    """Train and measure the models of a row; what was found is kept in the folder."""
    file = kept(family, recipe, seconds, work)
    if file.exists():
        return json.loads(file.read_text())
    pairs = [(name, case, seed) for name, case in FAMILIES[family].items() for seed in SEEDS]
    cases, seeds = [case for _, case, _ in pairs], [seed for *_, seed in pairs]
    torch.manual_seed(sum(family.encode()))
    model = build(recipe, len(pairs), cases[0].features)
    data = torch.stack([c.sample(POOL, torch.Generator().manual_seed(s)) for c, s in zip(cases, seeds, strict=True)], 1)
    steps = train(model, data, recipe.weight, seconds, most)
    found = measure(model, cases, seeds, points, EXAMPLES)
    about = {"model": recipe.name, "weight": recipe.weight, "steps": steps, "seconds": seconds}
    result = {
        "rows": [{"case": n, "seed": s, **about, **row} for (n, _, s), row in zip(pairs, found, strict=True)],
        "paths": _to_draw(model, len(pairs), cases[0].features),
    }
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return result


def kept(family: str, recipe: Recipe, seconds: float, work: Path) -> Path:
    """Where a row is kept."""
    return work / f"{family}--{recipe.name}--{recipe.weight:g}--{seconds:g}.json".replace(" ", "-").replace(",", "")


def floor(case: Any, draws: int = 10) -> float:
    """The distance of fresh data from data, which samples of a perfect model would have."""
    u = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    fresh = [case.sample(POINTS, torch.Generator().manual_seed(2000 + i)) for i in range(draws)]
    return sum(_distance(x, case, u) for x in fresh) / draws


def _to_draw(model: ndm.NDM, replicas: int, features: int) -> list:
    """Some paths of the first model, (51, B, d), in the model's units."""
    if features == 1:
        starts = torch.special.ndtri((torch.arange(31) + 0.5) / 31)[:, None]
    else:
        starts = torch.randn(150, features, generator=torch.Generator().manual_seed(15))
    states = ndm.ode_paths(model, interleaved([starts] * replicas), 50, solver="midpoint")
    return np.round(states[:, ::replicas].numpy(), 3).tolist()


def draw(found: dict[str, dict[str, dict]]) -> Path:
    """Paths of the first mixture and of the plane, of some models side by side."""
    from matplotlib.figure import Figure

    titles = [t for t in ("Identity, 0", "Identity, OTSchedule, 0", "NDM, 0", "NDM, 0.1") if t in found["line"]]
    figure = Figure(figsize=(2.6 * (len(titles) + 1), 5.0), layout="constrained")
    axes = figure.subplots(2, len(titles) + 1, squeeze=False)
    t = np.linspace(1, 0, 51)
    for column, title in enumerate([*titles, "optimal transport"]):
        for row, family in enumerate(("line", "plane")):
            ax = axes[row, column]
            ax.set_xticks([]), ax.set_yticks([])
            of = found[family].get(title)
            if family == "line":
                paths = _optimal_paths(t) if of is None else np.asarray(of["paths"])[:, :, 0]
                ax.plot(t, paths, color="C0", linewidth=0.7)
                model, _, weight = title.rpartition(", ")
                ax.set_title(title if of is None else f"{model}, weight {weight}", size=8)
                ax.set_xlim(1, 0), ax.set_ylim(-3, 3)
                ax.set_xlabel("t, from noise to data", size=7)
            elif of is None:
                ax.axis("off")
            else:
                paths = np.asarray(of["paths"])
                ax.plot(paths[:, :, 0], paths[:, :, 1], color="C0", linewidth=0.4, alpha=0.6)
                ax.plot(*paths[-1].T, ".", color="black", markersize=2)
                ax.set_xlim(-3.2, 3.2), ax.set_ylim(-3.2, 3.2), ax.set_aspect("equal")
    path = RESULTS / "dynamics.png"
    figure.savefig(path, dpi=75)
    return path


def _optimal_paths(t: np.ndarray) -> np.ndarray:
    """Displacement interpolation of the first mixture."""
    u = (torch.arange(31, dtype=torch.float64) + 0.5) / 31
    data, noise = next(iter(LINE.values())).quantile(u).numpy(), torch.special.ndtri(u).numpy()
    return t[:, None] * noise + (1 - t[:, None]) * data


def summary(rows: Sequence[dict], case: str) -> str:
    """A table of one case, means over the seeds."""
    lines = []
    for model, weight in dict.fromkeys((r["model"], r["weight"]) for r in rows):
        of = [r for r in rows if (r["case"], r["model"], r["weight"]) == (case, model, weight)]
        if not of:
            continue
        shown = [
            [r["straightness"] / r["transport"] for r in of],
            [r["excess"] for r in of],
            *([r["distance"][f"euler {n}"] for r in of] for n in FEW),
            [r["gap"] for r in of],
        ]
        figures = ("{:.3f} ± {:.3f}".format(*mean_and_error(v)) for v in shown)
        lines.append([model, f"{weight:g}", of[0]["steps"], *figures])
    header = ["model", "weight", "steps", "straightness", "excess", *(f"Euler {n}" for n in FEW), "NELBO - entropy"]
    return table(lines, header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SPEND, help="processor seconds of a row")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ndm-dynamics")
    parser.add_argument("--assemble", action="store_true", help="train nothing: write what FOLDER has")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict]] = {family: {} for family in FAMILIES}
    for recipe in RECIPES:
        for family in FAMILIES:
            if options.assemble and not kept(family, recipe, options.seconds, options.work).exists():
                continue
            found[family][f"{recipe.name}, {recipe.weight:g}"] = run(family, recipe, options.seconds, options.work)
            print(time.strftime("%H:%M:%S"), family, recipe.name, recipe.weight, flush=True)
    rows = [row for family in found.values() for result in family.values() for row in result["rows"]]
    for case in dict.fromkeys(r["case"] for r in rows):
        print(f"{case}\n{summary(rows, case)}\n")
    print(draw(found))
    print(save("dynamics", rows, {
        "seeds": len(SEEDS), "seconds": options.seconds, "batch": BATCH, "rate": RATE, "hidden": HIDDEN, "terms": TERMS,
        "times": TIMES, "gamma": GAMMA, "points": POINTS, "examples": EXAMPLES, "fine_steps": FINE,
        "floor": {name: floor(case) for name, case in PLANE.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
