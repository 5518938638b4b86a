"""NFDM, the method's successor (arXiv 2404.12940): its authors' notebook on eight Gaussians, and ours.

What the notebook learns. Its forward process is Gaussian and both its mean and its standard deviation are networks'
outputs, per example and dimension; ours learns the mean alone, and the noise level is the schedule's. Its volatility is
learned too; ours is 1 here. Both predict x_hat and put it in the forward process. Its sigma is 0.01 at t = 0 and z_1 is
the noise itself, whatever the networks say: so F(x, 0) = x, the prior's term is zero, and the reconstruction with the
decoder N(z_0, 0.01^2 I) is the constant d/2 log(2 pi e 0.01^2). Its loss, the diffusion term, is therefore a bound on
-log p once that constant is added, which the notebook does not do.

All train for equal seconds. The notebook's recipe is Adam at 1e-3 for 10^5 steps; as ours has a warm-up, a cosine,
clipping and averaged weights, the peer is trained with those as well. New examples for every batch, the notebook's own.

The likelihood is that of z_0 = x (ours: of z_0 = alpha_0 x, per x) under the ODE, against the data's known density. For
the peer it is integrated by Runge and Kutta's method with an exact divergence, in two numbers of steps, and the largest
difference between them is told.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench import mean_and_error, parameters
from torch import Tensor, nn

import ndm
from ndm._internal.random import low_discrepancy
from ndm.data import EightGaussians
from ndm.evaluation import bound_per_example
from ndm.networks import ResidualMLP
from peers.racing import Contestant, Ours, distances, draws, over_seeds, race, widest

URL = "GrigoryBartosh/neural_diffusion"
NOTEBOOK = "nfdm_from_scratch.ipynb"
#: The notebook's batch, learning rate, and steps of its samplers.
BATCH, RATE, STEPS = 1024, 1e-3, 300
#: Ours and, where it has our recipe, the peer's: bench.train's. Nothing was tuned.
RATES = {"peer, our recipe": 2e-3, "Neural": 2e-3, "Separable": 2e-3, "Identity": 2e-3}
MODELS = ("peer", *RATES)
#: What the notebook's sigma is at t = 0.
SIGMA_0 = 0.01
SECONDS = 25.0
EXAMPLES, TIMES, LIKELIHOODS, SAMPLES, FRESH = 2_000, 50, 300, 2_000, 2_000
#: Steps of Runge and Kutta's method for the peer's likelihood.
GRIDS = (20, 40)

#: The notebook's circle of radius 4 and noise 0.5, both divided by sqrt 2.
DATA = EightGaussians(radius=4 / math.sqrt(2), noise=0.5 / math.sqrt(2))
#: The standard deviation of each dimension: a point of the circle has half its square in each.
SPREAD = math.sqrt(4**2 / 2 / 2 + 0.5**2 / 2)


def definitions(path: Path) -> SimpleNamespace:
    """The imports, functions and classes of a notebook; what else it does is left out.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}: give --peer a checkout of {URL}.")
    try:
        cells = json.loads(path.read_text())["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a Jupyter notebook.") from error
    names: dict[str, Any] = {"__name__": "peer_notebook"}
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for cell in cells:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            tree.body = [node for node in tree.body if isinstance(node, kept)]
            exec(compile(tree, str(path), "exec"), names)
    return SimpleNamespace(**names)


# ---- training


