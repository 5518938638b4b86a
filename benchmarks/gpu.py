"""One NVIDIA card: training steps, memory, the share of the card's peak, a training, densities and samples.

    python benchmarks/gpu.py [--budget 570] [--mnist FOLDER] [--dry-run]

A step is one of ``ndm train`` on random data, without Lightning's loop, the average of the weights and the log: the
median by CUDA events after a warm-up. FlopCounterMode counts its FLOPs. The share of the peak is that of the rate of a
large matrix product in the same arithmetic, which in float32 is tf32 for images: PyTorch lets convolutions use it.
mnist and mnist-identity are trained for equal seconds, and have their bounds in continuous time on the same test
examples; without --mnist the data are Patterns, whose bounds say nothing about MNIST. table is trained on the rows of
score.py. Densities are those of ``ndm.log_likelihood``; samples are in float32, those of cifar10 without a training.
What there is no time for is ``left_out``, an error is ``failed``. The results are written after each row.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bench import card, cuda_ms, mean_and_error, parameters, save
from suite.datasets import Mixtures, dataset, missing
from suite.measuring import scale, unit
from torch.utils.flop_counter import FlopCounterMode

import ndm
from ndm.configs.configuration import Built, Configuration
from ndm.data import Data, Patterns, Tensors
from ndm.evaluation import bound_per_example
from ndm.inference.likelihood import calibrate_solver
from ndm.inference.sampling import default_sampler
from ndm.training import NDMModule, Run, fit
from ndm.training.batches import Batch

#: The shapes of the data of the steps, and the seconds that must be left to compile one.
STEPS = {"table": ((10,), 25), "mnist": ((1, 28, 28), 50), "cifar10": ((3, 32, 32), 120)}
#: Compiled, channels-last, precision.
VARIANTS = [*product([False], [False, True], ["float32", "bf16"]), *product([True], [True, False], ["bf16", "float32"])]
#: When the parts end, in shares of the budget, and the shares of the trainings in what is left for them.
ENDS = {"peak": 0.1, "step": 0.45, "training": 0.75, "density": 0.9, "sampling": 0.9}
TRAINED = {"mnist": 0.42, "mnist-identity": 0.42, "table": 0.1}
#: The other parts, with the examples of a batch, in their order: the density of images may take longest.
OTHERS = {("density", "table"): 16_384, ("sampling", "table"): 16_384, ("sampling", "mnist"): 256}
OTHERS |= {("sampling", "cifar10"): 64, ("density", "mnist"): 32}


class Parts:
    """A method for each part, and what later ones need of earlier ones."""

    def __init__(self, dry: bool, budget: float, images: Data) -> None:
        self.dry, self.images, now = dry, images, time.perf_counter()
        self.ends = {part: now + share * budget for part, share in ENDS.items()}
        self.device = torch.device("cpu" if dry else "cuda")
        self.ms = (lambda work, *_, **__: 1e3 * timeit.timeit(work, number=1)) if dry else cuda_ms
        self.operations: dict[str, float] = {}  # a second of each arithmetic, and in a step of each configuration
        self.models: dict[str, tuple[ndm.NDM, Data, Any]] = {}  # with the bounds of the test examples

    def built(self, config: str, data: Data | None = None, *options: str) -> Built:
        """A configuration, for noise if there are no data."""
        if data is None:
            size, levels = (2000, *STEPS[config][0]), None if config == "table" else 256
            data = Tensors(*(torch.randn(size) if levels is None else torch.randint(levels, size),) * 3, levels=levels)
        here = "--trainer.accelerator=cpu" if self.dry else "--data.path=unread"  # a table must have one
        return Configuration.read(config, [here, *options], self.dry).build(data)

    def peak(self, arithmetic: str) -> dict[str, Any]:
        n, before = 128 if self.dry else 8192, torch.get_float32_matmul_precision()
        a, b = torch.randn(2, n, n, device=self.device, dtype=torch.bfloat16 if arithmetic == "bf16" else None)
        torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
        self.operations[arithmetic] = 2 * n**3 / (1e-3 * self.ms(lambda: a @ b, 2.0, warm=5))
        torch.set_float32_matmul_precision(before)
        return {"tflops": self.operations[arithmetic] / 1e12}

    def step(self, config: str, compiled: bool, channels_last: bool, precision: str) -> dict[str, Any]:
        if compiled and self.ends["step"] - time.perf_counter() < STEPS[config][1]:
            return {"left_out": "no time"}
        torch.compiler.reset()  # the number of compiled versions of a function is limited
        built, layout = self.built(config), torch.channels_last if channels_last else torch.preserve_format
        limits = replace(built.trainer, compile=compiled, channels_last=channels_last)
        module = NDMModule(built.model, built.training, limits).to(self.device).to(memory_format=layout)
        optimizer = module.configure_optimizers()["optimizer"]
        x = built.data.examples("train")[: built.training.batch_size].to(self.device)
        batch = Batch(x, None, slice(0, len(x)), len(x))

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = module.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            module.configure_gradient_clipping(optimizer, limits.gradient_clip_val)
            optimizer.step()

        if config not in self.operations:
            with FlopCounterMode(display=False) as counter:
                step()
            self.operations[config] = counter.get_total_flops()
        with module.prepared():
            first, ms = self.ms(step), self.ms(step, 2.0, warm=5)
        peak = self.operations["tf32" if precision == "float32" and config != "table" else precision]
        found = {"batch": len(x), "parameters": parameters(module), "gflop": self.operations[config] / 1e9}
        found |= {"first_ms": first, "ms": ms, "examples_per_second": 1e3 * len(x) / ms}
        return found | {"share_of_peak": 1e3 * self.operations[config] / ms / peak}

    def training(self, config: str, seconds: float) -> dict[str, Any]:
        vars(sys.modules["ndm.training.fitting"])["finish"] = lambda *_, **__: None  # it draws samples, on the CPU
        data, few = Mixtures() if config == "table" else self.images, self.dry
        limits = [f"--trainer.max_time={seconds}", f"--trainer.max_steps={4 if few else 'null'}"]
        limits += [f"--trainer.val_check_interval={4 if few else 1000}", "--trainer.patience=null"]
        built = self.built(config, data, *limits, "--trainer.pictures_every=0", "--training.keep=last")
        with tempfile.TemporaryDirectory() as folder:
            run, began = Run(Path(folder) / "run"), time.perf_counter()
            model = fit(built.model, data, run.path, built.training, built.trainer, progress=False, verbose=False)
            spent, steps = time.perf_counter() - began, torch.load(run.last, weights_only=True)["global_step"]
        x, times = data.examples("test")[: 8 if few else 2000], 2 if few else 20
        bound = bound_per_example(model.to(self.device), x, None, times=times)["total"] * scale(data)
        self.models[config], (mean, error) = (model, data, bound), mean_and_error(bound)
        found = {"seconds_in_all": spent, "steps": steps, "unit": unit(data), "bound": mean, "stderr": error}
        if config == "mnist-identity" and "mnist" in self.models:
            found["mnist_minus_this"], found["difference_stderr"] = mean_and_error(self.models["mnist"][2] - bound)
        return found | {"examples": len(x), "times": times}

    def density(self, config: str, batch: int) -> dict[str, Any]:
        model, data, _ = self.models[config]
        x, found = data.examples("train")[:batch].to(self.device), []
        calibration = calibrate_solver(model, x[:1])
        ms = self.ms(lambda: found.append(ndm.log_likelihood(model, x, calibration=calibration)), 8.0, warm=1)
        about = {"kind": found[0].kind, "evaluations": found[0].nfe, "solved": found[0].solved.float().mean().item()}
        return {"ms": ms, "examples_per_second": 1e3 * batch / ms} | about

    def sampling(self, config: str, batch: int) -> dict[str, Any]:
        if config == "cifar10":
            self.models[config] = (built := self.built(config)).model.to(self.device).eval(), built.data, None
        model, data, _ = self.models[config]
        how = replace(default_sampler(model), **({"steps": 2} if self.dry else {}))
        ms = self.ms(lambda: model.sample(batch, data.shape, how, progress=False), 8.0, warm=1)
        return {"ms": ms, "examples_per_second": 1e3 * batch / ms, "method": how.method, "steps": how.steps}

    def all(self) -> Iterator[dict[str, Any]]:
        """The name and the arguments of each part, in turn."""
        yield from ({"part": "peak", "arithmetic": one} for one in ("float32", "tf32", "bf16"))
        steps = product(VARIANTS[:4:3] if self.dry else VARIANTS, STEPS)
        # The compiled steps of images come last: they may not have the time.
        for (compiled, last, precision), config in sorted(steps, key=lambda step: step[0][0] and step[1] != "table"):
            if config != "table" or not last:  # a table has no channels
                variant = {"compiled": compiled, "channels_last": last, "precision": precision}
                yield {"part": "step", "config": config} | variant
        seconds = max(self.ends["training"] - time.perf_counter(), 1.0)
        yield from ({"part": "training", "config": c, "seconds": seconds * share} for c, share in TRAINED.items())
        for (part, config), batch in OTHERS.items():
            yield {"part": part, "config": config, "batch": 1 if self.dry else batch}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=570.0, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="of mnist-*.parquet")
    parser.add_argument("--dry-run", dest="dry", action="store_true", help="on the CPU, tiny; writes no results")
    options = parser.parse_args(arguments)
    if not (options.dry or torch.cuda.is_available()):
        parser.exit(2, "gpu.py: PyTorch finds no NVIDIA GPU: run it on a computer with one, or give --dry-run.\n")
    if options.mnist and (lacking := missing("mnist", options.mnist)):
        parser.exit(2, f"gpu.py: {lacking}\n")
    images: Data = Patterns(8, 1, 64) if options.dry else Patterns(28, 1, 12_000)
    parts, rows = Parts(options.dry, options.budget, dataset("mnist", options.mnist) if options.mnist else images), []
    facts: dict[str, Any] = {} if options.dry else card()
    for part in parts.all():
        late, given = time.perf_counter() > parts.ends[part["part"]], {k: v for k, v in part.items() if k != "part"}
        try:
            found = {"left_out": "no time"} if late else getattr(parts, part["part"])(**given)
        except Exception as error:  # the other parts do not need this one
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        rows.append(part | found | {"peak_gib": torch.cuda.max_memory_allocated() / 2**30})
        print(json.dumps(rows[-1]), flush=True)
        gc.collect()
        if not options.dry:
            torch.cuda.reset_peak_memory_stats()
            save("gpu", rows, {"budget": options.budget, "images": type(parts.images).__name__}, **facts)


if __name__ == "__main__":
    main()
