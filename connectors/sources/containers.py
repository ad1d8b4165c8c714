"""How much of a media file is missing, and the codec of its video, as its container declares them. Decodes nothing.

Decoders report the end of a cut file like any other end, and a frame count is only an estimate; the outermost boxes of MP4
and MOV, the RIFF header of AVI and the Segment of Matroska say exactly how long the file should be. Reads a few bytes.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

__all__ = ["codec_name", "missing_bytes"]

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"sidx", b"pnot", b"uuid", b"meta"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

_HEAD_BYTES = 1 << 20
_NAMES = {
    "av01": "AV1", "V_AV1": "AV1", "avc1": "H.264", "avc3": "H.264", "hvc1": "H.265", "hev1": "H.265", "vvc1": "H.266",
    "vvi1": "H.266", "evc1": "EVC", "lvc1": "LCEVC", "apv1": "APV", "V_VP9": "VP9", "vp09": "VP9", "V_VP8": "VP8",
}  # fmt: skip


def codec_name(path: Path) -> str | None:
    """Return the codec of the first video track of an MP4, MOV, Matroska, WebM or AVI file: by its name, else as the file
    writes it; None where the file says none.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head[4:8] in _BOXES:
            written = _sample_entry(_box(file, b"moov", path.stat().st_size))
        elif head[:4] == _EBML:
            found = re.search(rb"\x86[\x81-\xbf](V_[A-Z0-9/_]+)", head)
            written = found[1] if found else None
        elif head[:4] == b"RIFF":
            at = head.find(b"strh")
            while at >= 0 and head[at + 8 : at + 12] != b"vids":
                at = head.find(b"strh", at + 4)
            written = head[at + 12 : at + 16] if at >= 0 else None
        else:
            written = None
    if not written:
        return None
    text = written.decode("ascii", "replace").strip("\0 ")
    return _NAMES.get(text, repr(text))


def _box(file: BinaryIO, kind: bytes, size: int) -> bytes:
    """Return the content of an outermost box, empty where there is none."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length, found = struct.unpack(">I4s", file.read(8))
        body = 8
        if length == 1:
            length, body = int(struct.unpack(">Q", file.read(8).ljust(8, b"\0"))[0]), 16
        if found == kind:
            return file.read(min(max(length - body, 0), 64 * _HEAD_BYTES))
        if length < 8:
            break
        start += length
    return b""


def _sample_entry(moov: bytes) -> bytes | None:
    """Return the four letters of the first sample entry of a track of video."""
    for track in moov.split(b"trak")[1:]:
        handler, table = track.find(b"hdlr"), track.find(b"stsd")
        if handler >= 0 and track[handler + 12 : handler + 16] == b"vide" and table >= 0:
            return track[table + 16 : table + 20]
    return None


def missing_bytes(path: Path) -> int:
    """Return how many bytes ``path`` is shorter than its container declares; 0 if whole or of a kind not known here."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _BOXES:
            end = _end_of_boxes(file, size)
        elif head[:4] == b"RIFF" and len(head) == 12:
            length = int(struct.unpack("<I", head[4:8])[0])
            end = 0 if length == 0xFFFFFFFF else 8 + length  # a recording that never was finished has no length
        elif head[:4] == _EBML:
            end = _end_of_segment(file)
        else:
            end = 0
    return max(0, end - size)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Walk the outermost ISO boxes and return where the last one should end."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 0:  # up to the end of the file
            return size if kind in _BOXES else start
        if length == 1:
            wide = file.read(8)
            length = int(struct.unpack(">Q", wide)[0]) if len(wide) == 8 else 16
        if length < 8 or (kind not in _BOXES and start + length > size):
            return start  # padding or foreign data behind the last box
        start += length
    return start


def _end_of_segment(file: BinaryIO) -> int:
    """Return where Matroska's Segment should end, 0 if it is of unknown length (live recordings)."""
    file.seek(4)
    header = _vint(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != _SEGMENT:
        return 0
    length = _vint(file)
    return file.tell() + length if length is not None else 0


def _vint(file: BinaryIO) -> int | None:
    """Read one EBML length; None if cut off or of unknown length."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) < width - 1:
        return None
    bits = 7 * width
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
