"""Files that mean harm, and the command run on them with limits."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

#: Bytes of address space that a command may have, seconds of the processor and of the clock.
ADDRESSES, PROCESSOR, CLOCK = 10 << 30, 60, 300

CONFIG = """
model:
  schedule: {class_path: LinearSchedule, init_args: {gamma_min: -6.0}}
  transform: {class_path: Identity}
  denoiser:
    class_path: Denoiser
    init_args: {net: {class_path: ResidualMLP, init_args: {features: 2, hidden: 8, depth: 1}}}
data: {class_path: Pinwheel, init_args: {train: 64, validation: 32, test: 16}}
training: {batch_size: 16, standardize: true}
trainer: {max_steps: 2, val_check_interval: 2, accelerator: cpu}
"""

#: What runs if a file of it is imported.
EVIL = "open('ran', 'w').close()\nclass X:\n    pass\n"


#: Has the packages imported, and runs each command in a copy of itself, within limits.
_SERVER = """
import json, os, resource, signal, sys, time, traceback
import datasets, pandas, pyarrow.parquet, PIL.Image
import ndm.cli, ndm.configs.recorded, ndm.data.decoding, ndm.evaluation, ndm.networks, ndm.report, ndm.samples
import ndm.scoring, ndm.training

ndm.networks.UNet
base = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    job = json.loads(line)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        for number, name in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_AS, (job["addresses"],) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (job["processor"],) * 2)
        signal.alarm(job["clock"])
        code = 1
        try:
            code = ndm.cli.main(job["words"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    taken = max(0, 1024 * used.ru_maxrss - base)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - start, taken]), flush=True)
"""


@dataclass
class Result:
    """What a command has done: its exit code and words, and the seconds and the bytes of memory that it took."""

    code: int
    out: str
    err: str
    seconds: float
    memory: int


class Commands:
    """Runs the command, one after another, each in a process of its own, in which the packages are imported."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env=environment(scratch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, *words: str) -> Result:
        out, err = self.scratch / "out", self.scratch / "err"
        job = {"folder": str(folder), "words": words, "out": str(out), "err": str(err)}
        job |= {"addresses": ADDRESSES, "processor": PROCESSOR, "clock": CLOCK}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code, seconds, memory = json.loads(self._server.stdout.readline())
        return Result(code, out.read_text(), err.read_text(), seconds, memory)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


def environment(scratch: Path) -> dict[str, str]:
    places = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "NDM_CACHE": str(scratch / "cache")}


def program(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m ndm`` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "ndm", *words],
        cwd=folder, env=environment(folder.parent), capture_output=True, text=True, timeout=CLOCK, check=False,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What is in a folder: kinds, sizes and times of change by path."""
    every = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    stats = {str(path.relative_to(folder)): path.lstat() for path in every if not path.is_dir()}
    return {name: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


# ---- texts


def aliases(levels: int = 12) -> str:
    """YAML that stands for 9^levels words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int = 20) -> str:
    """The same by merge keys."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def deep(opening: str = "[", times: int = 100_000) -> str:
    return opening * times


def changed(text: str, **parts: Any) -> str:
    """A configuration in which parts, by their paths with _ for the dots, are others."""
    tree = yaml.safe_load(text)
    for path, value in parts.items():
        *above, last = path.split("__")
        node = tree
        for name in above:
            node = node[name]
        node[last] = value
    return yaml.safe_dump(tree, sort_keys=False)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- images


def png(width: int, height: int) -> bytes:
    """A black image, one bit a pixel, packed tight."""
    packed, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# ---- tables


def tall_parquet(path: Path, rows: int = 400_000_000) -> None:
    """A Parquet file of so many rows of two equal columns, a fraction of a byte each."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    at_once = min(rows, 10_000_000)
    values = pa.array(np.zeros(at_once))
    table = pa.table({"a": values, "b": values})
    with ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(rows // at_once):
            writer.write_table(table, row_group_size=at_once)


def wide_parquet(path: Path, columns: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    value = pa.array([0.0, 1.0])
    parquet.write_table(pa.Table.from_arrays([value] * columns, [f"c{i}" for i in range(columns)]), path)


def wide_csv(path: Path, columns: int, rows: int = 3) -> None:
    lines = [",".join(f"c{i}" for i in range(columns))]
    cells = ([(7919 * i + 104729 * r + r * r * i) % 997 / 10 for i in range(columns)] for r in range(rows))
    lines += [",".join(map(str, row)) for row in cells]
    path.write_text("\n".join(lines) + "\n")


def sparse(path: Path, size: int = 1 << 40) -> None:
    """A file that says it is large, and takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


# ---- archives


def packed(path: Path, size: int = 4 << 30) -> None:
    """A checkpoint with a tensor that is packed a thousandfold."""
    import zipfile

    small = path.with_suffix(".small")
    torch.save({"global_step": 1, "state_dict": {"model.x": torch.zeros(4)}}, small)
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name.endswith("data/0"):
                with new.open(name, "w", force_zip64=True) as file:
                    for _ in range(size >> 24):
                        file.write(bytes(1 << 24))
            else:
                new.writestr(name, old.read(name))
    small.unlink()


def tall_npz(path: Path, numbers: int = 1 << 31) -> None:
    """Arrays for evaluation.npz that unfold to eight bytes a number."""
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (numbers,)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bound.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range((8 * numbers) >> 24):
            file.write(bytes(1 << 24))


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run")
    return folder / "run"
