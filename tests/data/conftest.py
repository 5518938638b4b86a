"""Small files of images, written by Pillow and pyarrow alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ndm.data import building
from tests.data.pictures import N


def encode(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An image file of an array, (H, W) or (H, W, channels)."""
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(file, kind)
    return file.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes],
    labels: list[int] | None = None,
    column: str = "image",
    hub: bool = True,
    **more: list,
) -> Path:
    """A parquet file as the hub has them: a struct of bytes and path, its features in the schema's metadata."""
    cells = pa.array(
        [{"bytes": data, "path": None} for data in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    columns: dict = {column: cells}
    features: dict = {column: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"names": [str(i) for i in range(10)], "_type": "ClassLabel"}
    for name, values in more.items():
        columns[name] = pa.array(values)
        features[name] = {"dtype": str(columns[name].type), "_type": "Value"}
    table = pa.table(columns)
    if hub:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.fixture(name="encode")
def encode_fixture() -> Callable[..., bytes]:
    return encode


@pytest.fixture(name="write_parquet")
def write_parquet_fixture() -> Callable[..., Path]:
    return write_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded images go to a folder of the test's own."""
    monkeypatch.setenv("NDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pixels() -> np.ndarray:
    """Forty random colour images of 6 x 5 pixels, uint8 (40, 6, 5, 3); any two of them differ."""
    return np.random.RandomState(1).randint(0, 256, (40, 6, 5, 3)).astype(np.uint8)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images are decoded at a time, so that what holds for many times many is seen."""
    monkeypatch.setattr(building, "_PIECE", 7)
    monkeypatch.setattr(building, "_SHARE", 3)


@pytest.fixture
def train_file(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> Path:
    """One parquet file of N images, the labels of which are their numbers."""
    return write_parquet(tmp_path / "x.parquet", [encode(p) for p in pixels], list(range(N)))


@pytest.fixture
def pattern(tmp_path: Path, pixels: np.ndarray, encode, write_parquet) -> str:
    """Files of a training split (two, of 12 images each) and a test split."""
    files = [encode(p) for p in pixels]
    for name, rows in (("train-0", range(12)), ("train-1", range(12, 24)), ("test", range(24, N))):
        write_parquet(tmp_path / "set" / f"{name}.parquet", [files[i] for i in rows], list(rows))
    return str(tmp_path / "set" / "*.parquet")
