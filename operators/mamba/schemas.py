"""MAMBA's output rows: their schema and statuses, and the columns of detections. Knows no streams and no memory."""

# B rows of a batch, D detections over all rows

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from connectors import records
from operators.streams import STREAM_STATUSES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.mamba.model import Detections

__all__ = ["DETECTION", "STATUSES", "Detected", "detection_columns", "detection_schema"]

STATUSES: Mapping[str, str] = {
    "ok": "detections of the frame",
    "no_detection": "nothing above `score_threshold` was found",
    **STREAM_STATUSES,
}

DETECTION = pa.struct(
    [
        *(records.field(edge, pa.float32(), unit="px") for edge in ("x1", "y1", "x2", "y2")),
        pa.field("score", pa.float32()),
        pa.field("label", pa.int16()),
    ]
)


def detection_schema(classes: Sequence[str], config_hash: str) -> pa.Schema:
    """Return the output schema ``detections.v1``; ``label`` indexes the class names in the metadata ``streambank.classes``."""
    return records.output_schema(
        "detections",
        1,
        [
            pa.field("detections", pa.list_(DETECTION)),
            records.field("bank_size", pa.list_(pa.int32()), unit="rows"),
            records.field("keys_used", pa.list_(pa.int32()), unit="rows"),
            records.field("latency_ms", pa.float32(), unit="ms"),
            pa.field("model_id", pa.string()),
        ],
        {"streambank.classes": json.dumps(list(classes)), "streambank.config": config_hash},
    )


class Detected(NamedTuple):
    """What the detector made of one row."""

    detections: Detections
    """Boxes in pixels of the original image."""
    bank_size: list[int]
    keys_used: list[int]
    latency_ms: float
    """From the start of the call to this row's detections."""


def detection_columns(found: Mapping[int, Detected], rows: int, model_id: str) -> dict[str, pa.Array]:
    """Return the columns of a batch of ``rows`` rows; null in rows of which nothing was ``found``."""
    by_row = [found.get(row) for row in range(rows)]
    return {
        "detections": _detections(by_row),
        "bank_size": pa.array([one and one.bank_size for one in by_row], pa.list_(pa.int32())),
        "keys_used": pa.array([one and one.keys_used for one in by_row], pa.list_(pa.int32())),
        "latency_ms": pa.array([one and one.latency_ms for one in by_row], pa.float32()),
        "model_id": pa.array([model_id] * rows),
    }


def _detections(by_row: Sequence[Detected | None]) -> pa.ListArray:
    """Return the list column; one transfer from the device for all rows."""
    import torch  # schemas and statuses need none

    parts = [one.detections for one in by_row if one is not None]

    def column(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat(tensors).to("cpu", dtype) if tensors else torch.empty(0, dtype=dtype)

    boxes_D4 = column([part.boxes_D4 for part in parts], torch.float32).reshape(-1, 4)
    arrays = [
        *(pa.array(boxes_D4[:, edge].numpy()) for edge in range(4)),
        pa.array(column([part.scores_D for part in parts], torch.float32).numpy()),
        pa.array(column([part.labels_D for part in parts], torch.int16).numpy()),
    ]
    lengths_B = [0 if one is None else len(one.detections.scores_D) for one in by_row]
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths_B)]), pa.int32()),
        pa.StructArray.from_arrays(arrays, fields=list(DETECTION)),
        type=pa.list_(DETECTION),
        mask=pa.array([one is None for one in by_row]),
    )
