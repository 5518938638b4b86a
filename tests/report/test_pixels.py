"""Images inside the page, read back from what was written."""

from __future__ import annotations

import base64
import io

import html5lib
import numpy as np
import pytest
import torch
from PIL import Image

from ndm.report.pixels import LARGEST, diverging, matrix, nearly_square, picture, shades, shown


def read(address: str) -> np.ndarray:
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_images_stand_in_rows_with_clear_gaps() -> None:
    tiles = [torch.full((2, 3, 1), 10 * i, dtype=torch.uint8) for i in range(1, 4)]
    address, width, height = matrix([tiles[:2], [tiles[2], None]])
    found = read(address)
    assert found.shape == (5, 7, 2) == (height, width, 2)
    assert (found[:2, :3] == [10, 255]).all()
    assert (found[:2, 4:] == [20, 255]).all()
    assert (found[3:, :3] == [30, 255]).all()
    assert (found[3:, 4:, 1] == 0).all()
    assert (found[2, :, 1] == 0).all()
    assert (found[:, 3, 1] == 0).all()


def test_grey_images_stand_beside_coloured_ones() -> None:
    grey, red = (
        torch.full((2, 2, 1), 7, dtype=torch.uint8),
        torch.tensor([200, 0, 0], dtype=torch.uint8).expand(2, 2, 3),
    )
    found = read(matrix([[grey, red]])[0])
    assert found[0, 0].tolist() == [7, 7, 7, 255]
    assert found[0, 3].tolist() == [200, 0, 0, 255]


def test_large_images_are_averaged() -> None:
    large = torch.zeros(3 * LARGEST, 3 * LARGEST, 1, dtype=torch.uint8)
    large[::3] = 90
    found = read(matrix([[large]])[0])
    assert found.shape == (LARGEST, LARGEST, 2)
    assert (found[..., 0] == 30).all()


def test_shades() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 5)
    assert shades(x).flatten().tolist() == [0, 0, 128, 255, 255]
    assert shades(x, 4.0).flatten().tolist() == [64, 96, 128, 159, 223]
    levels = torch.tensor([-0.75, -0.25, 0.25, 0.75]).reshape(1, 2, 2)  # K = 4
    assert shown(levels, 4).flatten().tolist() == [0, 85, 170, 255]
    assert shown(levels, None).flatten().tolist() == [32, 96, 159, 223]


def test_differences_are_blue_below_and_red_above() -> None:
    low, zero, high = diverging(torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 1, 3), 1.0)[0].int()
    assert low[2] > low[0] + 50
    assert high[0] > high[2] + 50
    assert (zero > 240).all()


def test_a_nearly_square_grid() -> None:
    assert [len(row) for row in nearly_square([torch.zeros(1)] * 7)] == [3, 3, 1]


@pytest.mark.parametrize("heads", [(), ("t = 1", "<b>")])
def test_a_picture_says_what_it_is(heads: tuple[str, ...]) -> None:
    tile = torch.zeros(2, 2, 1, dtype=torch.uint8)
    text = picture([[tile, tile]], 'of <run> "x"', heads, ["F"] if heads else ())
    root = html5lib.parseFragment(text, namespaceHTMLElements=False)
    image = next(root.iter("img"))
    assert image.get("alt") == 'of <run> "x"'
    assert (image.get("width"), image.get("height")) == ("5", "2")
    assert [e.get("tabindex") for e in root.iter("div") if e.get("role") == "region"] == (["0"] if heads else [])
    assert "<b>" not in text
