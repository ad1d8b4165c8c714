"""Rows as what Rerun shows: one function per kind of content, whole batches at a time. Knows no files and no epochs.

An entity is ``/STREAM/NODE``; what belongs to one row of it lies below: ``/STREAM/NODE/bank_size``. Time lines: ``event_time``
and ``sequence``.
"""

# R rows, N boxes, P points, H rows and W columns of a picture

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.drawing import class_color, decode_image
from connectors.extras import optional
from connectors.records import KEY_FIELDS, channels_of
from connectors.sinks.annotated_video import class_names

cv2 = optional("cv2")
rr = optional("rerun")

__all__ = ["Looks", "Thumbnails", "log_classes", "log_rows"]

_KEYS = {each.name for each in KEY_FIELDS}
_GOOD = ("ok", "no_detection", "new_episode")
_NOT_SERIES = {"height", "width", "depth_scale", "label", "channels", "sample_rate", "revision", "segment_id", "supersedes"}
_MOST_LINES = 16
"""Numbers of a list that become lines of a series; longer lists are no gauges."""
_WORST_DEPTH = 65535  # "no reading" of 16-bit cameras


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """How rows are shown."""

    min_score: float
    jpeg_quality: int
    points: int
    """Of each depth image, at most."""
    shown: int
    """Retrieved frames of an answer that are shown."""


@dataclass(slots=True)
class Thumbnails:
    """Small pictures of the newest frames of a stream, by time: what retrieved frames are shown by."""

    most: int
    side: int
    times_us: deque[int] = field(default_factory=deque)
    pictures: deque[bytes] = field(default_factory=deque)

    def add(self, time_us: int, picture: npt.NDArray[np.uint8]) -> None:
        """Keep a picture; the oldest one makes room."""
        if self.most == 0 or (self.times_us and time_us <= self.times_us[-1]):
            return
        factor = min(1.0, self.side / max(picture.shape[:2]))
        size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
        self.times_us.append(time_us)
        self.pictures.append(_jpeg(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), 80))
        if len(self.times_us) > self.most:
            self.times_us.popleft()
            self.pictures.popleft()

    def at(self, time_us: int) -> bytes | None:
        """Return the newest picture that is not newer; None where it is no longer kept."""
        place = bisect_right(self.times_us, time_us)
        return self.pictures[place - 1] if place else None


def log_rows(recording: Any, entity: str, batch: pa.RecordBatch, looks: Looks, thumbnails: Thumbnails) -> None:
    """Log the rows of one stream and node at ``entity``."""
    names = set(batch.schema.names)
    if "image" in names:
        _log_frames(recording, entity, batch, looks, thumbnails)
    if "detections" in names:
        _log_boxes(recording, entity, batch, looks)
    if "state" in names:
        _log_states(recording, entity, batch)
    if "image" not in names and "samples" not in names:
        _log_series(recording, entity, batch)
    if {"retrieved", "selected", "selected_times"} & names:
        _log_retrieved(recording, entity, batch, looks, thumbnails)
    if {"answer", "text"} & names:
        _log_answers(recording, entity, batch)
    _log_faults(recording, entity, batch)


def log_classes(recording: Any, entity: str, schema: pa.Schema) -> None:
    """Log the names and colors of a detector's classes; they hold for all time."""
    colors = [class_color(label)[::-1] for label in range(len(class_names(schema)))]
    classes = [
        rr.AnnotationInfo(id=label, label=name, color=color)
        for label, (name, color) in enumerate(zip(class_names(schema), colors, strict=True))
    ]
    if classes:
        recording.log(entity, rr.AnnotationContext(classes), static=True)


def _times(batch: pa.RecordBatch) -> list[Any]:
    """Return the columns of time of a batch."""
    times_us = batch.column("event_time").cast(pa.int64()).to_numpy(zero_copy_only=False)
    return [
        rr.TimeColumn("event_time", timestamp=times_us.astype("datetime64[us]")),
        rr.TimeColumn("sequence", sequence=batch.column("sequence").to_numpy(zero_copy_only=False)),
    ]


def _jpeg(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)


# Frames


