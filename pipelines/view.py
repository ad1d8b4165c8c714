"""``streambank view``: the results of a pipeline as one HTML page, or drawn onto the video that they came from.

Reads committed rows only. The page is that of ``pipelines.report``; where rows say in which states streams are, or hold sound,
pages and pictures of their own show these.
"""

# H height, W width

from __future__ import annotations

import base64
import html
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
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
from connectors.extras import MissingExtra, missing, optional
from connectors.sinks.annotated_film import STEP_US
from connectors.sinks.annotated_video import boxes_of_rows, class_names
from connectors.sinks.mp4 import Mp4Writer
from connectors.sinks.read import read_committed
from connectors.sinks.staged import encode_name
from connectors.sources.video import VideoOptions, VideoReader
from pipelines.canvas import PngCanvas, SvgCanvas
from pipelines.report import page
from pipelines.spec import PipelineSpec
from pipelines.view_sounds import draw_sound, has_sound, sounds_of, videos_below
from pipelines.view_states import WIDTH, draw, needed, pictures

cv2 = optional("cv2")

__all__ = ["view", "view_pipeline"]

logger = logging.getLogger(__name__)

_VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_MAX_HEIGHT = 480
_HOLD_US = 2_000_000
"""Boxes stay on frames that have no row for so long."""
_BATCH_FRAMES = 16
_PLAYED = ("h264", "avc1", "vp09", "vp90", "av01")
_MOST_STREAMS = 50
_SOUND_COLUMNS = ["stream_id", "event_time", "sample_rate", "channels", "samples"]


def view(out: Path, *, video: Path | None = None, output: Path | None = None) -> list[Path]:
    """Make the page of the results in ``out``, or with ``video`` draw their detections onto it; return what was written.

    ``out`` is the folder of a parquet, arrow or jsonl sink, or one that holds several of them, up to two folders down: one page
    shows all. ``video`` is a file or a folder of files whose names without ending are the stream ids. ``output`` is where to
    write: default ``_report.html`` in, or ``_annotated/`` below, ``out``. States of streams, with the signals and prompts that
    other sinks of ``out`` hold, are drawn into ``_states.html`` and, one picture per stream, into ``_states/``. Sound is drawn
    into ``_sounds.html`` and ``_sounds/``: its spectrogram below frames and sound of its video, which is the one of ``video``,
    or the film that the run has written below ``out``.
    """
    folders = _folders(out)
    if video is not None and not any(has_sound(read_committed(folder)) for folder in folders.values()):
        return _draw_onto(out, video, output or out / "_annotated")
    if not folders:
        raise SourceError(f"{out} holds no committed rows (no part-*.parquet, .arrow or .jsonl); give the 'path' of a sink")
    return _write(out.resolve().name, folders, out, video, output)


def view_pipeline(spec: PipelineSpec, *, video: Path | None = None, output: Path | None = None) -> list[Path]:
    """Make the page of the results of a pipeline, as ``view`` does for a folder; default: beside its sinks' folders."""
    paths = {sink.name: Path(path) for sink in spec.sinks if (path := getattr(sink.options, "path", None))}
    folders = {name: path for name, path in paths.items() if _holds_rows(path)}
    if not folders:
        raise SourceError(f"no sink of {spec.name} holds committed rows; run the pipeline first")
    place = Path(os.path.commonpath([path.resolve() for path in paths.values()]))
    return _write(spec.name, folders, place, video, output)


def _write(title: str, folders: Mapping[str, Path], out: Path, video: Path | None, output: Path | None) -> list[Path]:
    """Write the page of ``folders``, which lie below ``out``, and the pictures of states and sounds."""
    target = out / "_report.html"  # readers of the data set skip names that start with an underscore
    if output is not None:
        target = output if output.suffix == ".html" else output / "report.html"
    place = target.parent
    place.mkdir(parents=True, exist_ok=True)
    tables = {name: read_committed(folder) for name, folder in folders.items()}
    media = sorted(path for kind in ("*.mp4", "*.wav") for path in out.rglob(kind) if _is_result(path, out))
    media = [path for path in media if path.suffix == ".wav" or _plays(path)]
    target.write_text(page(title, tables, media, place), encoding="utf-8")
    states = [part for table in tables.values() if (part := needed(table)) is not None]
    sounds = [
        table.select(_SOUND_COLUMNS) for table in tables.values() if has_sound(table) and "channels" in table.column_names
    ]
    videos = _videos(video) if video is not None else videos_below(out) if sounds else {}
    return [target, *_draw_states(states, place), *_draw_sounds(sounds, videos, place)]


