"""Removal of metadata from image files, so that damaged metadata do not prevent reading the pixels."""

from __future__ import annotations

import struct

__all__ = ["without_metadata"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_TRANSPARENCY = b"tRNS"

#: JPEG markers of comments and application data, except JFIF (0xE0) and Adobe (0xEE), which affect the colours.
_MARKERS = frozenset({0xFE, 0xEF, *range(0xE1, 0xEE)})


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG file without text, EXIF data and colour profiles; None for other formats or if it has none.

    PNG chunks whose names begin with a lower-case letter are not needed for the pixels (ISO/IEC 15948, 5.4), except
    transparency; nor are application and comment segments of JPEG files (ITU-T T.81, B.2.4).
    """
    if data.startswith(_PNG):
        bare = _bare_png(data)
    elif data.startswith(_JPEG):
        bare = _bare_jpeg(data)
    else:
        return None
    return bare if bare != data else None


def _bare_png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        if name[:1].isupper() or name == _TRANSPARENCY:
            kept.append(chunk)
        at += len(chunk)
        if name == b"IEND":
            break
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    kept, at = [_JPEG], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the scan
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] not in _MARKERS:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])
