"""The examples in the pages run in an empty folder, which holds the files that the pages show."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

collect_ignore = ["conf.py", "examples", "notebooks"]  # the examples are imported by the pages that show them


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page's examples, with docs/examples in it."""
    shutil.copytree(Path(__file__).parent / "examples", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    return tmp_path
