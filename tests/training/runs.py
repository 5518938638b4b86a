"""What the tests of trainings read of a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ndm
from ndm.networks import ResidualMLP


def digits_model() -> ndm.NDM:
    torch.manual_seed(0)
    denoiser = ndm.Denoiser(ResidualMLP(64, hidden=16, depth=1))
    return ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), denoiser, ndm.DiscretizedDecoder(17))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(out: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(out) if row[name]]


def checkpoint(out: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Equality to the last bit, of trees of tensors."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SPEEDS = ("train/ms_per_step", "train/examples_per_second", "train/memory_gib")
