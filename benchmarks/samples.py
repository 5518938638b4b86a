"""The distance of samples from test images: models of ``suite.py``, several samplers, spacings and numbers of steps.

    python benchmarks/samples.py digits-recommended mnist-recommended --seeds 0 1 2 --data FOLDER

The models are those that ``suite.py`` left in --work. With T steps are drawn: ancestral samples with the calibrated
variance per dimension (``diagonal``); DDIM (``ddim``); the ODE by Heun's method in T / 2 steps of two evaluations
(``ode``); each in steps that are even in time and in steps that are even in gamma. A direct reverse process has neither
DDIM nor an ODE. All models of a seed start from the same noise.

The distance is the Fréchet distance (FID) of the features of a small classifier that is trained here on the training
split. It cannot be compared with FIDs of Inception's features. Its error is a jackknife's over groups of images. As
many training images in place of the samples give the ``floor``. Results are lines of results/samples.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import RESULTS, environment, parameters, table, write
from suite import datasets
from suite.settings import SUITE, read
from torch import Tensor, nn
from torch.nn import functional

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data, Examples
from ndm.evaluation.distances import jackknife

#: Images at a time, and groups that the jackknife leaves out.
BLOCK, GROUPS = 250, 20

#: The classifier's training.
TRAINING: dict[str, Any] = {"steps": 1500, "batch_size": 128, "learning_rate": 3e-3, "seed": 0, "features": 64}

#: A figure and its standard error.
Figure = tuple[float, float]


# ---- the classifier


class Classifier(nn.Module):
    """Three convolutions, two of which halve the side, and a linear layer on the channels' means, the features."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, TRAINING["features"], 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(TRAINING["features"], classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, features)."""
        return self.body(x).mean((2, 3))

    @torch.no_grad()
    def features_of(self, examples: Examples) -> Tensor:
        """The features of all examples, (N, features)."""
        blocks = range(0, len(examples), BLOCK)
        return torch.cat([self.features(examples[i : min(i + BLOCK, len(examples))]) for i in blocks])


