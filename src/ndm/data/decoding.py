"""From the bytes of an image file to an array of pixels."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from ndm.data.metadata import without_metadata
from ndm.storage.texts import require_regular

__all__ = ["BACKGROUND", "DecodingError", "Seen", "check_background", "decode", "measure"]

#: What partly transparent images are put on, unless another colour is given.
BACKGROUND = "white"

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others may call programs: EPS does
_GREY = frozenset({"1", "L", "LA", "La"})
_EIGHT_BITS = _GREY | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # by the tag's value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Pixels of an image, which is Pillow's own limit, and of its longer side; and bytes of its file: others may be made to
#: fill the memory.
MOST_PIXELS, LONGEST, LARGEST = 89_478_485, 1_000_000, 1 << 29

_LARGE = 1 << 24  # pixels: images of more are decoded one at a time, whatever the number of threads
_ALONE = threading.RLock()

# What Pillow warns of is refused here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_LONG, _KEPT = 128, 16  # times the shorter side: of a longer image the middle, so long, is resized
_REDUCING_GAP = 3.0  # from here on, a first reduction by whole numbers cannot be told from doing without, says Pillow
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class DecodingError(ValueError):
    """An image cannot be had from a cell of a table; the message, the end of a sentence, says why."""


@dataclass
class Seen:
    """What images were like in their files, and what was done to them, counted.

    Attributes:
        modes: how many were of each of Pillow's modes, such as "RGB" or "LA".
        sizes: how many had each size, (width, height).
        done: how many were changed in each way, beside being made grey or coloured and resized.
    """

    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def add(self, other: Seen) -> None:
        """Count what another one has counted."""
        self.modes += other.modes
        self.sizes += other.sizes
        self.done += other.done


def decode(
    cell: Any, size: int | None, channels: int | None, background: str | None = None, seen: Seen | None = None
) -> np.ndarray:
    """The pixels of one image, of the first frame where there are several.

    Palettes, CMYK and the like become RGB; grey becomes RGB by repetition and RGB becomes grey by its luma (ITU-R 601),
    which is exact where the three channels are equal. Of 16 bits a channel the upper eight are kept. An alpha channel
    is dropped if the image is opaque everywhere, and else the image is put on the background. Photographs whose EXIF
    data say which side is up are turned. Metadata that cannot be read are passed over.

    Args:
        cell: the bytes of a file, or a mapping with ``bytes`` or the ``path`` (or address) of a file.
        size: resize the shorter side to this (Lanczos, which averages when it shrinks) and crop the middle of
            size x size; None to leave the image as it is.
        channels: 1 for grey, 3 for colour; None for what the image is.
        background: the colour to put partly transparent images on, as Pillow names it; None to refuse them.
        seen: counts what the image was like.

    Returns:
        uint8, (channels, H, W).

    Raises:
        DecodingError: there is no image, it is damaged or too large, has more than 16 bits a channel or is partly
            transparent and no background is given.
    """
    seen = Seen() if seen is None else seen
    with contextlib.ExitStack() as held:
        image = _converted(_opened(_bytes(cell), seen, held), channels, background, seen)
        if size is not None:
            image = _cropped(image, size)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def measure(cell: Any) -> tuple[int, int]:
    """Width and height of an image, by its header; (0, 0) if that cannot be read."""
    try:
        with Image.open(io.BytesIO(_bytes(cell)), formats=_FORMATS) as image:
            width, height = image.size
            on_its_side = image.format not in ("PNG", "TIFF") and _orientation(image) >= 5  # PNG would be loaded for it
            return (height, width) if on_its_side else (width, height)
    except (*_BROKEN, DecodingError):
        return 0, 0


def check_background(colour: str) -> None:
    """Raise a ValueError if Pillow knows no colour of this name."""
    try:
        ImageColor.getrgb(colour)
    except (ValueError, AttributeError):
        raise ValueError(
            f"background must be a colour such as white, black or '#8080ff', or null to refuse transparent images, "
            f"not {colour!r}."
        ) from None


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
            require_regular(path)
            if os.path.getsize(path) > LARGEST:
                raise ValueError(f"it is larger than {LARGEST:,} bytes")
            with open(path, "rb") as file:
                return file.read()
        if not path.rpartition("::")[2].startswith("hf://"):
            raise FileNotFoundError("there is no such file, and addresses other than the hub's are not followed")
        import fsspec  # which reads what the hub's library addresses by hf://, in archives or not

        with fsspec.open(path, "rb") as file:
            data: bytes = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        return data
    except (OSError, ValueError) as error:
        raise DecodingError(f"cannot be read ({error})") from None


def _opened(data: bytes, seen: Seen, held: contextlib.ExitStack) -> Image.Image:
    """The image of a file, all of its pixels read, of eight bits a channel and upright.

    Args:
        data: the file.
        seen: counts what the image was like.
        held: gets the lock that a large image is decoded under.
    """
    try:
        return _loaded(data, seen, held)
    except _BROKEN as error:
        bare = without_metadata(data)
        if bare is not None and not isinstance(error, DecodingError):
            try:
                image = _loaded(bare, seen, held)
                seen.done["read without their damaged metadata"] += 1
                return image
            except _BROKEN:
                pass  # the pixels are damaged too
        raise _refusal(error) from None


def _refusal(error: Exception) -> DecodingError:
    if isinstance(error, DecodingError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return DecodingError(f"is not an image in a format that is read here ({', '.join(_FORMATS)})")
    if isinstance(error, Image.DecompressionBombError):
        return DecodingError(f"has more than {MOST_PIXELS:,} pixels: make it smaller, or leave it out")
    return DecodingError(f"cannot be decoded, its file may be truncated or damaged ({error})")


def _require_moderate(image: Image.Image) -> None:
    """Refuse an image by what its header says of its size."""
    width, height = image.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST:
        raise DecodingError(
            f"has {width:,} x {height:,} pixels, and may have {MOST_PIXELS:,} and {LONGEST:,} a side: make it smaller, "
            "or leave it out"
        )


def _loaded(data: bytes, seen: Seen, held: contextlib.ExitStack) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _require_moderate(opened)
        if opened.width * opened.height > _LARGE:
            held.enter_context(_ALONE)
        mode, done = opened.mode, []
        if opened.format in ("GIF", "WEBP", "TIFF") and _has_frames(opened):
            done.append("with several frames, of which the first was taken")
        # Pillow makes 8 bits of 16 bits a colour by itself; what it reads from the file then still tells.
        if opened.format in ("PNG", "TIFF", "PPM") and any(";16" in str(tile) for tile in getattr(opened, "tile", ())):
            done.append("reduced from 16 to 8 bits a channel")
        opened.load()
        image = _eight_bits(opened)
        orientation = _orientation(opened)  # not before: it may load a file and pass over what is damaged
        if orientation in _UPRIGHT:
            done.append("turned as their EXIF data say")
            information = image.info
            image = image.transpose(_UPRIGHT[orientation])
            image.info = information  # which says what is transparent
        image.load()
    seen.modes[mode] += 1
    seen.sizes[image.size] += 1
    seen.done.update(done)
    return image


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of a later frame, which is not read
        return False


def _orientation(image: Image.Image) -> int:
    """What EXIF data say of the orientation; 1, upright, if they cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data make Pillow raise nearly anything, and the pixels are sound
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in _EIGHT_BITS:
        return image
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    values = np.asarray(image) if sixteen else np.empty(0)
    if not sixteen or values.min() < 0 or values.max() > 65_535:
        raise DecodingError(f"has more than 16 bits a channel (mode {image.mode}): convert it to 8 bits first")
    grey = Image.fromarray((values // 256).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _converted(image: Image.Image, channels: int | None, background: str | None, seen: Seen) -> Image.Image:
    if image.mode in ("RGBa", "PA") or (image.mode in ("P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode == "La" or (image.mode in ("1", "L") and "transparency" in image.info):
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] != 255:
        if background is None:
            raise DecodingError("is partly transparent: give background=white, or put it on a background first")
        seen.done[f"put on a {background} background, being transparent in part"] += 1
        image = _put_on(image, background)
    grey = channels == 1 or (channels is None and image.mode in _GREY)
    if grey and image.mode not in _GREY:
        image = image.convert("RGB")
    return image.convert("L" if grey else "RGB")


def _put_on(image: Image.Image, background: str) -> Image.Image:
    """A partly transparent image, RGBA or LA, on a colour; grey if both are."""
    colour = ImageColor.getrgb(background)[:3]
    grey = image.mode == "LA" and len(set(colour)) == 1
    ground = Image.new("L", image.size, colour[0]) if grey else Image.new("RGB", image.size, colour)
    ground.paste(image.convert(ground.mode), mask=image.getchannel("A"))
    return ground


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """The middle size x size of an image whose shorter side is brought to that length."""
    if max(image.size) > _LONG * min(image.size):
        # Of an image of 2 x 800,000 pixels, what is to be cropped away would not fit into memory once it is enlarged.
        image = _middle(image, *(min(side, _KEPT * min(image.size)) for side in image.size))
    if min(image.size) != size:
        width, height = (max(size, round(side * size / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    return _middle(image, size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
