"""The command that runs the demonstration."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from ndm.cli import main


def test_demo_runs_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    demo = types.ModuleType("ndm.demo")
    demo.run = lambda out: called.append(out)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ndm.demo", demo)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere"]) == 0
    assert called == ["demo", "elsewhere"]