def _log_frames(recording: Any, entity: str, batch: pa.RecordBatch, looks: Looks, thumbnails: Thumbnails) -> None:
    """Log pictures as JPEG (PNG and JPEG of the source as they are); with depth a cloud of points and the camera as well."""
    column = batch.column("image")
    encodings = batch.column("encoding").to_pylist()
    sizes = zip(batch.column("height").to_pylist(), batch.column("width").to_pylist(), strict=True)
    times_us = batch.column("event_time").cast(pa.int64()).to_pylist()
    rows, blobs, kinds, pictures = [], [], [], []
    for row, (height, width) in enumerate(sizes):
        data = column[row].as_buffer() if column[row].is_valid else None
        picture = decode_image(data, encodings[row], height, width)
        if picture is None or data is None:
            continue  # its error is told as text
        thumbnails.add(times_us[row], picture)
        whole = encodings[row] in ("jpeg", "png")
        rows.append(row)
        blobs.append(data.to_pybytes() if whole else _jpeg(picture, looks.jpeg_quality))
        kinds.append(f"image/{encodings[row] if whole else 'jpeg'}")
        pictures.append(picture)
    if not rows:
        return
    kept = batch.take(pa.array(rows))
    has_depth = "depth" in batch.schema.names
    shown = f"{entity}/camera" if has_depth else entity
    recording.send_columns(shown, _times(kept), rr.EncodedImage.columns(blob=blobs, media_type=kinds))
    if has_depth:
        _log_depth(recording, entity, kept, pictures, looks)


def _log_depth(
    recording: Any, entity: str, batch: pa.RecordBatch, pictures: Sequence[npt.NDArray[np.uint8]], looks: Looks
) -> None:
    """Log where the camera was and what it saw, in the coordinates of the world; in the camera's where no pose is known."""
    rows, clouds, colors, cameras = [], [], [], []
    for row, (values, picture) in enumerate(zip(batch.to_pylist(), pictures, strict=True)):
        depth_HW = _depth_m(values, picture.shape[:2])
        if depth_HW is None or values["intrinsics"] is None:
            continue
        camera_33 = np.array(values["intrinsics"]).reshape(3, 3)
        pose_44 = np.eye(4) if values["pose"] is None else np.array(values["pose"]).reshape(4, 4)
        points_P3, color_P3 = _points(depth_HW, camera_33, pose_44, picture, looks.points)
        rows.append(row)
        clouds.append(points_P3)
        colors.append(color_P3)
        cameras.append((camera_33, pose_44, picture.shape[:2]))
    if not rows:
        return
    times = _times(batch.take(pa.array(rows)))
    counts = [len(cloud) for cloud in clouds]
    cloud = rr.Points3D.columns(positions=np.concatenate(clouds), colors=np.concatenate(colors))
    recording.send_columns(f"{entity}/points", times, cloud.partition(counts))
    where = f"{entity}/camera"
    poses = np.stack([pose for _, pose, _ in cameras])
    move = rr.Transform3D.columns(translation=poses[:, :3, 3], mat3x3=poses[:, :3, :3].reshape(-1, 9))
    recording.send_columns(where, times, move)
    focal = rr.Pinhole.columns(
        image_from_camera=[camera.ravel() for camera, _, _ in cameras],
        resolution=[(width, height) for _, _, (height, width) in cameras],
    )
    recording.send_columns(where, times, focal)


def _depth_m(values: dict[str, Any], size: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Return depth in meters, NaN where there is no reading; None for a row without depth."""
    data, encoding = values["depth"], values["depth_encoding"]
    if not data or encoding not in ("png", "raw_u16", "raw_f32"):
        return None
    if encoding == "png":
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if raw is None:
            return None
    else:
        kind = "<u2" if encoding == "raw_u16" else "<f4"
        if len(data) != int(np.prod(size[:2])) * np.dtype(kind).itemsize:
            return None
        raw = np.frombuffer(data, kind).reshape(size[:2])
    depth_HW: npt.NDArray[np.float32] = raw.astype(np.float32) / np.float32(values["depth_scale"] or 1.0)
    none_HW = (raw == 0) | ((raw == _WORST_DEPTH) if raw.dtype == np.uint16 else ~np.isfinite(raw))
    depth_HW[none_HW] = np.nan
    return depth_HW


def _points(
    depth_HW: npt.NDArray[np.float32],
    camera_33: npt.NDArray[np.float64],
    pose_44: npt.NDArray[np.float64],
    picture: npt.NDArray[np.uint8],
    most: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return points of the world and their colors, of every n-th row and column so that there are at most ``most``."""
    height, width = depth_HW.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / most))))
    y_P, x_P = (grid.ravel() for grid in np.mgrid[0:height:step, 0:width:step])
    depth_P = depth_HW[y_P, x_P]
    good = np.isfinite(depth_P)
    y_P, x_P, depth_P = y_P[good], x_P[good], depth_P[good]
    ray_P3 = np.stack([x_P, y_P, np.ones_like(x_P)], 1) @ np.linalg.inv(camera_33).T
    seen_P3 = ray_P3 * depth_P[:, None]
    world_P3 = seen_P3 @ pose_44[:3, :3].T + pose_44[:3, 3]
    if picture.shape[:2] != depth_HW.shape:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return world_P3.astype(np.float32), picture[y_P, x_P][:, ::-1]


