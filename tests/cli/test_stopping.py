"""Commands that are stopped by a signal: their exit code and what they say."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ndm.cli
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


def command_and_file(name: str, run: Path, folder: Path) -> tuple[list[str], Path]:
    """A short command, and the file that it writes."""
    out = folder / {"audit": "x.json", "sample": "x.csv", "report": "x.html", "score": "x.csv"}.get(name, "")
    few = {
        "evaluate": ["--steps", "2", "--no-likelihood", "--no-mixture", "--max-examples", "4"],
        "audit": ["--steps", "2", "--times", "2", "--examples", "4", "--ode", "0", "--no-grid"],
        "sample": ["-n", "2", "--steps", "1"],
        "score": [str(folder / "table.csv"), "--no-likelihood", "--times", "2"],
        "report": ["--examples", "4"],
    }[name]
    if name == "evaluate":
        return [name, str(run), *few], run / "evaluation.json"
    (folder / "table.csv").write_text("x0,x1\n0.5,0.25\n-0.5,0.75\n")
    return [name, str(run), *few, "--out", str(out)], out


def stop_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C when a command has done its work and has not ended."""
    original = ndm.cli._run

    def and_stop(*arguments: Any) -> int:
        code = original(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return code

    monkeypatch.setattr(ndm.cli, "_run", and_stop)


@pytest.mark.parametrize("name", ["evaluate", "audit", "sample", "score", "report"])
def test_a_command_that_is_stopped_at_its_very_end_says_what_it_wrote(
    run: Path, tmp_path: Path, interruptible: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As with a full pipe on standard output, when all files are written."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink(missing_ok=True)
    command, out = command_and_file(name, tmp_path / "run", tmp_path)
    stop_at_the_end(monkeypatch)
    assert main(command) == 130
    assert out.is_file()
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"ndm: stopped; [\w ]+ (is|are) in {re.escape(str(out))}\.", last)


def test_a_training_that_is_stopped_at_its_very_end_says_that_it_is_kept(
    tiny: str, tmp_path: Path, interruptible: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    stop_at_the_end(monkeypatch)
    assert main(["train", tiny, "--out", str(out)]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"ndm: stopped; its last checkpoint is kept; resume with: ndm train --resume --out {out}"


def own_process(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its own process with Ctrl-C as in a shell, after some lines of Python."""
    script = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"{lines}\nfrom ndm.__main__ import main\nsys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_signal_after_the_command_prints_no_traceback() -> None:
    done = own_process("import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)", "--version")
    assert done.returncode == -signal.SIGINT
    assert done.stdout.startswith("ndm ")
    assert done.stderr == ""


#: Sends a signal to this process when a module is imported.
STOPPED_AT = """
class Stop:
    @staticmethod
    def find_spec(name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop)
"""


def test_a_signal_during_the_first_imports_prints_no_traceback() -> None:
    done = own_process(STOPPED_AT.format(name="ndm.cli.messages"), "--version")
    assert done.returncode == -signal.SIGINT
    assert (done.stdout, done.stderr) == ("", "")


def test_a_signal_during_the_imports_of_a_command_is_a_stop(run: Path) -> None:
    done = own_process(STOPPED_AT.format(name="ndm.evaluation"), "evaluate", str(run))
    assert done.returncode == 130
    assert done.stderr == "ndm: stopped; no results were written; run the same command again.\n"


@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("words", [["--version"], ["train", "--help"]], ids=["short", "long"])
def test_an_output_that_is_lost_is_told_from_other_errors(words: list[str], buffering: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": buffering}
    command = [sys.executable, "-m", "ndm", *words]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")  # as of a reader that has seen enough
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        assert done.returncode == 2
        assert done.stderr == "ndm: error: The standard output cannot be written: No space left on device.\n"


def test_a_lost_output_says_what_was_written(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    command, out = command_and_file("evaluate", tmp_path / "run", tmp_path)
    out.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ndm", *command], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.endswith(f"cannot be written: No space left on device; the results are in {out}.\n")
    assert out.is_file()
