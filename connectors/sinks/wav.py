"""Sink: one WAV file per stream, which grows by a piece per epoch and can be played at any time.

The samples of an epoch are staged and appended by its commit (``growing``); then the header is told how long the file is now,
by one write of a few bytes. So at any moment, also after a crash, the header describes samples that are there; what lies behind
them is not committed yet. The header holds, too, what is needed to go on.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import pyarrow as pa

from connectors.errors import ConfigError, SinkError
from connectors.options import REQUIRED, option
from connectors.sinks.growing import GrowingFileSink
from connectors.sinks.staged import StagedFile, encode_name, single_input

__all__ = ["WavOptions", "WavSink"]

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sI4s 4sIHHIIHH 4sIqqq 4sI")
_NOTE = b"strb"  # a chunk that players skip
_PCM = 1
_MOST_BYTES = (1 << 32) - 1 - _HEADER.size - (1 << 16)
"""Of samples in a file: sizes in WAV have 32 bits."""

_BEFORE_ALL = -(2**63)

_JITTER_US = 5_000
"""A row that begins so close to the end of the one before follows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WavOptions:
    """Options of the sink ``wav``."""

    path: Path = option(REQUIRED, "Folder for the files: `<stream>.wav`, which grow with every commit.")
    max_pause_s: float = option(
        5.0, "A pause in event time is silence of that length, but of at most so much.", unit="s", ge=0.0, le=3600.0
    )


@dataclass(slots=True)
class _Header:
    """What the first bytes of a file say."""

    rate: int
    channels: int
    size: int = 0
    """Of samples."""
    epoch: int = -1
    next_us: int = 0
    """Event time at the end of the last row."""
    sequence: int = _BEFORE_ALL
    """Of the last row."""

    @property
    def block(self) -> int:
        """Bytes of a moment."""
        return 2 * self.channels

    def pack(self) -> bytes:
        """Return the bytes."""
        return _HEADER.pack(
            b"RIFF", _HEADER.size - 8 + self.size, b"WAVE",
            b"fmt ", 16, _PCM, self.channels, self.rate, self.rate * self.block, self.block, 16,
            _NOTE, 24, self.epoch, self.next_us, self.sequence,
            b"data", self.size,
        )  # fmt: skip

    @classmethod
    def of(cls, path: Path) -> _Header | None:
        """Read the header of a file; None where this sink did not write it."""
        with path.open("rb") as file:
            return cls.unpack(file.read(_HEADER.size))

    @classmethod
    def unpack(cls, head: bytes) -> _Header | None:
        """Return what these bytes say; None where they are none of ours."""
        if len(head) < _HEADER.size:
            return None
        riff, _, kind, _, _, _, channels, rate, _, _, bits, note, _, epoch, next_us, sequence, _, size = _HEADER.unpack(head)
        if (riff, kind, note, bits) != (b"RIFF", b"WAVE", _NOTE, 16):
            return None
        return cls(rate, channels, size, epoch, next_us, sequence)


@dataclass(slots=True)
class _Take:
    """How to go on with a stream."""

    number: int
    """Of its file: 1, and more where rate or channels changed or the file was full."""
    header: _Header
    file: StagedFile | None = None
    """What is being written in this epoch."""
    begins: int = 0
    """Where in the file that begins."""
    rows: int = 0


