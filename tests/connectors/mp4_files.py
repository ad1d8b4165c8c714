"""Video files for tests: frames that carry their own number, and MP4 boxes edited or read by hand.

The box reader is the oracle for timestamps: it uses no decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}
_BITS = 10


def numbered_frame(number: int, height: int = 48, width: int = 80) -> np.ndarray:
    """A frame whose columns spell ``number`` in black and white, so that it survives compression."""
    frame = np.full((height, width, 3), 128, np.uint8)
    for bit in range(_BITS):
        frame[:, bit * width // _BITS : (bit + 1) * width // _BITS] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: np.ndarray) -> int:
    """Read the number back."""
    width = frame.shape[1]
    middles = [bit * width // _BITS + width // (2 * _BITS) for bit in range(_BITS)]
    return sum(int(frame[frame.shape[0] // 2, x, 0] > 127) << bit for bit, x in enumerate(middles))


def write_video(path: Path, frames: Sequence[np.ndarray] | int, *, fps: float = 25.0) -> Path:
    """Write frames, or so many numbered ones, as MPEG-4 video."""
    images = [numbered_frame(i) for i in range(frames)] if isinstance(frames, int) else frames
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(image)
    writer.release()
    return path


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield (kind, start, body start, end) of every box, outer ones first."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            size, body = struct.unpack_from(">Q", data, body)[0], body + 8
        yield kind, start, body, start + size
        if kind in _PARENTS:
            yield from boxes(data, body, start + size)
        start += size


def box(data: bytes, kind: bytes) -> tuple[int, int, int]:
    return next((start, body, end) for found, start, body, end in boxes(data) if found == kind)


def retime(path: Path, deltas: Sequence[int]) -> list[float]:
    """Give frame i the duration ``deltas[i]`` (in the track's time scale); return the frames' times in seconds.

    ``path`` is an MP4 as ``write_video`` leaves it: one track, its moov box behind the media data.
    """
    data = path.read_bytes()
    time_scale = struct.unpack_from(">I", data, box(data, b"mdhd")[1] + 12)[0]
    start, _, end = box(data, b"stts")
    table = struct.pack(">4sII", b"stts", 0, len(deltas)) + b"".join(struct.pack(">II", 1, delta) for delta in deltas)
    table = struct.pack(">I", len(table) + 4) + table
    edited = bytearray(data[:start] + table + data[end:])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = box(data, kind)[0]
        struct.pack_into(">I", edited, at, struct.unpack_from(">I", data, at)[0] + len(table) - (end - start))
    edited[box(data, b"edts")[0] + 4 : box(data, b"edts")[1]] = b"free"  # an edit list would cut the longer track
    path.write_bytes(edited)
    return [total / time_scale for total in np.cumsum([0, *deltas[:-1]]).tolist()]


def rotate(path: Path, degrees: int) -> None:
    """Ask players to turn the picture clockwise, by the track's display matrix."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    data = bytearray(path.read_bytes())
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    at = box(bytes(data), b"tkhd")[1] + 40
    data[at : at + 36] = matrix
    path.write_bytes(data)


def index_first(path: Path) -> None:
    """Move the moov box ahead of the media data, so that a file cut at the end still opens."""
    data = path.read_bytes()
    moov_start, _, moov_end = box(data, b"moov")
    mdat_start = box(data, b"mdat")[0]
    moov = bytearray(data[moov_start:moov_end])
    table = box(bytes(moov), b"stco")[1]
    count = struct.unpack_from(">I", moov, table + 4)[0]
    for i in range(count):
        at = table + 8 + 4 * i
        struct.pack_into(">I", moov, at, struct.unpack_from(">I", moov, at)[0] + len(moov))
    path.write_bytes(data[:mdat_start] + moov + data[mdat_start:moov_start] + data[moov_end:])


def container_times_us(path: Path) -> list[int]:
    """Return the video track's presentation times in order, from the sample tables, less the first one."""
    data = path.read_bytes()
    for kind, start, _body, end in boxes(data):
        if kind == b"trak" and data[box(data[start:end], b"hdlr")[1] + start + 8 :][:4] == b"vide":
            track = data[start:end]
    time_scale = struct.unpack_from(">I", track, box(track, b"mdhd")[1] + 12)[0]
    decode_times = np.cumsum([0, *_runs(track, b"stts", ">II")])[:-1]
    try:
        offsets = np.array(_runs(track, b"ctts", ">Ii"))
    except StopIteration:
        offsets = np.zeros(len(decode_times), np.int64)
    times = np.sort(decode_times + offsets)
    return [round(int(t) * 1_000_000 / time_scale) for t in times - times[0]]


def _runs(data: bytes, kind: bytes, entry: str) -> list[int]:
    body = box(data, kind)[1]
    count = struct.unpack_from(">I", data, body + 4)[0]
    pairs = [struct.unpack_from(entry, data, body + 8 + 8 * i) for i in range(count)]
    return [value for repeats, value in pairs for _ in range(repeats)]
