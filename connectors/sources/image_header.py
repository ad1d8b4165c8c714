"""Size of a JPEG or PNG image from its header, and whether the file is cut short. Decodes nothing.

Bytes behind the end of the image, and between the segments of a JPEG, are skipped, as decoders do. A file that passes here can
still hold damaged pixel data: the operator that decodes it says so in its own row.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ImageHeader", "parse_header"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
# Start-of-frame markers; C4 (Huffman tables), C8 (reserved) and CC (arithmetic conditioning) lie between them.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}
_START_OF_SCAN = 0xDA


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header says. Sizes are those of the stored pixels: a rotation in EXIF is not applied."""

    encoding: str
    height: int
    width: int


def parse_header(data: bytes) -> ImageHeader | None:
    """Parse a whole file. Return None if it is neither JPEG nor PNG; raise ``ValueError`` saying what is damaged."""
    if data.startswith(_PNG):
        return _parse_png(data)
    if data.startswith(_JPEG):
        return _parse_jpeg(data)
    return None


def _parse_png(data: bytes) -> ImageHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ValueError("PNG without a header chunk")
    width, height = struct.unpack(">II", data[16:24])
    if not width or not height:
        raise ValueError(f"PNG of size {width}x{height}")
    if data.find(_PNG_END, 33) < 0:
        raise ValueError("PNG is cut short: no end chunk")
    return ImageHeader("png", height, width)


def _parse_jpeg(data: bytes) -> ImageHeader:
    """Walk the segments up to the first scan."""
    if data[2:3] not in (b"\xff", b""):
        raise ValueError("JPEG is damaged at byte 2: no marker")
    at = 2
    size: tuple[int, int] | None = None
    scan: int | None = None  # where its data begin
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # foreign bytes: decoders skip them
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00):  # a fill byte, or a value that is no marker
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        length = int(struct.unpack_from(">H", data, at + 2)[0])
        if marker in _START_OF_FRAME and at + 9 <= len(data):
            size = struct.unpack_from(">HH", data, at + 5)
        at += 2 + length
        if marker == _START_OF_SCAN:
            scan = at
            break
    if scan is None:
        raise ValueError("JPEG is cut short: no image data")
    if size is None or not all(size):
        raise ValueError("JPEG without an image size")
    if data.rfind(_JPEG_END) < scan:
        raise ValueError("JPEG is cut short: no end marker")
    return ImageHeader("jpeg", *size)
