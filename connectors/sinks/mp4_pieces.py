"""MP4 files that grow by pieces: a head, then per piece some fragments and a note that says how to go on.

A piece is written by FFmpeg's muxer as a file of its own, from time 0. Here its head is left out where the file has one, its
fragments are renumbered and moved to their time, and the note, a ``uuid`` box that players skip, ends it. So a file that holds
whole pieces only is a fragmented MP4 that any player reads, and all that is needed to go on stands in its last bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from connectors.errors import SinkError

__all__ = ["PieceWriter", "read_note"]

_NOTE = uuid.UUID("5d0c9c39-3c1c-4f0b-9d0e-8a1f8e6d7b21").bytes
_NOTE_BYTES = 64 << 20  # no note is that large
_PARENTS = {b"moof", b"traf"}


class _Output(Protocol):
    def write(self, data: Any) -> int: ...


class PieceWriter:
    """What the muxer of one piece writes to. ``head`` is the digest of the file's head, None where it has none yet."""

    def __init__(self, out: _Output, *, head: str | None, fragments: int, starts: dict[int, int]) -> None:
        """``starts``: track, from 1 → when it begins, in units of its time; read when a fragment comes."""
        self.head = head
        self.fragments = fragments
        """So many fragments precede, later: are there in all."""
        self.fits = True
        """False where the piece needs another head than the file has: it cannot be part of it."""
        self._out = out
        self._starts = starts
        self._has_head = head is not None
        self._waiting = bytearray()
        self._own_head = bytearray()

    def write(self, data: bytes) -> int:
        """Take what the muxer writes; pass on whole boxes."""
        self._waiting += data
        while len(self._waiting) >= 8:
            size, kind = struct.unpack_from(">I4s", self._waiting)
            if size < 8:
                raise SinkError(f"the muxer wrote a box of {size} bytes; this is a bug, please report it")
            if len(self._waiting) < size:
                break
            box = bytes(self._waiting[:size])
            del self._waiting[:size]
            self._take(kind, box)
        return len(data)

    def end(self, note: dict[str, Any]) -> None:
        """Write the note. Its size stands at its end, too, where it is looked for."""
        text = json.dumps(note, separators=(",", ":")).encode()
        size = 8 + 16 + len(text) + 4
        self._out.write(struct.pack(">I4s", size, b"uuid") + _NOTE + text + struct.pack(">I", size))

    def _take(self, kind: bytes, box: bytes) -> None:
        if kind in (b"ftyp", b"moov"):
            self._own_head += box
            if kind == b"moov":
                digest = hashlib.sha256(self._own_head).hexdigest()
                self.fits = self.head in (None, digest)
                self.head = digest
                if not self._has_head:
                    self._out.write(self._own_head)
        elif kind == b"moof":
            self.fragments += 1
            self._out.write(_moved(box, self.fragments, self._starts))
        elif kind == b"mdat":
            self._out.write(box)
        # Others (an index at the end) would only hold for the piece.


def read_note(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Return the size of a file and the note that ends it; None where no note does."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        if end < 28:
            return None
        file.seek(end - 4)
        size = int(struct.unpack(">I", file.read(4))[0])
        if not 28 <= size <= min(end, _NOTE_BYTES):
            return None
        file.seek(end - size)
        box = file.read(size)
    if box[:24] != struct.pack(">I4s", size, b"uuid") + _NOTE:
        return None
    try:
        note = json.loads(box[24:-4])
    except ValueError:
        return None
    return (end, note) if isinstance(note, dict) else None


def _moved(moof: bytes, number: int, starts: Mapping[int, int]) -> bytes:
    """Return a fragment's header with this number, and the times of its tracks moved; the size stays, so offsets hold."""
    data, track = bytearray(moof), 0
    for kind, at in _boxes(moof, 0, len(moof)):
        if kind == b"mfhd":
            struct.pack_into(">I", data, at + 12, number)
        elif kind == b"tfhd":
            track = struct.unpack_from(">I", data, at + 12)[0]
        elif kind == b"tfdt":
            if data[at + 8] != 1:
                raise SinkError("the muxer wrote a time of 32 bits; this is a bug, please report it")
            struct.pack_into(">Q", data, at + 12, struct.unpack_from(">Q", data, at + 12)[0] + starts[track])
    return bytes(data)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at
        if kind in _PARENTS:
            yield from _boxes(data, at + 8, at + size)
        at += max(size, 8)
