"""Sink: MP4 files with detections drawn onto the frames, one panel per detecting node, one file per stream and epoch.

Joins frames and detections by (stream_id, sequence). Frames are decoded and scaled as they arrive, and drawn once every
detecting node has passed them, at the latest at the barrier. Credits keep sources from running far ahead of operators; where
more than ``max_waiting_bytes`` of frames wait all the same, the oldest are drawn with what is there.
"""

# H height, W width, N boxes

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors import durable
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
from connectors.extras import optional
from connectors.options import REQUIRED, option
from connectors.sinks.staged import FileSink, encode_name

cv2 = optional("cv2")

__all__ = ["AnnotatedVideoOptions", "AnnotatedVideoSink", "Mp4Writer", "boxes_of_rows", "class_names"]

_RATE_FRAMES = 8  # the frame rate is the median step of so many first frames
_DEFAULT_FPS = 25.0
_EMPTY_SIZE = (240, 320)  # px; of a stream that begins with a frame nobody could decode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedVideoOptions:
    """Options of the sink ``annotated_video``."""

    path: Path = option(REQUIRED, "Folder for the files: `<stream>/part-<epoch>-<shard>-<n>.mp4`.")
    scale: float = option(1.0, "Size of a panel relative to the frame.", gt=0.0, le=8.0)
    max_height: int = option(480, "A panel is at most this high.", unit="px", ge=32, le=2160)
    min_score: float = option(0.3, "Draw detections from this score on.", ge=0.0, le=1.0)
    fps: float | None = option(None, "Frame rate of the files; default: that of the first event times.", unit="1/s", gt=0.0)
    codec: Literal["mp4v", "vp09"] = option(
        "mp4v", "`mp4v` is fast and read by every player; `vp09` is smaller, plays in browsers, and takes longer.",
    )  # fmt: skip
    max_waiting_bytes: int = option(
        256 << 20, "Frames of all streams that may wait for their detections, at the size of a panel.", unit="bytes", ge=1 << 20
    )


class Mp4Writer:
    """One MP4 file that is checked when it is finished: OpenCV's writer itself never says that the disk was full."""

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int], codec: str = "mp4v") -> None:
        self.path = path
        self.frames = 0
        self._size = size  # width, height
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
        if not self._writer.isOpened():
            raise SinkError(
                f"{path}: OpenCV cannot write {codec!r} video of {size[0]}x{size[1]} px there. Is the folder writable, is "
                "there space, has this build of OpenCV the codec? The PyPI wheels have mp4v and vp09"
            )

    def write(self, picture: Picture) -> None:
        """Append a picture of the file's size."""
        self._writer.write(picture)
        self.frames += 1

    def finish(self) -> None:
        """Close, flush to the device, and read the header back. Raise ``SinkError`` where frames are missing."""
        self._writer.release()
        capture = cv2.VideoCapture(str(self.path))
        stored = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if stored != self.frames:
            raise SinkError(
                f"{self.path}: {stored} of {self.frames} frames were stored; is the disk full? Free space or set the sink's "
                "'path' to another disk, then run again with --resume"
            )
        durable.sync(self.path)

    def abort(self) -> None:
        """Close and delete. Never raises."""
        self._writer.release()
        with contextlib.suppress(OSError):
            self.path.unlink()


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


@dataclass(slots=True)
class _Row:
    """What one node found in one frame."""

    boxes: LabeledBoxes
    status: str
    error: str | None


@dataclass(slots=True)
class _Stream:
    """What waits of one stream, and its file of this epoch."""

    panel: tuple[int, int] | None = None
    """Height and width, fixed by the first frame of the file."""
    frames: deque[_Frame] = field(default_factory=deque)
    rows: dict[str, dict[int, _Row]] = field(default_factory=dict)
    """Node → sequence → row."""
    passed: dict[str, int] = field(default_factory=dict)
    """Node → highest sequence: rows of a stream come in order, so an earlier frame without a row stays without one."""
    last_sequence: int | None = None
    times_us: list[int] = field(default_factory=list)
    drawn: list[Picture] = field(default_factory=list)
    """Pictures that wait for the frame rate to be known."""
    writer: Mp4Writer | None = None


