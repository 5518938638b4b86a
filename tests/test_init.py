"""Where `python -m ndm` looks for modules."""

from __future__ import annotations

import sys

import pytest

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
