"""Options that several commands share: classes that are allowed, and data that are found again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pandas
import pytest

from ndm.cli import main
from tests.cli.commands import TINY, Capture, error


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
