"""Frames of several streams and questions about them, for tests of operators that watch and answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.records import FRAME, TIME_TYPE
from operators.questions import QUESTION

STEP_US = 500_000


def image(stream: str, sequence: int) -> np.ndarray:
    """Return a frame, different for every stream and number."""
    return np.random.default_rng([sum(stream.encode()), sequence]).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def frames(
    rows: Sequence[tuple[str, int]],
    *,
    images: Sequence[np.ndarray | None] | None = None,
    encoding: str = "raw_rgb8",
    times_us: Sequence[int] | None = None,
) -> pa.RecordBatch:
    """Return a FRAME batch of (stream, sequence) rows."""
    pictures = images if images is not None else [image(*row) for row in rows]
    times = times_us if times_us is not None else [sequence * STEP_US for _, sequence in rows]
    arrays = [
        pa.array([stream for stream, _ in rows], pa.string()),
        pa.array([sequence for _, sequence in rows], pa.int64()),
        pa.array(times, TIME_TYPE),
        pa.array([None if p is None else np.ascontiguousarray(p).tobytes() for p in pictures], pa.binary()),
        pa.array([encoding] * len(rows), pa.string()),
        pa.array([None if p is None else p.shape[0] for p in pictures], pa.int32()),
        pa.array([None if p is None else p.shape[1] for p in pictures], pa.int32()),
        pa.nulls(len(rows), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=FRAME)


def interleaved(streams: Sequence[str], length: int, start: int = 0) -> list[tuple[str, int]]:
    """Return (stream, sequence) rows, one of each stream in turn."""
    return [(stream, sequence) for sequence in range(start, start + length) for stream in streams]


def question(stream: str, text: str | None, *, time_us: int = 0, at_us: int | None = None, **more: Any) -> dict[str, Any]:
    """Return a row for :func:`questions`."""
    return {"stream_id": stream, "event_time": time_us, "question": text, "at": at_us, "max_tokens": None} | more


def questions(rows: Sequence[dict[str, Any]], *extra: pa.Field) -> pa.RecordBatch:
    """Return a batch of control rows, numbered."""
    numbered = [{"sequence": i, "question_id": str(i)} | row for i, row in enumerate(rows)]
    offset = [pa.field("at_offset_s", pa.float64())] if any("at_offset_s" in row for row in rows) else []
    schema = pa.schema([*QUESTION, *offset, *extra])
    return pa.RecordBatch.from_arrays([pa.array([row.get(f.name) for row in numbered], f.type) for f in schema], schema=schema)


def rows_of(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """Return rows as dicts, without what is not repeatable."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    for row in rows:
        row.pop("lag_s")
    return rows
