"""What asks for too much memory is refused before it is asked of the system."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from ndm.networks import ResidualMLP
from ndm.storage import allowance, memory
from ndm.storage.allowance import Allowance
from ndm.storage.memory import TooLargeError, free, require, require_unpacked


def test_there_is_less_free_than_the_computer_has() -> None:
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert 1e6 < free() <= 1024 * total


def test_the_least_of_the_limits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in {"_of_the_computer": 5e9, "_of_the_group": 3e9, "_of_the_process": 4e9}.items():
        monkeypatch.setattr(memory, name, lambda limit=limit: limit)
    assert free() == 3e9
    require(2.9e9, "This", "do without")
    with pytest.raises(
        TooLargeError, match=r"^This needs about 3.1 GB of memory, but only 3 GB are free: do without\.$"
    ):
        require(3.1e9, "This", "do without")


@pytest.mark.parametrize("arguments", [{"hidden": 10**12}, {"classes": 10**13}, {"features": 10**12, "hidden": 1}])
def test_a_large_network_is_refused_unmade(arguments: dict[str, int]) -> None:
    sentence = "The model needs tensors of more than 1 GB, one of them of .* GB: make it smaller"
    with pytest.raises(TooLargeError, match=sentence), Allowance(1e9, "The model", "make it smaller"):
        ResidualMLP(**{"features": 2, "hidden": 8} | arguments)


def test_many_small_tensors_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "MOST_TENSORS", 200)
    with pytest.raises(TooLargeError, match="more than 200 tensors"), Allowance(1e9, "It", "make it smaller"):
        ResidualMLP(2, hidden=4, depth=10**9)


def test_what_is_allowed_is_made_as_ever() -> None:
    torch.manual_seed(0)
    plain = ResidualMLP(2, hidden=16)
    torch.manual_seed(0)
    with Allowance(1e6, "It", "make it smaller") as allowance:
        counted = ResidualMLP(2, hidden=16)
    size = sum(p.nbytes for p in plain.parameters())
    assert size <= allowance.made <= 4 * size + 1000
    for a, b in zip(plain.parameters(), counted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: torch.zeros(3, 5), 60),
        (lambda: torch.zeros((3, 5), dtype=torch.float64), 120),
        (lambda: torch.empty(size=(7,)), 28),
        (lambda: torch.full((2, 3), 1.0), 24),
        (lambda: torch.eye(4), 64),
        (lambda: torch.ones(2).new_zeros(10), 8 + 40),
        (lambda: torch.arange(6), 48),
        (lambda: torch.tensor([1.0, 2.0]).double(), 8 + 16),
        (lambda: torch.zeros(4).add_(1).view(2, 2), 16),
    ],
)
def test_bytes_are_counted_once(make, size: int) -> None:  # type: ignore[no-untyped-def]
    with Allowance(1e6, "It", "") as allowance:
        make()
    assert allowance.made == size


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    whole, packed = tmp_path / "whole.ckpt", tmp_path / "packed.ckpt"
    torch.save({"x": torch.zeros(100_000)}, whole)
    require_unpacked(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < whole.stat().st_size / 10
    with pytest.raises(ValueError, match="larger when unpacked"):
        require_unpacked(packed)
    packed.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not an archive"):
        require_unpacked(packed)
