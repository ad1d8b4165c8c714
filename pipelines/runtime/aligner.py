"""Holds rows back until all inputs of an operator have come as far in event time, then hands them over in one order.

The order is a function of the rows alone, not of their arrival: by spans of event time; within a span the data rows, then the
control rows; within these by node as the pipeline file lists them, then by event time, stream and sequence. A row that comes
behind the watermark of its own input is late: it belongs to the span that the watermark has reached. Knows nothing of
operators, barriers or files; what it holds is bounded by ``ahead``, as long as the rows of one span are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.records import NEVER_US, encode_streams
from pipelines.runtime.messages import END_OF_TIME, Alignment, Close, Data, Edge
from pipelines.runtime.watermarks import event_times

__all__ = ["Aligner", "HandedOver", "HeldRows"]

AHEAD_ROWS = 1 << 16
"""Rows of an input that may wait while the input is ahead of another one."""

AHEAD_BYTES = 64 << 20

Role = Literal["data", "control"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HeldRows:
    """Rows of one input that wait, and for each the span that it belongs to."""

    role: Role
    node: str
    batch: pa.RecordBatch
    spans: Ints


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What the operator gets next."""

    role: Role
    node: str
    body: Data | Close


@dataclass(slots=True)
class _Inflow:
    """One edge: how far it is, since when (on the task's clock), and how much of it waits."""

    edge: Edge
    watermark: int
    moved_s: float
    ended: bool = False
    paused: bool = False
    rows: int = 0
    bytes: float = 0.0


@dataclass(slots=True)
class _Chunk:
    """Rows of one message, or of a former run, that wait. ``spans`` do not have to be in order."""

    batch: pa.RecordBatch
    spans: Ints
    inflow: _Inflow | None


