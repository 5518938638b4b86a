"""Images as inline PNG: one file per grid, with transparent gaps."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torch.nn import functional

__all__ = ["LARGEST", "diverging", "matrix", "nearly_square", "picture", "shades", "shown"]

#: Maximum pixels of the longer side of an image in a grid; larger images are downsampled by averaging.
LARGEST = 96


def shades(x: Tensor, limit: float | Tensor = 1.0) -> Tensor:
    """Convert images, (..., C, H, W), to uint8, (..., H, W, C): -limit is black, limit is white."""
    return _bytes((x.detach().double().cpu() / limit + 1) / 2).movedim(-3, -1)


def diverging(x: Tensor, limit: float) -> Tensor:
    """Colour the channel mean of differences, (..., C, H, W): blue < 0, white 0, red > 0; uint8 (..., H, W, 3)."""
    share = (x.detach().double().cpu().mean(-3) / limit).clamp(-1, 1)
    colours = np.asarray(matplotlib.colormaps["RdBu_r"](((share + 1) / 2).numpy()))
    return _bytes(torch.from_numpy(colours[..., :3]))


def _bytes(share: Tensor) -> Tensor:
    return (share.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def nearly_square(images: Tensor) -> list[list[Tensor]]:
    """Arrange images, (N, H, W, C), in rows."""
    columns = math.ceil(math.sqrt(len(images)))
    return [list(images[i : i + columns]) for i in range(0, len(images), columns)]


def matrix(rows: Sequence[Sequence[Tensor | None]], gap: int = 1) -> tuple[str, int, int]:
    """Combine rows of images, each uint8 (H, W, C) with C = 1 or 3, or None for an empty cell, to one picture.

    Returns:
        The picture as a data URL, its width and its height.
    """
    tiles = [[None if image is None else _small(image) for image in row] for row in rows]
    drawn = [tile for row in tiles for tile in row if tile is not None]
    height, width = drawn[0].shape[:2]
    columns = max(len(row) for row in tiles)
    grey = all(tile.shape[2] == 1 for tile in drawn)
    depth = 2 if grey else 4
    whole = np.zeros((len(tiles) * (height + gap) - gap, columns * (width + gap) - gap, depth), np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if tile is None:
                continue
            at = whole[i * (height + gap) :, j * (width + gap) :][:height, :width]
            at[..., :-1] = tile
            at[..., -1] = 255
    file = io.BytesIO()
    Image.fromarray(whole, "LA" if grey else "RGBA").save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), whole.shape[1], whole.shape[0]


def _small(image: Tensor) -> np.ndarray:
    factor = math.ceil(max(image.shape[:2]) / LARGEST)
    if factor == 1:
        return image.numpy()
    pooled = functional.avg_pool2d(image.movedim(-1, 0).double(), factor, ceil_mode=True)
    return pooled.round().to(torch.uint8).movedim(0, -1).numpy()


def picture(
    rows: Sequence[Sequence[Tensor | None]], label: str, heads: Sequence[str] = (), sides: Sequence[str] = ()
) -> Markup:
    """Combine rows of images to one HTML picture without interpolation.

    Args:
        rows: uint8 (H, W, C) each, or None for an empty cell.
        label: text alternative.
        heads: labels above the columns.
        sides: labels beside the rows.
    """
    address, width, height = matrix(rows)
    columns = max(len(row) for row in rows)
    image = Markup('<img class="pixels" src="{}" width="{}" height="{}" alt="{}">').format(
        address, width, height, label
    )
    if not heads and not sides:
        return image
    above = Markup("").join(Markup("<span>{}</span>").format(h) for h in heads)
    beside = Markup("").join(Markup("<span>{}</span>").format(s) for s in sides)
    return Markup(
        '<div class="scroll strip" role="region" tabindex="0" aria-label="{}">'
        '<div class="film" style="--columns: {}; --rows: {}" ><div class="heads" aria-hidden="true">{}</div>'
        '<div class="sides" aria-hidden="true">{}</div>{}</div></div>'
    ).format(label, columns, len(rows), above, beside, image)


def shown(x: Tensor, levels: int | None) -> Tensor:
    """Convert images in the data's units to bytes: the lowest of K levels is black, the highest white."""
    return shades(x * levels / (levels - 1) if levels else x)
