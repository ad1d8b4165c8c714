"""Sink: one MP4 file per stream with detections drawn onto its frames, one panel per detecting node, and with sound.

Joins frames and detections by (stream_id, sequence). Frames are decoded and scaled as they arrive, and drawn once every
detecting node has passed them, at the latest at the barrier; a frame that a node has no row for shows that node's last boxes.
Credits keep sources from running far ahead of operators; where more than ``max_waiting_bytes`` of frames wait all the same, the
oldest are drawn with what is there. A file grows by a piece per epoch (``growing``, ``mp4_pieces``).
"""

# H height, W width, N boxes

from __future__ import annotations

import io
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.base import Staged
from connectors.drawing import (
    LabeledBoxes,
    Picture,
    decode_image,
    draw_boxes,
    draw_header,
    draw_status,
    panel_row,
    panel_size,
    placeholder,
    resize_into,
)
from connectors.errors import ConfigError, SinkError
from connectors.options import REQUIRED, option
from connectors.sinks.annotated_film import STEP_US, Film, Row, film_of, note_of
from connectors.sinks.growing import GrowingFileSink
from connectors.sinks.mp4 import Codec, VideoEncoder, require_encoder
from connectors.sinks.mp4_pieces import PieceWriter, read_note
from connectors.sinks.staged import StagedFile, encode_name

__all__ = ["AnnotatedVideoOptions", "AnnotatedVideoSink", "boxes_of_rows", "class_names"]

