"""From the bytes of an image file to an array of pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ["DecodingError", "decode"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others may call programs: EPS does
_GREY = frozenset({"1", "L", "LA", "La"})
_EIGHT_BITS = _GREY | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_ORIENTATION = 0x0112  # the EXIF tag
_REDUCING_GAP = 3.0  # from here on, a first reduction by whole numbers cannot be told from doing without, says Pillow


class DecodingError(ValueError):
    """An image cannot be had from a cell of a table; the message, the end of a sentence, says why."""


def decode(cell: Any, size: int | None, channels: int | None) -> np.ndarray:
    """The pixels of one image.

    Palettes, CMYK and the like become RGB; grey becomes RGB by repetition and RGB becomes grey by its luma (ITU-R 601),
    which is exact where the three channels are equal. An alpha channel is dropped if the image is opaque everywhere.
    Photographs that say which side is up are turned.

    Args:
        cell: the bytes of a file, or a mapping with ``bytes`` or the ``path`` (or address) of a file.
        size: resize the shorter side to this (Lanczos, which averages when it shrinks) and crop the middle of
            size x size; None to leave the image as it is.
        channels: 1 for grey, 3 for colour; None for what the image is.

    Returns:
        uint8, (channels, H, W).

    Raises:
        DecodingError: there is no image, it is damaged, has more than eight bits a channel or is partly transparent.
    """
    data = _bytes(cell)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            _require_eight_bits(opened)
            opened.load()
            image: Image.Image = opened
            if opened.getexif().get(_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(opened)
            image = _converted(image, channels)
    except DecodingError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodingError(f"is not an image in a format that is read here ({', '.join(_FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DecodingError(f"cannot be decoded, its file may be truncated or damaged ({error})") from None
    if size is not None:
        image = _cropped(image, size)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _bytes(cell: Any) -> bytes:
    if isinstance(cell, Mapping):
        data, path = cell.get("bytes"), cell.get("path")
        if data is None and path:
            return _read(path)
    else:
        data = cell
    if not data:
        raise DecodingError("has no bytes")
    return bytes(data)


def _read(path: str) -> bytes:
    try:
        if os.path.exists(path):
            with open(path, "rb") as file:
                return file.read()
        import fsspec  # which reads what the hub's library addresses by hf://, in archives or not

        with fsspec.open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodingError(f"cannot be read ({error})") from None


def _require_eight_bits(image: Image.Image) -> None:
    # Pillow makes 8 bits of 16 bits a colour without a word; what it reads from the file then still tells.
    if image.mode not in _EIGHT_BITS or any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        raise DecodingError("has more than 8 bits a channel: convert it to 8 bits first")


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    if image.mode in ("RGBa", "PA") or (image.mode in ("P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode == "La" or (image.mode in ("1", "L") and "transparency" in image.info):
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] != 255:
        raise DecodingError("is partly transparent: put it on a background first")
    grey = channels == 1 or (channels is None and image.mode in _GREY)
    if grey and image.mode not in _GREY:
        image = image.convert("RGB")
    return image.convert("L" if grey else "RGB")


def _cropped(image: Image.Image, size: int) -> Image.Image:
    if min(image.size) != size:
        width, height = (max(size, round(side * size / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size)) if image.size != (size, size) else image
