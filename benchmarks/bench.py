"""What the benchmarks share: the environment, a plain training loop, and results as JSON with a table."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import ndm

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Where and when a figure was measured."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=7"],
            capture_output=True,
            text=True,
            check=True,
            cwd=RESULTS.parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "command": "python " + " ".join([Path(sys.argv[0]).as_posix(), *map(_without_folder, sys.argv[1:])]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def _without_folder(argument: str) -> str:
    """An argument without the folders of this computer."""
    return re.sub(r"(^|=)/.*/", r"\1FOLDER/", argument)


def save(name: str, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Write results/NAME.json: the environment, the settings, one object per row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"environment": environment(), "settings": settings, "rows": list(rows)}, indent=1) + "\n"
    )
    return path


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


def train(
    build: Callable[[], ndm.NDM],
    data: Tensor,
    *,
    steps: int,
    bound_steps: int | None,
    seed: int,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    ema: float = 0.995,
) -> ndm.NDM:
    """Adam with a warm-up, a cosine rate and clipping on the bound at ``bound_steps``; returns the averaged weights."""
    torch.manual_seed(seed)
    model = build()
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(ema), use_buffers=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 100) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    for _ in range(steps):
        batch = data[torch.randint(len(data), (batch_size,))]
        loss = model.bound(batch, bound_steps, check=False).bits_per_dim.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update_parameters(model)
    return average.module.eval()
