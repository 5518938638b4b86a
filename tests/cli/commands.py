"""A small configuration, and the one sentence that a command is answered with."""

from __future__ import annotations

import re

import pytest

from ndm.cli import main

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
