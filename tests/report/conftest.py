"""Runs so small that a training takes a fraction of a second, one for each kind of data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest

from ndm.cli import main
from ndm.report import findings, report
from tests.report.pages import Only

POINTS = """
seed: 3
model:
  schedule: {class_path: LearnedSchedule, init_args: {gamma_min: -6.0, learn_endpoints: true}}
  transform:
    class_path: Separable
    init_args:
      terms: 2
      net: {class_path: ResidualMLP, init_args: {features: 2, hidden: 8, depth: 1, heads: 2, level: false}}
  denoiser:
    class_path: Denoiser
    init_args: {net: {class_path: ResidualMLP, init_args: {features: 2, hidden: 8, depth: 1}}}
data: {class_path: Pinwheel, init_args: {train: 64, validation: 32, test: 40}}
training: {batch_size: 24, learning_rate: 1e-2, warmup: 2}
trainer: {max_steps: 12, val_check_interval: 4, log_every_n_steps: 2, accelerator: cpu}
"""

IMAGES = """
seed: 3
model:
  schedule: {class_path: CosineSchedule, init_args: {gamma_min: -6.0, gamma_max: 6.0}}
  transform:
    class_path: Neural
    init_args: {gate: anchored, net: {class_path: ConvNet, init_args: {channels: 3, width: 4, depth: 2}}}
  denoiser:
    class_path: DirectDenoiser
    init_args: {net: {class_path: ConvNet, init_args: {channels: 3, heads: 2, width: 8, depth: 2, classes: 3}}}
  decoder: {class_path: DiscretizedDecoder, init_args: {levels: 256}}
  reverse_variance: predicted
  volatility: {class_path: LearnedVolatility}
data: {class_path: Patterns, init_args: {size: 8, classes: 3, examples: 64}}
training: {steps: 5, batch_size: 16, labels: true}
trainer: {max_steps: 4, val_check_interval: 2, log_every_n_steps: 1, accelerator: cpu}
"""

TABLE = """
seed: 3
model:
  schedule: {class_path: LinearSchedule, init_args: {gamma_min: -6.0}}
  transform: {class_path: Identity}
  denoiser:
    class_path: Denoiser
    init_args: {net: {class_path: ResidualMLP, init_args: {features: null, hidden: 8, depth: 1}}}
  reverse_variance: learned
data: {class_path: Table}
training: {batch_size: 24}
trainer: {max_steps: 4, val_check_interval: 2, accelerator: cpu}
"""


@pytest.fixture(scope="session", autouse=True)
def _little_work() -> Iterator[None]:
    """Fewer noise levels, steps and samples than a page is worth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "POINTS", 8)
        patch.setattr(findings, "STEPS", 10)
        patch.setattr(findings, "POINTS_DRAWN", 30)
        yield


def train(text: str, out: Path, *overrides: str) -> Path:
    """A run by a configuration, in the folder ``out``."""
    config = out.with_suffix(".yaml")
    config.write_text(text)
    assert main(["train", str(config), *overrides, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def points(folder: Path) -> Path:
    """Points of the plane, an NDM, evaluated; only to be read."""
    run = train(POINTS, folder / "<script>alert(1)<b>")
    small = ["--steps", "2", "4", "continuous", "--times", "4", "--variances", "posterior", "isotropic"]
    assert main(["evaluate", str(run), *small, "--no-likelihood", "--device", "cpu"]) == 0
    return run


@pytest.fixture(scope="session")
def baseline(folder: Path) -> Path:
    """The same with the identity in the transformation's place."""
    run = train(POINTS, folder / "baseline", "--model.transform", "Identity")
    small = ["--steps", "2", "continuous", "--times", "4", "--variances", "posterior"]
    assert main(["evaluate", str(run), *small, "--no-likelihood", "--device", "cpu"]) == 0
    return run


@pytest.fixture(scope="session")
def images(folder: Path) -> Path:
    """Colour images of three classes, a direct denoiser without an ODE; not evaluated."""
    return train(IMAGES, folder / "images")


@pytest.fixture(scope="session")
def table(folder: Path) -> Path:
    """Four columns, one of whose names is no good mathematics and no good HTML."""
    numbers = np.random.default_rng(0).normal(size=(90, 4)) * [1, 20, 0.1, 3] + [0, 5, 3, 0]
    frame = pandas.DataFrame(numbers, columns=["a", "<i>$b_{$, in m", "c", "d"])
    frame.to_csv(folder / "x.csv", index=False)
    return train(TABLE, folder / "table", "--data.path", str(folder / "x.csv"))


@pytest.fixture(scope="session")
def pages(folder: Path, points: Path, baseline: Path, images: Path, table: Path) -> dict[str, Path]:
    """Reports, each made once, only to be read."""
    small = {"examples": 12, "device": "cpu"}
    return {
        "pair": report([points, baseline], folder / "pair.html", **small),
        "images": report([images], folder / "images.html", **small),
        "mixed": report([table, points, images], folder / "mixed.html", **small),
    }


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """only(...): pages have these sections alone, which takes less time."""
    return lambda *rooms: monkeypatch.setattr("ndm.report.page._SECTIONS", rooms)
