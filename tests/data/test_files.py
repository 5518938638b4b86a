"""Which files of a folder are read, and which are left out and counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ndm.data.files import IMAGE_SUFFIXES, counted, left_out_line, require_regular, walk

KINDS = dict.fromkeys(IMAGE_SUFFIXES, "images")


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_files_come_folder_by_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ["b/1.png", "b/0.JPG", "a/z/0.gif", "a/0.tiff", "1.webp", "0.Bmp", "2.jfif", "3.pgm"]
    put(*(tmp_path / name for name in names))
    found = walk(tmp_path, KINDS)
    expected = ["0.Bmp", "1.webp", "2.jfif", "3.pgm", "a/0.tiff", "a/z/0.gif", "b/0.JPG", "b/1.png"]
    assert [str(f.relative_to(tmp_path)) for f in found.files["images"]] == expected
    assert not found.left_out
    assert left_out_line(found.left_out, "images") == []


def test_others_are_counted_by_their_kind(tmp_path: Path) -> None:
    put(*(tmp_path / name for name in ["0.png", "a.txt", "b/c.TXT", "Thumbs.db", "README", ".x.png", ".git/y.png"]))
    found = walk(tmp_path, KINDS)
    assert [f.name for f in found.files["images"]] == ["0.png"]
    assert found.left_out == {
        ".txt": 2, ".db": 1, "file without an ending": 1, "hidden file": 1, "hidden folder": 1
    }  # fmt: skip
    (line,) = left_out_line(found.left_out, "images")
    assert line.startswith("left out: 2 .txt, ")


def test_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "0.png", tmp_path / "elsewhere" / "1.png", tmp_path / "set" / "a" / "2.png")
    (tmp_path / "set" / "b").symlink_to("../elsewhere")
    (tmp_path / "set" / "a" / "3.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "set" / "a" / "4.png").symlink_to("nowhere.png")
    found = walk(tmp_path / "set", KINDS)
    names = [str(f.relative_to(tmp_path / "set")) for f in found.files["images"]]
    assert names == ["a/2.png", "a/3.png", "b/0.png", "b/1.png"]
    assert found.left_out == {"broken link": 1}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", tmp_path / "b" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    found = walk(tmp_path / "a", KINDS)
    assert {f.name for f in found.files["images"]} == {"0.png", "1.png"}
    assert found.left_out["link to a folder that it is in"] >= 2


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "0.png")
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is a named pipe, not a regular file: remove it"):
        walk(tmp_path, KINDS)
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"1\.png is a device, not a regular file"):
        walk(tmp_path, KINDS)
    require_regular(tmp_path / "0.png")


def test_many_kinds_are_put_together() -> None:
    assert counted({"a": 1, "b": 1_200}) == "1,200 b, 1 a"
    assert counted({"a": 9, "b": 8, "c": 2, "d": 1}, most=2) == "9 a, 8 b, 3 of 2 other kinds"