def classifier(data: Data) -> tuple[Classifier, float]:
    """A classifier that is trained on the training split, and its accuracy on the test split."""
    labels, test = data.labels("train"), data.labels("test")
    if labels is None or test is None:
        raise ValueError("The data have no labels, and a classifier needs them.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TRAINING["seed"])
        net = Classifier(data.shape[0], int(labels.max()) + 1)
    examples, generator = data.examples("train"), torch.Generator().manual_seed(TRAINING["seed"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=TRAINING["learning_rate"])
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING["steps"])
    for _ in range(TRAINING["steps"]):
        rows = torch.randint(len(examples), (TRAINING["batch_size"],), generator=generator)
        loss = functional.cross_entropy(net.head(net.features(examples[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    found = net.head(net.features_of(data.examples("test"))).argmax(1)
    return net.eval().requires_grad_(False), round((found == test).double().mean().item(), 4)


# ---- the distance


def fid(features: Tensor, reference: Tensor) -> Figure:
    """The Fréchet distance between two sets of features, and its error by leaving groups out."""
    left_out = [_frechet(_without(reference, g), _without(features, g)) for g in range(GROUPS)]
    return _frechet(reference, features), jackknife(torch.tensor(left_out, dtype=torch.float64))


def _without(rows: Tensor, group: int) -> Tensor:
    return rows[torch.arange(len(rows)) % GROUPS != group]


def _frechet(a: Tensor, b: Tensor) -> float:
    from ndm.evaluation.quality import fid_kid  # needs torchmetrics

    # The features are there, so that the network is the identity. The other distance is made as cheap as possible.
    return fid_kid([a], [b], nn.Identity(), kid_subsets=1, kid_subset_size=2).fid


# ---- the samples


def has_ode(model: ndm.NDM) -> bool:
    """Whether the denoiser estimates F(x_hat), which DDIM and the ODE need."""
    return not model.denoiser.direct or bool(getattr(model.denoiser, "ode", False))


def drawn(
    model: ndm.NDM, data: Data, steps: int, n: int, seed: int, calibration: int
) -> Iterator[tuple[str, str, Tensor]]:
    """Method, spacing and samples, (n, \\*shape), in every way that the model has."""
    some = list(data.examples("train")[: max(1, calibration // steps)].split(BLOCK))
    ways: list[tuple[str, dict[str, Any]]] = [("diagonal", {"method": "ancestral", "steps": steps})]
    if has_ode(model):
        ways.append(("ddim", {"method": "ddim", "steps": steps}))
        ways.append(("ode", {"method": "ode", "solver": "heun", "steps": steps // 2}))
    for spacing, grid in (("time", "time"), ("gamma", "gamma")):
        for name, options in ways:
            if name == "diagonal":
                generator = torch.Generator().manual_seed(seed_of(2, steps))
                model.calibrate(some, steps, "diagonal", spacing=grid, generator=generator)
            blocks = ndm.sample_batches(
                model, n, data.shape, seed=seed, batch_size=BLOCK, progress=False, spacing=spacing, **options
            )
            yield name, spacing, torch.cat([block for _, block in blocks])
            if name == "diagonal":
                model.uncalibrate(steps)


def judged(model: ndm.NDM, data: Data, net: Classifier, reference: Tensor, seed: int, options: argparse.Namespace):
    """The distances of a model's samples, one object per method, spacing and number of steps."""
    for steps in options.steps:
        for method, spacing, x in drawn(model, data, steps, options.samples, seed, options.calibration):
            finite = bool(torch.isfinite(x).all())
            figure = [float(f"{v:.5g}") for v in fid(net.features_of(x), reference)] if finite else None
            yield {"method": method, "spacing": spacing, "steps": steps, "fid": figure}


def line(name: str, models: Sequence[str], seed: int, data: Data, net: tuple[Classifier, float], options) -> dict:
    """One line of the results: the models of a comparison and seed."""
    reference, train = (net[0].features_of(data.examples(s)[: options.samples]) for s in ("test", "train"))
    found: dict[str, Any] = {
        "comparison": name, "seed": seed, "environment": environment(), "samples": options.samples,
        "compared_with": len(reference), "floor": [float(f"{v:.5g}") for v in fid(train, reference)],
        "features": {"settings": TRAINING, "parameters": parameters(net[0]), "accuracy": net[1]}, "models": {},
    }  # fmt: skip
    for model in models:
        folder = options.work / f"{name}--{seed}" / datasets.slug(model) / "model"
        if not folder.is_dir():
            raise SystemExit(f"There is no model {folder}: run suite.py {name} --seeds {seed} with this --work first.")
        built = ndm.NDM.from_pretrained(folder).eval()
        found["models"][model] = list(judged(built, data, net[0], reference, seed, options))
        shown = [[f["method"], f["spacing"], f["steps"], f["fid"]] for f in found["models"][model]]
        print(f"{name}, seed {seed}, {model}\n{table(shown, ['method', 'spacing', 'T', 'FID'])}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="COMPARISON", help="comparisons of suite.yaml on images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 250], help="(default: 5 10 20 50 250)")
    parser.add_argument("--samples", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=5000, help="examples times steps (default: %(default)s)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the folder of MNIST and CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("runs/suite"), help="of suite.py (default: %(default)s)")
    parser.add_argument("--suite", type=Path, default=SUITE, help="another file of comparisons")
    parser.add_argument("--results", type=Path, default=RESULTS / "samples.jsonl", help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = read(options.suite)
    for name in options.names:
        data = datasets.dataset(suite[name].data, options.data)
        net = classifier(data)
        for seed in options.seeds:
            new = line(name, list(suite[name].models), seed, data, net, options)
            kept = datasets.lines(options.results)
            write(options.results, [o for o in kept if (o["comparison"], o["seed"]) != (name, seed)] + [new])


if __name__ == "__main__":
    main()
