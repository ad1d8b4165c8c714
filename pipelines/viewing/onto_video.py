"""Detections drawn onto the video that they came from."""

# H height, W width

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.drawing import (
    LabeledBoxes,
    Picture,
    decode_image,
    draw_boxes,
    draw_header,
    draw_status,
    panel_size,
    resize_into,
)
from connectors.errors import SourceError
from connectors.sinks.annotated_film import STEP_US
from connectors.sinks.annotated_video import boxes_of_rows, class_names
from connectors.sinks.mp4 import Mp4Writer
from connectors.sinks.read import read_committed
from connectors.sources.video import VideoOptions, VideoReader

__all__ = ["draw_onto", "videos_of"]

logger = logging.getLogger(__name__)

_VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_MAX_HEIGHT = 480
_HOLD_US = 2_000_000
"""Boxes stay on frames that have no row for so long."""
_BATCH_FRAMES = 16


def draw_onto(out: Path, video: Path, output: Path) -> list[Path]:
    """Draw the detections of the rows in ``out`` onto their videos; return what was written."""
    table = read_committed(out)
    missing = sorted({"stream_id", "sequence", "detections"} - set(table.column_names))
    if missing:
        raise SourceError(f"{out} has no column {missing[0]!r}; only detection rows can be drawn, it has {table.column_names}")
    videos = videos_of(video)
    streams = table.column("stream_id").unique().to_pylist()
    chosen = [name for name in streams if name in videos]
    if not chosen:
        raise SourceError(
            f"none of the streams {_few(streams)} has a video in {video}, which has {_few(sorted(videos))}; "
            "a file's name without its ending must be the stream id"
        )
    output.mkdir(parents=True, exist_ok=True)
    return [_draw_stream(table.filter(pc.field("stream_id") == name), videos[name], output / f"{name}.mp4") for name in chosen]


def videos_of(path: Path) -> dict[str, Path]:
    """Return the video files of a folder, or the one file, by the names of their streams."""
    if not path.exists():
        raise SourceError(f"{path} does not exist; give the video file, or the folder of video files, that was replayed")
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.suffix.lower() in _VIDEO_SUFFIXES]
    return {file.stem: file for file in files}


def _draw_stream(rows: pa.Table, source: Path, target: Path) -> Path:
    """Write one video with its detections; ``sequence`` is the number of the frame."""
    rows = rows.combine_chunks().sort_by("sequence")
    classes = class_names(rows.schema)
    boxes = dict(
        zip(rows.column("sequence").to_pylist(), boxes_of_rows(rows.column("detections").combine_chunks()), strict=True)
    )
    bad = _bad_rows(rows)
    writer: Mp4Writer | None = None
    held, held_us, shown_us = LabeledBoxes(), 0, -1
    try:
        for sequence, time_us, picture in _frames_of(source):
            height, width = panel_size(*picture.shape[:2], scale=1.0, max_height=_MAX_HEIGHT)
            canvas, factor, left, top = resize_into(picture, height, width)
            if sequence in boxes:
                held, held_us = boxes[sequence], time_us
            if time_us - held_us <= _HOLD_US:
                draw_boxes(canvas, held, classes, min_score=0.3, factor=factor, left=left, top=top)
            if sequence in bad:
                draw_status(canvas, *bad[sequence])
            page = np.concatenate([draw_header(width, max(18, height // 36 * 2), source.stem, f"#{sequence}"), canvas])
            if writer is None:
                writer = Mp4Writer(target, size=(page.shape[1], page.shape[0]))
            step_us = time_us - shown_us if shown_us >= 0 else STEP_US
            shown_us = max(shown_us + 1, time_us)
            writer.write(page, shown_us, max(1, step_us))
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    if writer is None:
        raise SourceError(f"{source} cannot be decoded: no frame in it")
    writer.finish()
    return target


def _frames_of(path: Path) -> Iterator[tuple[int, int, Picture]]:
    """Yield number, time in microseconds and picture of the frames that decode, as the source ``video`` reads them."""
    reader = VideoReader(path, path.stem, VideoOptions(path=str(path)), None)
    problem = None
    try:
        while not reader.exhausted:
            batch = reader.read(_BATCH_FRAMES, 1 << 28)
            if batch is None:
                continue
            for row in range(batch.num_rows):
                image, encoding, height, width = (batch.column(name)[row] for name in ("image", "encoding", "height", "width"))
                problem = batch.column("error")[row].as_py()
                if image.is_valid:
                    time_us = batch.column("event_time")[row].value
                    picture = decode_image(image.as_buffer(), encoding.as_py(), height.as_py(), width.as_py())
                    if picture is not None:
                        yield batch.column("sequence")[row].as_py(), time_us, picture
    finally:
        reader.close()
    if problem is not None:
        logger.warning("view video=%s %s", path, problem)


def _bad_rows(rows: pa.Table) -> dict[int, tuple[str, str | None]]:
    if "status" not in rows.column_names:
        return {}
    status = rows.column("status").cast(pa.string())
    odd = rows.filter(pc.invert(pc.is_in(status, pa.array(["ok", "no_detection"]))))
    errors = odd.column("error").to_pylist() if "error" in odd.column_names else [None] * odd.num_rows
    words = odd.column("status").cast(pa.string()).to_pylist()
    return dict(zip(odd.column("sequence").to_pylist(), zip(words, errors, strict=True), strict=True))


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
