"""The bound in T = 10 steps by the variance of the reverse step, in nats for toys and bits per dimension for digits.

    python benchmarks/reverse_variance.py [--seeds 3] [--steps 10]

One model, Identity trained in continuous time, with the posterior's variance and with those that are calibrated on
training data (isotropic, diagonal, full); and one model each, trained in T steps, with a learned variance (a function
of the noise level) and a predicted one (a head of the denoiser). All have the same test data, noise and times.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch
from bench import mean_and_error, save, train
from torch import Tensor, nn

import ndm
from ndm.data import Checkerboard, Data, Digits, Pinwheel
from ndm.evaluation import bound_per_example
from ndm.networks import ResidualMLP, UNet

#: Data, steps of the training, batch size, and how often each test example is measured at all T steps.
TASKS: dict[str, tuple[type[Data], int, int, int]] = {
    "Pinwheel": (Pinwheel, 2500, 256, 1),
    "Checkerboard": (Checkerboard, 2500, 256, 1),
    "Digits": (Digits, 800, 64, 4),
}


def build(data: Data, variance: str) -> ndm.NDM:
    heads = 2 if variance == "predicted" else 1
    if data.levels is None:
        net: nn.Module = ResidualMLP(2, hidden=64, depth=3, heads=heads)
        rest = {"standardize": ndm.Standardize.fit(data.train)}
    else:
        net = UNet(1, width=16, multipliers=(1, 2), heads=heads)
        rest = {"decoder": ndm.DiscretizedDecoder(data.levels)}
    schedule = ndm.LinearSchedule(-9.0 if data.levels is None else -8.0, 5.0)
    return ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(net), reverse_variance=variance, **rest)


def measured(name: str, data: Data, steps: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Each variance, and the bound of every test example with it, (N,)."""
    _, training_steps, batch_size, repeats = TASKS[name]
    unit = 1.0 if data.levels is None else data.test[0].numel() * math.log(2)

    def trained(variance: str, bound_steps: int | None) -> ndm.NDM:
        how = {"steps": training_steps, "batch_size": batch_size, "bound_steps": bound_steps, "seed": seed}
        return train(lambda: build(data, variance), data, **how)

    def bound(model: ndm.NDM, t: int | None) -> Tensor:
        n = repeats if t is not None else 1
        return sum(bound_per_example(model, data.test, t, seed=seed * n + r)["total"] for r in range(n)) / n / unit

    model = trained("posterior", None)
    yield "posterior", bound(model, steps)
    for covariance in ("isotropic", "diagonal", "full"):
        model.calibrate(data.train, steps, covariance, generator=torch.Generator().manual_seed(seed))
        yield covariance, bound(model, steps)
    yield "continuous time", bound(model.uncalibrate(), None)
    for variance in ("learned", "predicted"):
        yield variance, bound(trained(variance, steps), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="T")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (kind, *_) in TASKS.items():
        data, bounds = kind(), {}
        for seed in range(options.seeds):
            for variance, values in measured(name, data, options.steps, seed):
                bounds.setdefault(variance, []).append(values)
                print(f"{name}, seed {seed}, {variance}: {values.mean():.3f}", flush=True)
        for variance, of_seeds in bounds.items():
            # The test data are the same for all seeds: their error comes on top of that of the trainings.
            mean, error = mean_and_error(torch.stack(of_seeds).mean(0))
            means = [s.mean().item() for s in of_seeds]
            between = mean_and_error(means)[1] if len(means) > 1 else 0.0
            unit = "nats" if data.levels is None else "bits per dimension"
            row = {"data": name, "variance": variance, "unit": unit, "bound": mean}
            rows.append(row | {"stderr": math.hypot(error, between), "seeds": means})
    print(save("reverse_variance", rows, vars(options)))


if __name__ == "__main__":
    main()
