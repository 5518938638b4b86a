"""What the variance of the reverse step costs at T = 10 steps, in nats for toys and bits per dimension for digits.

One model, Identity trained in continuous time, with the variances that need no training (the posterior's, and those
calibrated on training data: isotropic, diagonal, full); and one model each, trained at T steps, whose variance is
learned (a function of the noise level) or predicted (a head of the denoiser). All are evaluated on the same test data,
noise and times. The error is that of the mean over test data and noise; with several seeds, that of the mean over
trainings as well.

    python benchmarks/reverse_variance.py [--seeds 3] [--steps 10] [--data Pinwheel Checkerboard Digits]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bench import mean_and_error, parameters, save, table, train
from torch import Tensor, nn

import ndm
from ndm import data as datasets
from ndm.evaluation import bound_per_example
from ndm.networks import ResidualMLP, UNet

CALIBRATED = ("isotropic", "diagonal", "full")
VARIANCES = ("posterior", *CALIBRATED, "learned", "predicted")


@dataclass
class Task:
    """A data set and what to model it with.

    Attributes:
        data: the data.
        gamma_min: the schedule's.
        training_steps: how long to train.
        batch_size: examples a step.
        repeats: how often each test example is evaluated at all T steps, each time with other noise.
    """

    data: datasets.Data
    gamma_min: float
    training_steps: int
    batch_size: int
    repeats: int

    @property
    def discrete(self) -> bool:
        return self.data.levels is not None

    def build(self, variance: str) -> ndm.NDM:
        heads = 2 if variance == "predicted" else 1
        if self.discrete:
            net: nn.Module = UNet(1, width=16, multipliers=(1, 2), heads=heads)
            rest = {"decoder": ndm.DiscretizedDecoder(self.data.levels)}
        else:
            net = ResidualMLP(2, hidden=64, depth=3, heads=heads)
            rest = {"standardize": ndm.Standardize.fit(self.data.train)}
        schedule = ndm.LinearSchedule(self.gamma_min, 5.0)
        return ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(net), reverse_variance=variance, **rest)

    def score(self, model: ndm.NDM, steps: int | None, seed: int) -> Tensor:
        """The bound of every test example, (N,), in nats, or in bits per dimension for K-level data."""
        test, repeats = self.data.test, self.repeats if steps is not None else 1
        total = sum(bound_per_example(model, test, steps, seed=seed * repeats + r)["total"] for r in range(repeats))
        bits = test[0].numel() * torch.log(torch.tensor(2.0)).item() if self.discrete else 1.0
        return total / repeats / bits


def tasks(names: list[str], scale: float) -> Iterator[tuple[str, Task]]:
    for name in names:
        data = getattr(datasets, name)()
        if name == "Digits":
            yield name, Task(data, -8.0, round(scale * 800), 64, 4)
        else:
            yield name, Task(data, -9.0, round(scale * 2500), 256, 1)


def measure(task: Task, steps: int, seed: int) -> Iterator[tuple[str, Tensor, int]]:
    """Each variance, the test examples' bounds with it, and the model's parameters."""

    def trained(variance: str, bound_steps: int | None) -> ndm.NDM:
        return train(
            lambda: task.build(variance), task.data.train, steps=task.training_steps, batch_size=task.batch_size,
            bound_steps=bound_steps, seed=seed,
        )  # fmt: skip

    model = trained("posterior", None)
    yield "posterior", task.score(model, steps, seed), parameters(model)
    for covariance in CALIBRATED:
        model.calibrate(task.data.train, steps, covariance, generator=torch.Generator().manual_seed(seed))
        yield covariance, task.score(model, steps, seed), parameters(model)
    model.uncalibrate()
    yield "continuous time", task.score(model, None, seed), parameters(model)
    for variance in ("learned", "predicted"):
        model = trained(variance, steps)
        yield variance, task.score(model, steps, seed), parameters(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="T")
    parser.add_argument("--data", nargs="+", default=["Pinwheel", "Checkerboard", "Digits"])
    parser.add_argument("--training", type=float, default=1.0, help="train this many times as long")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, task in tasks(options.data, options.training):
        scores: dict[str, list[Tensor]] = {}
        for seed in range(options.seeds):
            for variance, values, size in measure(task, options.steps, seed):
                scores.setdefault(variance, []).append(values)
                mean, error = mean_and_error(values)
                print(f"{name}, seed {seed}, {variance} ({size:,} parameters): {mean:.3f} ± {error:.3f}", flush=True)
        for variance, of_seeds in scores.items():
            # Over seeds the test data are the same: their own error comes on top of that of training and noise.
            per_example = torch.stack(of_seeds).mean(0)
            mean, data_error = mean_and_error(per_example)
            error = data_error
            if len(of_seeds) > 1:
                error = (data_error**2 + mean_and_error([s.mean().item() for s in of_seeds])[1] ** 2) ** 0.5
            unit = "bits per dimension" if task.discrete else "nats"
            row = {"data": name, "variance": variance, "unit": unit, "bound": mean, "stderr": error}
            row |= {"over_posterior": mean_and_error(per_example - torch.stack(scores["posterior"]).mean(0))}
            rows.append(row | {"seeds": [s.mean().item() for s in of_seeds]})
    found = {(r["data"], r["variance"]): f"{r['bound']:.3f} ± {r['stderr']:.3f}" for r in rows}
    lines = [[v, *(found[d, v] for d in options.data)] for v in (*VARIANCES, "continuous time")]
    units = {r["data"]: r["unit"] for r in rows}
    print("\n" + table(lines, [f"reverse variance, T = {options.steps}", *(f"{d}, {units[d]}" for d in options.data)]))
    for name, task in tasks(options.data, options.training):
        if hasattr(task.data, "entropy"):
            print(f"\nThe entropy of {name}, which no bound can go below, is {task.data.entropy:.3f} nats.")
    print(f"\n{save('reverse_variance', rows, vars(options))}")


if __name__ == "__main__":
    main()