class Notebook:
    """The peer's training: Adam at a constant rate."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def step(self, batch: Tensor, spent: float) -> None:
        loss = self.model(batch, torch.rand(len(batch), 1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def build_peer(code: SimpleNamespace) -> nn.Module:
    """Its model, as the notebook builds it."""
    transform = code.AffineTransform(flow=code.AffineNeural(d=2))
    return code.NeuralDiffusion(transform, code.Predictor(d=2), code.VolatilityNeural())


def build_ours(name: str, budget: int) -> ndm.NDM:
    """A model with so many parameters in all."""

    def build(hidden: int) -> ndm.NDM:
        small: dict[str, Any] = {"hidden": 24, "depth": 1, "embedding": 16}
        transform: ndm.Transform = {
            "Identity": ndm.Identity,
            "Neural": lambda: ndm.Neural(ResidualMLP(2, **small)),
            "Separable": lambda: ndm.Separable(ResidualMLP(2, heads=4, level=False, **small), terms=4),
        }[name]()
        schedule = ndm.LearnedSchedule(gamma_min=-8.0, learn_endpoints=True)
        denoiser = ndm.Denoiser(ResidualMLP(2, hidden=hidden, embedding=32))
        return ndm.NDM(schedule, transform, denoiser, ndm.GaussianDecoder(), standardize=ndm.Standardize(0.0, SPREAD))

    return build(widest(build, budget))


def continuous_bound(model: nn.Module, batch: Tensor) -> Tensor:
    assert isinstance(model, ndm.NDM)
    return model.bound(batch, check=False).total.mean()


def notebook_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch, torch.rand(len(batch), 1)).mean()


def contestants(code: SimpleNamespace, seed: int, rates: dict[str, float]) -> Iterator[Contestant]:
    """The models at their first step."""
    with torch.random.fork_rng(devices=[]):
        budget = parameters(build_peer(code))
    for name in MODELS:
        start: Callable[[], Any]
        if name == "peer":
            start = lambda: Notebook(build_peer(code))  # noqa: E731
        elif name == "peer, our recipe":
            start = lambda: Ours(build_peer(code), notebook_loss, rates["peer, our recipe"])  # noqa: E731
        else:
            start = lambda name=name: Ours(build_ours(name, budget), continuous_bound, rates[name])  # noqa: E731
        yield Contestant(name, start, draws(code.gen_data, BATCH, seed), seed)


# ---- the peer's figures


@torch.no_grad()
def peer_bound(peer: nn.Module, x: Tensor, times: int, seed: int = 0) -> Tensor:
    """Its loss at stratified times, averaged, and the reconstruction: a bound on -log p(x), (B,) in nats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        total = torch.zeros(len(x), dtype=torch.float64)
        for i in range(times):
            u = (i + low_discrepancy(len(x), x)) / times
            total += peer(x, u[:, None]).double()
    constant = x.shape[1] / 2 * math.log(2 * math.pi * math.e * SIGMA_0**2)
    return total / times + constant


def peer_drift(peer: Any, z: Tensor, t: Tensor) -> Tensor:
    """dz/dt of its ODE, as its last cell has it; z (B, 2), t (B, 1)."""
    return peer.transform.inverse(z, t, peer.pred(z, t))[1]


