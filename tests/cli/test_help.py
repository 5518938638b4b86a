"""The help of the commands, and the version."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import ndm
from ndm.cli import main
from tests.cli.commands import Capture


def test_help_is_quick_and_lists_the_commands() -> None:
    script = (
        "import sys; from ndm.cli import main; code = main(['--help']);"
        "heavy = {'lightning', 'jsonargparse', 'matplotlib', 'diffusers', 'sklearn'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "evaluate", "sample", "impute", "predict", "demo"):
        assert f"\n    {command} " in done.stdout
    assert len(done.stdout.splitlines()) < 30


@pytest.mark.parametrize("command", ["impute", "predict", "score", "sample"])
def test_help_and_wrong_options_need_no_torch(command: str) -> None:
    script = (
        f"import sys; from ndm.cli import main; main(['{command}', '--help']); main(['{command}', '--none']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: ndm {command}" in done.stdout


def test_the_package_is_a_command() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "ndm", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr == "ndm: error: There is no command 'trian'; did you mean 'train'?\n"


def test_without_a_command_there_is_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "usage: ndm" in capsys.readouterr().out


def test_the_version_is_told(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ndm {ndm.__version__}\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "audit", "sample", "score", "impute", "predict", "demo"])
def test_every_command_has_help(capsys: Capture, command: str) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: ndm {command}" in out
    assert len(out.splitlines()) < 300  # the classes of other tests are in it too


def test_help_for_train_is_grouped_and_says_what_an_option_does(capsys: Capture) -> None:
    assert main(["train", "digits", "--help"]) == 0
    out = capsys.readouterr().out
    assert "digits, digits-identity" in out
    assert "T of the bound" in out
    assert "--training.learning_rate" in out
    assert "--trainer.max_time" in out
    assert "--model.transform.help " not in out.split("\n\n", 2)[2]


def test_help_for_a_class(capsys: Capture) -> None:
    assert main(["train", "--model.schedule.help", "LinearSchedule"]) == 0
    assert "gamma_min" in capsys.readouterr().out
