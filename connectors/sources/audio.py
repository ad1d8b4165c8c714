"""Recorded sound: WAV, FLAC and what else PyAV reads, and the sound track of videos; one stream per file.

A file is decoded piece by piece, never as a whole. Pieces begin at fixed places of the stream, whatever the decoder hands over
at a time; a new one begins where the container's time jumps. A file that is damaged or cut short gives what decodes and a row
with ``error``; other files are not affected.
"""

# N moments, C channels

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.base import Position, Reader
from connectors.errors import SourceError
from connectors.options import option
from connectors.records import PCM, TIME_TYPE
from connectors.sources.containers import missing_bytes
from connectors.sources.files import FileStamp
from connectors.sources.media_files import MediaOptions, MediaSource
from connectors.sources.sound_track import Sound, SoundTrack, TrackError

__all__ = ["AudioOptions", "AudioReader", "AudioSource"]

logger = logging.getLogger(__name__)

_SUFFIXES = {
    *(
        ".wav",
        ".wave",
        ".flac",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".mp3",
        ".m4a",
        ".aac",
        ".ogg",
        ".oga",
        ".opus",
        ".wma",
        ".caf",
    ),
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".mka", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp"),
}

_JUMP_US = 5_000
"""A container time this far from where the samples are is a jump; less is its rounding."""

_SEEK_FROM_S = 10.0
"""Positions before this are reached by decoding from the start."""


@dataclass(frozen=True, kw_only=True)
class AudioOptions(MediaOptions):
    """Options of the source ``audio``."""

    track: int = option(0, "Which sound track of a file, counted from 0.", ge=0)
    piece_s: float = option(0.25, "A row holds so much sound.", unit="s", ge=0.001, le=10.0)


