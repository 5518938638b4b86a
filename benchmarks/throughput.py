"""The shipped configurations at their full size on one device: speed, memory, share of the peak, and where time goes.

    python benchmarks/throughput.py cifar10-identity cifar10 cifar10-neural --data 'FOLDER/cifar10-*.parquet' --peak 989
    python benchmarks/throughput.py cifar10-identity cifar10 cifar10-neural --tiny --seconds 20    # anywhere

989 TFLOP/s is an H200's peak in bf16. Each configuration is trained by `fit` as it is shipped (bf16, compiled,
channels-last), one after the other; then one step is counted (floating-point operations of matrix products and
convolutions, forward and backward, by PyTorch's FlopCounterMode) and one is profiled. Writes results/throughput.json,
with the learning curves against the clock.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench import parameters, save, table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import ndm
from ndm.configs.configuration import Built, Configuration
from ndm.training import Run, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="shipped configurations, or files")
    parser.add_argument("--data", help="local files in the place of the hub's")
    parser.add_argument("--seconds", type=float, default=600, help="of training, each (default: %(default)s)")
    parser.add_argument("--peak", type=float, help="the device's peak at the precision used, TFLOP/s")
    parser.add_argument("--tiny", action="store_true", help="the configurations' small versions")
    parser.add_argument("--set", action="append", default=[], help="an override: --set=--trainer.compile=false")
    options = parser.parse_args()
    rows = [measure(config, options) for config in options.configs]
    shown = [
        [
            r["config"], f"{r['parameters']:,}", r["steps"],
            f"{r['examples_per_second']:.0f}", f"{r['memory_gib']:.2f}",
            f"{r['tflops']:.3f}", "-" if r["share_of_peak"] is None else f"{r['share_of_peak']:.1%}",
            f"{r['bound']:.3f} ± {r['stderr']:.3f}",
        ]
        for r in rows
    ]  # fmt: skip
    header = ["config", "parameters", "steps", "images/s", "GiB", "TFLOP/s", "of peak", "validation bound, bits/dim"]
    print(table(shown, header))
    for row in rows:
        print(
            f"\n{row['config']}, where the time goes:",
            *(f"{p['share']:.0%} {p['name']}" for p in row["profile"]),
            sep="\n  ",
        )
    settings = {k: v for k, v in vars(options).items() if k != "data"}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(save("throughput", rows, settings | {"device": device}))


def measure(config: str, options: argparse.Namespace) -> dict[str, Any]:
    whole = ["--trainer.max_steps=null", "--trainer.patience=null"]
    overrides = [f"--trainer.max_time={options.seconds}", *whole, *options.set]
    if options.data:
        overrides.append(f"--data.path={options.data}")
    configuration = Configuration.read(config, overrides, tiny=options.tiny)
    built = configuration.build()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        model = fit(built.model, built.data, run.path, built.training, built.trainer, seed=built.seed, progress=False)
        with run.metrics.open() as file:
            lines = list(csv.DictReader(file))
    speeds = [float(r["train/examples_per_second"]) for r in lines if r["train/examples_per_second"]]
    memory = [float(r["train/memory_gib"]) for r in lines if r["train/memory_gib"]]
    curve = [r for r in lines if r["val/total"]]
    steps, speed = int(lines[-1]["step"]), speeds[len(speeds) // 2 :]  # compilation is in the first ones
    speed_of_half = sorted(speed)[len(speed) // 2]
    flops, kernels = look_inside(model, built)
    per_second = flops / built.training.batch_size * speed_of_half
    return {
        "config": config,
        "parameters": parameters(model),
        "steps": steps,
        "examples_per_second": speed_of_half,
        "memory_gib": max(memory),
        "flops_per_step": flops,
        "tflops": per_second / 1e12,
        "share_of_peak": per_second / (options.peak * 1e12) if options.peak else None,
        "profile": kernels,
        "bound": float(curve[-1]["val/total"]),
        "stderr": float(curve[-1]["val/total_stderr"]),
        "curve": [{"seconds": options.seconds * int(r["step"]) / steps, "bound": float(r["val/total"])} for r in curve],
    }


def look_inside(model: ndm.NDM, built: Built) -> tuple[int, list[dict[str, Any]]]:
    """The floating-point operations of a step, and the operations that take most of the time, not compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    x = built.data.examples("train")[: built.training.batch_size].to(device)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=built.trainer.precision == "bf16-mixed"):
            loss = model.bound(x, built.training.steps, check=False).total.mean()
        loss.backward()
        return loss

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step()
    on = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: getattr(event, on), reverse=True)
    total = sum(getattr(event, on) for event in found)
    return counter.get_total_flops(), [{"name": e.key, "share": getattr(e, on) / total} for e in found[:8]]


if __name__ == "__main__":
    main()