class Aligner:
    """The inputs of one operator shard. ``span_us`` is the length of a span in microseconds.

    An input whose watermark has not moved for ``wait_s``, and of which nothing waits to be taken (``backlog``), does not hold
    the others back until it moves again.
    """

    def __init__(
        self,
        edges: Sequence[Edge],
        *,
        span_us: int,
        wait_s: float,
        clock: Callable[[], float],
        backlog: Callable[[Edge], int],
    ) -> None:
        self.late_rows = 0
        self.held_rows = 0
        self._span_us = span_us
        self._wait_s = wait_s
        self._clock = clock
        self._backlog = backlog
        self._inflows = {edge: _Inflow(edge, NEVER_US, clock()) for edge in edges}
        data_first = sorted(edges, key=lambda edge: edge.role == "control")
        self._chunks: dict[tuple[Role, str], list[_Chunk]] = {(edge.role, edge.source): [] for edge in data_first}
        self._closes: list[tuple[int, str, tuple[str, ...]]] = []  # span, node, streams
        self._released = NEVER_US  # the first span that has not been handed over; less than any span: none has been

    # What comes in

    def add(self, edge: Edge, batch: pa.RecordBatch) -> None:
        """Take in rows. Keeps a reference to ``batch`` until its last row is handed over."""
        if not batch.num_rows:
            return
        inflow = self._inflows[edge]
        spans = event_times(batch) // self._span_us
        reached = self._reached(inflow)
        late = int(np.count_nonzero(spans < reached))
        if late:
            self.late_rows += late
            spans = np.maximum(spans, reached)
        self.held_rows += batch.num_rows
        inflow.rows += batch.num_rows
        inflow.bytes += batch.nbytes
        self._chunks[edge.role, edge.source].append(_Chunk(batch, spans, inflow))

    def close(self, edge: Edge, streams: Sequence[str]) -> None:
        """Take in the end of streams: it comes after their rows and the control rows of the same span."""
        if edge.role == "control":
            return  # the end of a control stream ends no data stream
        span = self._reached(self._inflows[edge])
        wanted = set(streams)
        for chunk in self._chunks[edge.role, edge.source]:
            names, codes = encode_streams(chunk.batch.column("stream_id"))
            ending = np.array([name in wanted for name in names], np.bool_)[codes]
            span = max(span, int(chunk.spans[ending].max(initial=NEVER_US)))
        self._closes.append((span, edge.source, tuple(streams)))

    def advance(self, edge: Edge, watermark_us: int) -> None:
        """Note that no rows before ``watermark_us`` are expected from an edge."""
        inflow = self._inflows[edge]
        if watermark_us == END_OF_TIME:
            inflow.ended = True  # not a place in time: a resumed run may find new files that begin anywhere
        elif watermark_us > inflow.watermark:
            inflow.watermark, inflow.moved_s = watermark_us, self._clock()

    # What goes out

    def release(self) -> list[HandedOver]:
        """Return what all inputs have passed, in order."""
        end = self._end()
        if end <= self._released:
            return []
        self._released = end
        batches: list[pa.RecordBatch | None] = []
        spans: list[Ints] = []
        for chunks in self._chunks.values():
            batch, batch_spans = _cut(chunks, end)
            self.held_rows -= len(batch_spans)
            batches.append(batch)
            spans.append(batch_spans)
        due = sorted((close for close in self._closes if close[0] < end), key=lambda close: close[0])
        self._closes = [close for close in self._closes if close[0] >= end]
        spans.append(np.array([span for span, _, _ in due], np.int64))
        return list(self._interleave(batches, spans, due))

    def _interleave(
        self,
        batches: Sequence[pa.RecordBatch | None],
        spans: Sequence[Ints],
        closes: Sequence[tuple[int, str, tuple[str, ...]]],
    ) -> Iterable[HandedOver]:
        """Yield slices of batches that are in order by span, all batches together by span, then in the order given."""
        inputs = np.repeat(np.arange(len(spans)), [len(part) for part in spans])
        order = np.lexsort((inputs, np.concatenate(spans)))
        turns = inputs[order]
        starts = np.flatnonzero(np.diff(turns, prepend=-1))
        taken = [0] * len(spans)
        keys = list(self._chunks)
        for start, stop in pairwise([*starts.tolist(), len(turns)]):
            number, length = int(turns[start]), stop - start
            begin = taken[number]
            taken[number] += length
            if number == len(keys):
                for _, node, streams in closes[begin : begin + length]:
                    yield HandedOver("data", node, Close(streams))
            else:
                batch = batches[number]
                assert batch is not None  # it has spans
                yield HandedOver(*keys[number], Data(batch.slice(begin, length)))

    @property
    def released_us(self) -> int:
        """The event time before which everything has been handed over, ``NEVER_US`` at first."""
        return max(self._released * self._span_us, NEVER_US)

    @property
    def watermark_us(self) -> int:
        """The event time before which no more rows come from here: ``released_us``, or the end of time after the last row."""
        if all(inflow.ended for inflow in self._inflows.values()) and not self.held_rows:
            return END_OF_TIME
        return self.released_us

    def ahead(self) -> frozenset[Edge]:
        """Return the edges to pause: enough of their rows wait, and they are a span ahead of one that is waited for."""
        behind = min((inflow.watermark for inflow in self._waited_for()), default=END_OF_TIME) // self._span_us
        for inflow in self._inflows.values():
            is_full = inflow.rows > AHEAD_ROWS or inflow.bytes > AHEAD_BYTES
            was_paused, inflow.paused = inflow.paused, is_full and inflow.watermark // self._span_us > behind
            if was_paused and not inflow.paused:
                inflow.moved_s = self._clock()
        return frozenset(edge for edge, inflow in self._inflows.items() if inflow.paused)

    def idle_s(self) -> float | None:
        """Return the seconds until an input will have been silent for so long that it is not waited for; None: never."""
        if self._wait_s == math.inf:
            return None
        now = self._clock()
        waits = [inflow.moved_s + self._wait_s - now for inflow in self._inflows.values() if not inflow.ended]
        return min((wait for wait in waits if wait > 0), default=None)

    # State

    def snapshot(self) -> tuple[Alignment, list[HeldRows]]:
        """Return all there is to know, and the rows that wait, one batch per input at most."""
        alignment = Alignment(
            released_us=None if self._released == NEVER_US else self.released_us,
            closes=[(span * self._span_us, node, streams) for span, node, streams in self._closes],
        )
        held = []
        for (role, node), chunks in self._chunks.items():
            if chunks:
                batch = pa.concat_batches([chunk.batch for chunk in chunks])
                held.append(HeldRows(role, node, batch, np.concatenate([chunk.spans for chunk in chunks])))
        return alignment, held

    def restore(self, alignments: Sequence[Alignment], held: Iterable[HeldRows]) -> None:
        """Go on from the snapshots of however many shards there were; ``held`` and the closes are those of this shard.

        Watermarks are not restored: their senders may have other splits now, and send them again.
        """
        if not alignments:
            return
        released = [NEVER_US if a.released_us is None else a.released_us // self._span_us for a in alignments]
        self._released = min(released)
        self._closes = [
            (time_us // self._span_us, node, tuple(streams)) for a in alignments for time_us, node, streams in a.closes
        ]
        for rows in held:
            self._chunks[rows.role, rows.node].append(_Chunk(rows.batch, rows.spans, None))
            self.held_rows += rows.batch.num_rows

    def _reached(self, inflow: _Inflow) -> int:
        """Return the first span that rows of an input may still belong to."""
        return max(inflow.watermark // self._span_us, self._released)

    def _end(self) -> int:
        """Return the span up to which everything may be handed over now."""
        waited_for = self._waited_for()
        if waited_for:
            behind = min(inflow.watermark for inflow in waited_for)
            return NEVER_US if behind == NEVER_US else behind // self._span_us
        held = [int(chunk.spans.max()) + 1 for chunks in self._chunks.values() for chunk in chunks]
        closes = [span + 1 for span, _, _ in self._closes]
        # So that the last time that is told does not depend on which input ends first.
        reached = [inflow.watermark // self._span_us for inflow in self._inflows.values() if inflow.watermark != NEVER_US]
        return max([*held, *closes, *reached], default=NEVER_US)

    def _waited_for(self) -> list[_Inflow]:
        """Return the inputs that have not ended and are not silent."""
        now = self._clock()
        return [
            inflow
            for inflow in self._inflows.values()
            if not inflow.ended and (inflow.paused or now - inflow.moved_s < self._wait_s or self._backlog(inflow.edge) > 0)
        ]


def _cut(chunks: list[_Chunk], end: int) -> tuple[pa.RecordBatch | None, Ints]:
    """Take the rows before span ``end`` out of chunks; return them in order, with their spans."""
    parts, spans, kept = [], [], []
    for chunk in chunks:
        due = chunk.spans < end
        count = int(np.count_nonzero(due))
        if count == 0:
            kept.append(chunk)
            continue
        if chunk.inflow is not None:
            chunk.inflow.bytes -= chunk.batch.nbytes
            chunk.inflow.rows -= count
        if count == len(due):
            parts.append(chunk.batch)
            spans.append(chunk.spans)
            continue
        parts.append(_take(chunk.batch, np.flatnonzero(due)))
        spans.append(chunk.spans[due])
        rest = _take(chunk.batch, np.flatnonzero(~due))
        kept.append(_Chunk(rest, chunk.spans[~due], chunk.inflow))
        if chunk.inflow is not None:
            chunk.inflow.bytes += rest.nbytes
    chunks[:] = kept
    if not parts:
        return None, np.empty(0, np.int64)
    batch = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
    joined = np.concatenate(spans)
    order = _order(batch, joined)
    return (batch, joined) if order is None else (batch.take(pa.array(order)), joined[order])


def _take(batch: pa.RecordBatch, rows: Ints) -> pa.RecordBatch:
    """Return these rows (ascending): a view where they are contiguous."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return batch.slice(int(rows[0]), len(rows))
    return batch.take(pa.array(rows))


def _order(batch: pa.RecordBatch, spans: Ints) -> Ints | None:
    """Return the order by span, event time, stream and sequence; None where the rows are in it and no two times are equal."""
    times = event_times(batch)
    span_steps, time_steps = np.diff(spans), np.diff(times)
    if np.all((span_steps > 0) | ((span_steps == 0) & (time_steps > 0))):
        return None
    names, codes = encode_streams(batch.column("stream_id"))
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    sequence = batch.column("sequence").to_numpy(zero_copy_only=False)
    order: Ints = np.lexsort((sequence, rank[codes], times, spans))
    return order
