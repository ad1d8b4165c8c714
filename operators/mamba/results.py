"""From detections per row to the operator's output batch: its schema, and the columns built at once at the end.

Knows nothing about streams or memory.
"""

# D detections over all rows of a batch

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from models.mamba.model import Detections

__all__ = ["DETECTION", "Results", "detection_schema"]

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


class Results:
    """Collects what became of each row of one batch. ``latency_ms`` counts from the construction to the row's detection."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._begin = time.perf_counter()
        rows = batch.num_rows
        self._status = ["ok"] * rows
        self._errors: list[str | None] = [None] * rows
        self._kept = np.ones(rows, dtype=bool)
        self._found: dict[int, tuple[Detections, list[int], list[int], float]] = {}

    def reject(self, row: int, status: str, error: str) -> None:
        """Give a row a status and an error, and no detections."""
        self._status[row], self._errors[row] = status, error

    def mark(self, row: int, status: str, error: str) -> None:
        """Give a row a status other than ``ok`` and the reason; its detections may follow."""
        both = [reason for reason in (self._errors[row], error) if reason]
        self._status[row], self._errors[row] = status, "; ".join(both)

    def drop(self, row: int) -> None:
        """Give no output row."""
        self._kept[row] = False

    def found(self, row: int, detections: Detections, bank_size: list[int], keys_used: list[int]) -> None:
        """Take the detections of a row, in pixels of the original image."""
        self._found[row] = detections, bank_size, keys_used, (time.perf_counter() - self._begin) * 1e3
        if self._status[row] == "ok" and detections.scores_D.shape[0] == 0:
            self._status[row] = "no_detection"

    def count(self, status: str) -> int:
        """Return how many rows have this status."""
        return self._status.count(status)

    def batches(self, schema: pa.Schema, model_id: str) -> list[pa.RecordBatch]:
        """Return the output rows in the order of the input: one batch, or none if there is no row."""
        kept = np.flatnonzero(self._kept)
        if not len(kept):
            return []
        keys = self._batch.select([name for name in schema.names[:3]]).take(pa.array(kept))
        found = [self._found.get(row) for row in kept.tolist()]
        missing = pa.array([entry is None for entry in found])
        columns = [
            *keys.columns,
            _detections(
                [entry[0] for entry in found if entry],
                [0 if entry is None else len(entry[0].scores_D) for entry in found],
                missing,
            ),
            pa.array([entry and entry[1] for entry in found], pa.list_(pa.int32())),
            pa.array([entry and entry[2] for entry in found], pa.list_(pa.int32())),
            pa.array([entry and entry[3] for entry in found], pa.float32()),
            pa.array([model_id] * len(kept)),
            pa.array([self._status[row] for row in kept.tolist()]).cast(schema.field("status").type),
            pa.array([self._errors[row] for row in kept.tolist()], pa.string()),
        ]
        return [pa.RecordBatch.from_arrays(columns, schema=schema)]


def _detections(parts: list[Detections], lengths: list[int], missing: pa.Array) -> pa.ListArray:
    """Return the list column; one transfer from the device for all rows."""

    def column(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat(tensors).to("cpu", dtype) if tensors else torch.empty(0, dtype=dtype)

    boxes_D4 = column([part.boxes_D4 for part in parts], torch.float32).reshape(-1, 4)
    arrays = [
        *(pa.array(boxes_D4[:, edge].numpy()) for edge in range(4)),
        pa.array(column([part.scores_D for part in parts], torch.float32).numpy()),
        pa.array(column([part.labels_D for part in parts], torch.int16).numpy()),
    ]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(arrays, fields=list(DETECTION)), type=pa.list_(DETECTION), mask=missing
    )
