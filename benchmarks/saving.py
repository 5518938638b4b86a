"""What keeping models and runs safe costs: checksums, a look for numbers that are not finite, CRCs, locks.

python benchmarks/saving.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from bench import parameters, table

import ndm
from ndm.configs.configuration import Configuration
from ndm.storage.atomic import sha256_of
from ndm.storage.checkpoints import CHECKSUMS, CONFIG, WEIGHTS
from ndm.storage.lock import FolderLock

REPEATS = 7
DATA = ["--data", "Patterns", "--data.channels", "3", "--data.size", "32", "--data.examples", "8"]


def milliseconds(step: Callable[[], object]) -> float:
    """The median of several times, by the clock."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step()
        found.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(found), 2)


def compare_crc(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def main() -> None:
    model = Configuration.read("cifar10", DATA).build().model
    with tempfile.TemporaryDirectory() as scratch:
        folder, checkpoint = Path(scratch) / "model", Path(scratch) / "x.ckpt"
        torch.save(model.state_dict(), checkpoint)
        rows = [
            ("save a model", milliseconds(lambda: model.save_pretrained(folder))),
            ("load it", milliseconds(lambda: ndm.NDM.from_pretrained(folder))),
            (
                "SHA-256 of its two files",
                milliseconds(lambda: [sha256_of(folder / n) for n in (CONFIG, WEIGHTS)]),
            ),
            ("look for NaN and infinity", milliseconds(lambda: [p.isfinite().all() for p in model.parameters()])),
            ("read a checkpoint of that size", milliseconds(lambda: torch.load(checkpoint, weights_only=True))),
            ("its CRC", milliseconds(lambda: compare_crc(checkpoint))),
            ("lock a folder and let go", milliseconds(lambda: FolderLock(Path(scratch)))),
        ]
        (folder / CHECKSUMS).unlink()
        rows.insert(2, ("load it without checksums", milliseconds(lambda: ndm.NDM.from_pretrained(folder))))
        print(f"{parameters(model):,} parameters, {checkpoint.stat().st_size:,} bytes")
    print(table([[what, f"{time_:.2f}"] for what, time_ in rows], ["what", "milliseconds"]))


if __name__ == "__main__":
    main()