# Boxes, states, numbers


def _log_boxes(recording: Any, entity: str, batch: pa.RecordBatch, looks: Looks) -> None:
    """Log boxes with their class and score. A row in which nothing was found takes the boxes before it away."""
    column = batch.column("detections")
    kept = batch.filter(column.is_valid())
    if not kept.num_rows:
        return
    names = class_names(batch.schema)
    lists = kept.column("detections")
    flat, row_N = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    xyxy_N4 = np.stack([pc.struct_field(flat, edge).to_numpy(zero_copy_only=False) for edge in ("x1", "y1", "x2", "y2")], 1)
    score_N = pc.struct_field(flat, "score").to_numpy(zero_copy_only=False)
    label_N = pc.struct_field(flat, "label").to_numpy(zero_copy_only=False)
    good_N = (score_N >= looks.min_score) & np.isfinite(xyxy_N4).all(1)
    xyxy_N4, score_N, label_N, row_N = xyxy_N4[good_N], score_N[good_N], label_N[good_N], row_N[good_N]
    words = [
        f"{names[label] if 0 <= label < len(names) else f'class {label}'} {score:.2f}"
        for label, score in zip(label_N.tolist(), score_N.tolist(), strict=True)
    ]
    boxes = rr.Boxes2D.columns(
        centers=(xyxy_N4[:, :2] + xyxy_N4[:, 2:]) / 2,
        half_sizes=(xyxy_N4[:, 2:] - xyxy_N4[:, :2]) / 2,
        labels=words,
        class_ids=label_N.astype(np.uint16),
    )
    counts = np.bincount(row_N, minlength=kept.num_rows)
    recording.send_columns(entity, _times(kept), boxes.partition(counts))


def _log_states(recording: Any, entity: str, batch: pa.RecordBatch) -> None:
    """Log each change of state within the batch, and where it begins; revised rows as they come."""
    levels = batch.column("granularity").to_pylist() if "granularity" in batch.schema.names else [None] * batch.num_rows
    states = batch.column("state").to_pylist()
    revised = batch.column("revision").to_pylist() if "revision" in batch.schema.names else [0] * batch.num_rows
    before: dict[Any, Any] = {}
    rows: dict[Any, list[int]] = {}
    for row, (level, state) in enumerate(zip(levels, states, strict=True)):
        if state is not None and (revised[row] or before.get(level) != state):
            rows.setdefault(level, []).append(row)
        if not revised[row]:
            before[level] = state
    for level, chosen in rows.items():
        where = f"{entity}/state" if level is None else f"{entity}/state/{level}"
        part = batch.take(pa.array(chosen))
        recording.send_columns(where, _times(part), rr.StateChange.columns(state=[str(states[row]) for row in chosen]))


def _log_series(recording: Any, entity: str, batch: pa.RecordBatch) -> None:
    """Log columns of numbers as series: sensors by channel, gauges such as ``bank_size`` by column."""
    channels = channels_of(batch.schema)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in _KEYS or name in _NOT_SERIES or not column.is_valid().to_numpy(zero_copy_only=False).any():
            continue
        if name == "values" and channels is not None:
            _log_channels(recording, entity, batch, channels)
        elif _is_number(column.type):
            there = batch.filter(column.is_valid())
            numbers = there.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
            recording.send_columns(f"{entity}/{name}", _times(there), rr.Scalars.columns(scalars=numbers))
        elif pa.types.is_list(column.type) and _is_number(column.type.value_type):
            _log_list(recording, f"{entity}/{name}", batch, name)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _log_channels(recording: Any, entity: str, batch: pa.RecordBatch, channels: Sequence[str]) -> None:
    lists = batch.column("values")
    whole = batch.filter(pc.equal(pc.list_value_length(lists), len(channels)))
    values = whole.column("values").flatten().to_numpy(zero_copy_only=False).reshape(-1, len(channels))
    for number, channel in enumerate(channels):
        there = np.isfinite(values[:, number])
        part = whole.filter(pa.array(there))
        if part.num_rows:
            line = rr.Scalars.columns(scalars=values[there, number].astype(np.float64))
            recording.send_columns(_child(entity, channel), _times(part), line)


