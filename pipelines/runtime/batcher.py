"""Micro-batches over streams: collects rows until a batch is worth a step, and lets no stream crowd out the others.

Knows nothing of operators. Columns only, no loop over rows. Invariants: rows of one stream leave in the order in which they
came; a batch never exceeds ``max_rows``; where more rows wait than fit, every stream gets its first waiting row into the batch
before any stream gets its second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.records import encode_streams

__all__ = ["Batcher"]

_BATCH_BYTES = 64 << 20
"""A batch of this size is worth a step, however few its rows."""

_COPY_BYTES = 1 << 20
"""Where rows are not to wait, a message of this size is a batch on its own: putting it together with others is a copy."""

_LOOK_AHEAD = 2
"""How many batches' worth of rows may wait, so that there is a choice among streams."""


@dataclass(slots=True)
class _Chunk:
    """A message's batch and which of its rows still wait (ascending positions; None: all of them)."""

    batch: pa.RecordBatch
    arrived_s: float
    number: int
    rows: npt.NDArray[np.int64] | None = None
    streams: list[str] | None = None
    codes: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.batch.num_rows if self.rows is None else len(self.rows)

    def encode(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Return distinct streams of the batch, and the codes of the rows that still wait."""
        if self.streams is None or self.codes is None:
            self.streams, self.codes = encode_streams(self.batch.column("stream_id"))
        return self.streams, self.codes if self.rows is None else self.codes[self.rows]


class Batcher:
    """Rows of one input that wait for their step.

    ``max_wait_s`` counts from the arrival of the oldest waiting row; with 0, large batches that fit are passed on as they came
    instead of being put together. ``in_order``: rows leave in the order in which they came over all streams, and no stream is
    preferred. Schemas of all batches must be equal.
    """

    def __init__(self, max_rows: int, max_wait_s: float, *, max_bytes: int = _BATCH_BYTES, in_order: bool = False) -> None:
        self.max_rows = max_rows
        self.rows = 0
        self.bytes = 0
        self._max_wait_s = max_wait_s
        self._max_bytes = max_bytes
        self._in_order = in_order
        self._added = 0
        self._chunks: list[_Chunk] = []

    @property
    def wants_more(self) -> bool:
        """True while taking in another message gives a better batch."""
        return self.rows < _LOOK_AHEAD * self.max_rows and self.bytes < self._max_bytes

    def add(self, batch: pa.RecordBatch, now_s: float) -> None:
        """Take in rows. Keeps a reference to ``batch`` until its last row has left."""
        if batch.num_rows:
            self._chunks.append(_Chunk(batch, now_s, self._added))
            self._added += 1
            self.rows += batch.num_rows
            self.bytes += batch.nbytes

    def due_in(self, now_s: float) -> float | None:
        """Return the seconds until a batch should leave: 0.0 now, None while nothing waits."""
        if not self.rows:
            return None
        if self.rows >= self.max_rows or self.bytes >= self._max_bytes:
            return 0.0
        return max(0.0, self._chunks[0].arrived_s + self._max_wait_s - now_s)

    def oldest_s(self) -> float:
        """Return when the oldest waiting row arrived."""
        return self._chunks[0].arrived_s

    @property
    def added(self) -> int:
        """How many messages with rows have been taken in."""
        return self._added

    @property
    def done(self) -> int:
        """How many of them have left to the last row, counted up to the first that has not."""
        return self._chunks[0].number if self._chunks else self._added

    def holds(self, streams: Iterable[str]) -> set[str]:
        """Return those of ``streams`` that have rows waiting."""
        wanted, found = set(streams), set()
        for chunk in self._chunks:
            names, codes = chunk.encode()
            found |= wanted & {names[code] for code in np.unique(codes)}
        return found

    def take(self) -> pa.RecordBatch:
        """Return the next batch, at most ``max_rows`` rows; copies rows only where a batch is put together from parts."""
        if self.rows <= self.max_rows:
            first = self._chunks[0]
            if self._max_wait_s == 0 and first.batch.nbytes >= _COPY_BYTES:
                del self._chunks[0]
                self.rows -= len(first)
                self.bytes -= first.batch.nbytes
                return self._part(first, None)
            parts = [self._part(chunk, None) for chunk in self._chunks]
            self._chunks, self.rows, self.bytes = [], 0, 0
            return _join(parts)
        chosen = self._choose()
        parts, kept, start = [], [], 0
        for chunk in self._chunks:
            mask = chosen[start : start + len(chunk)]
            start += len(chunk)
            if not mask.any():
                kept.append(chunk)
                continue
            parts.append(self._part(chunk, mask))
            if mask.all():
                self.bytes -= chunk.batch.nbytes
            else:
                rows = np.arange(chunk.batch.num_rows) if chunk.rows is None else chunk.rows
                chunk.rows = rows[~mask]
                kept.append(chunk)
        self._chunks = kept
        self.rows -= self.max_rows
        return _join(parts)

    def _choose(self) -> npt.NDArray[np.bool_]:
        """Mark the ``max_rows`` waiting rows that go first: by their rank within their stream, then by arrival."""
        if self._in_order:
            return np.arange(self.rows) < self.max_rows
        index: dict[str, int] = {}
        parts = []
        for chunk in self._chunks:
            streams, codes = chunk.encode()
            parts.append(np.array([index.setdefault(name, len(index)) for name in streams], np.int64)[codes])
        codes = np.concatenate(parts)
        chosen = np.zeros(len(codes), np.bool_)
        if len(index) == 1:
            chosen[: self.max_rows] = True
            return chosen
        by_stream = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(index))
        starts = np.cumsum(counts) - counts
        rank = np.empty(len(codes), np.int64)
        rank[by_stream] = np.arange(len(codes)) - starts[codes[by_stream]]
        chosen[np.argsort(rank, kind="stable")[: self.max_rows]] = True
        return chosen

    @staticmethod
    def _part(chunk: _Chunk, mask: npt.NDArray[np.bool_] | None) -> pa.RecordBatch:
        """Cut the marked rows out of a chunk: a view where they are contiguous."""
        if chunk.rows is None and mask is None:
            return chunk.batch
        rows = np.arange(chunk.batch.num_rows) if chunk.rows is None else chunk.rows
        if mask is not None:
            rows = rows[mask]
        if rows[-1] - rows[0] + 1 == len(rows):
            return chunk.batch.slice(int(rows[0]), len(rows))
        return chunk.batch.take(pa.array(rows))


def _join(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)
