"""Tables and images from strangers: each is refused by one sentence, soon, without much memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import hostile
from tests.faults.strangers import endless, pipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("counted")]

# ---- tables


def write(make: Callable[[Path], Any], name: str) -> Callable[[Path], str]:
    def written(folder: Path) -> str:
        make(folder / name)
        return name

    return written


TABLES: dict[str, tuple[Callable[[Path], str], str]] = {
    "400,000,000 rows": (write(hostile.tall_parquet, "x.parquet"), "400,000,000 rows of 2 columns, needs about 26 GB"),
    "1,000,000 columns": (write(lambda p: hostile.wide_csv(p, 10**6, 1), "x.csv"), "1,000,000 columns"),
    "200,000 columns": (write(lambda p: hostile.wide_parquet(p, 200_000), "x.parquet"), "columns"),
    "a line without an end": (write(lambda p: hostile.sparse(p), "x.csv"), "it is not a CSV table"),
    "no Parquet": (write(lambda p: hostile.sparse(p), "x.parquet"), "cannot be read as a Parquet file"),
    "an open quote": (write(lambda p: p.write_text('a,b\n1,"2\n' + "3,4\n" * 2_000_000), "x.csv"), "x.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_refused(folder: Path, name: str, refused: Callable[..., None]) -> None:
    make, sentence = TABLES[name]
    refused(["train", "table", "--data.path", make(folder), "--out", "new"], sentence)


# ---- images

IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "long": (lambda p: p.write_bytes(hostile.png(2, 8_000_000)), "has 2 x 8,000,000 pixels"),
    "large": (lambda p: p.write_bytes(hostile.png(12_000, 12_000)), "has 12,000 x 12,000 pixels"),
    "larger": (lambda p: p.write_bytes(hostile.png(40_000, 40_000)), "more than 89,478,485 pixels"),
    "a pipe": (pipe, "a named pipe, not a regular file"),
    "zeros": (endless, "a device, not a regular file"),
    "a large file": (lambda p: hostile.sparse(p), "larger than 536,870,912 bytes"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_refused(folder: Path, name: str, refused: Callable[..., None]) -> None:
    make, sentence = IMAGES[name]
    (folder / "pictures").mkdir()
    for i in range(8):
        (folder / "pictures" / f"{i}.png").write_bytes(hostile.png(8, 8))
    make(folder / "pictures" / "9.png")
    words = ["train", "images", "--data.path", "pictures", "--data.size", "8", "--data.validation", "1", "--out", "new"]
    refused(words, sentence, memory=1 << 30)
