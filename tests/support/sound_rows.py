"""Rows of sound for tests of operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.records import PCM, TIME_TYPE
from operators.base import Emitted, Output

__all__ = ["interleaved_sound", "pcm", "rows_of", "tone"]


def tone(count: int, seed: int, rate: int = 22050) -> npt.NDArray[np.int16]:
    """Return mono sound that changes all the time and is not the same for two seeds."""
    t = np.arange(count) / rate
    random = np.random.default_rng(seed)
    sound = sum(np.sin(2 * np.pi * f * t + p) for f, p in random.uniform((150, 0), (3000, 6), (4, 2))) / 8
    return np.asarray((sound * (0.6 + 0.4 * np.sin(9 * t)) + random.normal(0, 0.02, count)) * 32767, np.int16)


def pcm(
    stream: str,
    samples_NC: npt.NDArray[np.generic],
    *,
    rate: int = 22050,
    piece: int = 2000,
    start: int = 0,
    start_us: int = 0,
    kind: pa.DataType | None = None,
) -> pa.RecordBatch:
    """Return rows of ``piece`` moments each of samples [N] or [N, C]."""
    samples_NC = samples_NC[:, None] if samples_NC.ndim == 1 else samples_NC
    parts = [samples_NC[i : i + piece] for i in range(0, len(samples_NC), piece)]
    at = [i for i in range(0, len(samples_NC), piece)]
    kind = kind or pa.int16()
    schema = pa.schema([f if f.name != "samples" else pa.field("samples", pa.list_(kind)) for f in PCM], metadata=PCM.metadata)
    columns = [
        pa.array([stream] * len(parts), pa.string()),
        pa.array([start + i for i in at], pa.int64()),
        pa.array([start_us + round(i * 1e6 / rate) for i in at], TIME_TYPE),
        pa.array([rate] * len(parts), pa.int32()),
        pa.array([samples_NC.shape[1]] * len(parts), pa.int8()),
        pa.array([part.reshape(-1) for part in parts], pa.list_(kind)),
        pa.nulls(len(parts), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def interleaved_sound(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of all batches in the order of time."""
    table = pa.Table.from_batches(batches)
    return table.sort_by([("event_time", "ascending"), ("stream_id", "ascending")]).combine_chunks().to_batches()[0]


def rows_of(emitted: Sequence[Emitted], output: str) -> pa.Table:
    """Return all rows of a named output."""
    parts = [one.batch for one in emitted if isinstance(one, Output) and one.name == output]
    return pa.Table.from_batches(parts) if parts else pa.table({})