class AudioSource(MediaSource):
    """Sound files; splits are files and are called like their streams."""

    Options = AudioOptions
    options: AudioOptions
    files = "sound or video files"
    suffixes = _SUFFIXES
    schema = PCM

    def reader(self, path: Path, stream_id: str, position: Position | None) -> AudioReader:
        """Return a reader of a file."""
        return AudioReader(path, stream_id, self.options, position)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A row under way: samples [N, C], or what was wrong; and where the stream stands behind it."""

    samples_NC: npt.NDArray[np.int16] | None
    rate: int
    at: int
    time_us: int
    error: str | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.samples_NC is None else self.samples_NC.nbytes


class AudioReader(Reader):
    """Reads one file. ``sequence`` is the number of a piece's first moment, counted over what was decoded.

    Position: ``at`` and ``time_us`` of the next piece, ``row`` of it among those that begin there (a row with ``error`` has no
    length).
    """

    def __init__(self, path: Path, stream_id: str, options: AudioOptions, position: Position | None) -> None:
        self.closes: Sequence[str] = (stream_id,)
        self._path, self._stream_id, self._options = path, stream_id, options
        self._stamp = FileStamp.of(path)
        if position is not None:
            self._stamp.require(path, position)
        self._epoch_us = options.epoch_us(self._stamp)
        self._track: SoundTrack | None = None
        self._next: _Piece | None = None
        self._at, self._row, self._time_us = 0, 0, 0
        self._rate = 0
        self._pieces: Iterator[_Piece] = iter(())
        if position is None:
            self._pieces = self._all_pieces(None)
            self._advance()
            return
        self._at, self._row, self._time_us = int(position["at"]), int(position["row"]), int(position["time_us"])
        if position["ended"]:
            self.exhausted = True
            return
        self._resume()

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Decode the next pieces; None once the file has ended."""
        pieces: list[_Piece] = []
        size = 0
        while self._next is not None and len(pieces) < max_rows and (not pieces or size + self._next.bytes <= max_bytes):
            pieces.append(self._next)
            size += self._next.bytes
            if self._next.error is not None:
                self.unread = {self._path.name: self._next.error.removeprefix(f"{self._path.name}: ")}
                logger.warning("bad_file stream=%s error=%s", self._stream_id, self._next.error)
            self._advance()
        if self._next is None and not self.exhausted:
            self.exhausted = True
            self.close()
        return _batch(self._stream_id, pieces, self._epoch_us) if pieces else None

    def position(self) -> Position:
        """Return the next piece, and the file's stamp."""
        return {
            "at": self._at,
            "row": self._row,
            "time_us": self._time_us,
            "ended": self.exhausted,
            "size": self._stamp.size,
            "mtime_ns": self._stamp.mtime_ns,
        }

    def total_rows(self) -> int | None:
        """Return the container's estimate."""
        length = self._track.length if self._track is not None else None
        return None if length is None else -(-length // self._moments(self._rate or 1))

    def close(self) -> None:
        """Release the decoder."""
        self._pieces = iter(())
        if self._track is not None:
            self._track.close()
            self._track = None

    def _advance(self) -> None:
        """Decode the next piece, and note where it stands."""
        before = self._next
        self._next = next(self._pieces, None)
        if self._next is not None:
            self._row = self._row + 1 if before is not None and before.at == self._next.at else 0
            self._at, self._time_us = self._next.at, self._next.time_us

    def _resume(self) -> None:
        """Go on at the position: by seeking where that gives the same samples, else by decoding from the start."""
        for seek in (True, False):
            self._pieces = self._all_pieces(self._at if seek else None)
            found = 0
            for piece in self._pieces:
                if piece.at == self._at:
                    if found == self._row and piece.time_us == self._time_us:
                        self._next = piece
                        return
                    found += 1
                elif piece.at > self._at:
                    break
            self.close()
        raise SourceError(
            f"{str(self._path)!r} has no piece at sample {self._at}, where the position says to go on; put the old file back "
            "and leave piece_s and track as they were, or start over with another state folder"
        )

    def _moments(self, rate: int) -> int:
        return max(1, round(self._options.piece_s * rate))

    def _all_pieces(self, seek_to: int | None) -> Iterator[_Piece]:
        """Yield the rows of the file, from the start or, where it may be sought, from a piece at or before ``seek_to``."""
        if self._stamp.size == 0:
            yield self._bad("the file is empty", 0, 0)
            return
        try:
            self._track = SoundTrack(self._path, self._options.track)
        except TrackError as error:
            yield self._bad(str(error), 0, 0)
            return
        except OSError as error:
            yield self._bad(f"cannot be read: {error.strerror or error}", 0, 0)
            return
        track = self._track
        self._rate = track.rate
        cutter = _Cutter(self._options.piece_s)
        if seek_to is not None and track.can_seek and seek_to > _SEEK_FROM_S * track.rate:
            target = seek_to - seek_to % self._moments(track.rate)
            track.seek(target)
            cutter.begin_at(target, track.start_us)
        for sound in track.sounds():
            if sound.broken is not None:
                yield from cutter.rest()
                yield self._bad(f"{sound.broken}, after {cutter.at} samples", cutter.at, cutter.time_us)
            yield from cutter.add(sound)
        yield from cutter.rest()
        problem = self._what_is_wrong(track, cutter.at)
        if problem is not None:
            yield self._bad(problem, cutter.at, cutter.time_us)

    def _what_is_wrong(self, track: SoundTrack, decoded: int) -> str | None:
        """Tell why the file holds less than it should, None if it is simply over."""
        broken = track.take_broken()
        if broken is not None:
            return f"{broken}, after {decoded} samples"
        try:
            missing = missing_bytes(self._path)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if missing:
            return f"the file ends {missing} bytes early, after {decoded} samples"
        if track.length is not None and decoded < track.length and not track.was_broken:
            return f"holds {decoded} of the {track.length} samples that its header promises"
        return None if decoded else "holds no sound"

    def _bad(self, problem: str, at: int, time_us: int) -> _Piece:
        return _Piece(None, 0, at, time_us, f"{self._path.name}: {problem}")


class _Cutter:
    """Cuts what a decoder hands over into pieces that begin at multiples of their length, and where time jumps."""

    def __init__(self, piece_s: float) -> None:
        self._piece_s = piece_s
        self._parts: list[npt.NDArray[np.int16]] = []
        self._held = 0
        self._rate = self._channels = 0
        self._first: tuple[int, int] | None = None  # skip what lies before this moment; time of the first of all
        self._anchor = (0, 0)  # a moment and its time
        self.at = 0
        """Moments seen."""
        self._began = 0
        self._told_us: int | None = None  # time of the last piece that was handed out

    @property
    def time_us(self) -> int:
        """Time of the next moment."""
        at, time_us = self._anchor
        return time_us + (round((self.at - at) * 1_000_000 / self._rate) if self._rate else 0)

    def begin_at(self, at: int, start_us: int) -> None:
        """Leave out what comes before this moment of a stream that begins at ``start_us``."""
        self._first = (at, start_us)

    def add(self, sound: Sound) -> Iterator[_Piece]:
        """Take samples that follow and yield the pieces that are complete."""
        samples_NC, at, time_us = sound.samples_NC, sound.at, sound.time_us
        if self._first is not None:
            begin, start_us = self._first
            if begin - at >= len(samples_NC):
                return
            samples_NC, time_us = samples_NC[max(0, begin - at) :], None
            self.at = self._began = max(at, begin)
            self._rate, self._channels = sound.rate, samples_NC.shape[1]
            self._anchor, self._first = (0, start_us), None
        changed = self._rate != 0 and (sound.rate, samples_NC.shape[1]) != (self._rate, self._channels)
        if changed:
            yield from self.rest()
        is_first = self._rate == 0
        expected_us = self.time_us
        self._rate, self._channels = sound.rate, samples_NC.shape[1]
        if is_first:
            self._anchor = (self.at, time_us or 0)
        elif changed or (time_us is not None and abs(time_us - expected_us) > _JUMP_US):
            yield from self.rest()
            # Time never goes back behind a piece that has been handed out.
            goes_back = time_us is None or (self._told_us is not None and time_us <= self._told_us)
            self._anchor = (self.at, expected_us if time_us is None or goes_back else time_us)
        length = max(1, round(self._piece_s * self._rate))
        while len(samples_NC):
            room = length - self.at % length
            part_NC, samples_NC = samples_NC[:room], samples_NC[room:]
            self._parts.append(part_NC)
            self._held += len(part_NC)
            self.at += len(part_NC)
            if self.at % length == 0:
                yield from self.rest()

    def rest(self) -> Iterator[_Piece]:
        """Yield what waits for its piece to be full."""
        if self._held:
            self._told_us = self._time_of(self._began)
            yield _Piece(np.concatenate(self._parts), self._rate, self._began, self._told_us)
        self._parts, self._held, self._began = [], 0, self.at

    def _time_of(self, moment: int) -> int:
        at, time_us = self._anchor
        return time_us + round((moment - at) * 1_000_000 / self._rate)


def _batch(stream_id: str, pieces: Sequence[_Piece], epoch_us: int) -> pa.RecordBatch:
    parts: list[Any] = [piece.samples_NC.reshape(-1) for piece in pieces if piece.samples_NC is not None]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int16)
    missing = [piece.samples_NC is None for piece in pieces]
    ends = np.cumsum([0, *(0 if piece.samples_NC is None else piece.samples_NC.size for piece in pieces)], dtype=np.int32)
    columns = [
        pa.array([stream_id] * len(pieces), pa.string()),
        pa.array([piece.at for piece in pieces], pa.int64()),
        pa.array([epoch_us + piece.time_us for piece in pieces], pa.int64()).view(TIME_TYPE),
        pa.array([piece.rate or None for piece in pieces], pa.int32()),
        pa.array([None if piece.samples_NC is None else piece.samples_NC.shape[1] for piece in pieces], pa.int8()),
        pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, pa.int16()), mask=pa.array(missing)),
        pa.array([piece.error for piece in pieces], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PCM)