class WavSink(GrowingFileSink):
    """Writes rows of ``pcm.v1``, or any with ``samples`` of 16 bits and ``sample_rate``, as sound."""

    Options: ClassVar[type] = WavOptions
    suffix = ".wav"
    trailer = _HEADER.size
    options: WavOptions

    def __init__(self, options: WavOptions) -> None:
        super().__init__(options)
        self._takes: dict[str, _Take] = {}  # of the streams of this attempt: a few hundred bytes each
        self._left_out: dict[str, int] = {}

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        schema = single_input("wav", schemas)
        problems = []
        if "samples" not in schema.names:
            problems.append("there is no column 'samples'")
        elif not _is_sound(schema.field("samples").type):
            problems.append(f"'samples' is {schema.field('samples').type}, not a list of int16")
        if "sample_rate" not in schema.names or not pa.types.is_integer(schema.field("sample_rate").type):
            problems.append("there is no whole number 'sample_rate'")
        if problems:
            raise ConfigError(f"a wav sink takes rows of pcm.v1: {'; '.join(problems)}; its input has {schema.names}")

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Append the samples of each row to its stream. Rows without samples leave a pause."""
        names = batch.schema.names
        rows = zip(
            batch.column("stream_id").to_pylist(),
            batch.column("sequence").to_pylist(),
            batch.column("event_time").cast(pa.int64()).to_pylist(),
            batch.column("sample_rate").to_pylist(),
            batch.column("channels").to_pylist() if "channels" in names else [1] * batch.num_rows,
            strict=True,
        )
        samples = batch.column("samples")
        flat = samples.values.to_numpy(zero_copy_only=False).astype("<i2", copy=False)
        ends = samples.offsets.to_numpy()
        present = samples.is_valid().to_pylist()
        for i, (name, sequence, time_us, rate, channels) in enumerate(rows):
            part = flat[ends[i] : ends[i + 1]]
            if not present[i] or not len(part):
                continue
            if not rate or rate < 1 or not channels or channels < 1 or len(part) % channels:
                self._leave_out(name, sequence, "hold no whole number of moments, or no rate or channels")
                continue
            self._append_row(name, sequence, time_us, rate, channels, part.tobytes())

    def incomplete(self) -> Mapping[str, int]:
        """Return how many rows were left out, and why."""
        return dict(self._left_out)

    def _seal(self, target: BinaryIO, trailer: bytes, epoch: int) -> None:
        """Tell the header how long the file is now."""
        header = _Header.unpack(trailer)
        if header is None:
            raise SinkError(f"{self.root}: a staged piece of epoch {epoch} was changed; put it back, or start over")
        header.epoch = epoch
        target.seek(0)
        target.write(header.pack())

    def _append_row(self, name: str, sequence: int, time_us: int, rate: int, channels: int, data: bytes) -> None:
        take = self._take(name, rate, channels)
        header = take.header
        if sequence <= header.sequence:
            self._leave_out(name, sequence, "came twice or late")
            return
        is_first = header.sequence == _BEFORE_ALL
        pause_us = 0 if is_first else time_us - header.next_us
        if pause_us > _JITTER_US:
            silence_us = min(pause_us, round(self.options.max_pause_s * 1_000_000))
            moments = round(silence_us * rate / 1_000_000)
            self._put(name, take, bytes(header.block), moments)
            take = self._takes[name]
        self._put(name, take, data, 1)
        take = self._takes[name]
        take.rows += 1
        header = take.header
        lasts_us = round(len(data) // header.block * 1_000_000 / rate)
        # A row within the jitter does not move the clock, so that roundings do not add up.
        follows = not is_first and abs(pause_us) <= _JITTER_US
        header.next_us = (header.next_us if follows else time_us) + lasts_us
        header.sequence = sequence

    def _put(self, name: str, take: _Take, data: bytes, times: int) -> None:
        """Append ``data`` so many times, in as many files as it takes."""
        block = len(data)
        while times:
            room = (_MOST_BYTES - take.header.size) // block
            if room == 0:
                take = self._next_file(name, take, take.header.rate, take.header.channels)
                continue
            count = min(times, room)
            file = self._open_piece(take)
            while count:
                some = min(count, max(1, (1 << 20) // block))
                take.header.size += file.write(data * some)
                count, times = count - some, times - some

    def _open_piece(self, take: _Take) -> StagedFile:
        if take.file is None:
            take.file = StagedFile(self._new_path())
            take.begins = _HEADER.size + take.header.size if take.header.size else 0
            if not take.begins:  # a header of no samples, until the commit tells it
                empty = _Header(take.header.rate, take.header.channels)
                take.file.write(empty.pack())
        return take.file

    def _take(self, name: str, rate: int, channels: int) -> _Take:
        take = self._takes.get(name) or self._newest(name) or _Take(1, _Header(rate, channels))
        self._takes[name] = take
        if (take.header.rate, take.header.channels) != (rate, channels):
            logger.warning("sink=%s stream=%r goes on in a file of its own: rate or channels changed", self.root, name)
            take = self._next_file(name, take, rate, channels)
        return take

    def _next_file(self, name: str, take: _Take, rate: int, channels: int) -> _Take:
        self._end(name, take)
        old = take.header
        header = _Header(rate, channels, next_us=old.next_us, sequence=old.sequence)
        self._takes[name] = _Take(take.number + 1, header)
        return self._takes[name]

    def _newest(self, name: str) -> _Take | None:
        """Return how to go on with the newest file of a stream that is on disk."""
        number = 1
        while (self.root / _file_name(name, number + 1)).exists():
            number += 1
        path = self.root / _file_name(name, number)
        if not path.exists():
            return None
        header = _Header.of(path)
        if header is None or path.stat().st_size != _HEADER.size + header.size:
            raise SinkError(
                f"{path} was not written by this sink, or was changed: its header does not fit. Move it away, put it back as "
                "it was, or set the sink's 'path' to another folder"
            )
        return _Take(number, header)

    def _epoch_of(self, path: Path) -> int | None:
        header = _Header.of(path)
        return None if header is None or header.epoch < 0 else header.epoch

    def _flush(self) -> None:
        for name, take in self._takes.items():
            self._end(name, take)

    def _end(self, name: str, take: _Take) -> None:
        """Finish what was written of a file in this epoch."""
        if take.file is None:
            return
        take.file.write(take.header.pack())
        take.file.finish()
        self._piece(take.file, target=_file_name(name, take.number), at=take.begins, rows=take.rows)
        take.file, take.rows = None, 0

    def _drop(self) -> None:
        for take in self._takes.values():
            if take.file is not None:
                take.file.abort()
        self._takes.clear()

    def _leave_out(self, name: str, sequence: int, why: str) -> None:
        self._left_out[why] = self._left_out.get(why, 0) + 1
        logger.warning("sink=%s stream=%r row %d is left out: its samples %s", self.root, name, sequence, why)


def _is_sound(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind)) and bool(pa.types.is_int16(kind.value_type))


def _file_name(stream: str, number: int) -> str:
    """Return the name of a stream's file. No encoded stream id holds a plus sign."""
    return f"{encode_name(stream)}{'' if number == 1 else f'+{number}'}.wav"
