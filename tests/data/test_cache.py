"""A folder that is made once: completely, or not at all."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ndm.data import cache
from ndm.data.cache import ArrayFile, cache_folder, key_of, made_once


def make(folder: Path) -> dict:
    np.save(folder / "x.npy", np.arange(10))
    (folder / "notes").write_text("hello")
    return {"n": 10}


class Making:
    """Counts how often it is asked to make a folder."""

    def __init__(self, pause: float = 0.0) -> None:
        self.times, self.pause = 0, pause

    def __call__(self, folder: Path) -> dict:
        self.times += 1
        time.sleep(self.pause)
        return make(folder)


def test_made_once(tmp_path: Path) -> None:
    making = Making()
    for _ in range(3):
        assert made_once(tmp_path / "new" / "a", making) == {"n": 10}
    assert making.times == 1
    assert np.array_equal(np.load(tmp_path / "new" / "a" / "x.npy"), np.arange(10))


def test_those_who_come_meanwhile_wait(tmp_path: Path) -> None:
    making, found = Making(pause=0.3), []
    threads = [threading.Thread(target=lambda: found.append(made_once(tmp_path / "a", making))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"n": 10}] * 4
    assert making.times == 1


def test_a_flipped_bit_has_the_folder_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making = Making()
    made_once(tmp_path / "a", making)
    path = tmp_path / "a" / "x.npy"
    whole = path.read_bytes()

    def flip() -> None:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    flip()
    made_once(tmp_path / "a", making)
    assert (making.times, path.read_bytes()) == (2, whole)
    monkeypatch.setattr(cache, "VERIFIED", 10)
    flip()
    made_once(tmp_path / "a", making)
    assert making.times == 2  # a large folder is taken at its sizes
    monkeypatch.setenv("NDM_VERIFY_CACHE", "1")
    made_once(tmp_path / "a", making)
    assert (making.times, path.read_bytes()) == (3, whole)


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict:
        make(folder)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        made_once(tmp_path / "a", fail)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["a.lock"])
    assert made_once(tmp_path / "a", make) == {"n": 10}


def test_a_killed_making_is_made_again(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:

        def die(folder: Path) -> dict:
            make(folder)
            os.kill(os.getpid(), signal.SIGKILL)
            return {}

        made_once(tmp_path / "a", die)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "a").exists()
    left = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(left) == 1  # or this test does not test what it says

    making = Making()
    assert made_once(tmp_path / "a", making) == {"n": 10}
    assert making.times == 1
    assert not left[0].exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "x.npy").unlink(),
        lambda folder: (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-1]),
        lambda folder: (folder / "x.npy").write_bytes(b"?" * (folder / "x.npy").stat().st_size),
        lambda folder: (folder / "notes").write_text("hello!"),
        lambda folder: (folder / "contents.json").unlink(),
        lambda folder: (folder / "contents.json").write_text("{"),
        lambda folder: (folder / "contents.json").write_text("[]"),
        lambda folder: (folder / "contents.json").write_text(json.dumps({"files": {}})),
    ],
)
def test_a_damaged_folder_is_made_again(tmp_path: Path, damage) -> None:
    making = Making()
    made_once(tmp_path / "a", making)
    damage(tmp_path / "a")
    assert made_once(tmp_path / "a", making) == {"n": 10}
    assert making.times == 2
    assert np.array_equal(np.load(tmp_path / "a" / "x.npy"), np.arange(10))
    assert (tmp_path / "a" / "notes").read_text() == "hello"


def test_others_may_read_what_they_might_read_elsewhere(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        made_once(tmp_path / "a", make)
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_keys_tell_descriptions_apart() -> None:
    assert key_of({"a": 1, "b": [2, None]}) == key_of({"b": [2, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("NDM_CACHE", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/ndm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/ndm")
    monkeypatch.setenv("NDM_CACHE", "~/mine")
    assert cache_folder() == Path("/home/somebody/mine")
    assert cache_folder("/here") == Path("/here")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_arrays_written_piece_by_piece(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.RandomState(0).randint(0, 256, (1234, *shape)).astype(np.uint8)
    with ArrayFile(tmp_path / "x.npy", shape, np.uint8) as file:
        for piece in np.array_split(x, 7):
            file.append(piece)
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)
    assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), x)