def _folders(out: Path) -> dict[str, Path]:
    """Return the folders of table sinks: ``out`` itself, or those in it, or one further down."""
    if _holds_rows(out):
        return {out.resolve().name: out}
    for pattern in ("*", "*/*"):
        found = [path for path in sorted(out.glob(pattern)) if path.is_dir() and _is_result(path, out) and _holds_rows(path)]
        if found:
            return {str(path.relative_to(out)): path for path in found}
    return {}


def _is_result(path: Path, out: Path) -> bool:
    """Tell whether a file is a sink's rather than one of these pages or of a sink's unfinished files."""
    return not any(part.startswith(("_", ".")) for part in path.relative_to(out).parts)


def _draw_sounds(tables: Sequence[pa.Table], videos: Mapping[str, Path], place: Path) -> list[Path]:
    """Write a page with a picture of each stream that has sound, and the pictures."""
    found = sounds_of(tables)
    if not found:
        return []
    page, folder = place / "_sounds.html", place / "_sounds"
    folder.mkdir(parents=True, exist_ok=True)
    parts, written = [f"<h1>{len(found)} streams</h1>"], [page]
    for sound in found[:_MOST_STREAMS]:
        picture = draw_sound(sound, videos.get(sound.stream))
        target = folder / f"{encode_name(sound.stream)}.png"
        good, data = cv2.imencode(".png", picture)
        assert good
        target.write_bytes(data.tobytes())
        text = base64.b64encode(data.tobytes()).decode()
        parts.append(f'<h2>{html.escape(sound.stream)}</h2><img class="wide" alt="" src="data:image/png;base64,{text}">')
        written.append(target)
    if len(found) > _MOST_STREAMS:
        parts.append(f"<p>and {len(found) - _MOST_STREAMS:,} more streams</p>")
    page.write_text(_PAGE.format(title="sounds", body="\n".join(parts)), encoding="utf-8")
    return written


def _draw_states(tables: Sequence[pa.Table], place: Path) -> list[Path]:
    """Write a page with a picture of each stream whose states are known, and the pictures."""
    found = pictures(tables)
    if not found:
        return []
    page, folder = place / "_states.html", place / "_states"
    parts, written = [f"<h1>{len(found)} streams</h1>"], [page]
    for picture in found[:_MOST_STREAMS]:
        surface = SvgCanvas(WIDTH, picture.height)
        draw(picture, surface)
        parts.append(f"<h2>{html.escape(picture.stream)}</h2>{surface.svg()}")
        try:
            drawn = PngCanvas(WIDTH, picture.height)
            draw(picture, drawn)
            folder.mkdir(parents=True, exist_ok=True)
            drawn.save(folder / f"{encode_name(picture.stream)}.png")
            written.append(folder / f"{encode_name(picture.stream)}.png")
        except MissingExtra as error:
            logger.warning("view no pictures beside the page: %s", error)
    if len(found) > _MOST_STREAMS:
        parts.append(f"<p>and {len(found) - _MOST_STREAMS:,} more streams</p>")
    page.write_text(_PAGE.format(title="states", body="\n".join(parts)), encoding="utf-8")
    return written


def _holds_rows(folder: Path) -> bool:
    """Tell whether a folder is that of one table sink: part files in it, or in its partition folders ``key=value``."""
    names = [folder, *folder.glob("*=*"), *folder.glob("*=*/*=*")]
    return any(next(name.glob("part-*"), None) for name in names)


def _plays(film: Path) -> bool:
    """Tell whether browsers play a film: those that our sinks write, and not every one that a camera does."""
    if missing(["cv2"]):
        return True
    capture = cv2.VideoCapture(str(film))
    code = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1").lower()
    capture.release()
    return code in _PLAYED


# -- onto the video


def _draw_onto(out: Path, video: Path, output: Path) -> list[Path]:
    table = read_committed(out)
    missing = sorted({"stream_id", "sequence", "detections"} - set(table.column_names))
    if missing:
        raise SourceError(f"{out} has no column {missing[0]!r}; only detection rows can be drawn, it has {table.column_names}")
    videos = _videos(video)
    streams = table.column("stream_id").unique().to_pylist()
    chosen = [name for name in streams if name in videos]
    if not chosen:
        raise SourceError(
            f"none of the streams {_few(streams)} has a video in {video}, which has {_few(sorted(videos))}; "
            "a file's name without its ending must be the stream id"
        )
    output.mkdir(parents=True, exist_ok=True)
    return [_draw_stream(table.filter(pc.field("stream_id") == name), videos[name], output / f"{name}.mp4") for name in chosen]


def _videos(path: Path) -> dict[str, Path]:
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


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2026; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }}
svg rect {{ fill: #3b6ea8; }} img {{ max-width: 24rem; margin: 0 .4rem .4rem 0; }} img.wide {{ max-width: none; }}
h2 {{ margin-top: 2rem; font-size: 1.1rem; }}
</style></head><body>
{body}
</body></html>
"""
