"""Wrong input and errors: each is answered by one sentence and an exit code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ndm
from ndm.cli import main
from ndm.data import Digits
from tests.cli.commands import TINY, Capture, error

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
    (
        "train table --data.path x.csv --data.kinds atuo",
        r"data\.kinds must be one of numeric, auto or names with values",
    ),
    (
        "train table --data.path x.csv --data.missing fill",
        r"data\.missing must be one of error, drop, atom or null, not",
    ),
    ("train table --data.path x.csv --data.validation x", r"data\.validation must be a whole number or null, not 'x'"),
    ("train digits --trainer.max_steps x", r"trainer\.max_steps must be a whole number or auto or null, not 'x'"),
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
    ("sample {run} --out {tmp}/x.csv --method ddim --solver heun", "A solver is for the methods ode and sde"),
    ("sample {run} --out {tmp}/x.csv --method sde --solver heun", "no solver 'heun'"),
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


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no configuration"):
        main(["train", "digit"])
