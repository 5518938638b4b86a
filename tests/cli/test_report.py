"""Reports that are written by the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndm.cli import main
from tests.cli.commands import Capture, error


@pytest.mark.slow
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
