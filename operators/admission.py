"""The one order in which rows are admitted: error of the source, late or duplicate, no free slot, content, then the method.

Only a row that passes all of it opens a stream, evicts another one, or counts as the last of its stream. Row by row, for rows
that cost a network step each; :meth:`operators.streams.StreamTable.assign` is for many cheap rows.
"""

# R rows of a batch

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa

from operators.output import OutputRows
from operators.streams import EVICTED, NEVER_US, Refusal, Stream, StreamTable

__all__ = ["Admitted", "admit_rows"]

S = TypeVar("S", bound=Stream)
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Admitted(Generic[S, C]):
    """A row that counts, or one that is late and is to be answered all the same."""

    row: int
    stream_id: str
    stream: S
    sequence: int
    time_us: int
    content: C
    gap_s: float | None = None
    """Seconds since the last row of the stream; None for the first one."""
    is_late: bool = False


def admit_rows(
    batch: pa.RecordBatch,
    streams: StreamTable[S],
    out: OutputRows,
    read: Callable[[int, S | None, int], tuple[C, str | None]],
    *,
    before_eviction: Callable[[S], None] = lambda stream: None,
    refusal: Callable[[S, int], Refusal | None] = lambda stream, row: None,
    timeless: Collection[int] = (),
    read_late: bool = False,
) -> Iterator[Admitted[S, C]]:
    """Yield the rows of ``batch`` that count, in order; the others get their status in ``out``.

    Each must be dealt with before the next is asked for. ``read(row, stream, time_us)`` returns a row's content and the
    reason where it is ``rejected_corrupt``; ``stream`` is None for a new one. ``refusal`` has more to say about rows of known
    streams. Rows in ``timeless`` have no event time that counts. With ``read_late`` late rows of streams that have started are
    yielded, too, with their status set and not accepted.
    """
    columns = [batch.column(name).to_pylist() for name in ("stream_id", "sequence")]
    times = batch.column("event_time").cast(pa.int64()).to_pylist()
    has_errors = "error" in batch.schema.names
    errors = batch.column("error").to_pylist() if has_errors else [None] * batch.num_rows
    for row, (stream_id, sequence, time_us, error) in enumerate(zip(*columns, times, errors, strict=True)):
        if error is not None:
            out.set(row, "rejected_corrupt", error)
            continue
        stream = streams.get(stream_id)
        own_time_us = None if row in timeless else time_us
        refused = streams.no_room(stream_id)
        is_late = False
        if stream is not None:
            refused = stream.refusal(sequence, own_time_us) or refusal(stream, row)
            is_late = read_late and refused is not None and own_time_us is not None and stream.last_time_us != NEVER_US
        if refused is not None and not is_late:
            out.set(row, *refused)
            continue
        content, problem = read(row, stream, time_us)
        if problem is not None:
            out.set(row, "rejected_corrupt", problem)
        elif stream is not None and refused is not None:
            out.set(row, *refused)
            yield Admitted(row, stream_id, stream, sequence, time_us, content, is_late=True)
        else:
            if stream is None:
                stream, was_evicted = streams.open(stream_id, before_eviction)
                if was_evicted:
                    out.set(row, "reset", EVICTED)
            gap_s = stream.gap_s(time_us)
            streams.accept(stream_id, sequence, own_time_us)
            yield Admitted(row, stream_id, stream, sequence, time_us, content, gap_s)
