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
