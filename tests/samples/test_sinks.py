"""Files that take samples block by block, on disks that are full."""

from __future__ import annotations

import errno
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from ndm.samples import save_samples
from ndm.samples.sinks import Spill


class Full(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 3000

    def write(self, data: Any) -> int:
        fits = min(len(data), self.room - self.tell())
        if fits <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data)[:fits])


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a full disk; that of temporary files is another one, beside it."""
    begin = Spill.__init__

    def begun(self: Spill, path: Path, name: str) -> None:
        begin(self, path, name)
        self._file.close()
        self._file = Full(path, "r+b")

    monkeypatch.setattr(Spill, "__init__", begun)
    for name in ("full", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    return tmp_path / "full"


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npz", "x.png"])
def test_a_file_whose_disk_is_full_goes_on_elsewhere(tmp_path: Path, full: Path, name: str) -> None:
    x = torch.randn(1000, 3)
    (full / name).write_text("the old ones")
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\); the samples are in") as error:
        save_samples(x, full / name)
    kept = Path(re.search(r"are in (.*)\.$", str(error.value))[1])  # type: ignore[index]
    assert (full / name).read_text() == "the old ones"
    assert [p.name for p in full.iterdir()] == [name]
    assert (kept.name, kept.parent.parent) == (name, tmp_path / "elsewhere")
    if name == "x.npz":
        np.testing.assert_array_equal(np.load(kept)["x"], x.numpy())
    elif name == "x.png":
        assert kept.read_bytes().endswith(b"IEND\xaeB\x60\x82")
    else:
        table = pandas.read_csv(kept) if name == "x.csv" else pandas.read_parquet(kept)
        np.testing.assert_array_equal(table.to_numpy(np.float32), x.numpy())


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npz"])
def test_where_there_is_no_room_at_all_nothing_is_kept(
    tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_room(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("shutil.copyfile", no_room)
    with pytest.raises(
        OSError,
        match=r"x\.\w+ could not be written \(No space left on device\) after .* the incomplete file was deleted",
    ):
        save_samples(torch.randn(1000, 3), full / name)
    assert list(full.iterdir()) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []
