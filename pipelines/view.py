"""``streambank view``: a result folder as a static HTML report, or drawn onto the video that it came from.

Reads committed rows only. The report is one file without scripts or outside references: what ran, rows per stream and status,
a histogram per numeric column, and pictures where a video is given or lies beside the rows. Where rows say in which states
streams are, a page and pictures show these below the signals.
"""

# H height, W width

from __future__ import annotations

import base64
import html
import logging
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
from connectors.extras import MissingExtra, optional
from connectors.sinks.annotated_film import STEP_US
from connectors.sinks.annotated_video import boxes_of_rows, class_names
from connectors.sinks.mp4 import Mp4Writer
from connectors.sinks.read import read_committed
from connectors.sinks.staged import encode_name
from connectors.sources.video import VideoOptions, VideoReader
from pipelines.canvas import PngCanvas, SvgCanvas
from pipelines.view_sounds import draw_sound, has_sound, sounds_of, videos_below
from pipelines.view_states import WIDTH, draw, needed, pictures

cv2 = optional("cv2")

__all__ = ["view"]

logger = logging.getLogger(__name__)

_VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_MAX_HEIGHT = 480
_HOLD_US = 2_000_000
"""Boxes stay on frames that have no row for so long."""
_BATCH_FRAMES = 16
_STRIP_PICTURES = 8
_MOST_STREAMS = 50
_SOUND_COLUMNS = ["stream_id", "event_time", "sample_rate", "channels", "samples"]
_BINS = 40


def view(out: Path, *, video: Path | None = None, output: Path | None = None) -> list[Path]:
    """Make the report of the rows in ``out``, or with ``video`` draw their detections onto it; return what was written.

    ``out`` is the folder of a parquet, arrow or jsonl sink, or one that holds several of them (each gets its report).
    ``video`` is a file or a folder of files whose names without ending are the stream ids. ``output`` is where to write:
    default ``_report.html`` in, or ``_annotated/`` below, the folder of the rows. States of streams, with the signals and
    prompts that other sinks of ``out`` hold, are drawn into ``_states.html`` and, one picture per stream, into ``_states/``.
    Sound is drawn into ``_sounds.html`` and ``_sounds/``: its spectrogram below frames and sound of its video, which is the one
    of ``video``, or the film that the run has written below ``out``.
    """
    sounding = _sound_folders(out)
    if video is not None and not sounding:
        return _draw_onto(out, video, output or out / "_annotated")
    folders = [out] if _holds_rows(out) else sorted(path for path in out.glob("*") if path.is_dir() and _holds_rows(path))
    if not folders:
        raise SourceError(f"{out} holds no committed rows (no part-*.parquet, .arrow or .jsonl); give the 'path' of a sink")
    written, tables, sounds = [], [], []
    for folder in folders:
        table = read_committed(folder)
        sounds += [table.select(_SOUND_COLUMNS)] if has_sound(table) and "channels" in table.column_names else []
        target = _target(output, folder, several=len(folders) > 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_report(folder, table), encoding="utf-8")
        written.append(target)
        tables += [part] if (part := needed(table)) is not None else []
    place = out if output is None else output.parent if output.suffix == ".html" else output
    videos = _videos(video) if video is not None else videos_below(out) if sounds else {}
    return written + _draw_states(tables, place) + _draw_sounds(sounds, videos, place)


def _sound_folders(out: Path) -> list[Path]:
    """Return the folders of table sinks of ``out`` whose rows hold sound."""
    folders = [out] if _holds_rows(out) else [path for path in sorted(out.glob("*")) if path.is_dir() and _holds_rows(path)]
    return [folder for folder in folders if has_sound(read_committed(folder))]


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


def _target(output: Path | None, folder: Path, *, several: bool) -> Path:
    if output is None:
        return folder / "_report.html"  # readers of the data set skip names that start with an underscore
    if output.suffix == ".html" and not several:
        return output
    return output / f"{folder.name}.html"


def _holds_rows(folder: Path) -> bool:
    """Tell whether a folder is that of one table sink: part files in it, or in its partition folders ``key=value``."""
    names = [folder, *folder.glob("*=*"), *folder.glob("*=*/*=*")]
    return any(next(name.glob("part-*"), None) for name in names)


# -- the report


def _report(folder: Path, table: pa.Table) -> str:
    parts = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f"<p>{table.num_rows:,} rows, {len(table.column_names)} columns, {_time_range(table)}</p>",
        _strip(folder),
        _streams(table),
        _errors(table),
        *(_histogram(name, values) for name, values in _numbers(table)),
        _schema(table.schema),
    ]
    return _PAGE.format(title=html.escape(folder.name), body="\n".join(part for part in parts if part))


def _time_range(table: pa.Table) -> str:
    if "event_time" not in table.column_names or not table.num_rows:
        return "no event times"
    ends = pc.min_max(table.column("event_time")).as_py()
    return f"{ends['min']} to {ends['max']}"


def _streams(table: pa.Table) -> str:
    """Rows per stream and status."""
    if "stream_id" not in table.column_names:
        return ""
    keys = ["stream_id", "status"] if "status" in table.column_names else ["stream_id"]
    plain = table.select(keys)
    if "status" in keys:
        plain = plain.set_column(1, "status", plain.column("status").cast(pa.string()))
    counts = plain.group_by(keys).aggregate([([], "count_all")]).sort_by([(key, "ascending") for key in keys])
    shown = counts.slice(0, _MOST_STREAMS)
    head = "".join(f"<th>{name}</th>" for name in [*keys, "rows"])
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[key]))}</td>" for key in keys) + f"<td>{row['count_all']:,}</td></tr>"
        for row in shown.to_pylist()
    )
    more = f"<p>and {counts.num_rows - _MOST_STREAMS:,} more</p>" if counts.num_rows > _MOST_STREAMS else ""
    return f"<h2>Streams</h2><table><tr>{head}</tr>{rows}</table>{more}"


def _errors(table: pa.Table) -> str:
    """The most frequent errors."""
    if "error" not in table.column_names:
        return ""
    errors = table.column("error").drop_null()
    if not len(errors):
        return ""
    counts = sorted(pc.value_counts(errors).to_pylist(), key=lambda entry: -entry["counts"])[:10]
    rows = "".join(f"<tr><td>{html.escape(entry['values'])}</td><td>{entry['counts']:,}</td></tr>" for entry in counts)
    return f"<h2>Errors</h2><table><tr><th>error</th><th>rows</th></tr>{rows}</table>"


def _numbers(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the finite values of every numeric column, and of the scores and the number of detections."""
    for field in table.schema:
        column = table.column(field.name)
        if field.name == "detections" and pa.types.is_list(field.type):
            lists = column.combine_chunks()
            yield "detections per row", pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
            yield "score of detections", _finite(pc.struct_field(lists.flatten(), "score"))
        elif field.name != "sequence" and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            unit = (field.metadata or {}).get(b"unit", b"").decode()
            yield f"{field.name} ({unit})" if unit else field.name, _finite(column)


def _finite(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    values = np.asarray(column.drop_null().to_numpy(), np.float64)
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _histogram(name: str, values: np.ndarray) -> str:
    """An SVG histogram with the quartiles in words."""
    if not values.size:
        return ""
    counts, edges = np.histogram(values, bins=_BINS)
    width, height = 480, 90
    step, tallest = width / _BINS, max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * count / tallest:.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / tallest:.1f}"><title>{count:,} from {edges[i]:.4g}</title></rect>'
        for i, count in enumerate(counts.tolist())
    )
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    words = f"median {middle:.4g}, 5 % below {low:.4g}, 5 % above {high:.4g}, range {edges[0]:.4g} to {edges[-1]:.4g}"
    return (
        f"<h2>{html.escape(name)}</h2><p>{words}</p>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{bars}</svg>'
    )


def _schema(schema: pa.Schema) -> str:
    rows = "".join(f"<tr><td>{html.escape(field.name)}</td><td>{html.escape(str(field.type))}</td></tr>" for field in schema)
    return f"<h2>Columns</h2><table><tr><th>column</th><th>type</th></tr>{rows}</table>"


def _strip(folder: Path) -> str:
    """Pictures of the first annotated video that lies in a sink folder beside the rows, or one level up."""
    for near in (folder.parent, folder.parent.parent):
        videos = sorted(path for path in near.glob("*/*.mp4") if not any(part.startswith("_") for part in path.parts))
        if videos:
            pictures = "".join(_inline(picture) for picture in _spread(videos[0]))
            return f"<h2>{html.escape(str(videos[0].relative_to(near)))}</h2><div>{pictures}</div>"
    return ""


def _spread(path: Path) -> Iterator[Picture]:
    """Yield a few frames evenly spread over a video, read in order."""
    capture = cv2.VideoCapture(str(path))
    total = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    wanted = set(np.linspace(0, total - 1, min(_STRIP_PICTURES, total)).astype(int).tolist())
    for index in range(total):
        if not capture.grab():
            break
        if index in wanted:
            good, picture = capture.retrieve()
            if good:
                yield picture
    capture.release()


def _inline(picture: Picture) -> str:
    height, width = panel_size(*picture.shape[:2], scale=1.0, max_height=240)
    _, data = cv2.imencode(".jpg", cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


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
