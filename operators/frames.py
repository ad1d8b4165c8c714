"""Frames of many streams as an operator gets them: admitted in the one order of ``operators.base``, decoded where wanted.

Order: error of the source, late or duplicate, no free slot, decoding, then the method's own look at the image. Only a frame
that passes all of them opens a stream, evicts another one or counts as the last of its stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa

from connectors.extras import optional
from operators.images import Image, decode_image
from operators.output import OutputRows
from operators.streams import EVICTED, Refusal, Stream, StreamTable

cv2 = optional("cv2")

__all__ = ["Frame", "admit_frames", "decode_row"]

S = TypeVar("S", bound=Stream)


@dataclass(frozen=True, slots=True)
class Frame(Generic[S]):
    """A frame that counts, or one that is late and shall be answered all the same."""

    row: int
    stream_id: str
    stream: S
    sequence: int
    time_us: int
    image: Image | None
    """None: not wanted, so not decoded."""
    gap_s: float | None = None
    """Seconds since the last frame of the stream; None for the first one."""
    is_late: bool = False


def admit_frames(
    batch: pa.RecordBatch,
    streams: StreamTable[S],
    out: OutputRows,
    *,
    before_eviction: Callable[[S], None],
    wanted: Callable[[S | None, int], bool] = lambda stream, time_us: True,
    problem: Callable[[Image], str | None] = lambda image: None,
    refusal: Callable[[S, int], Refusal | None] = lambda stream, row: None,
    timeless: Collection[int] = (),
    read_late: bool = False,
) -> Iterator[Frame[S]]:
    """Yield the frames of a FRAME batch that count, in order; the others get their status in ``out``.

    Each must be dealt with before the next is asked for. ``wanted`` says from the stream (None: a new one) and the event time
    whether a frame is to be decoded; ``problem`` says what is wrong with an image; ``refusal`` has more to say about a row of a
    known stream. Rows in ``timeless`` (reference frames) have no event time that counts. With ``read_late`` late frames of
    known streams are yielded, too, marked ``late`` and not accepted.
    """
    columns = (batch.column(name).to_pylist() for name in ("stream_id", "sequence", "error"))
    times = batch.column("event_time").cast(pa.int64()).to_pylist()
    for row, (stream_id, sequence, error, time_us) in enumerate(zip(*columns, times, strict=True)):
        if error is not None:
            out.set(row, "rejected_corrupt", error)
            continue
        stream = streams.get(stream_id)
        own_time_us = None if row in timeless else time_us
        refused = streams.no_room(stream_id)
        if stream is not None:
            refused = stream.refusal(sequence, own_time_us) or refusal(stream, row)
        reads = read_late and refused is not None and refused.status in ("late", "duplicate") and own_time_us is not None
        if refused is not None and not reads:
            out.set(row, *refused)
            continue
        image = None
        if wanted(stream, time_us):
            image, reason = decode_row(batch, row)
            reason = reason or (problem(image) if image is not None else None)
            if reason is not None:
                out.set(row, "rejected_corrupt", reason)
                continue
        if stream is not None and refused is not None:
            out.set(row, *refused)
            yield Frame(row, stream_id, stream, sequence, time_us, image, is_late=True)
            continue
        if stream is None:
            stream, was_evicted = streams.open(stream_id, before_eviction)
            if was_evicted:
                out.set(row, "reset", EVICTED)
        gap_s = stream.gap_s(time_us)
        streams.accept(stream_id, sequence, own_time_us)
        yield Frame(row, stream_id, stream, sequence, time_us, image, gap_s)


def decode_row(batch: pa.RecordBatch, row: int) -> tuple[Image | None, str | None]:
    """Decode one frame, or say why not; exactly one of the two is None."""
    image, encoding, height, width = (batch.column(name)[row] for name in ("image", "encoding", "height", "width"))
    if not image.is_valid:
        return None, "the row has no image"
    try:
        decoded = decode_image(image.as_buffer(), encoding.as_py(), height.as_py(), width.as_py())
    except (ValueError, cv2.error) as error:
        return None, str(error)
    return (decoded, None) if decoded.size else (None, "the image has no pixels")
