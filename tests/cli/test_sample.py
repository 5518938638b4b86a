"""Samples that are drawn by the command: their formats, seeds, columns and classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas
import pytest
import torch

from ndm.cli import main
from ndm.storage.atomic import atomic_path
from tests.cli.commands import Capture, error


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


@pytest.mark.parametrize("method", ["ancestral", "ddim", "ode", "sde"])
def test_samples_as_a_table(run: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "x.csv"
    assert main(["sample", str(run), "-n", "5", "--out", str(out), "--steps", "3", "--method", method]) == 0
    table = pandas.read_csv(out)
    assert list(table.columns) == ["x0", "x1"]
    assert table.shape == (5, 2)
    assert np.isfinite(table.to_numpy()).all()


@pytest.mark.parametrize("method", ["ode", "sde"])
def test_the_solver_decides_the_samples(run: Path, tmp_path: Path, method: str) -> None:
    found = []
    for solver in ([], ["--solver", "dpm++2m"]):
        out = tmp_path / f"{len(solver)}.csv"
        command = ["sample", str(run), "-n", "4", "--out", str(out), "--steps", "3", "--method", method]
        assert main([*command, *solver]) == 0
        found.append(pandas.read_csv(out).to_numpy())
    assert np.isfinite(found[1]).all()
    assert not np.allclose(*found)


def test_the_default_is_the_models(run: Path, tmp_path: Path) -> None:
    given = ["--method", "ode", "--solver", "dpm++2m", "--steps", "32"]
    for name, options in (("own", []), ("given", given)):
        assert main(["sample", str(run), "-n", "4", "--out", str(tmp_path / f"{name}.csv"), *options]) == 0
    assert (tmp_path / "own.csv").read_text() == (tmp_path / "given.csv").read_text()


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


def test_columns_that_are_formulas_are_told_and_stay_readable(table: Path, tmp_path: Path, capsys: Capture) -> None:
    names = ["=cmd|' /C calc'!A0", "b", "@c"]
    run, out = shutil.copytree(table / "run", tmp_path / "run"), tmp_path / "s.csv"
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(facts | {"columns": names}))
    config = json.loads((run / "model" / "config.json").read_text())
    del config["data"]  # the digest of the facts as they were
    for column, name in zip(config["model"]["init_args"]["standardize"]["init_args"]["columns"], names, strict=True):
        column["name"] = name
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
