"""The quality of samples by the number of network evaluations, for every sampler.

    ndm train table --data.path TABLES/protein --trainer.max_time 120 --out RUNS/protein    # and the like
    python benchmarks/steps.py RUNS/protein

A sampler of N evaluations takes N steps, or N / 2 and N / 4 steps of Heun's method and of rk4. Steps are even in gamma.
``diagonal`` is a reverse variance per dimension, calibrated for these steps on training examples; the posterior's is
used elsewhere. Samples are compared with the test split. For a table the distance is the sliced Wasserstein distance of
the encoded rows, each coordinate divided by its standard deviation in the training rows, or by 0.2 if larger. For
images it is the Fréchet distance of the features of the classifier of samples.py. ``training examples`` are as many
training examples in place of the samples. Errors are standard errors over draws; the test split is the same for all.
One line of results/steps.jsonl for each RUN and number
of samples.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import RESULTS, environment, mean_and_error, write
from suite.datasets import lines
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.configs.recorded import read_run_data
from ndm.data import Data
from ndm.training import Run
from samples import classifier, fid

EVALUATIONS = (8, 12, 20, 32, 52, 100)
CALIBRATION = 5000  # examples times steps

#: Options of each sampler, and its evaluations in a step.
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "ancestral": ({"method": "ancestral"}, 1),
    "ancestral, diagonal": ({"method": "ancestral", "covariance": "diagonal"}, 1),
    "ddim": ({"method": "ddim"}, 1),
    "ode, heun": ({"method": "ode", "solver": "heun"}, 2),
    "ode, rk4": ({"method": "ode", "solver": "rk4"}, 4),
    "ode, dpm++2m": ({"method": "ode", "solver": "dpm++2m"}, 1),
    "sde, euler-maruyama": ({"method": "sde", "solver": "euler-maruyama"}, 1),
    "sde, dpm++2m": ({"method": "sde", "solver": "dpm++2m"}, 1),
}

#: Samples (..., \\*shape), and the seed of a draw -> the distance from the test split.
Judge = Callable[[Tensor, int], float]


def of_table(data: Data) -> Judge:
    """The sliced Wasserstein distance of encoded rows."""
    encoding = data.encoding or (lambda x: x)
    test, scale = encoding(data.test), encoding(data.train).std(0).clamp_min(0.2)

    def distance(x: Tensor, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return ndm.sliced_wasserstein(encoding(x) / scale, test / scale, permutations=0, generator=generator).value

    return distance


def of_images(data: Data) -> Judge:
    """The Fréchet distance of a classifier's features."""
    net = classifier(data)[0]
    test = net.features_of(data.examples("test"))
    return lambda x, seed: fid(net.features_of(x), test)[0]


def drawn(model: ndm.NDM, data: Data, n: int, steps: int, seed: int, options: dict[str, Any]) -> Tensor:
    """Samples, (n, \\*shape)."""
    if (covariance := options.pop("covariance", None)) is not None:
        some = data.examples("train")[: max(50, CALIBRATION // steps)]
        generator = torch.Generator().manual_seed(seed_of(2, steps))
        model.calibrate([some], steps, covariance, spacing="gamma", generator=generator)
    else:
        options["spacing"] = "gamma"  # a calibration has its own steps
    blocks = ndm.sample_batches(model, n, data.shape, seed=seed, batch_size=500, progress=False, steps=steps, **options)
    x = torch.cat([block for _, block in blocks])
    model.uncalibrate()
    return x


def measured(run: Path, n: int, draws: int, ways: Sequence[str], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for the training examples, and for each sampler and number of evaluations."""
    model, data = ndm.NDM.from_pretrained(Run(run).model).eval(), read_run_data(Run(run))
    judge = of_table(data) if len(data.shape) == 1 else of_images(data)
    order = [torch.randperm(len(data.train), generator=torch.Generator().manual_seed(s))[:n] for s in range(draws)]
    floor = mean_and_error([judge(data.examples("train")[rows], s) for s, rows in enumerate(order)])
    yield {"method": "training examples", "distance": floor[0], "stderr": floor[1]}
    for name, evaluations in itertools.product(ways, numbers):
        (options, per_step), began, found = WAYS[name], time.process_time(), []
        for seed in range(draws):
            found.append(judge(drawn(model, data, n, evaluations // per_step, seed, dict(options)), seed))
        distance, error = mean_and_error(found)
        row = {"method": name, "evaluations": evaluations, "distance": distance, "stderr": error}
        yield row | {"seconds": (time.process_time() - began) / draws}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS, help="multiples of 4")
    parser.add_argument("--samplers", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    key = (options.run.name, options.samples)
    line: dict[str, Any] = {"set": key[0], "samples": key[1], "environment": environment()}
    line |= {"draws": options.draws, "rows": []}
    for row in measured(options.run, options.samples, options.draws, options.samplers, options.evaluations):
        print(row, flush=True)
        line["rows"].append(row)
    path = RESULTS / "steps.jsonl"
    print(write(path, [*(li for li in lines(path) if (li["set"], li["samples"]) != key), line]))


if __name__ == "__main__":
    main()
