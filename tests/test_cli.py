"""The command as a user meets it: what it writes, what it says, and its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas
import pytest
import torch
import yaml

import ndm
from ndm.cli import main
from ndm.data import Digits, Table
from ndm.evaluation import read_places
from ndm.storage.atomic import atomic_path
from ndm.training import NDMModule, Run

Capture = pytest.CaptureFixture[str]

TINY = """
seed: 3
model:
  schedule: {class_path: LinearSchedule, init_args: {gamma_min: -6.0}}
  transform:
    class_path: Separable
    init_args:
      terms: 2
      net: {class_path: ResidualMLP, init_args: {features: 2, hidden: 8, depth: 1, heads: 2, level: false}}
  denoiser:
    class_path: Denoiser
    init_args: {net: {class_path: ResidualMLP, init_args: {features: 2, hidden: 8, depth: 1}}}
data: {class_path: Pinwheel, init_args: {train: 64, validation: 32, test: 16}}
training: {batch_size: 24, learning_rate: 1e-2, warmup: 2, base: none}
trainer: {max_steps: 6, val_check_interval: 3, val_examples: null, accelerator: cpu}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, only to be read."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def error(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """The one sentence that a command is answered with."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    journal = re.compile(r"(?!ndm: )\w+: ")  # what a training says
    lines = [line for line in captured.err.splitlines() if not journal.match(line)]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("ndm: error: ")
    return lines[0].removeprefix("ndm: error: ")


# ---- help


def test_help_is_quick_and_lists_the_commands() -> None:
    script = (
        "import sys; from ndm.cli import main; code = main(['--help']);"
        "heavy = {'lightning', 'jsonargparse', 'matplotlib', 'diffusers', 'sklearn'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "evaluate", "sample", "demo"):
        assert f"\n    {command} " in done.stdout
    assert len(done.stdout.splitlines()) < 25


def test_the_package_is_a_command() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "ndm", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr == "ndm: error: There is no command 'trian'; did you mean 'train'?\n"


def test_without_a_command_there_is_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "usage: ndm" in capsys.readouterr().out


def test_the_version_is_told(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ndm {ndm.__version__}\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "demo"])
def test_every_command_has_help(capsys: Capture, command: str) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: ndm {command}" in out
    assert len(out.splitlines()) < 250  # the classes of other tests are in it too


def test_help_for_train_is_grouped_and_says_what_an_option_does(capsys: Capture) -> None:
    assert main(["train", "digits", "--help"]) == 0
    out = capsys.readouterr().out
    assert "digits, digits-identity" in out
    assert "T of the bound" in out
    assert "--training.learning_rate" in out
    assert "--trainer.max_time" in out
    assert "--model.transform.help " not in out.split("\n\n", 2)[2]


def test_help_for_a_class(capsys: Capture) -> None:
    assert main(["train", "--model.schedule.help", "LinearSchedule"]) == 0
    assert "gamma_min" in capsys.readouterr().out


# ---- train


