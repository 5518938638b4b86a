"""Shared by the benchmarks: the environment, training by ``ndm.training.fit``, results as JSON lines, tables."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ndm
from ndm.data import Data
from ndm.storage.atomic import atomic_write
from ndm.training import TrainerOptions, TrainingOptions, fit

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """The command, the date, the commit and the versions of the software."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "command": "python " + " ".join([Path(sys.argv[0]).as_posix(), *map(_without_folder, sys.argv[1:])]),
        "python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _without_folder(argument: str) -> str:
    return re.sub(r"(^|=)/.*/", r"\1FOLDER/", argument)


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of NAME.jsonl."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Replace a file of JSON lines as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    return path


def save(name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], **more: Any) -> Path:
    """Write results/NAME.jsonl: first the environment, with ``more``, and the settings, then one line per row."""
    return write(RESULTS / f"{name}.jsonl", [{"environment": environment() | more, "settings": dict(settings)}, *rows])


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mean_and_error(values: Sequence[float] | Tensor) -> tuple[float, float]:
    """The mean and its standard error; NaN for a single value."""
    values = torch.as_tensor(values, dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error


def card() -> dict[str, Any]:
    """The NVIDIA card and the versions of its software, for the environment."""
    found, ask = torch.cuda.get_device_properties(0), "nvidia-smi -i 0 --query-gpu=driver_version --format=csv,noheader"
    facts = {"card": found.name, "card_gib": found.total_memory / 2**30, "driver": subprocess.getoutput(ask)}
    return facts | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def cuda_ms(work: Callable[[], Any], seconds: float = 0.0, warm: int = 0) -> float:
    """Milliseconds of a call by CUDA events: the median of up to 100 in so many seconds, without the first ones."""
    began, found = time.perf_counter(), []
    while not found or (len(found) < warm + 100 and time.perf_counter() - began < seconds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found[warm:] or found[-1:])


def seconds(device: str) -> float:
    """CPU seconds of this process, which leave out the time that others take; on a GPU seconds, with its work done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_step(
    models: Mapping[str, tuple[ndm.NDM, Data, int]], steps: int = 20, rounds: int = 5, device: str = "cpu"
) -> dict[str, float]:
    """Seconds of a training step of each model, the median over rounds in which the models take turns.

    Copies are trained, ``steps`` in a round, after one round that is not counted; ``models`` is name -> model, data,
    batch size.
    """
    copies = {name: copy.deepcopy(model).to(device) for name, (model, _, _) in models.items()}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-6) for name, model in copies.items()}
    found: dict[str, list[float]] = {name: [] for name in models}
    generator = torch.Generator().manual_seed(0)
    for counted in range(rounds + 1):
        for name, (_, data, batch_size) in models.items():
            examples = data.examples("train")
            began = seconds(device)
            for _ in range(steps):
                batch = examples[torch.randint(len(examples), (batch_size,), generator=generator)]
                loss = copies[name].bound(batch, generator=generator, check=False).total.mean()
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
            if counted:
                found[name].append((seconds(device) - began) / steps)
    return {name: statistics.median(times) for name, times in found.items()}


def train(
    build: Callable[[], ndm.NDM], data: Data, *, steps: int, bound_steps: int | None, seed: int, batch_size: int = 256,
    learning_rate: float = 2e-3, ema: float = 0.995,
) -> ndm.NDM:  # fmt: skip
    """A model trained for so many steps on the bound of ``bound_steps``, with the averaged weights of the last one."""
    torch.manual_seed(seed)
    training = TrainingOptions(
        steps=bound_steps, learning_rate=learning_rate, ema=ema, batch_size=batch_size, keep="last"
    )
    limits = TrainerOptions(max_steps=steps, val_check_interval=steps, patience=None, accelerator="cpu")
    with tempfile.TemporaryDirectory() as folder:
        return fit(build(), data, Path(folder) / "run", training, limits, seed=seed, progress=False)
