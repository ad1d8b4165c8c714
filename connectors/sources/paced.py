"""Pacing of recorded data: release rows when their event time comes round, against a clock that is passed in.

Works on any replayable reader and knows nothing of formats. The order and content of rows never change, only the moment at
which they are released; the position stays exact when only a part of what was read ahead has been released.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import device_frames
from connectors.base import Position, Reader, Source
from connectors.errors import ConfigError, SourceError
from connectors.options import option

__all__ = ["PacedReader", "ReplayOptions", "open_paced", "rows_within"]

_READ_AHEAD_ROWS = 4096
_READ_AHEAD_BYTES = 8 << 20
"""How much a paced reader holds in advance. Small: at 720p raw this is three frames."""

_STALL_S = 0.5
"""Lag up to which rows are released late but in full; beyond it the replay counts as stalled."""

_TOLERANCE_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Options that every source of recorded data has."""

    pace: str | float = option(
        "max",
        "How fast to replay: 'max', 'realtime' (by event time, per split), or a factor of real time such as 2.0.",
    )
    catch_up: bool = option(
        False,
        "After a stall release everything that fell due at once (true), or go on at the same pace, later (false).",
    )

    def __post_init__(self) -> None:
        if math.isinf(_speed(self.pace)) and self.catch_up:
            raise ConfigError("catch_up: true needs a pace to fall behind of; set pace: realtime or a factor, or leave it out")


def _speed(pace: str | float) -> float:
    """Return the factor of real time that ``pace`` means, infinity for ``max``. Raise ``ConfigError`` if it means none."""
    if pace == "max":
        return math.inf
    if pace == "realtime":
        return 1.0
    if isinstance(pace, int | float) and not isinstance(pace, bool) and 0 < pace < math.inf:
        return float(pace)
    raise ConfigError(f"pace: {pace!r} is not a pace; allowed: 'max', 'realtime', or a factor above 0 such as 2.0")


def open_paced(source: Source, split: str, position: Position | None, clock: Callable[[], float] = time.monotonic) -> Reader:
    """Open a split with the pace that the source's options ask for; the way for an engine to open any source.

    ``clock`` returns monotonic seconds. The returned reader's ``next_due`` says how long to wait before the next ``read``.
    Positions are interchangeable between paces. Raise ``SourceError`` as ``Source.open`` does.
    """
    released = 0
    if position is not None and "released" in position:
        released, position = int(position["released"]), position["chunk"]
    reader = source.open(split, position)
    while released:
        batch = reader.read(released, _READ_AHEAD_BYTES)
        if batch is None:
            reader.close()
            raise SourceError(f"split {split!r} ended {released} rows before the recorded position; has its content changed?")
        released -= batch.num_rows
        device_frames.release(batch)
    factor = _speed(getattr(source.options, "pace", "max"))
    if math.isinf(factor):
        return reader
    return PacedReader(reader, factor, clock, catch_up=getattr(source.options, "catch_up", False))


def rows_within(batch: pa.RecordBatch, start: int, max_rows: int, max_bytes: int) -> int:
    """Return how many rows from ``start`` fit both limits: at least 1, found by halving."""
    rows: int = max(1, min(max_rows, batch.num_rows - start))
    if batch.get_total_buffer_size() <= max_bytes:  # quicker to tell than the size of a slice, which is not more
        return rows
    while rows > 1 and batch.slice(start, rows).nbytes > max_bytes:
        rows //= 2
    return rows


class PacedReader(Reader):
    """Holds back the rows of another reader until their event time is due.

    The first good row is due at once and later ones by their distance in event time, divided by ``factor``. A row whose
    event time lies behind an earlier row's, or which carries an error, is released together with its predecessor.
    """

    def __init__(self, reader: Reader, factor: float, clock: Callable[[], float], *, catch_up: bool) -> None:
        self._reader = reader
        self._factor = factor
        self._clock = clock
        self._catch_up = catch_up
        self._chunk: pa.RecordBatch | None = None
        self._chunk_start: Position = {}
        self._released = 0
        self._due_s: npt.NDArray[np.float64] = np.empty(0)  # per row of the chunk, on the clock's axis less the delay
        self._first_us: int | None = None
        self._latest_us = 0
        self._origin_s = 0.0
        self._delay_s = 0.0

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the rows that are due, in order, or None."""
        if self._chunk is None and not self._fill(max_rows, max_bytes):
            return None
        chunk = self._chunk
        assert chunk is not None
        now_s = self._clock()
        lag_s = now_s - self._delay_s - self._due_s[self._released]
        if lag_s > _STALL_S and math.isfinite(lag_s) and not self._catch_up:
            self._delay_s += lag_s
        due = int(np.searchsorted(self._due_s, now_s - self._delay_s + _TOLERANCE_S, side="right")) - self._released
        if due <= 0:
            return None
        rows = rows_within(chunk, self._released, min(due, max_rows), max_bytes)
        batch = chunk.slice(self._released, rows)
        self._released += rows
        if self._released == chunk.num_rows:
            self._chunk = None
        return batch

    def next_due(self) -> float | None:
        """Return the seconds until the next row is due; 0.0 where only ``read`` can tell."""
        if self._chunk is None:
            return 0.0
        return max(0.0, float(self._due_s[self._released]) + self._delay_s - self._clock())

    def position(self) -> Position:
        """Return the wrapped reader's position, or the start of its last chunk and how many rows of it were released."""
        if self._chunk is None:
            return self._reader.position()
        if self._released == 0:
            return self._chunk_start
        return {"chunk": self._chunk_start, "released": self._released}

    @property
    def unread(self) -> Mapping[str, str]:  # type: ignore[override]
        """Files that the wrapped reader could not read."""
        return self._reader.unread

    def total_rows(self) -> int | None:
        """Return the wrapped reader's estimate."""
        return self._reader.total_rows()

    def close(self) -> None:
        """Close the wrapped reader and drop what was read ahead."""
        self._chunk = None
        self._reader.close()

    def _fill(self, max_rows: int, max_bytes: int) -> bool:
        """Read the next chunk ahead and work out when its rows are due."""
        self._chunk_start = self._reader.position()
        chunk = self._reader.read(min(max_rows, _READ_AHEAD_ROWS), min(max_bytes, _READ_AHEAD_BYTES))
        if chunk is None:
            self.exhausted, self.closes = self._reader.exhausted, self._reader.closes
            return False
        self._chunk, self._released = chunk, 0
        times_us = chunk.column("event_time").cast(pa.int64()).to_numpy()
        errors = chunk.schema.get_field_index("error")
        good = np.ones(chunk.num_rows, bool) if errors < 0 else chunk.column(errors).is_null().to_numpy(zero_copy_only=False)
        self._due_s = np.full(chunk.num_rows, -np.inf)
        if self._first_us is None:
            if not good.any():
                return True
            self._first_us = self._latest_us = int(times_us[good.argmax()])
            self._origin_s = self._clock() - self._delay_s
        reached_us = np.maximum.accumulate(np.maximum(np.where(good, times_us, self._latest_us), self._latest_us))
        self._latest_us = int(reached_us[-1])
        self._due_s = self._origin_s + (reached_us - self._first_us) / (1e6 * self._factor)
        return True