def test_train_writes_a_run(run: Path, capsys: Capture) -> None:
    model = ndm.NDM.from_pretrained(run / "model")
    assert isinstance(model.transform, ndm.Separable)
    assert model.standardize is not None
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_the_configuration_kept_is_the_one_printed_and_does_the_same_again(
    run: Path, tiny: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["train", tiny, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert printed == (run / "config.yaml").read_text()
    (tmp_path / "printed.yaml").write_text(printed)
    assert main(["train", str(tmp_path / "printed.yaml"), "--out", str(tmp_path / "again")]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / "model" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_print_config_writes_nothing(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--print_config", "--model.transform", "Identity"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["transform"]["class_path"] == "ndm.Identity"
    assert list(tmp_path.iterdir()) == []


def test_a_run_has_a_name_of_its_own(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", tiny, "--trainer.max_steps=1"]) == 0
    assert (tmp_path / "runs" / "tiny" / "model").is_dir()


def test_fields_are_overridden(tiny: str, tmp_path: Path) -> None:
    overrides = ["--model.schedule", "CosineSchedule", "--model.schedule.offset=0.02", "--trainer.max_steps", "1"]
    assert main(["train", tiny, "--out", str(tmp_path / "run"), *overrides]) == 0
    schedule = ndm.NDM.from_pretrained(tmp_path / "run" / "model").schedule
    assert isinstance(schedule, ndm.CosineSchedule)
    assert schedule.offset == 0.02
    assert schedule.gamma_min == -13.3  # the other schedule's was -6


@pytest.mark.parametrize("with_config", [True, False])
def test_an_interrupted_run_is_resumed(
    run: Path, tiny: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, with_config: bool
) -> None:
    out = tmp_path / "run"
    step = NDMModule.training_step

    def interrupted(self: NDMModule, *args: Any) -> Any:
        if self.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(NDMModule, "training_step", interrupted)
        assert main(["train", tiny, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("ndm: stopped; ")
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert main(["train", *([tiny] if with_config else []), "--out", str(out), "--resume"]) == 0
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (run / name).read_bytes()


def test_a_run_without_a_checkpoint_begins_again(
    run: Path, tiny: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def stopped(*args: Any) -> Any:
        raise KeyboardInterrupt

    for again in (["train", tiny, "--out", str(out)], ["train", "--out", str(out), "--resume"]):
        with monkeypatch.context() as patch:
            patch.setattr(NDMModule, "training_step", stopped)
            patch.setattr(Run, "last", out / "checkpoints" / "none.ckpt")  # as if there had been no time to write it
            assert main(["train", tiny, "--out", str(out)]) == 130
        for checkpoint in (out / "checkpoints").glob("*.ckpt"):
            checkpoint.unlink()
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"ndm: stopped; there was no checkpoint yet; start again with: ndm train {tiny} --out {out}"
        assert main(again) == 0
        assert (
            f"{out} has no checkpoint, because its training ended before the first one; it starts again"
            in capsys.readouterr().err
        )
        name = "model/model.safetensors"
        assert (out / name).read_bytes() == (run / name).read_bytes()
        shutil.rmtree(out)


def test_sigterm_stops_as_ctrl_c_does(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = (
        "import os, signal, sys; from ndm.cli import main; from ndm.training import NDMModule\n"
        "step = NDMModule.training_step\n"
        "def stop(self, *args):\n"
        "    if self.global_step == 4: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(self, *args)\n"
        "NDMModule.training_step = stop\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "train", tiny, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"ndm: stopped; its last checkpoint is kept; resume with: ndm train --resume --out {out}"
    assert (out / "checkpoints" / "last.ckpt").is_file()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as it is in a shell: what a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("command", "module", "name", "sentence"),
    [
        (
            ["evaluate", "{run}"],
            "ndm.evaluation",
            "evaluate",
            "no results were written; run the same command again.",
        ),
        (
            ["sample", "{run}", "--out", "x.csv"],
            "ndm.inference.sampling",
            "sample_batches",
            "no samples were written; .*command again",
        ),
        (
            ["score", "{run}", "x.csv", "--out", "y.csv"],
            "ndm.cli.score",
            "_rows",
            "run the same command again to resume it",
        ),
        (["report", "{run}", "--out", "x.html"], "ndm.report", "report", "no report was written; .*command again"),
    ],
)
def test_a_command_that_is_stopped_says_what_is_left(
    run: Path, tmp_path: Path, interruptible: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch,
    command: list[str], module: str, name: str, sentence: str,
) -> None:  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    for number in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr(f"{module}.{name}", lambda *_, number=number, **options: os.kill(os.getpid(), number))
        assert main([word.format(run=run) for word in command]) == 130
        assert re.fullmatch(f"ndm: stopped; {sentence}.?\n", capsys.readouterr().err)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_fails_has_another_exit_code(
    tiny: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: (x @ self.weight.T) * float("nan"))
    options = ["--trainer.accelerator", "cpu", "--out", str(tmp_path / "run")]
    sentence = error(capsys, "train", tiny, *options, code=1)
    assert "the bound is not finite (diffusion" in sentence
    assert "at training step 0" in sentence


@pytest.mark.slow
def test_two_processes_evaluate_and_sample_as_one_does(run: Path, tmp_path: Path, capsys: Capture) -> None:
    evaluate = ["evaluate", str(run), "--steps", "2", "continuous", "--batch-size", "7", "--times", "3",
                "--no-likelihood", "--device", "cpu"]  # fmt: skip
    draw = ["sample", str(run), "-n", "11", "--steps", "3", "--batch-size", "4", "--device", "cpu", "--out"]
    found: dict[str, tuple[Any, Any]] = {}
    for name in ("one", "two"):
        for arguments in (evaluate, [*draw, str(tmp_path / f"{name}.npz")]):
            if name == "one":
                assert main(arguments) == 0
            else:
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run([*launcher, "-m", "ndm", *arguments], check=True, env=environment, capture_output=True)
        rows = json.loads((run / "evaluation.json").read_text())["rows"]
        found[name] = rows, np.load(tmp_path / f"{name}.npz")["x"]
        (run / "evaluation.json").unlink()
    assert found["one"][1].shape == (11, *found["two"][1].shape[1:])
    assert np.array_equal(found["one"][1], found["two"][1])
    for a, b in zip(found["one"][0], found["two"][0], strict=True):
        assert (a["quantity"], a["steps"], a["variance"], a["examples"]) == (
            b["quantity"], b["steps"], b["variance"], b["examples"],
        )  # fmt: skip
        assert a["value"] == pytest.approx(b["value"], rel=1e-9)
    capsys.readouterr()


WRONG = [
    # the configuration
    ("train", "ndm train needs a configuration"),
    ("train digit", "no configuration 'digit'.*did you mean 'digits'"),
    ("train zzz", "there are celebahq256, .*digits, digits-identity"),
    ("train {tmp}/missing.yaml", "no configuration"),
    ("train {tmp}/broken.yaml", r"not YAML and cannot be read \(line 2"),
    ("train {tmp}/binary.yaml", "not text in UTF-8"),
    ("train {tmp}/text.yaml", "not a configuration"),
    ("train {tmp}/flat.yaml", "training must be a section"),
    ("train {tmp}/empty.yaml", r"lacks model\.schedule, model\.transform, model\.denoiser, data"),
    ("train {tmp}/typo.yaml", "has an unknown section 'modle'; did you mean 'model'"),
    ("train {tmp}/typo2.yaml", r"no option 'training\.learningrate'; did you mean 'training\.learning_rate'"),
    # names
    ("train digits --model.transform Neutral", "no class 'Neutral' for model.transform; did you mean 'Neural'"),
    ("train digits --model.transform Foo", "there are Blur, Identity, Neural, Scale, Separable"),
    ("train digits --model.decoder Discretized", "did you mean 'DiscretizedDecoder'"),
    ("train digits --data Pinweel", "no class 'Pinweel' for data; did you mean 'Pinwheel'"),
    ("train digits --model.denoiser.net UNett", r"no class 'UNett' for model\.denoiser\.net; did you mean 'UNet'"),
    (
        "train digits --model.schedule.gama_min -3",
        "LearnedSchedule has no argument 'gama_min'; did you mean 'gamma_min'",
    ),
    ("train digits --model.transform.net.beside.hiden 3", "ResidualMLP has no argument 'hiden'; did you mean 'hidden'"),
    ("train toy --data.blads 3", "Pinwheel has no argument 'blads'; did you mean 'blades'"),
    ("train digits --trainer.max_step 3", "no option '--trainer.max_step'; did you mean '--trainer.max_steps'"),
    ("train digits --trianing.warmup=3", "did you mean '--training.warmup'"),
    ("train digits --model.reverse_variance post", "no reverse variance 'post'; choose one of posterior"),
    ("train digits --model.transform Neural", r"lacks net in model\.transform"),
    # values
    ("train digits --training.warmup abc", r"training\.warmup must be a whole number, not 'abc'"),
    ("train digits --training.rate cosin", r"training\.rate must be one of cosine, constant, not 'cosin'"),
    ("train digits --training.learning_rate -1", r"training\.learning_rate must be positive, got -1"),
    ("train digits --model.schedule.gamma_min 10", "gamma_min must be below gamma_max.*gamma_min=10.0, gamma_max=5.0"),
    ("train digits --model.volatility -1", "volatility must be positive"),
    ("train digits --seed -1", "seed must be 0 or more"),
    ("train toy --data.train 0", "^The size of the train split must be positive, not 0"),
    ("train digits --trainer.accelerator gpux", "invalid accelerator name"),
    # parts that do not fit
    ("train digits --model.decoder.levels 5", r"have K = 17 levels, .* has 5: give --model\.decoder\.levels 17"),
    ("train digits --data Pinwheel", "In the train split: The data do not lie on the decoder's K = 17 levels"),
    ("train digits --model.denoiser.net.channels 3", "takes images"),
    ("train digits --model.transform.terms 3", r"Separable\(terms=3\) must return"),
    ("train digits --model.transform.net.heads 3", r"beside a LevelTable must return 3 times the channels"),
    # runs
    ("train digits --out {tmp}/mine", "mine exists; nothing was written: choose another --out"),
    ("train --resume --out {tmp}/none", "no run at .*none to resume"),
    ("train digits --resume --out {tmp}/none", "no run at .*none to resume: leave --resume out to start one"),
    (
        "train digits --seed 4 --out {run}",
        "resume --out {run} --trainer.max_steps 12`, .*`ndm train digits --seed 4 --out {run}-2`",
    ),
    ("train digits --resume --out {tmp}/mine", "no checkpoint in .*mine to resume from"),
    ("train digits --resume --out {run}", "trained with another model"),
    ("evaluate {tmp}/none", "no run at .*none"),
    ("evaluate {tmp}/mine", "no trained model in .*mine"),
    ("evaluate {run} --split tset", "invalid choice: 'tset'"),
    (
        "evaluate {run} --data.train 65",
        r"112 examples \(64 train.* in training, 113 .* given.*or give --other-data to evaluate",
    ),
    ("evaluate {run} --data.path x", "Pinwheel has no argument 'path'"),
    ("evaluate {run} --data.train", "--data.train needs a value"),
    ("evaluate {run} --steps 0", "whole number of at least 1, got '0'"),
    ("sample {tmp}/none --out {tmp}/x.csv", "no run at .*none"),
    ("sample {tmp}/mine --out {tmp}/x.csv", "no trained model in .*mine"),
    ("sample {run} --out {tmp}/x.csv --steps 0", "--steps: must be a whole number of at least 1, got '0'"),
    ("sample {run} --out {tmp}/x.csv -n 0", "-n: must be a whole number of at least 1"),
    ("sample {run} --out {tmp}/x.csv --seed x", r"--seed: must be a whole number from 0 to 2\^63 - 1"),
    ("sample {run} --out {tmp}/x.csv --label 0", "--label 0 needs a class-conditional model"),
    ("sample {run} --out {tmp}/x.csv --guidance 2", "--guidance needs a model trained with label dropout"),
    ("sample {run} --out {tmp}/x.csv --method dddim", "no sampling method 'dddim'"),
    ("sample {run} --out {tmp}/x.csv --stepz 3", "no option '--stepz'; did you mean '--steps'"),
    ("sample {run} --out {tmp}/x.csv --device cudda", "device 'cudda'"),
    ("sample {run} --out {tmp}/x.txt", r"must end in \.png, \.csv, \.npz or \.parquet"),
    ("sample {run} --out {tmp}/no/x.csv", "no folder"),
    ("sample {run} --out {tmp}/mine/notes.csv", "exists; nothing was written"),
    ("sample {run}", "required: --out"),
    ("smaple", "did you mean 'sample'"),
    ("--versoin", "did you mean '--version'"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG, ids=[line for line, _ in WRONG])
def test_what_is_wrong_is_answered_by_one_sentence(
    line: str, sentence: str, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, Any] = {
        "broken.yaml": b"a: [1, 2\n",
        "binary.yaml": bytes(range(128, 256)),
        "text.yaml": b"hello",
        "empty.yaml": b"{}",
        "flat.yaml": b"training: 3",
        "typo.yaml": TINY.replace("model:", "modle:").encode(),
        "typo2.yaml": TINY.replace("learning_rate", "learningrate").encode(),
        "mine/notes.csv": b"mine",
    }
    (tmp_path / "mine").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    said = error(capsys, *line.format(tmp=tmp_path, run=run).split())
    assert re.search(sentence.replace("{run}", str(run)), said), said
    left = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == files  # nothing written, nothing overwritten
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"mine"}


def test_data_with_nan_are_refused(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = Digits._splits.func

    def spoilt(self: Digits) -> Any:
        found = splits(self)
        found["train"][0][5, 0, 2, 2] = float("nan")
        return found

    monkeypatch.setattr(Digits, "_splits", property(spoilt))
    assert "In the train split: The data contain NaN" in error(capsys, "train", "digits")
    assert list(tmp_path.iterdir()) == []


def test_continuous_data_with_nan_are_refused(
    tiny: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = torch.full((64, 2), float("nan"))
    monkeypatch.setattr(ndm.data.Pinwheel, "sample", lambda self, n, generator=None: bad[:n])
    assert "The data contain NaN" in error(capsys, "train", tiny, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tiny: str, tmp_path: Path) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("ndm.training.fit", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["train", tiny, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(
    "lack",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
    ids=["python", "numpy", "gpu", "cpu"],
)
def test_a_lack_of_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Capture, lack: Exception) -> None:
    def command(arguments: list[str]) -> None:
        raise lack

    monkeypatch.setattr("ndm.cli.sample.run", command)
    assert re.search(r"there is not enough memory for this \(.*\): use a smaller batch", error(capsys, "sample"))


def test_classes_of_ones_own_are_allowed_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / "ownparts.py").write_text(
        "from ndm import Identity\nfrom ndm.data import Pinwheel\n"
        "class Own(Pinwheel):\n    pass\nclass Same(Identity):\n    pass\n"
    )
    config = TINY.replace("class_path: Pinwheel", "class_path: ownparts.Own")
    own = re.sub(r"  transform:\n(    .*\n)+", "  transform: {class_path: ownparts.Same}\n", config)
    (tmp_path / "own.yaml").write_text(own)
    (tmp_path / "rows.csv").write_text("a,b\n0.1,0.2\n0.3,0.4\n")
    commands = [
        ["train", "own.yaml", "--out", "run"],
        ["train", "--resume", "--out", "run", "--trainer.max_steps", "8"],
        ["evaluate", "run", "--no-likelihood", "--steps", "2", "--times", "4"],
        ["sample", "run", "-n", "2", "--steps", "2", "--out", "samples.csv"],
        ["score", "run", "rows.csv", "--no-likelihood", "--out", "scores.csv"],
        ["report", "run", "--examples", "4", "--out", "report.html"],
    ]
    try:
        for command in commands:
            assert "allow" in error(capsys, *command)
            assert main([*command, "--allow", "ownparts"]) == 0, capsys.readouterr().err
            capsys.readouterr()
    finally:
        sys.modules.pop("ownparts", None)
    assert "ownparts.Own" in (tmp_path / "report.html").read_text()


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no configuration"):
        main(["train", "digit"])


# ---- sample


@pytest.mark.parametrize("method", ["ancestral", "ddim", "ode", "sde"])
def test_samples_as_a_table(run: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "x.csv"
    assert main(["sample", str(run), "-n", "5", "--out", str(out), "--steps", "3", "--method", method]) == 0
    table = pandas.read_csv(out)
    assert list(table.columns) == ["x0", "x1"]
    assert table.shape == (5, 2)
    assert np.isfinite(table.to_numpy()).all()


def test_every_format_holds_the_same_samples(run: Path, tmp_path: Path) -> None:
    for ending in ("csv", "npz", "parquet"):
        assert main(["sample", str(run), "-n", "4", "--steps", "3", "--out", str(tmp_path / f"x.{ending}")]) == 0
    array = np.load(tmp_path / "x.npz")["x"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(pandas.read_csv(tmp_path / "x.csv").to_numpy(np.float32), array)
    np.testing.assert_array_equal(pandas.read_parquet(tmp_path / "x.parquet").to_numpy(), array)


def test_the_seed_decides_the_samples(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["sample", str(run), "--steps", "3", "--seed", seed, "--out", str(tmp_path / f"{name}.csv")]) == 0
    a, b, c = ((tmp_path / f"{name}.csv").read_text() for name in "abc")
    assert a == b != c


def test_samples_that_are_not_finite_are_not_written(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "x.csv"
    said = error(capsys, "sample", str(run), "-n", "5", "--method", "sde", "--eta", "1e30", "--out", str(out))
    assert "of the samples 0 to 4 contain NaN or infinite values; no file was written" in said
    assert list(tmp_path.iterdir()) == []
    for eta in ("nan", "-1", "inf"):
        assert "eta must be" in error(capsys, "sample", str(run), "--eta", eta, "--out", str(out))
    assert "leave it out" in error(capsys, "sample", str(run), "--method", "ode", "--eta", "1", "--out", str(out))


def test_samples_are_overwritten_only_when_asked(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "x.csv"
    out.write_text("mine")
    assert "give --overwrite" in error(capsys, "sample", str(run), "--out", str(out))
    assert out.read_text() == "mine"
    assert main(["sample", str(run), "--steps", "1", "--out", str(out), "--overwrite"]) == 0
    assert out.read_text().startswith("x0,x1\n")


def test_samples_as_a_picture(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    plotting = types.ModuleType("ndm.plotting")

    def save_grid(x: torch.Tensor, file: BinaryIO, levels: int | None) -> None:
        drawn.append((x.shape, levels))
        file.write(b"a picture")

    plotting.save_grid = save_grid  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ndm.plotting", plotting)
    assert main(["sample", str(run), "-n", "9", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert drawn == [((9, 2), None)]
    assert (tmp_path / "x.png").read_text() == "a picture"


def test_a_conditional_model_draws_from_its_classes(tmp_path: Path, capsys: Capture) -> None:
    net = "--model.denoiser.net"
    conditional = ["--training.labels", "true", net, "ResidualMLP", f"{net}.features", "64", f"{net}.classes", "10"]
    small = [
        f"{net}.hidden",
        "16",
        "--trainer.max_steps",
        "20",
        "--training.learning_rate",
        "0.01",
        "--trainer.accelerator",
        "cpu",
    ]
    run = str(tmp_path / "run")
    assert main(["train", "digits-identity", "--out", run, *conditional, *small]) == 0
    for label in ("0", "1"):
        out = str(tmp_path / f"{label}.npz")
        assert main(["sample", run, "-n", "3", "--steps", "3", "--label", label, "--out", out]) == 0
    zero, one = (np.load(tmp_path / f"{label}.npz")["x"] for label in "01")
    assert zero.shape == (3, 1, 8, 8)
    assert (zero != one).any()
    assert main(["sample", run, "-n", "12", "--steps", "3", "--out", str(tmp_path / "all.csv")]) == 0
    table = pandas.read_csv(tmp_path / "all.csv")
    assert table.pop("label").tolist() == [*range(10), 0, 1]  # each class in turn
    assert table.shape == (12, 64)
    capsys.readouterr()
    said = error(capsys, "sample", run, "--label", "10", "--out", str(tmp_path / "x.csv"))
    assert "--label must be one of the model's classes, 0 ... 9, got 10" in said
    said = error(capsys, "sample", run, "--guidance", "1", "--out", str(tmp_path / "x.csv"))
    assert "trained without it: train with --training.labels true --training.label_dropout 0.1" in said
    assert "trained without" in error(capsys, "evaluate", run, "--guidance", "1")


# ---- evaluate, demo


def test_evaluate_writes_what_it_prints(run: Path, capsys: Capture) -> None:
    options = ["--steps", "2", "continuous", "--no-likelihood", "--max-examples", "8"]
    assert main(["evaluate", str(run), *options]) == 0
    table = capsys.readouterr().out
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    assert {row["steps"] for row in evaluation["rows"]} == {2, None}
    for row in evaluation["rows"]:
        assert f"{row['value']:.4f}" in table
        assert row["stderr"] > 0


def test_demo_runs_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    demo = types.ModuleType("ndm.demo")
    demo.run = lambda out: called.append(out)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ndm.demo", demo)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere"]) == 0
    assert called == ["demo", "elsewhere"]


# ---- tables, and ndm score


@pytest.fixture(scope="module")
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


def test_a_table_is_trained_on_and_sampled_with_its_columns(table: Path, tmp_path: Path) -> None:
    facts = json.loads((table / "run" / "data.json").read_text())
    assert facts.pop("fingerprint") == Table(str(table / "x.csv")).fingerprint()
    assert facts == {
        "shape": [3], "levels": None, "columns": ["a", "b, in m", "c"],
        "splits": {"train": 48, "validation": 6, "test": 6},
    }  # fmt: skip
    for name, read in (("s.csv", pandas.read_csv), ("s.parquet", pandas.read_parquet)):
        command = ["sample", str(table / "run"), "-n", "5", "--steps", "3", "--out", str(tmp_path / name)]
        assert main(command) == 0
        assert list(read(tmp_path / name)) == ["a", "b, in m", "c"]
        assert read(tmp_path / name).shape == (5, 3)


def test_columns_that_are_formulas_are_told_and_stay_readable(table: Path, tmp_path: Path, capsys: Capture) -> None:
    names = ["=cmd|' /C calc'!A0", "b", "@c"]
    run, out = shutil.copytree(table / "run", tmp_path / "run"), tmp_path / "s.csv"
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(facts | {"columns": names}))
    config = json.loads((run / "model" / "config.json").read_text())
    del config["data"]  # the digest of the facts as they were
    (run / "model" / "config.json").write_text(json.dumps(config))
    (run / "model" / "SHA256SUMS").unlink()
    assert main(["sample", str(run), "-n", "5", "--steps", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"ndm: 5 samples are in {out}"
    assert said[1].startswith(f"ndm: warning: {out} has column names that a spreadsheet program may run as formulas")
    assert said[1].count("'@c'; open it in another program") == len(said) - 1 == 1
    assert list(pandas.read_csv(out)) == names
    assert main(["score", str(run), str(out), "--out", str(tmp_path / "y.csv"), "--no-likelihood", "--times", "2"]) == 0
    assert len(pandas.read_csv(tmp_path / "y.csv")) == 5


def test_samples_are_refused_before_they_are_drawn(
    table: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndm.inference.sampling.sample", None)  # which cannot be called
    (tmp_path / "folder.csv").mkdir()
    command = ["sample", str(table / "run"), "-n", "20000", "--overwrite", "--out"]
    assert "20,000: choose a name that ends in .npz" in error(capsys, *command, str(tmp_path / "x.png"))
    assert "is a folder" in error(capsys, *command, str(tmp_path / "folder.csv"))
    with atomic_path(tmp_path / "x.csv"):
        assert "Another process is writing" in error(capsys, *command, str(tmp_path / "x.csv"))
    assert (tmp_path / "x.csv").read_bytes() == b""  # that of the other one
    assert {p.name for p in tmp_path.iterdir()} == {"folder.csv", "x.csv"}


def test_levels_are_sampled_as_the_table_has_them(tmp_path: Path) -> None:
    frame = pandas.DataFrame(np.random.default_rng(0).integers(0, 4, (50, 2)), columns=["a", "b"])
    frame.to_csv(tmp_path / "x.csv", index=False)
    levels = ["--data.levels", "4", "--model.decoder", "DiscretizedDecoder", "--model.decoder.levels", "4"]
    small = ["--model.denoiser.net.hidden", "8", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    run, out = str(tmp_path / "run"), str(tmp_path / "s.csv")
    assert main(["train", "table", "--data.path", str(tmp_path / "x.csv"), *levels, *small, "--out", run]) == 0
    assert main(["sample", run, "-n", "40", "--steps", "3", "--out", out]) == 0
    assert set(np.unique(pandas.read_csv(out))) <= {0, 1, 2, 3}
    assert main(["score", run, out, "--out", str(tmp_path / "y.csv"), "--no-likelihood", "--times", "2"]) == 0
    assert list(pandas.read_csv(tmp_path / "y.csv")) == ["row", "nelbo", "nelbo_stderr", "bits_per_dim"]


def test_score_writes_a_line_for_each_row(table: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "scores.csv"
    command = ["score", str(table / "run"), str(table / "x.csv"), "--out", str(out), "--times", "2"]
    assert main([*command, "--tolerance", "1e-3", "--max-rows", "9", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "bound on -log p" in told.out
    assert "density of the reverse ODE" in told.out
    assert str(out) in told.err
    scores = pandas.read_csv(out)
    assert scores["row"].tolist() == list(range(9))
    model = ndm.NDM.from_pretrained(table / "run" / "model")
    x = torch.from_numpy(pandas.read_csv(table / "x.csv")[["a", "b, in m", "c"]].to_numpy(np.float32))[:9]
    expected = ndm.log_likelihood(model, x, tolerance=1e-6).log_prob
    np.testing.assert_allclose(scores["log_prob"], expected, atol=0.02)
    assert "exists" in error(capsys, *command)


def test_score_refuses_what_does_not_fit(table: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "scores.csv")]
    pandas.DataFrame({"a": [1.0], "c": [2.0], "d": [2.0]}).to_csv(tmp_path / "y.csv", index=False)
    assert "no column 'b, in m'" in error(capsys, "score", str(table / "run"), str(tmp_path / "y.csv"), *out)
    assert "has 3 numeric columns" in error(capsys, "score", str(run), str(tmp_path / "y.csv"), *out)
    assert "no file" in error(capsys, "score", str(run), str(tmp_path / "z.csv"), *out)
    assert "There is no run at" in error(capsys, "score", str(tmp_path / "none"), str(table / "x.csv"), *out)
    assert "--split is for images" in error(
        capsys, "score", str(table / "run"), str(table / "x.csv"), *out, "--split", "test"
    )
    assert not (tmp_path / "scores.csv").exists()


def test_data_are_found_again_and_recognised(
    table: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(table / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text().replace(str(table / "x.csv"), "x.csv")
    config.write_text(text)
    monkeypatch.chdir(tmp_path)
    evaluate = ["evaluate", "run", "--steps", "2", "--no-likelihood", "--variances", "posterior", "--device", "cpu"]
    resume = ["train", "--resume", "--out", "run", "--trainer.max_steps", "6"]
    for command in (evaluate, resume):
        said = error(capsys, *command)
        assert f"comes from run/config.yaml and is relative to {tmp_path}: give" in said
    here = ["--data.path", str(table / "x.csv")]
    assert main([*evaluate, *here]) == 0
    assert "other_data" not in json.loads(Path("run/evaluation.json").read_text())["about"]
    pandas.concat([pandas.read_csv(table / "x.csv")] * 2).to_csv("longer.csv", index=False)
    capsys.readouterr()
    evaluation = Path("run/evaluation.json").read_bytes()
    for command, advice in ((evaluate, "--other-data"), (resume, "with another --out")):
        said = error(capsys, *command, "--data.path=longer.csv")
        assert (
            "60 rows (48 train, 6 validation, 6 test) in training, 120 rows (96 train, 12 validation, 12 test) given"
            in said
        )
        assert advice in said
    assert main([*evaluate, "--data.path", "longer.csv", "--other-data"]) == 0
    assert "other data than the training data" in capsys.readouterr().out
    assert Path("run/evaluation.json").read_bytes() == evaluation
    about = json.loads(Path("run/evaluation-other-data.json").read_text())["about"]
    assert about["other_data"] == "--data.path longer.csv"
    assert main([*resume, *here]) == 0
    assert Path("run/config-1.yaml").read_text() == text
    assert main(evaluate) == 0  # from where the resumed run has found them


# ---- ndm report


def test_report_writes_one_page_for_several_runs(run: Path, table: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report.html"
    command = ["report", str(run), str(table / "run"), "--out", str(out), "--examples", "4", "--device", "cpu"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert f"the report is in {out}" in told.err
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "b, in m" in page
    assert "Measured on 4 test examples" in page
    assert "exists; nothing was written" in error(capsys, *command)
    assert out.read_text(encoding="utf-8") == page
    assert main([*command, "--overwrite", "--seed", "0"]) == 0
    assert out.read_text(encoding="utf-8") == page


def test_report_refuses_what_it_cannot_show(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "report.html")]
    assert "There is no run at" in error(capsys, "report", str(run), str(tmp_path / "none"), *out)
    assert "must end in .html" in error(capsys, "report", str(run), "--out", str(tmp_path / "report.pdf"))
    assert "no folder" in error(capsys, "report", str(run), "--out", str(tmp_path / "none" / "report.html"))
    assert "given twice" in error(capsys, "report", str(run), str(run), *out)
    assert "--out" in error(capsys, "report", str(run))
    assert "RUN" in error(capsys, "report", *out)
    assert "at least 2" in error(capsys, "report", str(run), *out, "--examples", "1")
    assert not list(tmp_path.iterdir())


def test_evaluate_ends_with_the_sentence_to_quote(run: Path, capsys: Capture) -> None:
    arguments = ["evaluate", str(run), "--steps", "2", "continuous", "--times", "2", "--tolerance", "1"]
    arguments += ["--device", "cpu"]
    assert main([*arguments, "--max-examples", "10"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    written = json.loads((run / "evaluation.json").read_text())
    assert last == written["quote"]
    assert re.match(r"test: \S+ ± \S+ nats, bound on -log p in continuous time, 10 random examples of 16; lower", last)
    assert written["about"]["split_examples"] == 16
    assert [row["quantity"] for row in written["rows"]][-1] == "Gaussian mixture"
    parts = []
    for seed in ("0", "0", "1"):
        assert main([*arguments, "--max-examples", "3", "--seed", seed, "--no-mixture", "--no-likelihood"]) == 0
        assert "Gaussian mixture" not in capsys.readouterr().out
        parts.append(read_places(run / "evaluation.npz")["bound, T = 2, posterior"].tolist())
    assert parts[0] == parts[1] != parts[2]


def test_what_was_evaluated_is_shown_even_if_it_cannot_be_saved(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(*arguments: Any, **values: Any) -> None:
        raise OSError(28, "No space left on device", "evaluation.npz")

    monkeypatch.setattr(np, "savez_compressed", full)
    arguments = ["--steps", "2", "--no-likelihood", "--no-mixture", "--device", "cpu"]
    assert main(["evaluate", str(run), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("quantity")
    assert said.out.splitlines()[-1].startswith("test: ")
    assert said.err.startswith("ndm: error: The results could not be saved in ")
    assert "No space left on device" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("value", [1e30, 3.0])
def test_rows_that_are_not_finite_are_told_and_none_that_is_finite_is_an_error(
    table: Path, tmp_path: Path, capsys: Capture, value: float
) -> None:
    frame = pandas.read_csv(table / "x.csv")[:4]
    frame["a"] = [1e30, value, value, 1e30]
    frame.to_csv(tmp_path / "far.csv", index=False)
    options = ["--times", "2", "--out", str(tmp_path / "scores.csv"), "--device", "cpu"]
    assert main(["score", str(table / "run"), str(tmp_path / "far.csv"), *options]) == (2 if value == 1e30 else 0)
    said = capsys.readouterr()
    count, rows = (4, "0, 1, 2, 3") if value == 1e30 else (2, "0, 3")
    assert said.out.count(f"not finite (inf or nan) for {count} of 4 rows, which are excluded: rows {rows}") == 2
    assert ("error: No row has a finite bound" in said.err) == (value == 1e30)
    assert len(pandas.read_csv(tmp_path / "scores.csv")) == 4


def test_evaluate_fails_where_no_example_is_finite(table: Path, tmp_path: Path, capsys: Capture) -> None:
    frame = pandas.read_csv(table / "x.csv")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        frame.assign(a=1e30 if split == "test" else frame["a"]).to_csv(folder / f"{split}.csv", index=False)
    options = ["--steps", "2", "--no-mixture", "--device", "cpu", "--other-data", "--data.path", str(folder)]
    assert main(["evaluate", str(table / "run"), *options]) == 2
    said = capsys.readouterr()
    assert "not finite (inf or nan) for 60 of 60 examples" in said.out
    assert "No example has a finite value of: upper bound on -log p(x), 2 steps" in said.err
