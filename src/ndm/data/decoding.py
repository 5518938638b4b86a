"""Decoding of image files to arrays of pixels."""

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

#: The default background of partly transparent images.
BACKGROUND = "white"

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others, such as EPS, may run programs
_GREY = frozenset({"1", "L", "LA", "La"})
_EIGHT_BITS = _GREY | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # by value of the tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: The largest number of pixels of an image (Pillow's limit) and of its longer side, and the largest file size in bytes,
#: to limit memory.
MOST_PIXELS, LONGEST, LARGEST = 89_478_485, 1_000_000, 1 << 29

_LARGE = 1 << 24  # pixels: larger images are decoded one at a time, for any number of threads
_ALONE = threading.RLock()

# Images that Pillow warns of are rejected here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_LONG, _KEPT = 128, 16  # times the shorter side: of longer images only the middle part is resized
_REDUCING_GAP = 3.0  # from this value on, Pillow's initial integer reduction is not visible
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class DecodingError(ValueError):
    """A cell of a table cannot be decoded to an image; the message is the end of a sentence."""


@dataclass
class Seen:
    """Counts of the properties of image files and of the conversions applied to them.

    Attributes:
        modes: number of images per Pillow mode, such as "RGB" or "LA".
        sizes: number of images per size, (width, height).
        done: number of images per conversion, except grey or colour conversion and resizing.
    """

    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def add(self, other: Seen) -> None:
        """Add the counts of another object."""
        self.modes += other.modes
        self.sizes += other.sizes
        self.done += other.done


def decode(
    cell: Any, size: int | None, channels: int | None, background: str | None = None, seen: Seen | None = None
) -> np.ndarray:
    """Decode one image, or the first frame if there are several.

    Palettes, CMYK and similar modes are converted to RGB; grey is converted to RGB by repetition, and RGB to grey by
    its luma (ITU-R 601), which is exact if the three channels are equal. Of 16 bits per channel the upper eight are
    kept. An alpha channel is dropped if the image is opaque; otherwise the image is composed with the background.
    Photographs are rotated according to their EXIF orientation. Unreadable metadata are ignored.

    Args:
        cell: the bytes of a file, or a mapping with ``bytes`` or the ``path`` (or address) of a file.
        size: resize the shorter side to this (Lanczos, with antialiasing) and crop the central size x size; None for no
            resizing.
        channels: 1 for grey, 3 for colour; None for that of the image.
        background: the background colour for partly transparent images, a Pillow colour name; None to reject them.
        seen: the counts to update.

    Returns:
        uint8, (channels, H, W).

    Raises:
        DecodingError: there is no image, it is damaged or too large, has more than 16 bits per channel, or is partly
            transparent without a background.
    """
    seen = Seen() if seen is None else seen
    with contextlib.ExitStack() as held:
        image = _converted(_opened(_bytes(cell), seen, held), channels, background, seen)
        if size is not None:
            image = _cropped(image, size)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def measure(cell: Any) -> tuple[int, int]:
    """Width and height of an image from its header; (0, 0) if it cannot be read."""
    try:
        with Image.open(io.BytesIO(_bytes(cell)), formats=_FORMATS) as image:
            width, height = image.size
            on_its_side = image.format not in ("PNG", "TIFF") and _orientation(image) >= 5  # it would load a PNG
            return (height, width) if on_its_side else (width, height)
    except (*_BROKEN, DecodingError):
        return 0, 0


def check_background(colour: str) -> None:
    """Raise a ValueError if the colour is unknown to Pillow."""
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
            raise FileNotFoundError("the file does not exist; files are only downloaded from the Hugging Face hub")
        import fsspec  # reads hf:// addresses of the hub's library, also in archives

        with fsspec.open(path, "rb") as file:
            data: bytes = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        return data
    except (OSError, ValueError) as error:
        raise DecodingError(f"cannot be read ({error})") from None


def _opened(data: bytes, seen: Seen, held: contextlib.ExitStack) -> Image.Image:
    """Load an image with eight bits per channel and upright orientation.

    Args:
        data: the bytes of the file.
        seen: the counts to update.
        held: receives the lock for decoding large images.
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
                pass  # the pixels are also damaged
        raise _refusal(error) from None


def _refusal(error: Exception) -> DecodingError:
    if isinstance(error, DecodingError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return DecodingError(f"is not an image in a supported format ({', '.join(_FORMATS)})")
    if isinstance(error, Image.DecompressionBombError):
        return DecodingError(f"has more than {MOST_PIXELS:,} pixels: resize or remove it")
    return DecodingError(f"cannot be decoded; the file may be truncated or damaged ({error})")


def _require_moderate(image: Image.Image) -> None:
    """Raise an error if the size in an image's header is too large."""
    width, height = image.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST:
        raise DecodingError(
            f"has {width:,} x {height:,} pixels, more than the limit of {MOST_PIXELS:,} in total or {LONGEST:,} per "
            "side: resize or remove it"
        )


def _loaded(data: bytes, seen: Seen, held: contextlib.ExitStack) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _require_moderate(opened)
        if opened.width * opened.height > _LARGE:
            held.enter_context(_ALONE)
        mode, done = opened.mode, []
        if opened.format in ("GIF", "WEBP", "TIFF") and _has_frames(opened):
            done.append("with several frames, of which the first was used")
        # Pillow converts 16 bits per colour to 8 bits; the original depth is known only from the raw mode in the file.
        if opened.format in ("PNG", "TIFF", "PPM") and any(";16" in str(tile) for tile in getattr(opened, "tile", ())):
            done.append("reduced from 16 to 8 bits a channel")
        opened.load()
        image = _eight_bits(opened)
        orientation = _orientation(opened)  # not earlier: it may load the file and ignore damage
        if orientation in _UPRIGHT:
            done.append("rotated according to their EXIF data")
            information = image.info
            image = image.transpose(_UPRIGHT[orientation])
            image.info = information  # includes the transparency
        image.load()
    seen.modes[mode] += 1
    seen.sizes[image.size] += 1
    seen.done.update(done)
    return image


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # error in a later frame, which is not read
        return False


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise various errors, but the pixels are valid
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
            raise DecodingError(
                "is partly transparent: give --data.background white (background=), or remove the transparency"
            )
        seen.done[f"partly transparent, and put on a {background} background"] += 1
        image = _put_on(image, background)
    grey = channels == 1 or (channels is None and image.mode in _GREY)
    if grey and image.mode not in _GREY:
        image = image.convert("RGB")
    return image.convert("L" if grey else "RGB")


def _put_on(image: Image.Image, background: str) -> Image.Image:
    """Compose a partly transparent image, RGBA or LA, with a background colour; grey if both are grey."""
    colour = ImageColor.getrgb(background)[:3]
    grey = image.mode == "LA" and len(set(colour)) == 1
    ground = Image.new("L", image.size, colour[0]) if grey else Image.new("RGB", image.size, colour)
    ground.paste(image.convert(ground.mode), mask=image.getchannel("A"))
    return ground


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side of an image to ``size`` and crop the central size x size."""
    if max(image.size) > _LONG * min(image.size):
        # An image of 2 x 800,000 pixels, for example, would not fit in memory if it were enlarged before cropping.
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
