"""The bound of images in T steps by the calibrated variance of the reverse step, in bits per dimension.

    python benchmarks/suite.py cifar10-frequency mnist-frequency --data FOLDER --work WORK    trains the models
    python benchmarks/image_variance.py --data FOLDER --work WORK

The models are those of the suite with Identity, trained in continuous time. Each variance is calibrated on the same
1,000 training images; the test images, the times and the noise are the same for all. ``full`` is for MNIST only: its
matrices grow with the square of the number of dimensions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from bench import save
from suite.datasets import dataset
from suite.measuring import BLOCK, CALIBRATION, TEST, over_seeds, scale
from suite.settings import read
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data
from ndm.evaluation import bound_per_example, mean_and_error

COMPARISONS, IMAGES = ("cifar10-frequency", "mnist-frequency"), 1000
KINDS = ("posterior", "isotropic", "diagonal", "frequency", "full")


def measured(model: ndm.NDM, data: Data, steps: tuple[int, ...], examples: int) -> Iterator[tuple[str, int, Tensor]]:
    """The bounds of test examples by variance and T; T = 0 stands for continuous time."""
    x, some = data.examples("test")[:examples], list(data.examples("train")[:IMAGES].split(BLOCK))

    def bound(t: int | None) -> Tensor:
        terms = bound_per_example(model, x, t, seed=seed_of(TEST), batch_size=BLOCK, times=10)
        return terms["total"] * scale(data)

    yield "continuous time", 0, bound(None)
    for t in steps:
        for kind in KINDS if x[0].numel() <= 1024 else KINDS[:-1]:
            if kind != "posterior":
                model.calibrate(some, t, kind, generator=torch.Generator().manual_seed(seed_of(CALIBRATION, t)))
            yield kind, t, bound(t)
        model.uncalibrate(t)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with the images, as for suite.py")
    parser.add_argument("--work", type=Path, required=True, help="the folder of the runs of suite.py")
    parser.add_argument("--steps", type=int, nargs="+", default=[10], help="T")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs")
    parser.add_argument("--examples", type=int, default=500, help="test images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite, rows = read(), []
    for name in COMPARISONS:
        data, found = dataset(suite[name].data, options.data), {}
        for seed in options.seeds:
            model = ndm.NDM.from_pretrained(options.work / f"{name}--{seed}" / "identity" / "model").eval()
            for kind, t, values in measured(model, data, tuple(options.steps), options.examples):
                found.setdefault((kind, t), []).append(mean_and_error(values))
                print(f"{name}, seed {seed}, T = {t or 'inf'}, {kind}: {values.mean():.3f}", flush=True)
        for (kind, t), of_seeds in found.items():
            mean, error = over_seeds(of_seeds)
            row = {"data": suite[name].data, "steps": t or None, "variance": kind, "unit": "bits per dimension"}
            rows.append(row | {"bound": mean, "stderr": error, "seeds": [value for value, _ in of_seeds]})
    print(save("image_variance", rows, {"steps": options.steps, "examples": options.examples, "calibration": IMAGES}))


if __name__ == "__main__":
    main()
