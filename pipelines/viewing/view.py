"""``streambank view``: the results of a pipeline as one HTML page, or drawn onto the video that they came from.

Reads committed rows only. The page is that of ``pipelines.viewing.page``; where rows say in which states streams are, or hold
sound, pages and pictures of their own show these.
"""

# H height, W width

from __future__ import annotations

import base64
import html
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from connectors.canvas import PngCanvas, SvgCanvas
from connectors.charts import write_picture
from connectors.errors import SinkError, SourceError
from connectors.extras import MissingExtra, missing, optional
from connectors.sinks.read import read_committed
from connectors.sinks.staged import encode_name
from pipelines.spec import PipelineSpec
from pipelines.viewing.onto_video import draw_onto, videos_of
from pipelines.viewing.page import document, page
from pipelines.viewing.sounds import draw_sound, has_sound, sounds_of, videos_below
from pipelines.viewing.states import WIDTH, draw, needed, pictures

cv2 = optional("cv2")

__all__ = ["view", "view_pipeline"]

logger = logging.getLogger(__name__)

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
    tables = {name: read_committed(folder) for name, folder in _folders(out).items()}
    if video is not None and not any(map(has_sound, tables.values())):
        return draw_onto(out, video, output or out / "_annotated")
    if not tables:
        raise SourceError(f"{out} holds no committed rows (no part-*.parquet, .arrow or .jsonl); give the 'path' of a sink")
    return _write(out.resolve().name, tables, out, video, output)


def view_pipeline(spec: PipelineSpec, *, video: Path | None = None, output: Path | None = None) -> list[Path]:
    """Make the page of the results of a pipeline, as ``view`` does for a folder; default: beside its sinks' folders."""
    tables = {name: read_committed(folder) for name, folder in spec.folders.items() if _holds_rows(folder)}
    if not tables:
        raise SourceError(f"no sink of {spec.name} holds committed rows; run the pipeline first")
    place = Path(os.path.commonpath([folder.resolve() for folder in spec.folders.values()]))
    return _write(spec.name, tables, place, video, output)


def _write(title: str, tables: Mapping[str, pa.Table], out: Path, video: Path | None, output: Path | None) -> list[Path]:
    """Write the page of what sinks below ``out`` have written, and the pictures of states and sounds."""
    target = out / "_report.html"  # readers of the data set skip names that start with an underscore
    if output is not None:
        target = output if output.suffix == ".html" else output / "report.html"
    place = target.parent
    place.mkdir(parents=True, exist_ok=True)
    media = sorted(path for kind in ("*.mp4", "*.wav") for path in out.rglob(kind) if _is_result(path, out))
    media = [path for path in media if path.suffix == ".wav" or _plays(path)]
    target.write_text(page(title, tables, media, place), encoding="utf-8")
    states = [part for table in tables.values() if (part := needed(table)) is not None]
    sounds = [
        table.select(_SOUND_COLUMNS) for table in tables.values() if has_sound(table) and "channels" in table.column_names
    ]
    videos = videos_of(video) if video is not None else videos_below(out) if sounds else {}
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
    target_page, folder = place / "_sounds.html", place / "_sounds"
    folder.mkdir(parents=True, exist_ok=True)
    parts, written = [f"<h1>{len(found)} streams</h1>"], [target_page]
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
    target_page.write_text(document("sounds", parts), encoding="utf-8")
    return written


def _draw_states(tables: Sequence[pa.Table], place: Path) -> list[Path]:
    """Write a page with a picture of each stream whose states are known, and the pictures."""
    found = pictures(tables)
    if not found:
        return []
    target_page, folder = place / "_states.html", place / "_states"
    parts, written = [f"<h1>{len(found)} streams</h1>"], [target_page]
    for picture in found[:_MOST_STREAMS]:
        surface = SvgCanvas(WIDTH, picture.height)
        draw(picture, surface)
        parts.append(f"<h2>{html.escape(picture.stream)}</h2>{surface.svg()}")
        try:
            drawn = PngCanvas(WIDTH, picture.height)
            draw(picture, drawn)
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / f"{encode_name(picture.stream)}.png"
            write_picture(target, drawn.picture())
            written.append(target)
        except MissingExtra as error:
            logger.warning("view no pictures beside the page: %s", error)
        except OSError as error:
            raise SinkError(f"{error.filename}: cannot write the picture: {error.strerror}") from error
    if len(found) > _MOST_STREAMS:
        parts.append(f"<p>and {len(found) - _MOST_STREAMS:,} more streams</p>")
    target_page.write_text(document("states", parts), encoding="utf-8")
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
