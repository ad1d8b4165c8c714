"""What MCAP files hold for RGB-D, found in one pass: where each image lies, what cameras and transforms were said.

Images stay in the files: a message is found again by its place, and few chunks are held unpacked. Memory is some 50 bytes per
image. What is damaged or cut off is noted and the rest is read.
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from connectors.errors import SourceError
from connectors.extras import optional
from connectors.sources.mcap_messages import CameraMessage, Decoder, ImageMessage, Kind, decoder_of, kind_of
from connectors.sources.transforms import TransformTree

mcap_exceptions = optional("mcap.exceptions")
mcap_records = optional("mcap.records")
mcap_stream = optional("mcap.stream_reader")
zstandard = optional("zstandard")
lz4_frame = optional("lz4.frame")

__all__ = ["CameraTopic", "Clock", "ImageTopic", "MessageFiles", "Recording", "scan"]

logger = logging.getLogger(__name__)

Clock = Literal["header", "log"]

_MAX_CHUNK_BYTES = 1 << 30
_HELD_BYTES = 64 << 20
"""Unpacked chunks that are held while images are read; the newest one is held in any case."""

_OUTSIDE = -1
"""Place within a chunk of a message that lies in none."""


@dataclass(slots=True)
class ImageTopic:
    """The images of one topic, in the order of the files."""

    name: str
    frame: str = ""
    """Of the first image."""
    is_depth: bool | None = None
    """Of the first image that could be decoded; None: of none so far."""
    time_us: array[int] = field(default_factory=lambda: array("q"))
    file: array[int] = field(default_factory=lambda: array("l"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    within: array[int] = field(default_factory=lambda: array("l"))
    size: array[int] = field(default_factory=lambda: array("q"))
    decoder: array[int] = field(default_factory=lambda: array("l"))
    problems: dict[int, str] = field(default_factory=dict)
    """Number of the image → why it cannot be used."""


@dataclass(slots=True)
class CameraTopic:
    """The calibrations of one topic, by time; one that repeats the last is left out."""

    name: str
    said: list[tuple[int, CameraMessage]] = field(default_factory=list)

    def at(self, time_us: int) -> CameraMessage:
        """Return what was said last, else what was said first."""
        after = bisect.bisect_right(self.said, time_us, key=lambda said: said[0])
        return self.said[max(0, after - 1)][1]


@dataclass(slots=True)
class Recording:
    """All of one recording but its pixels."""

    images: dict[str, ImageTopic] = field(default_factory=dict)
    cameras: dict[str, CameraTopic] = field(default_factory=dict)
    transforms: TransformTree = field(default_factory=TransformTree)
    topics: dict[str, str] = field(default_factory=dict)
    """Topic → name of its schema, of all topics."""
    decoders: list[Decoder] = field(default_factory=list)
    damages: list[tuple[int, str]] = field(default_factory=list)
    """When, and what of a file was not read and why."""
    unread: dict[str, str] = field(default_factory=dict)
    """Topics and files that were not read, or not to their end, and why."""


def scan(files: Sequence[Path], wanted: Callable[[str, Kind], bool], clock: Clock) -> Recording:
    """Go through the files of a recording once. ``wanted``: topics to look at, with what they hold."""
    recording = Recording()
    for number, path in enumerate(files):
        _FileScan(recording, number, path, wanted, clock).run()
    for topic in recording.cameras.values():
        topic.said.sort(key=lambda said: said[0])
    return recording


class _FileScan:
    """Goes through one file."""

    def __init__(
        self, recording: Recording, number: int, path: Path, wanted: Callable[[str, Kind], bool], clock: Clock
    ) -> None:
        self._recording, self._number, self._path, self._wanted, self._clock = recording, number, path, wanted, clock
        self._schemas: dict[int, Any] = {}
        self._channels: dict[int, tuple[str, Kind, int] | None] = {}
        """Channel → topic, kind and number of the decoder; None: not looked at."""
        self._last_us = 0

    def run(self) -> None:
        """Read to the end, or as far as it goes."""
        try:
            with self._path.open("rb") as file:
                for offset, record in self._records(file):
                    self._take_all(record, offset)
        except OSError as error:
            self._note(self._last_us, f"it cannot be read: {error.strerror}")

    def _take_all(self, record: Any, offset: int) -> None:
        """Take a record, or those of a chunk."""
        if not isinstance(record, mcap_records.Chunk):
            self._take(record, offset, _OUTSIDE)
            return
        try:
            inner = unpacked(record)
        except Exception as error:  # of three unpackers, each with errors of its own
            self._note(record.message_start_time // 1000, f"the chunk at byte {offset} is damaged: {error}")
            return
        for within, each in enumerate(inner):
            self._take(each, offset, within)

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, Any]]:
        """Return offset and record of all that is whole."""
        size = self._path.stat().st_size
        records = mcap_stream.StreamReader(file, emit_chunks=True).records
        while True:
            offset = file.tell()
            try:
                record = next(records, None)
            except mcap_exceptions.InvalidMagic:
                if offset == 0:
                    return self._note(0, "it is no MCAP file")
                return self._note(self._last_us, f"the end mark is missing behind byte {offset}")
            except Exception as error:  # bytes that are no record: struct.error, ValueError, errors of mcap's own
                return self._note(self._last_us, _cut(offset, size, error))
            if record is None:
                return None
            yield offset, record

    def _take(self, record: Any, offset: int, within: int) -> None:
        if isinstance(record, mcap_records.Schema):
            self._schemas[record.id] = record
        elif isinstance(record, mcap_records.Channel):
            if record.id not in self._channels:
                self._channels[record.id] = self._open(record)
        elif isinstance(record, mcap_records.Message):
            self._last_us = record.log_time // 1000
            channel = self._channels.get(record.channel_id)
            if channel is not None:
                self._message(channel, record, offset, within)

    def _open(self, channel: Any) -> tuple[str, Kind, int] | None:
        schema = self._schemas.get(channel.schema_id)
        self._recording.topics[channel.topic] = "" if schema is None else schema.name
        kind = None if schema is None else kind_of(schema.name)
        if kind is None or not self._wanted(channel.topic, kind):
            return None
        try:
            self._recording.decoders.append(decoder_of(schema, channel.message_encoding))
        except ValueError as error:
            self._recording.unread[channel.topic] = str(error)
            return None
        if kind == "image":
            self._recording.images.setdefault(channel.topic, ImageTopic(channel.topic))
        elif kind == "camera":
            self._recording.cameras.setdefault(channel.topic, CameraTopic(channel.topic))
        return channel.topic, kind, len(self._recording.decoders) - 1

    def _message(self, channel: tuple[str, Kind, int], record: Any, offset: int, within: int) -> None:
        topic, kind, decoder = channel
        log_us = record.log_time // 1000
        try:
            content = self._recording.decoders[decoder](record.data)
        except ValueError as error:
            if kind == "image":
                self._image(topic, None, log_us, (offset, within, len(record.data), decoder), str(error))
            else:
                self._recording.unread[topic] = f"at {log_us / 1e6:.6f} s: {error}"
            return
        if isinstance(content, ImageMessage):
            self._image(topic, content, log_us, (offset, within, len(record.data), decoder), None)
        elif isinstance(content, CameraMessage):
            said, plain = self._recording.cameras[topic].said, dataclasses.replace(content, stamp_us=0)
            if not said or said[-1][1] != plain:
                said.append((log_us if self._clock == "log" else content.stamp_us, plain))
        else:
            is_foxglove = self._recording.topics[topic].startswith("foxglove")  # which has no topic for what is fixed
            fixed = None if is_foxglove else topic.rstrip("/").endswith("tf_static")
            for each in content:
                time_us = log_us if self._clock == "log" else each.stamp_us
                self._recording.transforms.add(each.parent, each.child, time_us, each.place_3, each.turn_4, is_fixed=fixed)

    def _image(
        self, topic: str, message: ImageMessage | None, log_us: int, place: tuple[int, int, int, int], problem: str | None
    ) -> None:
        index = self._recording.images[topic]
        time_us = log_us
        if message is not None:
            if index.is_depth is None:
                index.is_depth, index.frame = message.is_depth, message.frame
            if self._clock == "header":
                if message.stamp_us > 0:
                    time_us = message.stamp_us
                else:
                    problem = "its header has no time; set time: log"
        if problem is not None:
            index.problems[len(index.time_us)] = problem
        columns = (index.time_us, index.file, index.offset, index.within, index.size, index.decoder)
        for column, value in zip(columns, (time_us, self._number, *place), strict=True):
            column.append(value)

    def _note(self, time_us: int, why: str) -> None:
        logger.warning("path=%s damaged: %s", self._path, why)
        self._recording.unread[self._path.name] = why
        self._recording.damages.append((time_us or self._last_us, f"{self._path.name}: {why}"))


def _cut(offset: int, size: int, error: Exception) -> str:
    if not size:
        return "it is empty"
    if isinstance(error, mcap_exceptions.EndOfFile) and offset >= size:
        return f"the recording was not closed: the file ends at byte {size} without an end mark"
    told = f"{type(error).__name__} {error}".strip()
    return f"the file is cut or damaged at byte {offset} of {size}, and what comes there is not read: {told}"


def unpacked(chunk: Any) -> list[Any]:
    """Return the records of a chunk. Raise some error where it is damaged or would unpack to more than it says."""
    size = chunk.uncompressed_size
    if size > _MAX_CHUNK_BYTES:
        raise ValueError(f"it unpacks to {size} bytes, at most {_MAX_CHUNK_BYTES} are read")
    data = chunk.data
    if chunk.compression == "zstd":
        data = zstandard.ZstdDecompressor().stream_reader(data).read(size + 1)
    elif chunk.compression == "lz4":
        data = lz4_frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    elif chunk.compression:
        raise ValueError(f"its compression is {chunk.compression!r}; zstd, lz4 and none are read")
    if len(data) != size:
        raise ValueError(f"it says that it holds {size} bytes and holds {'more' if len(data) > size else len(data)}")
    records: list[Any] = mcap_stream.breakup_chunk(dataclasses.replace(chunk, compression="", data=data), validate_crc=True)
    return records


class MessageFiles:
    """Finds messages again by their place."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._open: dict[int, BinaryIO] = {}
        self._chunks: OrderedDict[tuple[int, int], tuple[list[Any], int]] = OrderedDict()

    def image(self, recording: Recording, topic: ImageTopic, number: int) -> ImageMessage:
        """Return an image. Raise ``ValueError`` where it cannot be decoded, ``SourceError`` where the file has changed."""
        file, offset, within = topic.file[number], topic.offset[number], topic.within[number]
        try:
            data = self._message(file, offset, within).data
        except (OSError, LookupError, AttributeError, mcap_exceptions.McapError) as error:
            raise SourceError(f"{str(self._files[file])!r} has changed while it was read: {error}") from error
        content = recording.decoders[topic.decoder[number]](data)
        assert isinstance(content, ImageMessage)
        return content

    def close(self) -> None:
        """Close the files. May be called twice."""
        for file in self._open.values():
            file.close()
        self._open, self._chunks = {}, OrderedDict()

    def _message(self, file: int, offset: int, within: int) -> Any:
        held = self._chunks.get((file, offset))
        if held is not None:
            self._chunks.move_to_end((file, offset))
            return held[0][within]
        if file not in self._open:
            self._open[file] = self._files[file].open("rb")
        self._open[file].seek(offset)
        record = next(mcap_stream.StreamReader(self._open[file], skip_magic=True, emit_chunks=True).records)
        if within == _OUTSIDE:
            return record
        self._chunks[file, offset] = (unpacked(record), record.uncompressed_size)
        while len(self._chunks) > 1 and sum(size for _, size in self._chunks.values()) > _HELD_BYTES:
            self._chunks.popitem(last=False)
        return self._chunks[file, offset][0][within]
