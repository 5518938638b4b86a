"""Where `python -m ndm` looks for modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ndm
from ndm import _leave_the_current_folder


@pytest.mark.parametrize(
    ("name", "words", "left"),
    [
        ("-m", ["-m", "ndm", "train"], True),
        ("-m", ["-mndm", "train"], True),
        ("-m", ["-um", "ndm"], True),
        ("-m", ["-X", "dev", "-m", "ndm.cli"], True),
        ("-m", ["-Ximporttime", "-W", "ignore", "-m", "ndm"], True),
        ("-m", ["-m", "mine", "-m", "ndm"], False),
        ("-m", ["-m", "ndmx"], False),
        ("-m", ["-m", "pytest", "ndm"], False),
        ("script.py", ["script.py", "-m", "ndm"], False),
        ("/bin/ndm", ["/bin/ndm", "-m", "ndm"], False),
        ("-c", ["-c", "import ndm", "-m", "ndm"], False),
        ("", [], False),
    ],
)
def test_the_current_folder_is_left(monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], left: bool) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setattr(sys, "path", ["/here", "/there"])
    _leave_the_current_folder()
    safe = getattr(sys.flags, "safe_path", False)  # Python has left it out by itself
    assert sys.path == (["/there"] if left and not safe else ["/here", "/there"])


def test_names_and_modules_are_imported_when_they_are_used() -> None:
    script = (
        "import sys, ndm; assert 'torch' not in sys.modules; assert dir(ndm) == sorted([*ndm.__all__, '__version__']);"
        "assert all(getattr(ndm, name).__name__ == name for name in ndm.__all__); ndm.networks.UNet"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert sorted(ndm._HOMES) == sorted(ndm.__all__)
    with pytest.raises(AttributeError, match="module 'ndm' has no attribute 'nothing'"):
        ndm.nothing  # noqa: B018


def test_help_and_wrong_arguments_do_not_import_torch(tmp_path: Path) -> None:
    for words in ([], ["--help"], ["--version"], ["smple"], ["sample", "--help"], ["score", "x", "--bogus"]):
        script = "import sys; from ndm.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True)


def test_an_output_that_cannot_be_written_is_one_sentence() -> None:
    command = [sys.executable, "-c", "import sys; from ndm.cli import main; sys.exit(main())", "--version"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == "ndm: error: The standard output cannot be written: No space left on device.\n"
