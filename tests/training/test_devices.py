"""Training on several devices and through crashes: the same run, whatever the way to its end.

Several devices are processes of this computer, started by the command as a user would; a single one is this process.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ndm.cli import main

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a training on a folder of images that are not symmetric, in three classes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for i in range(125):
        level = np.linspace(20, 60 + 60 * (i % 3), 6)[None, :] + random.uniform(0, 60, (6, 1))
        (folder / "png" / "train" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(level.astype(np.uint8)).save(folder / "png" / "train" / str(i % 3) / f"{i}.png")
    (folder / "images.yaml").write_text(IMAGES.replace("FOLDER", str(folder / "png")))
    return folder / "images.yaml"


@pytest.fixture(scope="module")
def alone(images: Path) -> Path:
    """The training on images by one process, only to be read."""
    return train(images, images.parent / "alone")


@pytest.fixture
def points(tmp_path: Path) -> Path:
    (tmp_path / "points.yaml").write_text(POINTS)
    return tmp_path / "points.yaml"


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


# ---- several processes, and a batch in pieces


def test_a_batch_in_two_pieces_is_the_same_step(images: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(alone, train(images, tmp_path / "run", "--trainer.accumulate", "2"))


def test_two_processes_train_the_same_model(images: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(alone, train_in_processes(images, tmp_path / "run", "--trainer.devices", "2"))


SHARDED = ("--trainer.devices", "2", "--trainer.strategy", "fsdp")


def test_two_processes_with_parts_of_the_network_train_the_same_model(
    images: Path, alone: Path, tmp_path: Path
) -> None:
    out = train_in_processes(images, tmp_path / "run", *SHARDED, "--trainer.accumulate", "2")
    assert_same_run(alone, out)
    # Its checkpoint is one that a single process goes on from.
    longer = ("--trainer.max_steps", "60", "--resume")
    train(images, out, *longer)
    whole = tmp_path / "whole"
    shutil.copytree(alone, whole)
    assert_same_run(train(images, whole, *longer), out)


@pytest.mark.slow
def test_parts_of_a_network_go_on_to_the_last_bit_and_in_another_number(
    images: Path, alone: Path, tmp_path: Path
) -> None:
    constant = ("--training.rate", "constant", "--training.keep", "best", "--trainer.pictures_every", "1")
    sharded = (*SHARDED, *constant)
    whole = train_in_processes(images, tmp_path / "whole", *sharded)
    broken = train_in_processes(images, tmp_path / "broken", *sharded, "--trainer.max_steps", "20")
    shutil.copytree(broken, tmp_path / "three")
    train_in_processes(images, broken, *sharded, "--resume")
    assert (broken / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert dict(leaves(checkpoint(broken)["lr_schedulers"])) == dict(leaves(checkpoint(whole)["lr_schedulers"]))
    three = train_in_processes(images, tmp_path / "three", *sharded, "--trainer.devices", "3", "--resume")
    assert_same_run(whole, three)
    mixed = train_in_processes(images, tmp_path / "mixed", *SHARDED, "--trainer.precision", "bf16-mixed")
    assert column(mixed, "val/total")[-1] == pytest.approx(column(alone, "val/total")[-1], rel=0.01)


@pytest.mark.slow
def test_parts_of_a_network_can_be_compiled(images: Path, alone: Path, tmp_path: Path) -> None:
    assert_same_run(alone, train_in_processes(images, tmp_path / "run", *SHARDED, "--trainer.compile", "true"))


def test_one_process_has_the_whole_network(points: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "20")
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    train(points, whole, *short)
    train(points, divided, *short, "--trainer.strategy", "fsdp")
    assert_same_run_exactly(whole, divided)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--trainer.precision", "64-true"), "use ddp for 64-true"),
        (("--trainer.channels_last", "true"), "choose one of the two"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], sentence: str
) -> None:
    assert main(["train", str(points), "--out", str(tmp_path / "run"), *SHARDED, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- crashes


def assert_same_run_exactly(one: Path, other: Path) -> None:
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    for name in ("train/total", "val/total"):
        assert column(one, name) == column(other, name)


def last_step(out: Path) -> int:
    """The last step in a run's metrics, whose last line may be half written; 0 if there is none."""
    try:
        lines = (out / "metrics.csv").read_text().splitlines()[1:-1]
    except FileNotFoundError:
        return 0
    return int(lines[-1].split(",")[0]) if lines else 0


def test_a_run_that_is_killed_goes_on_to_the_same_weights(points: Path, tmp_path: Path) -> None:
    whole, broken = train(points, tmp_path / "whole"), tmp_path / "broken"
    process = start("-m", "ndm", "train", points, "--out", broken)
    wait_for(lambda: last_step(broken) > 45 and last_step(broken) % 20 > 2, process)
    kill(process)
    assert not (broken / "model").exists()
    assert checkpoint(broken)["global_step"] % 20 == 0
    assert last_step(broken) > checkpoint(broken)["global_step"]
    assert_same_run_exactly(whole, train(points, broken, "--resume"))