def peer_samples(code: SimpleNamespace, peer: Any, n: int, sde: bool) -> Tensor:
    """Its samples, (n, 2): by its own solvers, from its SDE or its ODE."""

    def reverse(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        _, dz, score = peer.transform.inverse(z, t, peer.pred(z, t))
        g = peer.vol(t)
        return code.score_based_sde_drift(dz, score, g**2), g

    z = torch.randn(n, 2)
    if sde:
        return code.solve_sde(sde=reverse, z=z, ts=1, tf=0, n_steps=STEPS)[0]
    return code.solve_ode(ode=lambda y, t: peer_drift(peer, y, t), z=z, ts=1, tf=0, n_steps=STEPS)[0].detach()


def ode_likelihood(drift: Callable[[Tensor, Tensor], Tensor], z: Tensor, steps: int) -> Tensor:
    """log p(z) = log N(z_1; 0, I) + the integral over t in [0, 1] of div f, (B,), by Runge and Kutta's method.

    Args:
        drift: (z (B, d), t (B, 1)) -> dz/dt, differentiable.
        z: z_0, (B, d).
        steps: of the grid.
    """

    def rate(y: Tensor, t: float) -> tuple[Tensor, Tensor]:
        y = y.detach().requires_grad_()
        f = drift(y, y.new_full((len(y), 1), t))
        each = [torch.autograd.grad(f[:, k].sum(), y, retain_graph=True)[0][:, k] for k in range(y.shape[1])]
        return f.detach(), torch.stack(each).sum(0)

    h, divergence = 1 / steps, z.new_zeros(len(z))
    for i in range(steps):
        t = i * h
        f1, d1 = rate(z, t)
        f2, d2 = rate(z + h / 2 * f1, t + h / 2)
        f3, d3 = rate(z + h / 2 * f2, t + h / 2)
        f4, d4 = rate(z + h * f3, t + h)
        z = z + h / 6 * (f1 + 2 * f2 + 2 * f3 + f4)
        divergence = divergence + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return divergence - (z.square() + math.log(2 * math.pi)).sum(1) / 2


# ---- measuring


def measure(code: SimpleNamespace, one: Contestant, seed: int) -> dict[str, Any]:
    """The figures of a trained model."""
    torch.manual_seed(seed)
    peer, model = one.name.startswith("peer"), one.training.model
    row: dict[str, Any] = {"model": one.name, "seed": seed, "parameters": parameters(model)}
    row |= {"training_steps": one.steps, "ms_per_step": 1e3 * one.seconds / one.steps, "entropy": DATA.entropy}
    test = DATA.sample(EXAMPLES, _seeded(1))
    if peer:
        bound = peer_bound(model, test, TIMES)
    else:
        assert isinstance(model, ndm.NDM)
        bound = bound_per_example(model, test, None, seed=0, times=TIMES)["total"]
    some = test[:LIKELIHOODS]
    if peer:
        coarse, fine = (ode_likelihood(lambda z, t: peer_drift(model, z, t), some, n) for n in GRIDS)
        row["likelihood_apart"] = (coarse - fine).abs().max().item()
    else:
        fine = ndm.log_likelihood(model, some).log_prob
    # Differences on the same examples: Kullback-Leibler divergences, of the bound with its slack.
    row["bound_gap"], row["bound_gap_error"] = mean_and_error(bound + DATA.log_prob(test).double())
    row["ode_gap"], row["ode_gap_error"] = mean_and_error((DATA.log_prob(some) - fine).double())
    for kind in ("sde", "ode"):
        began = time.process_time()
        if peer:
            samples = peer_samples(code, model, SAMPLES, kind == "sde")
        else:
            solver = "euler-maruyama" if kind == "sde" else "euler"
            samples = ndm.sample(model, SAMPLES, (2,), method=kind, steps=STEPS, solver=solver)
        row[f"{kind}_seconds"] = time.process_time() - began
        row |= {f"{kind}_{name}": value for name, value in quality(samples).items()}
    return row


def quality(samples: Tensor) -> dict[str, float]:
    """How far samples are from fresh data, and their mean surprise under the data's density less the entropy."""
    fresh, finite = DATA.sample(FRESH, _seeded(2)), samples[samples.isfinite().all(1)]
    return distances(fresh, finite) | {
        "surprise": -DATA.log_prob(finite).double().mean().item() - DATA.entropy,
        "not_finite": 1 - len(finite) / len(samples),
    }


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of each seed, as they come."""
    code = definitions(options.peer / NOTEBOOK)
    rates = RATES if options.rate is None else dict.fromkeys(RATES, options.rate)
    for seed in options.seeds:
        models = list(contestants(code, seed, rates))
        race(models, SECONDS if options.seconds is None else options.seconds)
        for one in models:
            yield measure(code, one, seed)
        found = quality(DATA.sample(SAMPLES, _seeded(1000 + seed)))
        both = {f"{kind}_{name}": value for kind in ("sde", "ode") for name, value in found.items()}
        yield {"model": "data", "seed": seed} | both


def options(parser: argparse.ArgumentParser) -> None:
    """What the command can be told about this part."""
    parser.add_argument("--seconds", type=float, help=f"of training (default: {SECONDS:g})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, help="of Adam, in place of the recipe's own; the notebook's stays")


#: Column: a row's field.
COLUMNS = {
    "parameters": "parameters", "steps": "training_steps", "ms a step": "ms_per_step", "bound": "bound_gap",
    "ODE likelihood": "ode_gap", "SDE: sliced W": "sde_sliced_wasserstein", "SDE: MMD^2": "sde_mmd",
    "ODE: sliced W": "ode_sliced_wasserstein", "ODE: MMD^2": "ode_mmd",
    "s, SDE": "sde_seconds", "s, ODE": "ode_seconds",
}  # fmt: skip


def shown(found: list[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Means over the seeds, and their standard errors: the lines of a table, and its header."""
    models = dict.fromkeys(row["model"] for row in found)
    lines = [[model, *(over_seeds(found, {"model": model}, key) for key in COLUMNS.values())] for model in models]
    return lines, ["model", *COLUMNS]
