"""Detections as others read them: one row per box with the name of its class, COCO, and those of the package supervision."""

# R rows, D detections

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, nearest
from connectors.extras import MissingExtra
from connectors.sinks.annotated_video import class_names

__all__ = ["coco", "explode", "supervision"]

_EDGES = ("x1", "y1", "x2", "y2")
_KEYS = ("stream_id", "sequence", "event_time")
_ROW = "row"


def explode(rows: pa.Table, *, classes: Sequence[str] | None = None, min_score: float = 0.0) -> pa.Table:
    """Return one row per detection: keys, ``x1 y1 x2 y2`` (px), ``score``, ``label`` and ``class``, its name (null: no name).

    ``classes`` keeps detections of these classes only. Raises ``ConfigError`` for rows that hold no detections, or a class
    that their schema does not name.
    """
    return _boxes(rows, classes, min_score).drop_columns([_ROW])


def coco(rows: pa.Table, *, classes: Sequence[str] | None = None, min_score: float = 0.0) -> dict[str, Any]:
    """Return the detections as COCO annotations, ready for ``json.dump``.

    An image for each row that was looked at, also those in which nothing was found: its ``file_name`` is
    ``STREAM/SEQUENCE``, its size is not known. Category ids are labels + 1. Raises as ``explode``.
    """
    boxes, names = _boxes(rows, classes, min_score), class_names(rows.schema)
    looked_R = rows.column("detections").is_valid().to_numpy()
    image_R = np.cumsum(looked_R)
    looked = rows.select(["stream_id", "sequence"]).filter(pa.array(looked_R)).to_pylist()
    corners_D4 = np.stack([boxes.column(edge).to_numpy().astype(np.float64) for edge in _EDGES], axis=1)
    sides_D2 = corners_D4[:, 2:] - corners_D4[:, :2]
    columns: dict[str, list[Any]] = {
        "id": list(range(1, boxes.num_rows + 1)),
        "image_id": image_R[boxes.column(_ROW).to_numpy()].tolist(),
        "category_id": (boxes.column("label").to_numpy().astype(np.int64) + 1).tolist(),
        "bbox": np.concatenate([corners_D4[:, :2], sides_D2], axis=1).tolist(),
        "area": sides_D2.prod(axis=1).tolist(),
        "iscrowd": [0] * boxes.num_rows,
        "score": boxes.column("score").to_pylist(),
    }
    known = names or [f"class {label}" for label in range(max(columns["category_id"], default=0))]
    return {
        "images": [{"id": n + 1, "file_name": f"{row['stream_id']}/{row['sequence']:06d}"} for n, row in enumerate(looked)],
        "annotations": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(known)],
    }


def supervision(
    rows: pa.Table, *, classes: Sequence[str] | None = None, min_score: float = 0.0
) -> Iterator[tuple[str, int, Any]]:
    """Yield (stream, sequence, ``supervision.Detections``) for each row that was looked at, in the order of the rows.

    Names of classes are in ``data["class_name"]``, where that package's annotators look for them. Raises ``MissingExtra``
    without supervision, and as ``explode``.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise MissingExtra("to_supervision needs supervision, which is not installed; run: pip install supervision") from error
    boxes = _boxes(rows, classes, min_score)
    of_D = boxes.column(_ROW).to_numpy()
    xyxy_D4 = np.stack([boxes.column(edge).to_numpy() for edge in _EDGES], axis=1).astype(np.float32)
    score_D = boxes.column("score").to_numpy()
    label_D = boxes.column("label").to_numpy().astype(np.int64)
    name_D = np.array([name or "" for name in boxes.column("class").to_pylist()], dtype=np.str_)
    keys = zip(rows.column("stream_id").to_pylist(), rows.column("sequence").to_pylist(), strict=True)
    looked_R = rows.column("detections").is_valid().to_pylist()
    first_R = np.searchsorted(of_D, np.arange(rows.num_rows + 1))

    def frames() -> Iterator[tuple[str, int, Any]]:
        for row, (stream, sequence) in enumerate(keys):
            if looked_R[row]:
                here = slice(first_R[row], first_R[row + 1])
                data = {"class_name": name_D[here]}
                found = sv.Detections(xyxy=xyxy_D4[here], confidence=score_D[here], class_id=label_D[here], data=data)
                yield stream, sequence, found

    return frames()


def _boxes(rows: pa.Table, classes: Sequence[str] | None, min_score: float) -> pa.Table:
    """Return what ``explode`` does, and of which row each is."""
    if "detections" not in rows.schema.names:
        raise ConfigError(f"these rows hold no detections; their columns: {', '.join(rows.schema.names)}")
    names = class_names(rows.schema)
    for name in classes or ():
        if name not in names:
            known = ", ".join(names) or "none"
            raise ConfigError(f"there is no class {name!r}{nearest(name, names)}; the weights know: {known}")
    (lists,) = rows.select(["detections"]).combine_chunks().column(0).chunks or [
        pa.array([], rows.schema.field("detections").type)
    ]
    row_D, boxes = pc.list_parent_indices(lists), pc.list_flatten(lists)
    label_D = boxes.field("label")
    named_D = pc.and_(pc.greater_equal(label_D, 0), pc.less(label_D, len(names)))
    index_D = pc.if_else(named_D, label_D.cast(pa.int32()), pa.scalar(None, pa.int32()))
    table = pa.table(
        {
            **{name: rows.column(name).take(row_D) for name in _KEYS},
            **{name: boxes.field(name) for name in (*_EDGES, "score", "label")},
            "class": pa.DictionaryArray.from_arrays(index_D, pa.array(names, pa.string())),
            _ROW: row_D.cast(pa.int64()),
        }
    )
    kept_D = pc.greater_equal(boxes.field("score"), min_score)
    if classes is not None:
        kept_D = pc.and_(kept_D, pc.is_in(index_D, pa.array([names.index(name) for name in classes], pa.int32())))
    return table.filter(kept_D)
