"""Training by the command: the run it writes, overridden options, and resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import yaml

import ndm
from ndm.cli import main
from ndm.data import Table
from ndm.training import NDMModule, Run
from tests.cli.commands import Capture, error


def test_train_writes_a_run(run: Path, capsys: Capture) -> None:
    model = ndm.NDM.from_pretrained(run / "model")
    assert isinstance(model.transform, ndm.Separable)
    assert model.standardize is not None
    assert (run / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_model_with_a_latent_is_trained_and_used(tiny: str, tmp_path: Path, capsys: Capture) -> None:
    mlp = {"features": 2, "hidden": 8, "depth": 1}
    denoiser = {"class_path": "ResidualMLP", "init_args": {**mlp, "latent": 2}}
    encoder = {"class_path": "ResidualMLP", "init_args": {**mlp, "level": False, "outputs": 4}}
    tree = yaml.safe_load(Path(tiny).read_text())
    tree["model"]["denoiser"]["init_args"]["net"] = denoiser
    tree["model"]["latent"] = {"class_path": "GaussianLatent", "init_args": {"size": 2, "net": encoder}}
    noise = {"class_path": "ResidualMLP", "init_args": {**mlp, "level": False, "outputs": 6}}
    tree["model"]["noise"] = {"class_path": "LatentNoise", "init_args": {"net": noise, "shape": None}}
    (tmp_path / "latent.yaml").write_text(yaml.safe_dump(tree))
    out = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "latent.yaml"), "--out", out]) == 0
    assert ndm.NDM.from_pretrained(tmp_path / "run" / "model").noise.shape == [2]
    assert main(["evaluate", out, "--steps", "3", "continuous", "--likelihood-examples", "4"]) == 0
    assert "lower bound on the log-likelihood under the ODE" in capsys.readouterr().out
    assert main(["sample", out, "-n", "5", "--out", str(tmp_path / "x.csv")]) == 0
    assert main(["score", out, str(tmp_path / "x.csv"), "--out", str(tmp_path / "s.csv")]) == 0
    assert pandas.read_csv(tmp_path / "s.csv")[["nelbo", "log_prob"]].notna().all().all()
    assert main(["audit", out]) == 0
    assert main(["report", out, "--out", str(tmp_path / "r.html")]) == 0
    assert "GaussianLatent (ResidualMLP, size 2)" in (tmp_path / "r.html").read_text()
    del tree["model"]["latent"]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    said = error(capsys, "train", str(tmp_path / "wrong.yaml"), "--out", str(tmp_path / "other"))
    assert "give the model latent=GaussianLatent" in said or "LatentNoise needs a latent" in said
    assert not (tmp_path / "other").exists()


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


def test_a_training_that_fails_has_another_exit_code(
    tiny: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: (x @ self.weight.T) * float("nan"))
    options = ["--trainer.accelerator", "cpu", "--out", str(tmp_path / "run")]
    sentence = error(capsys, "train", tiny, *options, code=1)
    assert "the bound is not finite (diffusion" in sentence
    assert "at training step 0" in sentence


def test_a_table_is_trained_on_and_sampled_with_its_columns(table: Path, tmp_path: Path) -> None:
    facts = json.loads((table / "run" / "data.json").read_text())
    assert facts.pop("fingerprint") == Table(str(table / "x.csv"), kinds="auto").fingerprint()
    assert facts == {
        "shape": [3], "levels": None, "columns": ["a", "b, in m", "c"],
        "splits": {"train": 48, "validation": 6, "test": 6},
    }  # fmt: skip
    for name, read in (("s.csv", pandas.read_csv), ("s.parquet", pandas.read_parquet)):
        command = ["sample", str(table / "run"), "-n", "5", "--steps", "3", "--out", str(tmp_path / name)]
        assert main(command) == 0
        assert list(read(tmp_path / name)) == ["a", "b, in m", "c"]
        assert read(tmp_path / name).shape == (5, 3)
