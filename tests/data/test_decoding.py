"""From bytes to pixels, whatever the file is like."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ndm.data import decoding
from ndm.data.decoding import DecodingError, Seen, check_background, decode, measure
from ndm.data.metadata import without_metadata

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
def test_of_sixteen_bits_the_upper_eight_are_kept(colour_type: int, channels: int) -> None:
    """Two by two pixels, whose bytes in the file are 0, 1, 2, ...: the upper ones are the even ones."""
    upper = np.arange(0, 4 * channels, 2).reshape(2, channels)
    expected = np.stack([upper, upper]).transpose(2, 0, 1)
    if channels in (2, 4):  # alpha comes last
        colours, alpha = expected[:-1].astype(float), expected[-1] / 255
        expected = np.rint(alpha * colours + (1 - alpha) * 255)
    seen = Seen()
    found = decode(png_of_16_bits(colour_type, channels), None, None, "white", seen)
    assert np.abs(found - expected).max() <= (1 if channels in (2, 4) else 0)
    assert seen.done["reduced from 16 to 8 bits a channel"] == 1


def test_grey_of_sixteen_bits_in_other_formats() -> None:
    values = np.arange(6 * 5, dtype=np.uint16).reshape(6, 5) * 2_000
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(decode(file_of(Image.fromarray(values), kind), None, None), values[None] >> 8)


def test_more_than_sixteen_bits_are_refused() -> None:
    for values in (GREY.astype(np.float32), GREY.astype(np.int32)):
        with pytest.raises(DecodingError, match="more than 16 bits a channel"):
            decode(file_of(Image.fromarray(values), "TIFF"), None, None)


def test_damaged_files_are_refused() -> None:
    jpeg = file_of(Image.fromarray(RANDOM.randint(0, 256, (64, 64, 3)).astype(np.uint8)), "JPEG")
    png = file_of_array(RANDOM.randint(0, 256, (64, 64, 3)).astype(np.uint8))
    for data in (jpeg[: len(jpeg) // 2], png[: len(png) // 2], png[:20], png[:60] + b"xx" + png[62:]):
        with pytest.raises(DecodingError, match=r"damaged|not an image"):
            decode(data, None, None)
    with pytest.raises(DecodingError, match="not an image in a supported format"):
        decode(b"some text", None, None)
    for nothing in (b"", None, {"bytes": None, "path": None}):
        with pytest.raises(DecodingError, match="has no bytes"):
            decode(nothing, None, None)
    with pytest.raises(DecodingError, match="cannot be read"):
        decode({"bytes": None, "path": "/nowhere/x.png"}, None, None)


def with_chunk(png: bytes, name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """A PNG file with one more chunk before its pixels."""
    checksum = zlib.crc32(name + data) if checksum is None else checksum
    return png[:33] + struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum) + png[33:]


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


PNG, JPEG = file_of_array(COLOUR), file_of(Image.fromarray(COLOUR), "JPEG", quality=95)
BOMB = b"words\0\0" + zlib.compress(bytes(2**27))  # more than Pillow reads of texts
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + b"\x01\x12\0\x03\xff\xff\xff\xff\0\x06\0\0" + b"\xff" * 9


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(PNG, b"zTXt", BOMB),
        with_chunk(PNG, b"iTXt", b"words\0\1\0\0\0" + BOMB[7:]),
        with_chunk(with_chunk(PNG, b"zTXt", BOMB), b"iCCP", b"name\0\0" + b"nothing"),
        with_chunk(PNG, b"iCCP", b"name\0\0" + zlib.compress(b"no profile")),
        with_chunk(PNG, b"eXIf", EXIF[6:]),
        with_chunk(PNG, b"tEXt", b"a\0b", checksum=0),
        with_segment(JPEG, 0xE1, EXIF),
        with_segment(JPEG, 0xE1, b"Exif\0\0" + b"\xff" * 30),
        with_segment(JPEG, 0xE2, b"ICC_PROFILE\0\1\2nothing"),
        with_segment(JPEG, 0xE2, b"MPF\0" + b"MM\0*" + b"\xff" * 20),
        with_segment(JPEG, 0xFE, b"\xff" * 300),
    ],
    ids="text international two profile exif checksum jpeg-exif jpeg-ff jpeg-icc mpf comment".split(),  # noqa: SIM905
)
def test_pixels_are_read_whatever_the_metadata(data: bytes) -> None:
    sound = PNG if data[:1] == PNG[:1] else JPEG
    assert np.array_equal(decode(data, None, None), decode(sound, None, None))


def test_files_that_adobe_s_segment_tells_the_colours_of() -> None:
    """A CMYK file of which the comment and the EXIF data are dropped keeps the segment that says how it is coded."""
    cmyk = file_of(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in without_metadata(with_segment(cmyk, 0xFE, b"words"))
    assert np.array_equal(
        decode(without_metadata(with_segment(cmyk, 0xFE, b"words")), None, None), decode(cmyk, None, None)
    )
    assert without_metadata(PNG) is None
    assert without_metadata(b"GIF89a") is None


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.fromarray((COLOUR // 128) * 255).quantize(8), Image.fromarray(255 - COLOUR).quantize(8)]
    for kind in ("GIF", "TIFF"):
        seen = Seen()
        data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.array_equal(decode(data, None, 3, None, seen), ((COLOUR // 128) * 255).transpose(2, 0, 1))
        assert seen.done["with several frames, of which the first was used"] == 1


def test_formats_that_run_programs_are_refused() -> None:
    with pytest.raises(DecodingError, match="not an image in a supported format"):
        decode(file_of(Image.fromarray(COLOUR), "EPS"), None, None)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_the_right_way_up(orientation: int) -> None:
    """As Pillow's own function does, of which these files' EXIF data are sound."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "WEBP"):
        data = file_of(Image.fromarray(COLOUR), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        seen = Seen()
        assert np.array_equal(decode(data, None, None, None, seen), np.asarray(upright).transpose(2, 0, 1))
        assert seen.sizes == {upright.size: 1}
        if kind != "TIFF":  # Pillow turns it before anybody sees it
            assert seen.done["rotated according to their EXIF data"] == (orientation > 1)
        if kind != "PNG":
            assert measure(data) == upright.size


def test_a_photograph_lit_on_the_left_is_lit_at_the_top_after_a_quarter_turn() -> None:
    picture = np.zeros((16, 32), np.uint8)
    picture[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    data = file_of(Image.fromarray(picture), "JPEG", exif=exif)
    turned = decode(data, None, None)
    assert turned.shape == (1, 32, 16)
    assert turned[0, :12].min() > 200
    assert turned[0, 20:].max() < 50
    assert measure(data) == (16, 32)


# ---- transparency


@pytest.mark.parametrize(("background", "colour"), [("white", (255, 255, 255)), ("#204060", (32, 64, 96))])
def test_transparent_images_are_put_on_the_background(background: str, colour: tuple[int, ...]) -> None:
    """out = alpha x + (1 - alpha) background, of each channel."""
    alpha = RANDOM.randint(0, 256, (6, 5, 1)).astype(np.uint8)
    share = alpha / 255
    for pixels in (COLOUR, GREY[..., None]):
        seen = Seen()
        data = file_of(Image.fromarray(np.concatenate([pixels, alpha], axis=2)))
        found = decode(data, None, None, background, seen).transpose(1, 2, 0)
        assert found.shape[2] == (1 if pixels.shape[2] == 1 and background == "white" else 3)
        assert np.abs(found - (share * pixels + (1 - share) * np.array(colour[: found.shape[2]]))).max() <= 0.5 + 1e-9
        assert list(seen.done.values()) == [1]


def test_a_transparent_colour_becomes_the_background() -> None:
    hole = tuple(COLOUR[2, 3].tolist())
    data = file_of(Image.fromarray(COLOUR), transparency=hole)
    expected = COLOUR.copy()
    expected[2, 3] = 0
    assert np.array_equal(decode(data, None, None, "black"), expected.transpose(2, 0, 1))


def test_opaque_images_do_not_see_the_background() -> None:
    opaque = file_of_array(np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 255)], axis=2))
    seen = Seen()
    assert np.array_equal(decode(opaque, None, None, "red", seen), COLOUR.transpose(2, 0, 1))
    assert not seen.done
    assert seen.modes == {"RGBA": 1}


