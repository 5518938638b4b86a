"""Commands that are stopped by a signal: their exit code and what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndm.cli import main
from tests.cli.commands import Capture


@pytest.mark.slow
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
        (["audit", "{run}", "--out", "x.json"], "ndm.evaluation", "audit", "no file was written; .*command again"),
        (
            ["sample", "{run}", "--out", "x.csv"],
            "ndm.inference.sampling",
            "sample_batches",
            "no samples were written; .*command again",
        ),
        (
            ["score", "{run}", "{run}/metrics.csv", "--out", "y.csv"],
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