_EMPTY_SIZE = (240, 320)  # px; of a stream that begins with a frame nobody could decode
_PICTURE_TRACK, _SOUND_TRACK = 1, 2
_SOUND_JITTER_S = 0.005
"""Sound that begins so close to the end of what came before follows it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedVideoOptions:
    """Options of the sink ``annotated_video``."""

    path: Path = option(REQUIRED, "Folder for the files: `<stream>.mp4`, which grow with every commit.")
    scale: float = option(1.0, "Size of a panel relative to the frame.", gt=0.0, le=8.0)
    max_height: int = option(480, "A panel is at most this high.", unit="px", ge=32, le=2160)
    min_score: float = option(0.3, "Draw detections from this score on.", ge=0.0, le=1.0)
    hold_s: float = option(
        2.0,
        "A frame without a row of its own, between those that a detector samples, shows boxes at most so old; 0: none.",
        unit="s",
        ge=0.0,
    )
    fps: float | None = option(
        None, "Show this many frames per second; default: every frame at its event time.", unit="1/s", ge=0.01, le=1000.0
    )
    max_pause_s: float = option(5.0, "A pause between two frames is shown for at most so long.", unit="s", ge=0.001, le=3600.0)
    codec: Codec = option("h264", "`h264` is played by everything; `vp9` is free of patents, smaller, and takes more time.")
    mux: Literal["none", "sound"] = option(
        "none", "`sound`: one input gives sound (rows of pcm), which is heard with the frames of its event time."
    )
    sound_rate: int = option(
        22_050, "With mux: sound: samples per second of the track; rows of another rate are left out.", unit="Hz", ge=4000
    )
    max_waiting_bytes: int = option(
        256 << 20, "Frames of all streams that may wait for their detections, at the size of a panel.", unit="bytes", ge=1 << 20
    )

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        if self.mux == "sound" and self.fps is not None:
            raise ConfigError(f"fps={self.fps:g} would part frames from their sound; leave it out with mux: sound")


def class_names(schema: pa.Schema) -> list[str]:
    """Return the class names in the metadata of a detection schema; empty where there are none."""
    names: list[str] = json.loads((schema.metadata or {}).get(b"streambank.classes", b"[]"))
    return names


def boxes_of_rows(detections: pa.ListArray) -> Iterator[LabeledBoxes]:
    """Yield the boxes of each row of a ``detections`` column."""
    flat = detections.flatten()
    xyxy = np.stack(
        [pc.struct_field(flat, edge).to_numpy(zero_copy_only=False).astype(np.float32) for edge in ("x1", "y1", "x2", "y2")], 1
    )
    scores = pc.struct_field(flat, "score").to_numpy(zero_copy_only=False).astype(np.float32)
    labels = pc.struct_field(flat, "label").to_numpy(zero_copy_only=False).astype(np.int64)
    counts = pc.fill_null(pc.list_value_length(detections), 0).to_numpy(zero_copy_only=False)
    start = 0
    for count in counts.tolist():
        part = slice(start, start + count)
        start += count
        yield LabeledBoxes(xyxy[part], scores[part], labels[part])


@dataclass(slots=True)
class _Frame:
    """A frame that waits for its detections, scaled to the panel."""

    sequence: int
    time_us: int
    picture: Picture
    factor: float
    left: int
    top: int


@dataclass(frozen=True, slots=True)
class _Sound:
    """A row of sound."""

    sequence: int
    time_us: int
    samples_N: npt.NDArray[np.int16]


@dataclass(slots=True)
class _Piece:
    """What is being written of a file in this epoch."""

    file: StagedFile
    at: int
    writer: PieceWriter
    encoder: VideoEncoder
    starts: dict[int, int] = field(default_factory=dict)
    """Track → where it begins in the file: pictures in microseconds, sound in moments."""
    frames: int = 0


@dataclass(slots=True)
class _Stream:
    """What waits of one stream in this epoch."""

    film: Film | None = None
    frames: deque[_Frame] = field(default_factory=deque)
    rows: dict[str, dict[int, Row]] = field(default_factory=dict)
    """Node → sequence → row."""
    passed: dict[str, int] = field(default_factory=dict)
    """Node → highest sequence: rows of a stream come in order, so an earlier frame without a row stays without one."""
    last_sequence: int | None = None
    sound: list[_Sound] = field(default_factory=list)
    """That came before the first frame."""
    piece: _Piece | None = None


class AnnotatedVideoSink(GrowingFileSink):
    """Draws what detectors found. Inputs: one with frames, some with ``detections``, and with mux: sound one with ``samples``.

    With sound, frames are shown at their event time, pauses in full: else they would part.
    """

    Options: ClassVar[type] = AnnotatedVideoOptions
    suffix = ".mp4"
    options: AnnotatedVideoOptions

    def __init__(self, options: AnnotatedVideoOptions) -> None:
        super().__init__(options)
        self._frames_from = ""
        self._classes: dict[str, list[str]] = {}
        self._streams: dict[str, _Stream] = {}
        self._films: dict[str, Film] = {}  # of the streams of this attempt: a few hundred bytes each
        self._epoch = -1
        self._waiting_bytes = 0
        self._hurried = 0  # frames of this epoch that did not wait for their detections
        self._sound_from: str | None = None
        self._left_out: dict[str, int] = {}

    def examine(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Raise ``ConfigError`` unless exactly one input has frames and all others have detections."""
        frames = [name for name, schema in schemas.items() if "image" in schema.names]
        others = [name for name, schema in schemas.items() if "detections" in schema.names and name not in frames]
        sounds = [name for name, schema in schemas.items() if "samples" in schema.names and name not in frames + others]
        neither = sorted(set(schemas) - set(frames) - set(others) - set(sounds))
        has_sound = self.options.mux == "sound"
        if has_sound and (len(frames) != 1 or len(sounds) != 1 or neither):
            raise ConfigError(
                f"an annotated_video sink with mux: sound takes one input with frames, one with sound, any with detections; "
                f"frames come from {frames or 'none'}, sound from {sounds or 'none'}"
                + (f", and {neither} give neither" if neither else "")
                + "; write inputs: [source, generator.sound]"
            )
        if not has_sound and sounds:
            raise ConfigError(f"{sounds} give sound; set mux: sound to hear it")
        if not has_sound and (len(frames) != 1 or not others or neither):
            raise ConfigError(
                f"an annotated_video sink takes one input with frames and at least one with detections; frames come from "
                f"{frames or 'none'}, detections from {others or 'none'}"
                + (f", and {neither} give neither" if neither else "")
                + "; write inputs: [source, detector]"
            )

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self.examine(schemas)
        self._frames_from = next(name for name, schema in schemas.items() if "image" in schema.names)
        self._sound_from = next((name for name, schema in schemas.items() if "samples" in schema.names), None)
        known = {self._frames_from, self._sound_from}
        self._classes = {name: class_names(schema) for name, schema in schemas.items() if name not in known}

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """See the contract. ``SinkError`` where this build of PyAV cannot write the codec."""
        encoder, _ = require_encoder(self.options.codec)
        super().open(schemas, attempt=attempt, shard=shard)
        logger.info("sink=%s codec=%s encoder=%s", self.root, self.options.codec, encoder)

    def prepare(self, epoch: int) -> list[Staged]:
        """Finish the pieces of this epoch. All rows before a barrier are here, so what waits is drawn with what it has."""
        self._epoch = epoch
        return super().prepare(epoch)

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Take frames or detections, and draw every frame that is complete by now."""
        streams = batch.column("stream_id").to_pylist()
        sequences = batch.column("sequence").to_pylist()
        if source == self._frames_from:
            self._take_frames(batch, streams, sequences)
        elif source == self._sound_from:
            self._take_sound(batch, streams, sequences)
        else:
            self._take_rows(source, batch, streams, sequences)
        for name in dict.fromkeys(streams):
            stream = self._streams[name]
            while stream.frames and self._complete(stream, stream.frames[0].sequence):
                self._draw_first(name, stream)
        while self._waiting_bytes > self.options.max_waiting_bytes:
            name, stream = max(self._streams.items(), key=lambda item: len(item[1].frames))
            self._draw_first(name, stream)
            self._hurried += 1

    def _take_frames(self, batch: pa.RecordBatch, streams: list[str], sequences: list[int]) -> None:
        times_us = batch.column("event_time").cast(pa.int64()).to_pylist()
        encodings = batch.column("encoding").to_pylist()
        heights, widths = batch.column("height").to_pylist(), batch.column("width").to_pylist()
        errors = batch.column("error").to_pylist()
        roles = batch.column("role").to_pylist() if "role" in batch.schema.names else [None] * batch.num_rows
        images = batch.column("image")
        for i, name in enumerate(streams):
            stream = self._streams.setdefault(name, _Stream())
            if roles[i] == "reference":
                continue
            if stream.last_sequence is not None and sequences[i] <= stream.last_sequence:
                logger.warning("sink=%s stream=%r frame %d comes twice or late; left out", self.root, name, sequences[i])
                continue
            stream.last_sequence = sequences[i]
            data = images[i].as_buffer() if images[i].is_valid else None
            picture = decode_image(data, encodings[i], heights[i], widths[i])
            if picture is None:
                size = (
                    stream.film.panel
                    if stream.film is not None
                    else (heights[i] or _EMPTY_SIZE[0], widths[i] or _EMPTY_SIZE[1])
                )
                picture = placeholder(*size, errors[i] or "this frame cannot be decoded")
            if stream.film is None:
                panel = panel_size(*picture.shape[:2], scale=self.options.scale, max_height=self.options.max_height)
                stream.film = self._film(name, panel)
            frame = _Frame(sequences[i], times_us[i], *resize_into(picture, *stream.film.panel))
            stream.frames.append(frame)
            self._waiting_bytes += frame.picture.nbytes

    def _take_rows(self, source: str, batch: pa.RecordBatch, streams: list[str], sequences: list[int]) -> None:
        names = batch.schema.names
        statuses = batch.column("status").to_pylist() if "status" in names else ["ok"] * batch.num_rows
        errors = batch.column("error").to_pylist() if "error" in names else [None] * batch.num_rows
        boxes = boxes_of_rows(batch.column("detections"))
        times_us = batch.column("event_time").cast(pa.int64()).to_pylist()
        rows = zip(streams, sequences, times_us, statuses, errors, boxes, strict=True)
        for name, sequence, time_us, status, error, found in rows:
            stream = self._streams.setdefault(name, _Stream())
            passed = stream.passed.get(source)
            if passed is None or sequence > passed:  # a late row adds nothing to a frame that has its row
                stream.rows.setdefault(source, {})[sequence] = Row(time_us, found, status or "ok", error)
                stream.passed[source] = sequence

    def _take_sound(self, batch: pa.RecordBatch, streams: list[str], sequences: list[int]) -> None:
        times_us = batch.column("event_time").cast(pa.int64()).to_pylist()
        rates = batch.column("sample_rate").to_pylist()
        names = batch.schema.names
        channels = batch.column("channels").to_pylist() if "channels" in names else [1] * batch.num_rows
        samples = batch.column("samples")
        flat, ends = samples.values.to_numpy(zero_copy_only=False), samples.offsets.to_numpy()
        there = samples.is_valid().to_pylist()
        for i, name in enumerate(streams):
            part = flat[ends[i] : ends[i + 1]]
            if not there[i] or not len(part):
                continue
            if rates[i] != self.options.sound_rate:
                self._leave_out(name, sequences[i], f"has {rates[i]} Hz; set sound_rate")
            elif not channels[i] or channels[i] < 1 or len(part) % channels[i]:
                self._leave_out(name, sequences[i], "holds no whole number of moments")
            else:
                mono_N = np.rint(part.reshape(-1, channels[i]).mean(1)).astype(np.int16)
                stream = self._streams.setdefault(name, _Stream())
                stream.sound.append(_Sound(sequences[i], times_us[i], mono_N))
        for name in dict.fromkeys(streams):
            self._sound(name)

    def _sound(self, name: str) -> None:
        """Write the sound of a stream that has a first frame."""
        stream = self._streams.get(name)
        if stream is None or not stream.sound:
            return
        film = stream.film
        if film is None:  # the file may be there already, of an earlier epoch
            known = self._films.get(name) or self._known_film(name)
            if known is None:
                return
            film = stream.film = known
        if film.start_us is None:
            return
        rows, stream.sound = stream.sound, []
        for row in rows:
            if film.sound_sequence is not None and row.sequence <= film.sound_sequence:
                self._leave_out(name, row.sequence, "comes twice or late")
                continue
            film.sound_sequence = row.sequence
            at = round((row.time_us - film.start_us) * self.options.sound_rate / 1e6)
            samples_N, slack = row.samples_N, round(_SOUND_JITTER_S * self.options.sound_rate)
            while at - film.sounded > slack:
                self._put_sound(stream, film, np.zeros(min(at - film.sounded, self.options.sound_rate), np.int16))
            if film.sounded - at > slack:  # before the first frame, or where there is sound already
                samples_N = samples_N[film.sounded - at :]
            self._put_sound(stream, film, samples_N)

    def _put_sound(self, stream: _Stream, film: Film, samples_N: npt.NDArray[np.int16]) -> None:
        if not len(samples_N):
            return
        piece = self._open_piece(stream, film)
        piece.starts.setdefault(_SOUND_TRACK, film.sounded)
        piece.encoder.write_sound(samples_N)
        film.sounded += len(samples_N)

    def _leave_out(self, name: str, sequence: int, why: str) -> None:
        self._left_out[why] = self._left_out.get(why, 0) + 1
        logger.warning("sink=%s stream=%r row %d of sound is left out: it %s", self.root, name, sequence, why)

    def incomplete(self) -> Mapping[str, int]:
        """Return how many rows of sound were left out, and why."""
        return {f"sound {why}": count for why, count in self._left_out.items()}

    def _complete(self, stream: _Stream, sequence: int) -> bool:
        return all(stream.passed.get(node, sequence - 1) >= sequence for node in self._classes)

    def _draw_first(self, name: str, stream: _Stream) -> None:
        """Draw the oldest frame with what is there, and forget its rows and those before it."""
        frame = stream.frames.popleft()
        film = stream.film
        assert film is not None  # a frame waits, so there was a first one
        self._waiting_bytes -= frame.picture.nbytes
        height, width = frame.picture.shape[:2]
        panels = []
        for node, classes in self._classes.items():
            rows = stream.rows.get(node, {})
            row = rows.pop(frame.sequence, None)
            for old in sorted(sequence for sequence in rows if sequence < frame.sequence):
                film.held[node] = rows.pop(old)
            picture = frame.picture.copy()
            shown = row if row is not None else film.held.get(node)
            if shown is not None and (row is not None or 0 <= frame.time_us - shown.time_us <= self.options.hold_s * 1e6):
                draw_boxes(
                    picture, shown.boxes, classes, min_score=self.options.min_score,
                    factor=frame.factor, left=frame.left, top=frame.top,
                )  # fmt: skip
            if row is not None:
                film.held[node] = row
                if row.error or row.status not in ("ok", "no_detection"):
                    draw_status(picture, row.status, row.error)
            bar = draw_header(width, _bar_height(height), node, f"{name}  #{frame.sequence}")
            panels.append(np.concatenate([bar, picture]))
        if not self._classes:
            bar = draw_header(width, _bar_height(height), self._frames_from, f"{name}  #{frame.sequence}")
            panels.append(np.concatenate([bar, frame.picture]))
        self._show(stream, film, panel_row(panels), frame.time_us)
        self._sound(name)

    def _show(self, stream: _Stream, film: Film, picture: Picture, time_us: int) -> None:
        """Write a picture to the stream's piece of this epoch, to be shown at its time."""
        if film.time_us is not None:
            film.shown_us += self._step(film, time_us)
        film.time_us = time_us
        if film.start_us is None:
            film.start_us = time_us
        piece = self._open_piece(stream, film)
        start_us = piece.starts.setdefault(_PICTURE_TRACK, film.shown_us)
        piece.encoder.write(picture, film.shown_us - start_us, film.step_us)
        piece.frames += 1
        film.frames += 1

    def _open_piece(self, stream: _Stream, film: Film) -> _Piece:
        """Return what is being written of a file in this epoch."""
        if stream.piece is None:
            file, starts = StagedFile(self._new_path()), dict[int, int]()
            writer = PieceWriter(file, head=film.head, fragments=film.fragments, starts=starts)
            stream.piece = _Piece(file, film.end, writer, self._encoder(writer, film.panel), starts)
        return stream.piece

    def _encoder(self, writer: PieceWriter, panel: tuple[int, int]) -> VideoEncoder:
        picture = panel_row([np.zeros((panel[0] + _bar_height(panel[0]), panel[1], 3), np.uint8)] * max(1, len(self._classes)))
        rate = self.options.sound_rate if self._sound_from is not None else None
        size = (picture.shape[1], picture.shape[0])
        return VideoEncoder(writer, size=size, codec=self.options.codec, sound_rate=rate)

    def _step(self, film: Film, time_us: int) -> int:
        """Return how long after the last frame this one is shown, in microseconds; more than 0."""
        if self.options.fps is not None:
            film.step_us = round(1e6 / self.options.fps)
            return round(film.frames * 1e6 / self.options.fps) - round((film.frames - 1) * 1e6 / self.options.fps)
        assert film.time_us is not None
        step_us = time_us - film.time_us
        if step_us > self.options.max_pause_s * 1e6 and self._sound_from is None:
            return round(self.options.max_pause_s * 1e6)
        if step_us > 0:
            film.step_us = step_us
        return film.step_us

    def _film(self, name: str, panel: tuple[int, int]) -> Film:
        """Return how to go on with the file of a stream: the one of this attempt, the newest on disk, else a new one."""
        if name not in self._films:
            number, known = self._newest(name)
            film = None if known is None else film_of(number, *known)
            if film is not None and film.head != self._head(film.panel):
                logger.warning("sink=%s stream=%r goes on in a file of its own: panels or encoder changed", self.root, name)
                film, number = None, number + 1
            self._films[name] = film if film is not None else Film(number, panel)
        return self._films[name]

    def _known_film(self, name: str) -> Film | None:
        """Return how to go on with the file of a stream that is on disk; None where there is none."""
        _, known = self._newest(name)
        return None if known is None else self._film(name, tuple(known[1]["panel"]))

    def _newest(self, name: str) -> tuple[int, tuple[int, dict[str, Any]] | None]:
        """Return the number of the last file of a stream with its size and note; 1 and None where there is none."""
        number = 1
        while (self.root / _file_name(name, number + 1)).exists():
            number += 1
        path = self.root / _file_name(name, number)
        if not path.exists():
            return 1, None
        known = read_note(path)
        if known is None:
            raise SinkError(
                f"{path} was not written by this sink, or was cut: it does not end as its files do. Move it away, put it back "
                "as it was, or set the sink's 'path' to another folder"
            )
        return number, known

    def _head(self, panel: tuple[int, int]) -> str | None:
        """Return the digest of the head that files with panels of this size begin with now."""
        writer = PieceWriter(io.BytesIO(), head=None, fragments=0, starts={_PICTURE_TRACK: 0})
        encoder = self._encoder(writer, panel)
        height, width = panel[0] + _bar_height(panel[0]), panel[1]
        encoder.write(panel_row([np.zeros((height, width, 3), np.uint8)] * max(1, len(self._classes))), 0, STEP_US)
        encoder.finish()
        return writer.head

    def _epoch_of(self, path: Path) -> int | None:
        known = read_note(path)
        return None if known is None else int(known[1]["epoch"])

    def _flush(self) -> None:
        """End the pieces of this epoch."""
        for name, stream in self._streams.items():
            while stream.frames:
                self._draw_first(name, stream)
            if stream.sound:
                self._leave_out(name, stream.sound[0].sequence, "came without a frame")
            film, piece = stream.film, stream.piece
            if film is None or piece is None:
                continue
            for node, rows in stream.rows.items():  # of frames that did not come
                if rows:
                    film.held[node] = rows[max(rows)]
            piece.encoder.finish()
            if not piece.writer.fits:
                raise SinkError(f"{self.root}: the encoder changed the head of {name!r} within a run; report it, please")
            film.head, film.fragments = piece.writer.head, piece.writer.fragments
            piece.writer.end(note_of(film, self._epoch))
            piece.file.finish()
            film.end += piece.file.bytes
            self._piece(piece.file, target=_file_name(name, film.number), at=piece.at, rows=piece.frames)
            stream.piece = None
        self._streams.clear()
        if self._hurried:
            text = "sink=%s %d frames were drawn before their detections came; shorten epoch_s or raise max_waiting_bytes"
            logger.warning(text, self.root, self._hurried)
            self._hurried = 0

    def _drop(self) -> None:
        for stream in self._streams.values():
            if stream.piece is not None:
                stream.piece.encoder.abort()
                stream.piece.file.abort()
        self._streams.clear()
        self._films.clear()
        self._waiting_bytes = self._hurried = 0


def _file_name(stream: str, number: int) -> str:
    """Return the name of a stream's file. No encoded stream id holds a plus sign."""
    return f"{encode_name(stream)}{'' if number == 1 else f'+{number}'}.mp4"


def _bar_height(height: int) -> int:
    return max(18, round(height / 18)) // 2 * 2