def test_a_background_is_a_colour() -> None:
    check_background("white")
    check_background("#fff")
    with pytest.raises(ValueError, match=r"background must be a colour such as white.* not 'chequered'"):
        check_background("chequered")


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


def test_a_very_long_image_is_cropped_before_it_is_enlarged() -> None:
    """Resized as a whole it would have 16 x 3,200,000 pixels."""
    long = np.tile(np.arange(400_000, dtype=np.uint32) % 251, (2, 1)).astype(np.uint8)
    found = decode(file_of_array(long), 16, None)
    assert found.shape == (1, 16, 16)
    middle = long[:, 199_999:200_001]
    assert middle.min() - 3 <= np.median(found) <= middle.max() + 3


@pytest.mark.parametrize(("limit", "value"), [("MOST_PIXELS", 20 * 30), ("LONGEST", 30)])
def test_a_large_image_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    data = file_of_array(np.zeros((20, 30), np.uint8))
    monkeypatch.setattr(decoding, limit, value)
    assert decode(data, None, None).shape == (1, 20, 30)
    monkeypatch.setattr(decoding, limit, value - 1)
    with pytest.raises(DecodingError, match=r"has 30 x 20 pixels, more than the limit .* resize"):
        decode(data, None, None)


def test_what_pillow_takes_for_a_bomb_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodingError, match=r"has more than .* pixels: resize or remove it"):
        decode(file_of_array(np.zeros((20, 30), np.uint8)), None, None)


def test_large_images_are_decoded_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of_array(np.arange(600, dtype=np.uint8).reshape(20, 30))
    expected = decode(data, 8, 3)
    monkeypatch.setattr(decoding, "_LARGE", 10)
    assert np.array_equal(decode(data, 8, 3), expected)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DecodingError, match="larger than 536,870,912 bytes"):
        decode({"bytes": None, "path": str(tmp_path / "x.png")}, None, None)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x.png", "file:///dev/zero", "zip://x::http://127.0.0.1:9/y", "x"]
)
def test_addresses_in_a_table_are_not_followed(address: str) -> None:
    with pytest.raises(DecodingError, match="files are only downloaded from the Hugging Face hub"):
        decode({"bytes": None, "path": address}, None, None)
