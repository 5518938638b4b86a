"""Commands whose work is divided among processes: the same files, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ndm.cli import main
from tests.cli.commands import Capture, error


@pytest.mark.slow
def test_the_files_are_those_of_one_process(table: Path, tmp_path: Path) -> None:
    runs = {n: str(shutil.copytree(table / "run", tmp_path / n)) for n in ("1", "2")}
    more = ["--device", "cpu", "--batch-size", "16", "--workers"]
    for n, run in runs.items():
        files = [str(tmp_path / f"{n}.csv"), str(tmp_path / f"{n}.parquet"), str(tmp_path / f"samples-{n}.csv")]
        for out in files[:2]:
            command = ["score", run, str(table / "x.csv"), "--times", "2", "--tolerance", "0.5", "--out", out]
            assert main([*command, *more, n]) == 0
        assert main(["sample", run, "-n", "40", "--steps", "3", "--out", files[2], *more, n]) == 0
        steps = ["--steps", "3", "continuous", "--spacing", "optimal", "--times", "4"]
        assert main(["evaluate", run, "--split", "train", *steps, *more, n]) == 0
    for one, two in (
        ("1.csv", "2.csv"), ("1.parquet", "2.parquet"), ("samples-1.csv", "samples-2.csv"),
        ("1/evaluation.json", "2/evaluation.json"), ("1/evaluation.npz", "2/evaluation.npz"),
    ):  # fmt: skip
        assert (tmp_path / one).read_bytes() == (tmp_path / two).read_bytes(), one


def test_what_cannot_be_divided_is_refused(table: Path, tmp_path: Path, capsys: Capture) -> None:
    """A GPU is refused in tests/_internal/test_workers.py."""
    run, data, out = str(table / "run"), str(table / "x.csv"), ["--out", str(tmp_path / "y.csv")]
    score = ["score", run, data, *out]
    assert "must be at most 256, got '1000'; use torchrun for more" in error(capsys, *score, "--workers", "1000")
    assert "at least 1" in error(capsys, *score, "--workers", "0")
    assert "in one process: leave --workers out" in error(capsys, *score, "--explain", "--workers", "2")
    given = ["sample", run, "--given", data, *out]
    assert "in one process: leave --workers out" in error(capsys, *given, "--workers", "2")
    assert "Labels need a class-conditional model" in error(capsys, *score, "--label", "1")
    assert list(tmp_path.iterdir()) == []
