"""Frames of several streams, questions, and ``rekv`` with a tiny random model for the tests beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from connectors.records import FRAME, TIME_TYPE
from models.rekv.small import build_small, save_small
from models.tokenizers import WordTokenizer
from operators.base import Context
from operators.questions import QUESTION
from operators.rekv import ReKVOperator, ReKVOptions

STEP_US = 500_000
WORDS = ["watch the video.", "answer:", "which colour is it? when did a red circle come"]
SMALL: dict[str, Any] = {
    "window_tokens": 24,
    "retrieve_frames": 4,
    "sample_fps": None,
    "max_answer_tokens": 5,
    "batch_frames": 1,
    "batch_questions": 1,
    "frames_per_stream": 10,
    "device_gib": 0.01,
}


@cache
def tiny(folder: Path) -> str:
    """Write a model with random weights, large enough that answers depend on the frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        small = build_small(WordTokenizer.of(WORDS), side=16)
        with torch.no_grad():
            for parameter in small.model.model.language_model.layers.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
    save_small(small, folder / "tiny.safetensors")
    return str(folder / "tiny.safetensors")


def operator(checkpoint: str, **options: Any) -> ReKVOperator:
    """Return an operator."""
    return ReKVOperator(ReKVOptions(**(SMALL | {"checkpoint": checkpoint} | options)), Context(name="watch"))


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