class AnnotatedVideoSink(FileSink):
    """Draws what detectors found. Inputs: one node with frames, and one or more with a column ``detections``."""

    Options: ClassVar[type] = AnnotatedVideoOptions
    suffix = ".mp4"
    options: AnnotatedVideoOptions

    def __init__(self, options: AnnotatedVideoOptions) -> None:
        super().__init__(options)
        self._frames_from = ""
        self._classes: dict[str, list[str]] = {}
        self._streams: dict[str, _Stream] = {}
        self._waiting_bytes = 0
        self._hurried = 0  # frames of this epoch that did not wait for their detections

    def examine(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Raise ``ConfigError`` unless exactly one input has frames and all others have detections."""
        frames = [name for name, schema in schemas.items() if "image" in schema.names]
        others = [name for name, schema in schemas.items() if "detections" in schema.names and name not in frames]
        neither = sorted(set(schemas) - set(frames) - set(others))
        if len(frames) != 1 or not others or neither:
            raise ConfigError(
                f"an annotated_video sink takes one input with frames and at least one with detections; frames come from "
                f"{frames or 'none'}, detections from {others or 'none'}"
                + (f", and {neither} give neither" if neither else "")
                + "; write inputs: [source, detector]"
            )

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self.examine(schemas)
        self._frames_from = next(name for name, schema in schemas.items() if "image" in schema.names)
        self._classes = {name: class_names(schema) for name, schema in schemas.items() if name != self._frames_from}

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Take frames or detections, and draw every frame that is complete by now."""
        streams = batch.column("stream_id").to_pylist()
        sequences = batch.column("sequence").to_pylist()
        if source == self._frames_from:
            self._take_frames(batch, streams, sequences)
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
                size = stream.panel or (heights[i] or _EMPTY_SIZE[0], widths[i] or _EMPTY_SIZE[1])
                picture = placeholder(*size, errors[i] or "this frame cannot be decoded")
            if stream.panel is None:
                scale, most = self.options.scale, self.options.max_height
                stream.panel = panel_size(*picture.shape[:2], scale=scale, max_height=most)
            frame = _Frame(sequences[i], times_us[i], *resize_into(picture, *stream.panel))
            stream.frames.append(frame)
            self._waiting_bytes += frame.picture.nbytes

    def _take_rows(self, source: str, batch: pa.RecordBatch, streams: list[str], sequences: list[int]) -> None:
        names = batch.schema.names
        statuses = batch.column("status").to_pylist() if "status" in names else ["ok"] * batch.num_rows
        errors = batch.column("error").to_pylist() if "error" in names else [None] * batch.num_rows
        boxes = boxes_of_rows(batch.column("detections"))
        for name, sequence, status, error, found in zip(streams, sequences, statuses, errors, boxes, strict=True):
            stream = self._streams.setdefault(name, _Stream())
            passed = stream.passed.get(source)
            if passed is None or sequence > passed:  # a late row adds nothing to a frame that has its row
                stream.rows.setdefault(source, {})[sequence] = _Row(found, status or "ok", error)
                stream.passed[source] = sequence

    def _complete(self, stream: _Stream, sequence: int) -> bool:
        return all(stream.passed.get(node, sequence - 1) >= sequence for node in self._classes)

    def _draw_first(self, name: str, stream: _Stream) -> None:
        """Draw the oldest frame with what is there, and forget its rows and those before it."""
        frame = stream.frames.popleft()
        self._waiting_bytes -= frame.picture.nbytes
        height, width = frame.picture.shape[:2]
        panels = []
        for node, classes in self._classes.items():
            rows = stream.rows.get(node, {})
            row = rows.pop(frame.sequence, None)
            for old in [sequence for sequence in rows if sequence < frame.sequence]:
                del rows[old]
            picture = frame.picture.copy()
            if row is not None:
                draw_boxes(
                    picture, row.boxes, classes, min_score=self.options.min_score,
                    factor=frame.factor, left=frame.left, top=frame.top,
                )  # fmt: skip
                if row.error or row.status not in ("ok", "no_detection"):
                    draw_status(picture, row.status, row.error)
            bar = draw_header(width, _bar_height(height), node, f"{name}  #{frame.sequence}")
            panels.append(np.concatenate([bar, picture]))
        stream.times_us.append(frame.time_us)
        stream.drawn.append(panel_row(panels))
        if stream.writer is not None or len(stream.drawn) >= _RATE_FRAMES:
            self._write_drawn(stream)

    def _write_drawn(self, stream: _Stream) -> None:
        if not stream.drawn:
            return
        if stream.writer is None:
            height, width = stream.drawn[0].shape[:2]
            path = self._new_path().with_suffix("")  # OpenCV tells the format by the ending
            stream.writer = Mp4Writer(path, fps=self._fps(stream), size=(width, height), codec=self.options.codec)
        for picture in stream.drawn:
            stream.writer.write(picture)
        stream.drawn.clear()
        stream.times_us.clear()

    def _fps(self, stream: _Stream) -> float:
        if self.options.fps is not None:
            return self.options.fps
        steps = [b - a for a, b in zip(stream.times_us, stream.times_us[1:], strict=False) if b > a]
        return min(max(1e6 / median(steps), 1.0), 240.0) if steps else _DEFAULT_FPS

    def _flush(self) -> None:
        """End the files of this epoch. All rows before a barrier are here, so what waits is drawn with what it has."""
        for name, stream in self._streams.items():
            while stream.frames:
                self._draw_first(name, stream)
            self._write_drawn(stream)
            if stream.writer is not None:
                stream.writer.finish()
                done = stream.writer.path
                staged = done.with_name(f"{done.name}.staged")
                done.rename(staged)
                with staged.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._finished_file(
                    staged, partition=encode_name(name), rows=stream.writer.frames, size=staged.stat().st_size, sha256=digest
                )
        self._streams.clear()
        if self._hurried:
            text = "sink=%s %d frames were drawn before their detections came; shorten epoch_s or raise max_waiting_bytes"
            logger.warning(text, self.root, self._hurried)
            self._hurried = 0

    def _drop(self) -> None:
        for stream in self._streams.values():
            if stream.writer is not None:
                stream.writer.abort()
        self._streams.clear()
        self._waiting_bytes = self._hurried = 0


def _bar_height(height: int) -> int:
    return max(18, round(height / 18)) // 2 * 2
