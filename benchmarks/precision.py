"""The cost of bfloat16 in the bound of trained models at gamma_0 = -13.3, with and without a residual path in float32.

    python benchmarks/precision.py --data 'FOLDER/mnist-*.parquet'

A conventional model and a Separable one are trained in float32 and then measured on the same examples, times and noise:

    float32             everything
    bf16 networks       torch.autocast, as `--trainer.precision bf16-mixed` and `ndm evaluate --precision bf16` do: the
                        residual path is in float32
    bf16, subtracted    the same networks' outputs, but x_hat is formed in bfloat16 and subtracted from x, as in a
                        program that runs its whole model under autocast
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import mean_and_error, save
from torch import Tensor

from ndm.configs.configuration import Configuration
from ndm.data import part_of
from ndm.evaluation import bound_per_example
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.schedules import NoiseLevel
from ndm.training import fit

CONFIGS = Path(__file__).parent / "configs"
GAMMA_0 = -13.3


class Subtracted(BaseDenoiser):
    """A denoiser's x_hat in bfloat16, and the residual as a difference."""

    def __init__(self, denoiser: BaseDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        x_hat = self.denoiser.estimate(z, level, labels).mean.bfloat16()
        return Estimate(
            mean=x_hat.to(z.dtype), residual=lambda x, displacement, noise: (x.bfloat16() - x_hat).to(x.dtype)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST: parquet files, or a name on the hub")
    parser.add_argument("--seconds", type=float, default=240, help="of training, each (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=250, help="test examples (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for config in ("mnist-cpu-identity", "mnist-cpu") for row in measure(config, options)]
    print(*rows, sep="\n")
    settings = {k: v for k, v in vars(options).items() if k != "data"}
    print(save("precision", rows, settings | {"gamma_0": GAMMA_0, "data": Path(options.data).name}))


def measure(config: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    overrides = [
        f"--data.path={options.data}", f"--trainer.max_time={options.seconds}", "--trainer.patience=null",
        "--training.keep=last", "--model.schedule=LinearSchedule", f"--model.schedule.gamma_min={GAMMA_0}",
        "--model.schedule.gamma_max=5.0",
    ]  # fmt: skip
    built = Configuration.read(str(CONFIGS / f"{config}.yaml"), overrides).build()
    with tempfile.TemporaryDirectory() as folder:
        model = fit(built.model, built.data, Path(folder) / "run", built.training, built.trainer, progress=False)
    test = built.data.examples("test")
    x = test[part_of(len(test), options.examples, seed=0)]
    own, autocast = model.denoiser, partial(torch.autocast, "cpu", torch.bfloat16)
    kinds: dict[str, tuple[BaseDenoiser, Callable[[], AbstractContextManager]]] = {
        "float32": (own, nullcontext),
        "bf16 networks": (own, autocast),
        "bf16, subtracted": (Subtracted(own), autocast),
    }
    rows = []
    for steps in (None, 10):
        exact: Tensor | None = None
        for name, (denoiser, context) in kinds.items():
            model.denoiser = denoiser
            with context():
                total = bound_per_example(model, x, steps, times=40)["total"] / (x[0].numel() * torch.tensor(2.0).log())
            exact = total if exact is None else exact
            difference, error = mean_and_error(total - exact)
            row = {"model": type(model.transform).__name__, "steps": steps, "arithmetic": name}
            row |= {"bound": total.mean().item(), "difference": difference, "difference_stderr": error}
            rows.append(row)
    model.denoiser = own
    return rows


if __name__ == "__main__":
    main()
