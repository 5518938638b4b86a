"""Files and folders that are complete or not there."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ndm.storage.atomic import aside, atomic_folder, atomic_path, atomic_write, refuse_if_being_written, sha256_of


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_folder(path: Path, text: Any) -> None:
    with atomic_folder(path) as fresh:
        (fresh / "a.txt").write_text(text)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert names(tmp_path) == ["rows.csv"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_after_an_error_the_earlier_file_is_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("earlier")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)) as found:
        write()
    assert getattr(found.value, "filename", str(path)) == str(path)
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["rows.csv"]


def test_errors_name_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error, atomic_write(tmp_path / "folder") as file:
        file.write(b"x")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "folder"), None)
    with pytest.raises(FileNotFoundError) as missing, atomic_folder(tmp_path / "model") as fresh:
        (fresh / "none" / "a.txt").write_text("x")
    assert missing.value.filename == str(tmp_path / "model" / "none" / "a.txt")
    with pytest.raises(OSError, match="of another matter") as other, atomic_write(tmp_path / "x"):
        raise OSError(104, "of another matter")
    assert other.value.filename is None


def test_a_writer_by_path_gets_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "picture.png") as fresh:
        assert (fresh.suffix, fresh.parent) == (".png", tmp_path)
        fresh.write_text("x")
    assert names(tmp_path) == ["picture.png"]


def test_permissions_are_the_usual_ones_or_those_that_were_there(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name in ("new", "old"):
            if name == "old":
                (tmp_path / name).write_text("")
                (tmp_path / name).chmod(0o600)
            with atomic_write(tmp_path / name) as file:
                file.write(b"x")
        write_folder(tmp_path / "folder", "x")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o600, "folder": 0o750}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_a_folder_is_exchanged_as_a_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_folder(tmp_path / "model", text)
        assert (tmp_path / "model" / "a.txt").read_text() == text
    with pytest.raises(TypeError):
        write_folder(tmp_path / "model", None)  # after the folder was made
    assert (tmp_path / "model" / "a.txt").read_text() == "two"
    assert names(tmp_path) == ["model"]
    assert not aside(tmp_path / "model").exists()


PROGRAM = """
import pathlib, sys, time
from ndm.storage.atomic import atomic_folder, atomic_path
path = pathlib.Path(sys.argv[1])
with (atomic_folder if path.suffix == "" else atomic_path)(path) as fresh:
    (fresh / "a.txt" if fresh.is_dir() else fresh).write_text("never finished")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["rows[1].csv", "model"])
def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            (left,) = names(tmp_path)
            if name != "model":
                refuse_if_being_written(path, tmp_path / left)
                with pytest.raises(FileExistsError, match="Another process is writing"):
                    refuse_if_being_written(path)
            if name == "model":
                write_folder(path, "mine")
            else:
                with atomic_write(path) as file:
                    file.write(b"mine")
            assert names(tmp_path) == [left, name]  # that is still being written
        finally:
            process.kill()
    deadline = time.monotonic() + 60
    while left in names(tmp_path) and time.monotonic() < deadline:  # the kill takes its time
        if name == "model":
            write_folder(path, "mine again")
        else:
            with atomic_write(path) as file:
                file.write(b"mine again")
    assert names(tmp_path) == [name]


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with atomic_write(path) as one:
        one.write(b"one")
        with atomic_write(path) as two:
            two.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["rows.csv"]


def test_a_checksum_is_that_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"

    def late() -> None:
        with atomic_path(path, replace=False) as fresh:
            fresh.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(FileExistsError, match="was created by another program"):
        late()
    assert path.read_text() == "theirs"
    path.unlink()
    with atomic_path(path, replace=False) as fresh:
        fresh.write_text("ours")
    assert path.read_text() == "ours"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a named pipe"), atomic_path(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.fixture
def interrupted_by(interruptible: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """interrupted_by(name, n): send Ctrl-C after the n-th call of a function that changes names."""

    def send(name: str, nth: int) -> None:
        owner: Any = os if name in ("link", "rmdir", "unlink") else Path
        original, calls = getattr(owner, name), itertools.count(1)

        def changed(*arguments: Any, **options: Any) -> Any:
            try:
                return original(*arguments, **options)
            finally:
                if next(calls) == nth:
                    os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(owner, name, changed)

    return send


@pytest.mark.parametrize(("name", "nth"), [("rename", 1), ("rename", 2), ("unlink", 1)])
def test_a_folder_is_exchanged_as_a_whole_when_it_is_interrupted(
    tmp_path: Path, interrupted_by: Any, name: str, nth: int
) -> None:
    write_folder(tmp_path / "model", "first")
    interrupted_by(name, nth)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", "second")
    assert (tmp_path / "model" / "a.txt").read_text() == "second"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_is_interrupted_when_it_has_its_name_leaves_no_other(
    tmp_path: Path, interrupted_by: Any, replace: bool
) -> None:
    done: list[bool] = []

    def write() -> None:
        with atomic_path(tmp_path / "x", replace, lambda: done.append(True)) as fresh:
            fresh.write_text("whole")

    interrupted_by("replace" if replace else "link", 1)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "x").read_text() == "whole"
    assert done == [True]
    assert names(tmp_path) == ["x"]
