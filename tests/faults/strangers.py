"""What the tests of hostile files share: limits, files that are not regular, and commands that read a run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

#: Bytes of memory that a refusal may take, besides what the packages take, and seconds.
MEMORY, SECONDS = 300 << 20, 60
NET = "model__denoiser__init_args__net"


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # an address may not be long
        made.bind(path.name)
        os.chdir(here)


EVALUATE = ["evaluate", "run", "--no-likelihood", "--steps", "5"]
SAMPLE = ["sample", "run", "-n", "4", "--steps", "3", "--out", "new.csv"]
SCORE = ["score", "run", "x.csv", "--no-likelihood", "--out", "new.csv"]
REPORT = ["report", "run", "--out", "new.html"]
RESUME = ["train", "--resume", "--out", "run", "--trainer.max_steps", "4"]
