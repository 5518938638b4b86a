"""From bytes to pixels, whatever the file is like."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ndm.data.decoding import DecodingError, decode

RANDOM = np.random.RandomState(0)
GREY = RANDOM.randint(0, 256, (6, 5)).astype(np.uint8)
COLOUR = RANDOM.randint(0, 256, (6, 5, 3)).astype(np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def file_of_array(array: np.ndarray) -> bytes:
    return file_of(Image.fromarray(array))


def test_pixels_are_kept_as_they_are() -> None:
    assert np.array_equal(decode(file_of_array(GREY), None, None), GREY[None])
    assert np.array_equal(decode(file_of_array(COLOUR), None, None), COLOUR.transpose(2, 0, 1))


def test_all_the_ways_to_hand_over_a_file(tmp_path: Path) -> None:
    data = file_of_array(GREY)
    (tmp_path / "a [1].png").write_bytes(data)
    for cell in (data, {"bytes": data, "path": "nowhere"}, {"bytes": None, "path": str(tmp_path / "a [1].png")}):
        assert np.array_equal(decode(cell, None, None), GREY[None])


def test_grey_and_colour_are_made_of_each_other() -> None:
    assert np.array_equal(decode(file_of_array(GREY), None, 3), np.stack([GREY] * 3))
    neutral = np.stack([GREY] * 3, axis=2)
    assert np.array_equal(decode(file_of_array(neutral), None, 1), GREY[None])
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(file_of_array(COLOUR), None, 1)[0] - luma).max() < 1


def test_other_modes_become_grey_or_colour() -> None:
    black_and_white = GREY > 128
    assert np.array_equal(decode(file_of(Image.fromarray(black_and_white)), None, None), 255 * black_and_white[None])

    few = (COLOUR // 128) * 255  # eight colours, which a palette holds exactly
    palette = Image.fromarray(few).quantize(8)
    assert np.array_equal(decode(file_of(palette), None, None), few.transpose(2, 0, 1))

    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    assert decode(file_of(cmyk, "TIFF"), None, None).shape == (3, 6, 5)
    assert np.array_equal(decode(file_of(cmyk, "TIFF"), None, None), np.asarray(cmyk.convert("RGB")).transpose(2, 0, 1))


def test_an_opaque_alpha_channel_is_dropped() -> None:
    for pixels, shape in ((COLOUR, (3, 6, 5)), (GREY[..., None], (1, 6, 5))):
        opaque = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)
        found = decode(file_of(Image.fromarray(opaque, "LA" if shape[0] == 1 else "RGBA")), None, None)
        assert found.shape == shape
        assert np.array_equal(found, pixels.transpose(2, 0, 1))


def test_transparency_is_refused() -> None:
    alpha = np.full((6, 5, 1), 255, np.uint8)
    alpha[3, 2] = 254
    see_through = [
        file_of_array(np.concatenate([COLOUR, alpha], axis=2)),
        file_of(Image.fromarray(COLOUR), transparency=tuple(COLOUR[0, 0].tolist())),
        file_of(Image.fromarray(GREY), transparency=int(GREY[0, 0])),
        file_of(Image.fromarray(COLOUR).quantize(8), transparency=0),
    ]
    for data in see_through:
        with pytest.raises(DecodingError, match="partly transparent"):
            decode(data, None, None)


def png_of_16_bits(colour_type: int, channels: int) -> bytes:
    """A PNG of two by two pixels of 16 bits a channel, written by the specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    lines = (b"\0" + bytes(range(4 * channels))) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused(colour_type: int, channels: int) -> None:
    with pytest.raises(DecodingError, match="more than 8 bits a channel"):
        decode(png_of_16_bits(colour_type, channels), None, None)


def test_floating_point_is_refused() -> None:
    with pytest.raises(DecodingError, match="more than 8 bits a channel"):
        decode(file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"), None, None)


def test_damaged_files_are_refused() -> None:
    jpeg = file_of(Image.fromarray(RANDOM.randint(0, 256, (64, 64, 3)).astype(np.uint8)), "JPEG")
    png = file_of_array(RANDOM.randint(0, 256, (64, 64, 3)).astype(np.uint8))
    for data in (jpeg[: len(jpeg) // 2], png[: len(png) // 2], png[:20], png[:60] + b"xx" + png[62:]):
        with pytest.raises(DecodingError, match=r"damaged|not an image"):
            decode(data, None, None)
    with pytest.raises(DecodingError, match="not an image in a format that is read here"):
        decode(b"some text", None, None)
    for nothing in (b"", None, {"bytes": None, "path": None}):
        with pytest.raises(DecodingError, match="has no bytes"):
            decode(nothing, None, None)
    with pytest.raises(DecodingError, match="cannot be read"):
        decode({"bytes": None, "path": "/nowhere/x.png"}, None, None)


def test_formats_that_run_programs_are_refused() -> None:
    with pytest.raises(DecodingError, match="not an image in a format that is read here"):
        decode(file_of(Image.fromarray(COLOUR), "EPS"), None, None)


def test_photographs_are_turned_the_right_way_up() -> None:
    picture = np.zeros((16, 32), np.uint8)
    picture[:, :16] = 255  # lit on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned = decode(file_of(Image.fromarray(picture), "JPEG", exif=exif), None, None)
    assert turned.shape == (1, 32, 16)
    assert turned[0, :12].min() > 200
    assert turned[0, 20:].max() < 50


# ---- resizing


def test_an_image_of_the_right_size_is_left_alone() -> None:
    square = RANDOM.randint(0, 256, (7, 7, 3)).astype(np.uint8)
    assert np.array_equal(decode(file_of_array(square), 7, None), square.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (9, 20), (8, 8)])
def test_the_middle_is_cropped(height: int, width: int) -> None:
    """With the shorter side as it should be nothing is resized."""
    size = min(height, width)
    image = RANDOM.randint(0, 256, (height, width)).astype(np.uint8)
    top, left = (height - size) // 2, (width - size) // 2
    assert np.array_equal(decode(file_of_array(image), size, None)[0], image[top : top + size, left : left + size])


@pytest.mark.parametrize(("height", "width"), [(120, 90), (90, 121), (31, 30), (10, 14), (400, 300)])
def test_the_shorter_side_becomes_the_size(height: int, width: int) -> None:
    """A plane of grey keeps its slope in units of the image's own, whichever way it is shrunk or stretched."""
    size = 30
    y, x = np.mgrid[:height, :width]
    scale = size / min(height, width)
    plane = np.rint(128 + 100 * ((x + 0.5) - width / 2) / width + 20 * ((y + 0.5) - height / 2) / height)
    found = decode(file_of_array(plane.astype(np.uint8)), size, None)[0].astype(float)
    v, u = np.mgrid[:size, :size]
    expected = 128 + 100 * ((u + 0.5 - size / 2) / scale) / width + 20 * ((v + 0.5 - size / 2) / scale) / height
    inner = slice(3, -3)  # where the filter does not meet the edge
    assert np.abs(found - expected)[inner, inner].max() < 2.5


@pytest.mark.parametrize("factor", [2, 3, 8, 20])
def test_shrinking_averages(factor: int) -> None:
    """Detail finer than a new pixel becomes grey, where picking pixels would make patterns of it."""
    n = 16 * factor
    board = 255 * (np.indices((n, n)).sum(0) % 2).astype(np.uint8)
    found = decode(file_of_array(board), 16, None)[0, 2:-2, 2:-2].astype(float)
    assert np.abs(found - 127.5).max() < 12
