"""The cost of a log-likelihood: by the way the divergence is taken, and against flow_matching's ODESolver.

**The divergence.** v^T (df/dz) v of the reverse ODE's drift for a few directions v, by forward mode (one vectorised
pass), by one batched backward pass, and by a backward pass for each direction, which is what ndm does. Medians of
interleaved rounds, as multiples of the last.

**The peer.** facebookresearch/flow_matching's ``ODESolver.compute_likelihood`` on the same networks and rows. The exact
density is computed by both in float64 (the largest difference is ``apart``); errors in float32 at several settings are
against it. The sets are a 2-D toy and the table of score.py, with the exact divergence, and handwritten digits as
continuous data, with one of Hutchinson's probes. The methods take turns; rows per second are of CPU time, medians of
three rounds. ``ratio`` is ours over the peer's, at the fastest of our settings whose mean error is not above the peer's
(with a probe, not above it by more than a tenth, because that error is the probe's and not well known).

    python benchmarks/likelihood.py --peer FOLDER [--run RUN]   # FOLDER holds flow_matching, here at 11568d3

RUN is a run of ``ndm train table`` on score.py's table; without it one is trained.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import save, train
from score import TRAINED, Mixture, command, write
from torch import Tensor, nn

import ndm
from ndm.data import Digits, Pinwheel
from ndm.method.process import frozen
from ndm.networks import ConvNet, ImageTransformer, ResidualMLP, UNet

ROUNDS = 5

Vectors = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


# ---- the divergence


def forward_mode(f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.enable_grad():
        return (torch.func.vmap(lambda w: torch.func.jvp(f, (z,), (w,))[1])(v) * v).flatten(2).sum(2)


def batched(f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.enable_grad():
        z = z.detach().requires_grad_()
        return (torch.autograd.grad(f(z), z, v, is_grads_batched=True)[0] * v).flatten(2).sum(2)


def one_by_one(f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = f(z)
        return torch.stack([(torch.autograd.grad(value, z, w, retain_graph=True)[0] * w).flatten(1).sum(1) for w in v])


MODES: dict[str, Vectors] = {"forward": forward_mode, "batched": batched, "one by one": one_by_one}


def build(net: nn.Module, transform: ndm.Transform | None = None) -> ndm.NDM:
    schedule = ndm.LinearSchedule(-8, 5)
    model = ndm.NDM(schedule, transform or ndm.Identity(), ndm.Denoiser(net), ndm.GaussianDecoder())
    for parameter in model.parameters():  # outputs that start from zero
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def cases() -> dict[str, tuple[ndm.NDM, tuple[int, ...], int | None]]:
    """Name: a model, the shape of a batch, and the number of random directions, None for all."""
    small = UNet(1, width=4, multipliers=(5, 7), groups=4)
    perceptron = ndm.Separable(ResidualMLP(8, hidden=32, depth=1, heads=4, level=False))
    neural = ndm.Neural(ResidualMLP(8, hidden=32, depth=1))
    transformer = ImageTransformer(1, patch=4, width=64, depth=4, attention_heads=4)
    unet = partial(UNet, 1, width=32, multipliers=(1, 2))
    convolutions = ndm.Separable(ConvNet(1, width=16, depth=3, heads=4, level=False))
    return {
        "perceptron, d = 2, Identity": (build(ResidualMLP(2)), (1024, 2), None),
        "perceptron, d = 8, Separable": (build(ResidualMLP(8), perceptron), (1024, 8), None),
        "perceptron, d = 8, Neural": (build(ResidualMLP(8), neural), (1024, 8), None),
        "perceptron, d = 16, Identity": (build(ResidualMLP(16)), (512, 16), None),
        "U-Net, 8x8, Identity": (build(small), (128, 1, 8, 8), 4),
        "U-Net, 28x28, Identity": (build(unet()), (8, 1, 28, 28), 4),
        "U-Net, 28x28, one direction": (build(unet()), (8, 1, 28, 28), 1),
        "U-Net, 28x28, attention": (build(unet(attention=True)), (8, 1, 28, 28), 4),
        "U-Net, 28x28, Separable": (build(unet(), convolutions), (8, 1, 28, 28), 4),
        "transformer, 28x28, Identity": (build(transformer), (8, 1, 28, 28), 4),
    }


def modes() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows = []
    for name, (model, shape, k) in cases().items():
        z, t = torch.randn(shape), torch.rand(shape[0])
        unit = torch.eye(z[0].numel()).reshape(-1, 1, *shape[1:])
        v = unit.expand(-1, *shape) if k is None else 2.0 * torch.randint(2, (k, *shape)) - 1
        taken: dict[str, list[float]] = {mode: [] for mode in MODES}
        refused = set()
        with torch.no_grad(), frozen(model):

            def drift(y: Tensor, model: ndm.NDM = model, t: Tensor = t) -> Tensor:
                return model.drift(y, t, eta=0.0)

            for turn in range(ROUNDS + 1):  # the first one warms up
                for mode, vectors in MODES.items():
                    began = time.process_time()
                    try:
                        vectors(drift, z, v)
                    except RuntimeError:  # PyTorch has no batching rule for something in the network
                        refused.add(mode)
                    if turn:
                        taken[mode].append(time.process_time() - began)
        middle = {mode: statistics.median(times) for mode, times in taken.items()}
        row: dict[str, Any] = {"part": "divergence", "case": name, "batch": shape[0], "directions": len(v)}
        row |= {f"{m} ratio": None if m in refused else middle[m] / middle["one by one"] for m in MODES}
        rows.append(row | {"milliseconds": 1000 * middle["one by one"]})
        print(row, flush=True)
    return rows


# ---- the peer


class Velocity:
    """Our drift as the peer wants it: called as v(x=, t=), a number t that runs from 1, data, to 0, noise."""

    def __init__(self, model: ndm.NDM) -> None:
        self.model = model

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.model.drift(x, (1 - t).expand(len(x)).to(x), eta=0.0)


def theirs(model: ndm.NDM, x: Tensor, exact: bool, method: str, **settings: Any) -> Tensor:
    """log p of rows by the peer, (B,)."""
    from flow_matching.solver import ODESolver

    data = model.to_model(x)
    alpha = model.schedule(data.new_zeros(len(data))).alpha
    z = alpha.reshape(-1, *[1] * (data.ndim - 1)) * data

    def log_normal(end: Tensor) -> Tensor:
        return -((end.square() + math.log(2 * math.pi)).flatten(1).sum(1)) / 2

    with frozen(model):
        _, log_p = ODESolver(Velocity(model)).compute_likelihood(
            z, log_normal, method=method, exact_divergence=exact, time_grid=torch.tensor([1.0, 0.0], dtype=z.dtype),
            **{"step_size": None, **settings},
        )  # fmt: skip
    return log_p.detach() + data[0].numel() * alpha.log() + model.log_det(data)


def ours(model: ndm.NDM, x: Tensor, exact: bool, tolerance: float) -> Tensor:
    """log p of rows by this package, (B,)."""
    divergence = "exact" if exact else "hutchinson"
    return ndm.log_likelihood(model, x, divergence=divergence, probes=1, tolerance=tolerance).log_prob


#: Nats a dimension; the default is 0.01.
OURS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("dopri5", {"rtol": tolerance, "atol": tolerance}) for tolerance in (1e-2, 1e-3, 1e-4, 1e-5)
] + [
    (method, {"step_size": 1 / n})
    for method, n in (("midpoint", 20), ("midpoint", 50), ("rk4", 6), ("rk4", 12), ("rk4", 24))
]


def sets(run: Path) -> dict[str, tuple[ndm.NDM, Tensor, bool]]:
    """Name: a trained model, rows, and whether the divergence is exact."""
    toy = Pinwheel()
    standardize = ndm.Standardize.fit(toy.train)

    def plane() -> ndm.NDM:
        transform = ndm.Separable(ResidualMLP(2, hidden=32, depth=1, heads=4, level=False))
        denoiser = ndm.Denoiser(ResidualMLP(2))
        return ndm.NDM(ndm.LinearSchedule(-8, 5), transform, denoiser, ndm.GaussianDecoder(), standardize=standardize)

    def picture() -> ndm.NDM:
        net = UNet(1, width=4, multipliers=(5, 7), groups=4)
        return ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Identity(), ndm.Denoiser(net), ndm.GaussianDecoder())

    digits = Digits()
    return {
        "Pinwheel, d = 2": (train(plane, toy, steps=1500, bound_steps=None, seed=0), toy.test[:256], True),
        "table, d = 8": (
            ndm.NDM.from_pretrained(run / "model").eval(),
            torch.from_numpy(Mixture().sample(256, 2)).float(),
            True,
        ),
        "digits, d = 64, one probe": (
            train(picture, digits, steps=600, bound_steps=None, seed=0, batch_size=64),
            digits.test[:16],
            False,
        ),
    }


def references(model: ndm.NDM, x: Tensor, exact: bool) -> tuple[Tensor, float]:
    """log p of rows in float64, (B,), and how far ours and the peer's are from each other at most.

    With a probe, the peer's random numbers cannot be given to ours, and what is compared is our exact density alone.
    """
    fine = copy.deepcopy(model).double()
    if not exact:  # nats beside a probe's error of some nats
        return ndm.log_likelihood(fine, x.double(), divergence="exact", tolerance=0.1).log_prob, math.nan
    ours_fine = ndm.log_likelihood(fine, x.double(), tolerance=1e-6).log_prob
    theirs_fine = theirs(fine, x.double(), True, "dopri5", rtol=1e-8, atol=1e-8)
    return ours_fine, (ours_fine - theirs_fine).abs().max().item()


def against(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, (model, x, exact) in sets(run).items():
        reference, apart = references(model, x, exact)
        print(f"{name}: in float64 the two are {apart:.2g} apart at most", flush=True)
        jobs: dict[tuple[str, str], Callable[[], Tensor]] = {}
        for tolerance in OURS:
            nats = tolerance * x[0].numel()
            jobs["ours", f"{tolerance:g} nats/dim"] = lambda m=model, x=x, e=exact, t=nats: ours(m, x, e, t)
        for method, settings in THEIRS:
            label = f"{method}, {next(iter(settings.values())):.3g}"
            jobs["theirs", label] = lambda m=model, x=x, e=exact, k=method, s=settings: theirs(m, x, e, k, **s)
        taken: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
        errors: dict[tuple[str, str], list[Tensor]] = {job: [] for job in jobs}
        for _ in range(3):
            for job, work in jobs.items():
                began = time.process_time()
                found = work()
                taken[job].append(time.process_time() - began)
                errors[job].append((found.double() - reference).abs())
        mine = []
        for (who, label), times in taken.items():
            error = torch.cat(errors[who, label])
            row = {"part": "peer", "set": name, "rows": len(x), "who": who, "settings": label, "apart": apart}
            row |= {"rows_per_second": len(x) / statistics.median(times), "mean_error": error.mean().item()}
            mine.append(row | {"largest_error": error.max().item()})
        for row in mine:
            if row["who"] == "theirs":
                # With a probe the errors are the probe's, of which a few rows tell the mean to some percent only.
                margin = 1.0 if exact else 1.1
                able = [r for r in mine if r["who"] == "ours" and r["mean_error"] <= margin * row["mean_error"]]
                best = max(able, key=lambda r: r["rows_per_second"], default=None)
                row["ratio"] = best and best["rows_per_second"] / row["rows_per_second"]
                row["by"] = best and best["settings"]
            print({k: v for k, v in row.items() if k not in ("part", "set", "rows", "apart")}, flush=True)
        rows += mine
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a folder that holds the package flow_matching")
    parser.add_argument("--run", type=Path, help="a run on score.py's table, in place of a new training")
    options = parser.parse_args()
    sys.path.append(str(options.peer))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or Path(folder) / "run"
        if options.run is None:
            path = write(Mixture().sample(TRAINED, 1), Path(folder) / "train.csv")
            command("train", "table", "--data.path", path, "--out", run)
        rows = modes() + against(run)
    print(save("likelihood", rows, {"rounds": ROUNDS}))


if __name__ == "__main__":
    main()
