"""A small configuration, and runs that were trained by the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from ndm.cli import main
from tests.cli.commands import TINY


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, only to be read."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of three columns of numbers, x.csv, and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("table")
    numbers = np.random.default_rng(0).normal(size=(60, 3)) * [1, 20, 0.1] + [0, 5, 3]
    frame = pandas.DataFrame(numbers, columns=["a", "b, in m", "c"]).assign(name="x")
    frame.to_csv(folder / "x.csv", index=False)
    small = ["--model.denoiser.net.hidden", "8", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]
    small += ["--training.batch_size", "16", "--trainer.accelerator", "cpu"]
    assert main(["train", "table", "--data.path", str(folder / "x.csv"), *small, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of columns of several kinds, x.csv, and a run of all its conditionals.

    The columns are price (real, with missing cells), rooms (whole), kind (categorical, with missing cells), built
    (dates) and name (text, which is left out).
    """
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    rooms = rng.integers(1, 5, 90)
    price = rooms * 10 + rng.normal(size=90)
    price[::9] = np.nan
    kind = np.array(["flat", "house", "hut"], object)[rng.integers(0, 3, 90)]
    kind[4::15] = None
    built = np.datetime64("2020-01-01") + rng.integers(0, 9, 90)
    frame = pandas.DataFrame({"price": price, "name": [f"n{i}" for i in range(90)], "rooms": rooms, "kind": kind})
    frame.assign(built=built).to_csv(folder / "x.csv", index=False)
    small = ["--model.denoiser.net.hidden", "16", "--trainer.max_steps", "30", "--trainer.val_check_interval", "15"]
    small += ["--training.batch_size", "64", "--trainer.accelerator", "cpu", "--training.conditionals", "any"]
    assert main(["train", "table", "--data.path", str(folder / "x.csv"), *small, "--out", str(folder / "run")]) == 0
    return folder