def _log_list(recording: Any, entity: str, batch: pa.RecordBatch, name: str) -> None:
    """Log short lists: one line per place."""
    lengths = pc.list_value_length(batch.column(name))
    part = batch.filter(pc.and_(pc.greater(lengths, 0), pc.less_equal(lengths, _MOST_LINES)).fill_null(False))
    if not part.num_rows:
        return
    column = part.column(name)
    numbers = column.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    counts = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    recording.send_columns(entity, _times(part), rr.Scalars.columns(scalars=numbers).partition(counts))


# Answers


def _log_answers(recording: Any, entity: str, batch: pa.RecordBatch) -> None:
    """Log questions with their answers."""
    name = "answer" if "answer" in batch.schema.names else "text"
    part = batch.filter(batch.column(name).is_valid())
    if not part.num_rows:
        return
    answers = part.column(name).to_pylist()
    asked = part.column("question").to_pylist() if "question" in part.schema.names else [None] * len(answers)
    words = [answer if question is None else f"{question} {answer}" for question, answer in zip(asked, answers, strict=True)]
    recording.send_columns(f"{entity}/answer", _times(part), rr.TextLog.columns(text=words, level=["INFO"] * len(words)))


def _log_retrieved(recording: Any, entity: str, batch: pa.RecordBatch, looks: Looks, thumbnails: Thumbnails) -> None:
    """Log small pictures of the frames that a row rests on, the best first, each at an entity of its own."""
    name = next(name for name in ("retrieved", "selected", "selected_times") if name in batch.schema.names)
    for row, found in enumerate(batch.column(name).to_pylist()):
        if not found:
            continue
        times = _times(batch.slice(row, 1))
        for place, time_us in enumerate(_best(found, looks.shown)):
            picture = thumbnails.at(time_us)
            if picture is not None:
                shown = rr.EncodedImage.columns(blob=[picture], media_type=["image/jpeg"])
                recording.send_columns(f"{entity}/retrieved/{place}", times, shown)


def _best(found: Any, most: int) -> list[int]:
    """Return the times of the best frames, whatever form the list of them has."""
    scored: dict[int, float] = {}

    def take(item: Any) -> None:
        if isinstance(item, list):
            for each in item:
                take(each)
            return
        if isinstance(item, dict):
            time = item.get("event_time") or item.get("start")
            score = item.get("score")
        else:
            time, score = item, None
        if time is not None:
            time_us = int(np.datetime64(time.replace(tzinfo=None), "us").astype(np.int64))
            scored[time_us] = max(scored.get(time_us, -np.inf), -1.0 if score is None else float(score))

    take(found)
    return sorted(scored, key=lambda time_us: (-scored[time_us], -time_us))[:most]


def _log_faults(recording: Any, entity: str, batch: pa.RecordBatch) -> None:
    """Log what was wrong with rows as text."""
    names = batch.schema.names
    if "status" not in names and "error" not in names:
        return
    statuses = batch.column("status").to_pylist() if "status" in names else ["ok"] * batch.num_rows
    errors = batch.column("error").to_pylist() if "error" in names else [None] * batch.num_rows
    rows = [row for row, (status, error) in enumerate(zip(statuses, errors, strict=True)) if error or status not in _GOOD]
    if rows:
        words = [f"{statuses[row]}: {errors[row]}" if errors[row] else str(statuses[row]) for row in rows]
        told = rr.TextLog.columns(text=words, level=["WARN"] * len(rows))
        recording.send_columns(f"{entity}/status", _times(batch.take(pa.array(rows))), told)


def _child(entity: str, name: str) -> str:
    return f"{entity}{rr.new_entity_path([name])}"
