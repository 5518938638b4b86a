"""Configurations, commands in processes of their own, and the comparison of two runs.

Several devices are processes of this computer, started by the command as a user would; a single one is this process.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ndm.cli import main

#: Everything that a process's share could get wrong: mirrored images, labels, forgotten labels, parameters that are
#: trained whole and divided unevenly, a last batch of validation with fewer examples than processes.
IMAGES = """
seed: 0
model:
  schedule: {class_path: LearnedSchedule, init_args: {gamma_min: -6.0, gamma_max: 4.0, learn_endpoints: true}}
  transform:
    class_path: Neural
    init_args: {net: {class_path: ResidualMLP, init_args: {features: 36, hidden: 8, depth: 1}}}
  denoiser:
    class_path: Denoiser
    init_args: {net: {class_path: ResidualMLP, init_args: {features: 36, hidden: 15, depth: 2, classes: 3}}}
  decoder: {class_path: DiscretizedDecoder, init_args: {levels: 256}}
data: {class_path: Images, init_args: {path: FOLDER, cache: FOLDER/cache, validation: 25, flip: true}}
training: {learning_rate: 2e-3, warmup: 5, batch_size: 24, labels: true, label_dropout: 0.3, weight_decay: 0.1}
trainer: {max_steps: 50, val_check_interval: 20, log_every_n_steps: 5, accelerator: cpu, gradient_clip_val: 3.0}
"""


POINTS = """
seed: 0
model:
  schedule: {class_path: LinearSchedule, init_args: {gamma_min: -6.0}}
  transform: {class_path: Identity}
  denoiser:
    class_path: Denoiser
    init_args: {net: {class_path: ResidualMLP, init_args: {features: 2, hidden: 8, depth: 1, dropout: 0.1}}}
data: {class_path: Pinwheel, init_args: {train: 200, validation: 40, test: 10}}
training: {batch_size: 24, learning_rate: 1e-2}
trainer: {max_steps: 400, val_check_interval: 20, log_every_n_steps: 1, accelerator: cpu}
"""


#: Of weights and losses after 50 steps whose sums were rounded in another order.
ROUNDING = 2e-5


def train(config: Path, out: Path, *options: str) -> Path:
    assert main(["train", str(config), "--out", str(out), *options]) == 0
    return out


def start(*command: object) -> subprocess.Popen:
    """Start Python with a group of processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *map(str, command)]
    return subprocess.Popen(
        arguments, env=environment, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


#: The command, but for the weights that the other processes than the first start from: the first one's count.
UNEQUAL = """
import os, sys
import torch
from ndm import training
from ndm.cli import main
fit = training.fit
def fit_another(model, *arguments, **options):
    if os.environ.get("LOCAL_RANK", "0") != "0":
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
    return fit(model, *arguments, **options)
training.fit = fit_another
sys.exit(main())
"""


def train_in_processes(config: Path, out: Path, *options: str) -> Path:
    program = out.with_suffix(".py")
    program.write_text(UNEQUAL)
    process = start(program, "train", config, "--out", out, *options)
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, errors
    return out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.005)


def column(out: Path, name: str) -> list[float]:
    with (out / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of a checkpoint, and where they are."""
    if isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def assert_same_run(one: Path, other: Path, tolerance: float = ROUNDING) -> None:
    """Curves, weights and what the run would go on from are equal to rounding."""
    for name in ("train/total", "train/prior", "train/gradient_norm", "train/learning_rate", "val/total", "val/prior"):
        expected = column(one, name)
        assert len(expected) >= 3
        relative = 10 * tolerance if name == "train/gradient_norm" else tolerance
        assert column(other, name) == pytest.approx(expected, rel=relative, abs=tolerance), name
    expected = weights(one)
    assert expected.keys() == weights(other).keys()
    for name, value in weights(other).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    states = [dict(leaves({key: checkpoint(run)[key] for key in kept})) for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        if isinstance(value, (Tensor, float)):
            close = [torch.as_tensor(v, dtype=torch.float64) for v in (states[1][path], value)]
            torch.testing.assert_close(*close, rtol=1e-3, atol=tolerance, msg=lambda m, p=path: f"{p}: {m}")
        else:
            assert states[1][path] == value, path


SHARDED = ("--trainer.devices", "2", "--trainer.strategy", "fsdp")


def assert_same_run_exactly(one: Path, other: Path) -> None:
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    for name in ("train/total", "val/total"):
        assert column(one, name) == column(other, name)
