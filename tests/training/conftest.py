"""A model and data so small that a training takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ndm
from ndm.data import Pinwheel
from ndm.networks import ResidualMLP
from ndm.training import TrainerOptions, TrainingOptions, fit


@pytest.fixture
def data() -> Pinwheel:
    return Pinwheel(train=70, validation=40, test=10)


def network(**options: Any) -> ResidualMLP:
    # Dropout, since its random numbers are the ones that are easily forgotten.
    return ResidualMLP(2, hidden=8, depth=1, embedding=8, dropout=0.2, **options)


def build(data: Pinwheel) -> ndm.NDM:
    """The same initial weights every time."""
    torch.manual_seed(0)
    return ndm.NDM(
        ndm.LearnedSchedule(-6.0, 4.0, learn_endpoints=True),
        ndm.Separable(network(heads=2, level=False), terms=2),
        ndm.Denoiser(network()),
        standardize=ndm.Standardize.fit(data.train),
    )


@pytest.fixture
def model(data: Pinwheel) -> Callable[[], ndm.NDM]:
    return lambda: build(data)


Train = Callable[..., ndm.NDM]


@pytest.fixture
def train(data: Pinwheel) -> Train:
    """train(out, max_steps, resume, **options of either kind): a short training with a validation every 5 steps."""

    def run(out: Path, max_steps: int = 20, resume: bool = False, seed: int = 0, **options: Any) -> ndm.NDM:
        limits = {k: options.pop(k) for k in list(options) if k in TrainerOptions.__dataclass_fields__}
        return fit(
            build(data),
            data,
            out,
            TrainingOptions(**{"batch_size": 24, "warmup": 4, "learning_rate": 1e-2, **options}),
            TrainerOptions(
                **{
                    "accelerator": "cpu",
                    "max_steps": max_steps,
                    "val_check_interval": 5,
                    "log_every_n_steps": 2,
                    **limits,
                }
            ),
            seed=seed,
            resume=resume,
            progress=False,
        )

    return run
