"""Rows to be scored: of tables and of images, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import ndm
from ndm.data import from_levels
from ndm.scoring import ImageRows, TableRows, score
from tests.scoring.models import draw, gaussian, log_density_of_gaussian, small


def test_a_table_is_scored_in_its_order_and_by_its_names(tmp_path: Path) -> None:
    x = draw(50)
    frame = pandas.DataFrame(x.numpy(), columns=["a", "b", "c"]).assign(name="x", d=1.0)[["c", "d", "name", "b", "a"]]
    frame.to_csv(tmp_path / "x.csv", index=False)
    rows = TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c"))
    assert rows.count == 50
    assert [len(b) for b in rows.blocks(20, 5)] == [20, 20, 5]
    torch.testing.assert_close(torch.cat(list(rows.blocks(7, 0))).float(), x)
    score(gaussian(), rows, tmp_path / "x.parquet", tolerance=1e-5, max_rows=33, batch_size=10, progress=False)
    table = pandas.read_parquet(tmp_path / "x.parquet")
    np.testing.assert_allclose(table["log_prob"], log_density_of_gaussian(x[:33]), atol=1e-3)
    with pytest.raises(ValueError, match="no column 'e'"):
        TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "e"))
    with pytest.raises(ValueError, match=r"expects 3 columns, but .* has 4 numeric columns: c, d, b, a"):
        TableRows(str(tmp_path / "x.csv"), (3,))


def test_a_table_of_levels_is_what_they_stand_for(tmp_path: Path) -> None:
    k = torch.randint(5, (20, 4))
    pandas.DataFrame(k.numpy(), columns=list("abcd")).to_parquet(tmp_path / "x.parquet")
    rows = TableRows(str(tmp_path / "x.parquet"), (1, 2, 2), levels=5)
    torch.testing.assert_close(torch.cat(list(rows.blocks(7, 0))), from_levels(k, 5).reshape(-1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"row \d+, the column .* holds 4, which is not one of"):
        TableRows(str(tmp_path / "x.parquet"), (4,), levels=4)


def test_a_bad_cell_is_found_before_anything_is_scored(tmp_path: Path) -> None:
    pandas.DataFrame(draw(50).numpy(), columns=list("abc")).to_csv(tmp_path / "x.csv", index=False)
    with open(tmp_path / "x.csv", "a") as file:
        file.write("1,,3\n")
    with pytest.raises(ValueError, match="line 52, the column 'b' holds no value"):
        TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c"))
    draws = pandas.DataFrame(draw(3000).numpy(), columns=list("abc")).astype("float64")
    draws.iloc[-1, 1] = 1e300
    draws.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(ValueError, match=r"line 3001, the column .b. holds 1e\+300, which is larger"):
        TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c"))


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., tuple[str, np.ndarray]]:
    pytest.importorskip("datasets")

    def write(split: str = "") -> tuple[str, np.ndarray]:
        pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4), dtype=np.uint8)
        (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "images" / split / f"{i}.png")
        return str(tmp_path / "images"), pixels

    return write


def test_images_are_scored_in_their_order(images: Callable, tmp_path: Path) -> None:
    path, pixels = images()
    rows = ImageRows(path, (1, 4, 4))
    expected = from_levels(torch.from_numpy(pixels.astype(int)), 256)[:, None]
    torch.testing.assert_close(torch.cat(list(rows.blocks(3, 2))), expected[2:], rtol=0, atol=0)
    model = gaussian(decoder=ndm.DiscretizedDecoder(levels=256))
    score(model, rows, tmp_path / "x.csv", times=2, likelihood=False, batch_size=2, progress=False)
    score(model, expected, tmp_path / "y.csv", times=2, likelihood=False, batch_size=2, progress=False)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    with pytest.raises(ValueError, match="4 x 4 pixels"):
        next(ImageRows(path, (1, 8, 8)).blocks(2, 0))
    assert next(ImageRows(path, (1, 8, 8), size=8).blocks(2, 0)).shape == (2, 1, 8, 8)


def test_of_several_splits_one_is_chosen(images: Callable) -> None:
    images("train")
    path, _ = images("test")
    assert ImageRows(path, (1, 4, 4), split="test").count == 7
    with pytest.raises(ValueError, match="splits train, test: choose one"):
        ImageRows(path, (1, 4, 4))
    with pytest.raises(ValueError, match="no validation split"):
        ImageRows(path, (1, 4, 4), split="validation")


def test_images_have_the_labels_of_their_folders(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for i in range(6):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    rows = ImageRows(str(tmp_path / "images"), (1, 4, 4))
    labels = rows.labels(classes=2)
    assert labels is not None
    # The value of an image is that of its number, and so tells its folder.
    assert ((torch.cat(list(rows.blocks(6, 0)))[:, 0, 0, 0] * 128 + 127.5).round().long() % 2 == labels).all()
    with pytest.raises(ValueError, match="has 2 classes, and the model 3, so that the labels may have another meaning"):
        rows.labels(classes=3)
    assert ImageRows(str(tmp_path / "images" / "a"), (1, 4, 4)).labels(classes=3) is None


def test_a_table_has_a_column_of_labels(tmp_path: Path) -> None:
    x, labels = draw(20), torch.arange(20) % 3
    pandas.DataFrame(x.numpy(), columns=list("abc")).assign(label=labels).to_csv(tmp_path / "x.csv", index=False)
    rows = TableRows(str(tmp_path / "x.csv"), (3,), label="label")
    assert rows.columns == ("a", "b", "c")
    model = small(classes=3)
    score(model, rows, tmp_path / "x.parquet", times=2, tolerance=0.1, batch_size=8, progress=False)
    expected = ndm.log_likelihood(model, x, labels=labels, tolerance=0.1).log_prob
    np.testing.assert_allclose(pandas.read_parquet(tmp_path / "x.parquet")["log_prob"], expected, atol=1e-5)
    score(model, rows, tmp_path / "y.parquet", times=2, tolerance=0.1, batch_size=8, progress=False, labels=2)
    twos = (
        pandas.read_parquet(tmp_path / "y.parquet")["log_prob"]
        == pandas.read_parquet(tmp_path / "x.parquet")["log_prob"]
    )
    assert twos.tolist() == (labels == 2).tolist()
    with pytest.raises(ValueError, match="no column 'class'"):
        TableRows(str(tmp_path / "x.csv"), (3,), label="class")
    with pytest.raises(ValueError, match="rows have no labels"):
        score(model, TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c")), tmp_path / "z.csv")
    with pytest.raises(ValueError, match="Labels need a class-conditional model"):
        score(small(), x, tmp_path / "z.csv", labels=1)