#: ndm, but for the checkpoint of step 40, of which half gets to the disk: argv[1] tells when.
HALF = """
import io, sys, time
from pathlib import Path
import torch
from ndm.cli import main
save = torch.save
def half(what, file):
    if what["global_step"] != 40 or "last" not in file.name:
        return save(what, file)
    whole = io.BytesIO()
    save(what, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    Path(sys.argv[1]).touch()
    time.sleep(100)
torch.save = half
main(sys.argv[2:])
"""


def test_a_run_that_is_killed_while_it_writes_a_checkpoint_has_the_one_before(points: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "60")
    whole, broken, now = train(points, tmp_path / "whole", *short), tmp_path / "broken", tmp_path / "now"
    process = start("-c", HALF, now, "train", points, "--out", broken, *short)
    wait_for(now.exists, process)
    kill(process)
    assert checkpoint(broken)["global_step"] == 20
    assert_same_run_exactly(whole, train(points, broken, *short, "--resume"))
    assert {p.name for p in (broken / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


# ---- what should not change the training, and what is said of it


def test_pictures_are_drawn_and_change_nothing(images: Path, alone: Path, tmp_path: Path) -> None:
    out = train(images, tmp_path / "run", "--trainer.pictures_every", "2")
    assert_same_run_exactly(alone, out)
    pictures = sorted((out / "pictures").iterdir())
    steps = ("00000020", "00000050")  # the first validation and the third
    assert [p.name for p in pictures] == [
        f"{step}-{kind}.png" for step in steps for kind in ("samples", "transformation")
    ]
    for picture in pictures:
        assert np.asarray(Image.open(picture)).std() > 1
    assert not (alone / "pictures").exists()


def test_pictures_show_what_was_learned_alone(points: Path, tmp_path: Path) -> None:
    """Where nothing is learned the next picture is the same."""
    nothing = ("--trainer.pictures_every", "1", "--trainer.max_steps", "40", "--training.learning_rate", "1e-12")
    first, second = sorted((train(points, tmp_path / "run", *nothing) / "pictures").iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_bfloat16_trains_about_the_same(images: Path, alone: Path, tmp_path: Path) -> None:
    out = train(images, tmp_path / "run", "--trainer.precision", "bf16-mixed")
    assert column(out, "val/total") == pytest.approx(column(alone, "val/total"), rel=0.01)
    assert column(out, "val/total") != column(alone, "val/total")
    assert {w.dtype for w in weights(out).values()} == {torch.float32}


def test_double_precision_goes_on_to_the_last_bit(points: Path, tmp_path: Path) -> None:
    double = ("--trainer.precision", "64-true", "--training.rate", "constant")
    whole = train(points, tmp_path / "whole", *double, "--trainer.max_steps", "40")
    train(points, tmp_path / "run", *double, "--trainer.max_steps", "20")
    out = train(points, tmp_path / "run", *double, "--trainer.max_steps", "40", "--resume")
    assert_same_run_exactly(whole, out)


UNET = yaml.safe_load(IMAGES)["model"] | {
    "transform": {"class_path": "Identity"},
    "denoiser": {
        "class_path": "Denoiser",
        "init_args": {
            "net": {
                "class_path": "UNet",
                "init_args": {"channels": 1, "width": 8, "multipliers": [1, 2], "groups": 4, "dropout": 0.0},
            }
        },
    },
}


def test_channels_last_changes_nothing(images: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(images.read_text())
    config["model"] = UNET
    config["data"]["init_args"]["size"] = 8
    config["training"] |= {"labels": False, "label_dropout": 0.0}
    config["trainer"] |= {"max_steps": 15, "val_check_interval": 5}
    (tmp_path / "unet.yaml").write_text(yaml.safe_dump(config))
    first = train(tmp_path / "unet.yaml", tmp_path / "first")
    last = train(tmp_path / "unet.yaml", tmp_path / "last", "--trainer.channels_last", "true")
    assert_same_run(first, last)


def test_speed_and_memory_are_logged(images: Path, alone: Path) -> None:
    milliseconds, flow, memory = (
        column(alone, f"train/{name}") for name in ("ms_per_step", "examples_per_second", "memory_gib")
    )
    assert len(milliseconds) == len(flow) == len(memory) == 10
    for one, other in zip(milliseconds, flow, strict=True):
        assert 0.1 < one < 10_000
        assert one / 1000 * other == pytest.approx(24, rel=1e-3)
    assert 0.1 < memory[0] <= memory[-1] < 64
    assert all(math.isfinite(value) for value in column(alone, "train/gradient_norm"))


@pytest.mark.slow
def test_compiled_networks_train_the_same_model(points: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "60", "--training.learning_rate", "1e-3")
    options = (*short, "--model.denoiser.init_args.net.init_args.dropout", "0.0")  # its numbers would be others
    one, other = train(points, tmp_path / "one", *options), tmp_path / "other"
    assert_same_run(one, train(points, other, *options, "--trainer.compile", "true"))
